"""What an editor knows around its cursor, as one text: neutral, and as a model expects it.

The neutral text is how data and requests write it, whatever model reads it:

    <file_sep>lib/other.py
    … pieces of other files …<file_sep>app/this.py
    <fim_prefix>… before the cursor …<fim_suffix>… after it …<fim_middle>

Without something after the cursor the last line is just what is before it, and without a path no `<file_sep>` is there.
`render` turns that into what the model was trained on: its own tokens in the order prefix, suffix, middle (PSM, as
StarCoder made common), where it has any. A model without them reads plain text, and is asked with the suffix first and
the prefix last (SPM, Bavarian et al. 2022): it goes on with what stands before the cursor, as it does anyway.
"""

from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

NEUTRAL = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
KNOWN = (
    NEUTRAL,  # StarCoder, StarCoder2, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
FILE = "<file_sep>"  # before a file's path; neutral, and StarCoder2's and SmolLM2's
KNOWN_FILE = (FILE, "<|file_sep|>", "<filename>", "<|file_separator|>")  # Qwen2.5-Coder, StarCoder, CodeGemma
# How a comment begins that names a file, for models without a token for it.
COMMENTS = {
    **dict.fromkeys((".py", ".pyi", ".rb", ".sh", ".bash", ".yaml", ".yml", ".toml", ".r", ".pl", ""), "#"),
    **dict.fromkeys((".sql", ".lua", ".hs"), "--"),
}


class File(NamedTuple):
    """A piece of another file."""

    path: str
    text: str


class Context(NamedTuple):
    """The text before the cursor and, where it is a gap, after it; the file's path; pieces of other files."""

    prefix: str
    suffix: str | None = None
    path: str = ""
    others: tuple[File, ...] = ()


def write(context: Context) -> str:
    """As neutral text."""
    text = context.prefix if context.suffix is None else fill(context.prefix, context.suffix, NEUTRAL)
    files = "".join(f"{FILE}{path}\n{piece}" for path, piece in context.others)
    return files + (f"{FILE}{context.path}\n{text}" if context.path else text)


def read(text: str) -> Context:
    """What `write` was given; any other text is a prefix alone."""
    *others, last = text.removeprefix(FILE).split(FILE)
    path = ""
    if text.startswith(FILE):
        path, _, last = last.partition("\n")
    gap = parts(last, NEUTRAL)
    prefix, suffix = gap if gap is not None else (last, None)
    if others and not text.startswith(FILE):
        return Context(text)
    return Context(prefix, suffix, path, tuple(File(*_named(piece)) for piece in others))


def _named(piece: str) -> tuple[str, str]:
    path, _, text = piece.partition("\n")
    return path, text


def prompt(prefix: str, suffix: str) -> str:
    """The neutral text of a gap."""
    return fill(prefix, suffix, NEUTRAL)


def fill(prefix: str, suffix: str, own: tuple[str, str, str]) -> str:
    """The prompt of a gap, in a model's own markers."""
    return f"{own[0]}{prefix}{own[1]}{suffix}{own[2]}"


def parts(text: str, own: tuple[str, str, str]) -> tuple[str, str] | None:
    """(prefix, suffix) of a gap's prompt in a model's own markers; None for any other text."""
    before, after, middle = own
    if not (text.startswith(before) and text.endswith(middle)):
        return None
    prefix, found, suffix = text[len(before) : len(text) - len(middle)].partition(after)
    return (prefix, suffix) if found else None


def is_prompt(text: str) -> bool:
    """Whether a text is a gap's, in neutral markers."""
    return read(text).suffix is not None


@lru_cache(maxsize=8)  # a vocabulary is made anew each time that it is asked for
def tokens(tokenizer: Any) -> tuple[str, str, str] | None:
    """The tokenizer's own three tokens, or None where it has none."""
    vocabulary = tokenizer.get_vocab()
    return next((known for known in KNOWN if all(token in vocabulary for token in known)), None)


@lru_cache(maxsize=8)
def file_token(tokenizer: Any) -> str | None:
    """The tokenizer's own token before a file's path, or None where it has none."""
    vocabulary = tokenizer.get_vocab()
    return next((known for known in KNOWN_FILE if known in vocabulary), None)


def may_hold_gaps(text: str) -> bool:
    """Whether no marker of any model's gaps stands in a text: a prompt would then have one marker twice."""
    return not any(marker in text for markers in KNOWN for marker in markers)


def render(text: str, tokenizer: Any) -> str:
    """A neutral text as this tokenizer's model expects it; any other text as it is."""
    return rendered(read(text), tokenizer)


def rendered(context: Context, tokenizer: Any) -> str:
    """A context as this tokenizer's model expects it."""
    own, separator = tokens(tokenizer), file_token(tokenizer)
    before = "".join(_head(path, separator) + _whole_lines(piece) for path, piece in context.others)
    head = _head(context.path, separator) if context.path else ""
    if context.suffix is None:
        return f"{before}{head}{context.prefix}"
    if own is None:
        return f"{before}{NEUTRAL[1]}{_whole_lines(context.suffix)}{NEUTRAL[2]}{head}{context.prefix}"
    if separator is None:  # the comment is a line of the file
        return before + fill(head + context.prefix, context.suffix, own)
    if own == NEUTRAL and separator == FILE and head:  # as StarCoder2 has it
        return f"{before}{separator}" + fill(head.removeprefix(separator) + context.prefix, context.suffix, own)
    return before + head + fill(context.prefix, context.suffix, own)


def _head(path: str, separator: str | None) -> str:
    if separator is not None:
        return f"{separator}{path}\n"
    return f"{COMMENTS.get(PurePosixPath(path).suffix.lower(), '//')} {path}\n"


def _whole_lines(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
