"""Git's pathspecs, for `data.include` and `data.exclude`, also where there is no git.

    src            a file of that name, or everything below that folder
    *.py           `*` matches any text, slashes too
    :(glob)**/x    `*` stops at slashes, and `**/` is any folders or none
    :!tests        everything but these; `:^` and `:(exclude)` say the same

Magic words: top, icase, literal, glob, exclude. A path begins at its source, so top changes nothing. The rules are
those of git's pathspec.c, dir.c (match_pathspec_item) and wildmatch.c, which see bytes and not characters; the tests
ask `git ls-files`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from contract.errors import InputError

LEFT_OUT = "data.include or data.exclude"  # why a file is left out
KNOWN = ("top", "icase", "literal", "glob", "exclude")
EXPECTED = "a git pathspec such as src, src/**, *.py, :(glob)**/x.py or :!tests, or a list of them"
SHORT = {"/": "top", "!": "exclude", "^": "exclude"}
NO_MAGIC = re.compile(rb"[^!\"#%&',\-/:;<=>@_`~^]")  # what ends short magic without a colon
SPECIAL = re.compile(rb"[*?\[\\]")
CLASSES = {
    "alnum": rb"0-9A-Za-z",
    "alpha": rb"A-Za-z",
    "blank": rb" \t",
    "cntrl": rb"\x00-\x1f\x7f",
    "digit": rb"0-9",
    "graph": rb"!-~",
    "lower": rb"a-z",
    "print": rb" -~",
    "punct": rb"!-/:-@\[-`{-~",
    "space": rb" \t-\r",
    "upper": rb"A-Z",
    "xdigit": rb"0-9A-Fa-f",
}
NEVER = rb"(?!)"


@dataclass(frozen=True)
class Pathspec:
    """One pathspec: whether it excludes, and which paths it matches."""

    text: str  # as given
    excludes: bool
    exact: bytes  # the path of a file or folder; empty: everything
    wild: re.Pattern[bytes] | None
    icase: bool

    def matches(self, path: str) -> bool:
        """Whether a path of a file, relative to the source, is matched."""
        name = path.encode(errors="surrogateescape")
        name = name.lower() if self.icase else name
        below = self.exact if self.exact.endswith(b"/") or not self.exact else self.exact + b"/"
        return name == self.exact or name.startswith(below) or bool(self.wild and self.wild.fullmatch(name))


def parse(text: str, key: str) -> Pathspec:
    """A pathspec as git understands it. Raises InputError, naming the configuration's `key`, for what git refuses."""
    magic, path = _magic(text, key)
    if "literal" in magic and "glob" in magic:
        raise InputError(f"{key} is '{text}', where literal and glob contradict each other. Expected one of them.")
    icase = "icase" in magic
    # What begins at the top is taken as it stands; elsewhere git tidies the path.
    exact = (path if "top" in magic else _normal(path, text, key)).encode(errors="surrogateescape")
    special = None if "literal" in magic else SPECIAL.search(exact)
    wild = None
    if special is not None:
        # Git compares what stands before the first wildcard as it is, and matches from there.
        start = exact[: special.start()]
        pattern = _regex(exact[special.start() :], "glob" in magic, icase)
        wild = re.compile(re.escape(start.lower() if icase else start) + pattern, re.DOTALL)
    return Pathspec(text, "exclude" in magic, exact.lower() if icase else exact, wild, icase)


@dataclass
class Selection:
    """What `data.include` and `data.exclude` choose of the files of every source."""

    include: list[Pathspec]
    exclude: list[Pathspec]
    seen: int = 0
    chosen: int = 0
    unmatched: set[str] = field(default_factory=set)  # of `include`: those that matched nothing yet

    @classmethod
    def of(cls, include: Any = None, exclude: Any = None) -> "Selection":
        """From the two settings, each a text, a list or None. Raises InputError for what is no pathspec."""
        given = _parsed(include, "data.include")
        without = _parsed(exclude, "data.exclude")
        if wrong := next((spec.text for spec in without if spec.excludes), None):
            raise InputError(f"data.exclude has '{wrong}', which excludes already. Expected it without ':!'.")
        chosen = [spec for spec in given if not spec.excludes]
        left_out = [spec for spec in given if spec.excludes] + without
        return cls(chosen, left_out, unmatched={spec.text for spec in chosen})

    def leaves_out(self, path: str) -> bool:
        """Whether a file, by its path inside its source, is not chosen."""
        matching = [spec for spec in self.include if spec.matches(path)]
        self.unmatched.difference_update(spec.text for spec in matching)
        out = (bool(self.include) and not matching) or any(spec.matches(path) for spec in self.exclude)
        self.seen += 1
        self.chosen += not out
        return out

    def check(self) -> None:
        """Raise InputError where files were seen and none was chosen: which pathspecs matched nothing, or too much."""
        if not self.seen or self.chosen:
            return
        if self.unmatched:
            names = ", ".join(f"'{spec.text}'" for spec in self.include if spec.text in self.unmatched)
            raise InputError(
                f"data.include has {names}, which matches none of the {self.seen} files of code. Expected {EXPECTED}; "
                "paths begin at the source."
            )
        names = ", ".join(f"'{spec.text}'" for spec in self.exclude)
        raise InputError(
            f"data.exclude has {names}, which leaves none of the {self.seen} files of code. Expected less."
        )


