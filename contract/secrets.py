"""Secrets in source code, found by detect-secrets, to be overwritten: what a model learns, it can say."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

# All of detect-secrets but public IP addresses, which are no secret, and private keys, see KEY_BLOCK.
PLUGINS = (
    *("ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "CloudantDetector"),
    *("DiscordBotTokenDetector", "GitHubTokenDetector", "GitLabTokenDetector", "IbmCloudIamDetector"),
    *("IbmCosHmacDetector", "JwtTokenDetector", "KeywordDetector", "MailchimpDetector", "NpmDetector"),
    *("OpenAIDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector", "SoftlayerDetector"),
    *("SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector"),
)
# Its filters of false alarms that look at the value alone.
FILTERS = (
    *("is_sequential_string", "is_potential_uuid", "is_likely_id_string", "is_templated_secret"),
    *("is_prefixed_with_dollar_sign", "is_indirect_reference", "is_not_alphanumeric_string"),
)
ENTROPY_LIMITS = {"Base64HighEntropyString": 4.5, "HexHighEntropyString": 3.0}  # bits a character; their defaults
# Only such lines can hold one: a long run of token characters, or a word that announces it. One line in ten.
SUSPICIOUS = re.compile(r"[A-Za-z0-9+/=_.-]{16,}|://|PuTTY|key|pass|pwd|secret|token|contrase|auth", re.IGNORECASE)
# Where on its line a value stands: between quotes, or in a URL; the same word elsewhere is code.
QUOTED, IN_URL = r"(?<=['\"`]){}(?=['\"`](?!\s*:))", r"(?<=:){}(?=@)"
PLACES = {
    "Secret Keyword": QUOTED,
    "Base64 High Entropy String": QUOTED,
    "Hex High Entropy String": QUOTED,
    "Basic Auth Credentials": IN_URL,
}
# Of a token, what is reported may be a part (`ghp` of GitHub's): the rest goes with it.
TOKEN = re.compile(r"[A-Za-z0-9_.+/=-]+")
TOKEN_START = re.compile(r".*[^A-Za-z0-9_-]", re.DOTALL)  # all that is before it in such a run
# A private key: its first line, lines of base64 or headers, be they joined in source code, and its last line.
_HEADER = r"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset): [^\n\"'\\]*"
_BETWEEN = r"(?:\\[nrt]|[\s\"'+,()])*"
KEY_BLOCK = re.compile(
    rf"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:{_BETWEEN}(?:[A-Za-z0-9+/=]{{32,}}|{_HEADER}))+"
    rf"(?:{_BETWEEN}[A-Za-z0-9+/=]*{_BETWEEN}-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?"
)

REDACTED = "REDACTED"


class Secret(NamedTuple):
    """Where in a text a secret stands: characters `start` to `end`, on `line` (from 1)."""

    start: int
    end: int
    line: int
    type: str


class Redactor:
    """Finds secrets. Use it as a context: detect-secrets' settings are global to the process."""

    def __enter__(self) -> Self:
        limits = [{"name": name, "limit": limit} for name, limit in ENTROPY_LIMITS.items()]
        plugins = [*({"name": name} for name in PLUGINS), *limits]
        filters = [{"path": f"detect_secrets.filters.heuristic.{name}"} for name in FILTERS]
        self._settings = transient_settings({"plugins_used": plugins, "filters_used": filters})
        self._settings.__enter__()
        self._folder = tempfile.TemporaryDirectory(prefix="ratchet-secrets-")
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()
        self._settings.__exit__(*error)  # type: ignore[arg-type]

    def find(self, text: str, suffix: str = ".py") -> list[Secret]:
        """The secrets in a text, in order, none within another. `suffix`: of a file of its language."""
        found = [
            Secret(match.start(), match.end(), text.count("\n", 0, match.start()) + 1, "Private Key")
            for match in (KEY_BLOCK.finditer(text) if "PRIVATE KEY" in text else ())
        ]
        lines = text.split("\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        numbers = [number for number, line in enumerate(lines) if SUSPICIOUS.search(line)]
        for number, kind, value in self._scan([lines[number] for number in numbers], suffix) if numbers else ():
            row = numbers[number]
            found += [
                Secret(starts[row] + start, starts[row] + end, row + 1, kind)
                for start, end in _places(lines[row], value, kind)
            ]
        apart: list[Secret] = []
        for secret in sorted(found, key=lambda secret: (secret.start, -secret.end)):
            if not apart or secret.start >= apart[-1].end:
                apart.append(secret)
            elif secret.end > apart[-1].end:
                apart[-1] = apart[-1]._replace(end=secret.end)
        return apart

    def _scan(self, lines: Sequence[str], suffix: str) -> Iterator[tuple[int, str, str]]:
        """(number of the line, type, value) of what detect-secrets finds."""
        # By the suffix it knows how assignments look; in Go it looks for := alone, and a struct has a colon.
        for known in {".go": (".go", ".py")}.get(suffix, (suffix if suffix in (".java", ".js") else ".py",)):
            path = Path(self._folder.name) / f"code{known}"
            with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.writelines(line.replace("\r", " ") + "\n" for line in lines)
            for secret in scan_file(str(path)):
                if secret.secret_value:
                    yield secret.line_number - 1, secret.type, secret.secret_value


def _places(line: str, value: str, kind: str) -> Iterator[tuple[int, int]]:
    """Where on a line (start, end) a value stands."""
    if kind in PLACES:
        yield from (match.span() for match in re.finditer(PLACES[kind].format(re.escape(value)), line))
        return
    for run in TOKEN.finditer(line):
        if (position := run[0].find(value)) >= 0:
            before = TOKEN_START.match(run[0], 0, position)
            yield run.start() + (before.end() if before else 0), run.end()


def overwrite(text: str, secrets: Sequence[Secret], offset: int = 0) -> str:
    """The text with REDACTED in the place of each secret; `offset`: where in the searched text this one begins."""
    for secret in reversed(secrets):
        text = text[: secret.start - offset] + REDACTED + text[secret.end - offset :]
    return text
