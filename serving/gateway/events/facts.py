"""The small facts of a completion, which are kept of each one."""

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

# Languages by a file's suffix: a label of metrics, so there are few, and `other`.
LANGUAGES = {
    **dict.fromkeys((".py", ".pyi", ".ipynb"), "python"),
    **dict.fromkeys((".js", ".jsx", ".mjs", ".cjs"), "javascript"),
    **dict.fromkeys((".ts", ".tsx", ".mts", ".cts"), "typescript"),
    **dict.fromkeys((".c", ".h"), "c"),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"), "cpp"),
    **dict.fromkeys((".kt", ".kts"), "kotlin"),
    **dict.fromkeys((".sh", ".bash"), "shell"),
    ".cs": "csharp",
    ".go": "go",
    ".java": "java",
    ".php": "php",
    ".rb": "ruby",
    ".rs": "rust",
    ".sql": "sql",
    ".swift": "swift",
}
OTHER = "other"
# What clients call languages otherwise: VS Code's identifiers.
ALIASES = {"javascriptreact": "javascript", "typescriptreact": "typescript", "shellscript": "shell", "c++": "cpp"}
TRACE = "tr-"


@dataclass(frozen=True)
class Completion:
    """One answered request. `id`: its kind, a dash and 32 hex digits, which are those of its trace too."""

    id: str
    request_id: str
    path: str  # of the request
    user: str
    model: str
    version: str
    run_id: str
    models_id: str
    language: str
    repository: str
    began_ns: int  # since 1970
    ended_ns: int
    prompt_tokens: int
    completion_tokens: int
    queue_s: float
    first_token_s: float
    choices: list[int]  # the characters of each of its texts
    prompt_hash: str
    completion_hash: str
    cut_off: bool
    trains: bool = False  # whether models may be trained on it, once it was accepted
    # Of a request of a trial (contract/trials.py).
    trial: str = ""
    arm: str = ""
    share: float = 0.0
    unit: str = ""
    outcome: str = ""
    texts: dict[str, Any] = field(default_factory=dict)  # `inputs` and `outputs`, where they are sampled

    @property
    def characters(self) -> int:
        return sum(self.choices)

    @property
    def seconds(self) -> float:
        """From the request to the end of its answer."""
        return max(0.0, (self.ended_ns - self.began_ns) / 1e9)

    @property
    def trace_id(self) -> str:
        return trace_id(self.id)


def trace_id(completion: str) -> str:
    """The id of a completion's trace, without asking anybody."""
    return TRACE + completion.rpartition("-")[2]


def repository_of(url: str) -> str:
    """A repository by its URL, without who asks for it: that may be a password."""
    if "://" in url:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"
    user, at, rest = url.rpartition("@")
    return url if user == "git" or not at else rest


def language_of(path: str, said: str = "") -> str:
    """A language's name by what the client says, else by the file's suffix; empty where neither is known."""
    name = ALIASES.get(said.lower(), said.lower())
    if name:
        return name if name in LANGUAGES.values() else OTHER
    suffix = PurePosixPath(path.replace("\\", "/")).suffix.lower()
    return LANGUAGES.get(suffix, OTHER) if suffix else ""


def digest(text: str) -> str:
    """By which a text is found again, as 16 hex digits; line ends and spaces at its ends do not count."""
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode("utf-8", "replace")).hexdigest()[:16]