def _parsed(value: Any, key: str) -> list[Pathspec]:
    specs: Sequence[Any] = [] if value is None else value if isinstance(value, list) else [value]
    for spec in specs:
        if not isinstance(spec, str) or not spec:
            raise InputError(f"{key} is {value!r}. Expected {EXPECTED}.")
    return [parse(spec, key) for spec in specs]


def _magic(text: str, key: str) -> tuple[set[str], str]:
    """The magic words of a pathspec, and what follows them."""
    if not text.startswith(":"):
        return set(), text
    if text.startswith(":("):
        words, closed, path = text[2:].partition(")")
        magic = {word for word in words.split(",") if word}
        if not closed or not magic <= set(KNOWN):
            wrong = f"the unknown magic '{min(magic - set(KNOWN))}'" if closed else "no ')'"
            raise InputError(f"{key} is '{text}', which has {wrong}. Expected :(…) with {', '.join(KNOWN)}.")
        return magic, path
    magic, rest = set(), text[1:]
    while rest and not NO_MAGIC.match(rest[0].encode(errors="surrogateescape")):
        sign, rest = rest[0], rest[1:]
        if sign == ":":
            break
        if sign not in SHORT:
            raise InputError(f"{key} is '{text}', which has the unknown magic '{sign}'. Expected {EXPECTED}.")
        magic.add(SHORT[sign])
    return magic, rest


def _normal(path: str, text: str, key: str) -> str:
    """The path without `.`, `..` and doubled slashes; a slash at its end stays."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if path.startswith("/") or ".." in parts:
        raise InputError(
            f"{key} is '{text}', which leads out of the source. Expected a path that begins at the source."
        )
    ends = path.endswith(("/", "/.", "/.."))
    return "/".join(parts) + ("/" if ends and parts else "")


def _regex(pattern: bytes, glob: bool, icase: bool) -> bytes:
    """A pattern of wildmatch.c as a regular expression; `glob` is its WM_PATHNAME, `icase` its WM_CASEFOLD."""
    found, at = b"", 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        if char == b"*":
            end = at + len(pattern[at:]) - len(pattern[at:].lstrip(b"*"))
            bounded = end - at > 1 and (at == 0 or pattern[at - 1 : at] == b"/")
            if not glob:
                found, at = found + b".*", end
            elif bounded and pattern[end : end + 1] == b"/":
                found, at = found + b"(?:.*/)?", end + 1
            elif bounded and (end == len(pattern) or pattern[end : end + 2] == b"\\/"):
                found, at = found + b".*", end
            else:
                found, at = found + b"[^/]*", end
        elif char == b"?":
            found, at = found + (b"[^/]" if glob else b"."), at + 1
        elif char == b"[":
            inside, at = _class(pattern, at + 1, icase)
            found += (b"(?!/)" if glob else b"") + inside
        else:
            if char == b"\\":
                at += 1
                char = pattern[at : at + 1]
                if not char:
                    return NEVER
            found, at = found + re.escape(char.lower() if icase else char), at + 1
    return found


def _class(pattern: bytes, at: int, icase: bool) -> tuple[bytes, int]:
    """A `[…]` from behind its bracket on, and where it ends. Without an end, or with an unknown name, never matches."""
    none, members, previous = (NEVER, len(pattern)), b"", b""
    negated = pattern[at : at + 1] in (b"!", b"^") and at < len(pattern)
    at += negated
    first = True
    while first or pattern[at : at + 1] != b"]":
        first = False
        char, after = pattern[at : at + 1], pattern[at + 1 : at + 2]
        if not char:
            return none
        if char == b"-" and previous and after and after != b"]":
            at += 1
            if after == b"\\":
                at += 1
            last = pattern[at : at + 1]
            if not last:
                return none
            members += _range(previous, last, icase)
            previous = b""
        elif char == b"[" and after == b":" and (name := _class_name(pattern, at)) is not None:
            text, end = name
            if text not in CLASSES:
                return none
            members += CLASSES[text] + (b"a-z" if icase and text == "upper" else b"")
            at, previous = end, b""
        else:
            if char == b"\\":
                at += 1
                char = pattern[at : at + 1]
                if not char:
                    return none
            members, previous = members + re.escape(char), char
        at += 1
    return b"[" + (b"^" if negated else b"") + members + b"]" if members else b"." if negated else NEVER, at + 1


def _range(first: bytes, last: bytes, icase: bool) -> bytes:
    """The members from `first` to `last`; as wildmatch folds them, a small letter stands for its large one too."""
    chosen = set(range(first[0], last[0] + 1))
    if icase:
        chosen |= {code + 32 for code in chosen if 65 <= code <= 90}
    return b"".join(re.escape(bytes([code])) for code in sorted(chosen))


def _class_name(pattern: bytes, at: int) -> tuple[str, int] | None:
    """The name in a `[:name:]` that begins there, and its last character; None where it is not closed with `:]`."""
    end = pattern.find(b"]", at + 2)
    if end < 0:
        return "", len(pattern)
    if end - at < 4 or pattern[end - 1 : end] != b":":
        return None
    return pattern[at + 2 : end - 1].decode(errors="replace"), end
