"""Code as a string of one character a token, so that edit distances of strings are edit distances of tokens.

    spell("a = b")                             # every token, as it stands
    fold("def f(x: int): ...", "python")       # what is left where names, types, comments and layout do not count
    tokens("def f(x: int): ...", "python")     # the same before names are numbered

By patterns and no parser: a part of a function folds as well as a file, in all languages, at 1 MB a second.
"""

import keyword
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache

NAMES = 2048  # characters for identifiers: the last of the range, below the surrogates
WORDS = 0xD800 - NAMES  # characters for all other tokens, by hash

# Not renamed: what makes the structure. None stands for the others' null, see SAME.
PYTHON_KEYWORDS = {*keyword.kwlist, "self"}
_OTHERS = """
    None as break case catch class const continue default delete do else enum export extends false finally fn for func
    function go goto if impl implements import in instanceof interface let loop match mod mut new null package pub
    return self Self static struct super switch this throw throws trait true try typeof undefined use var void where
    while yield
"""
KEYWORDS = set(_OTHERS.split())
# Say nothing about what the code does: twins differ by them.
DROPPED = {";", "async", "await", "export", "public", "private", "protected", "readonly", "override", "abstract"}
SAME = {"let": "var", "const": "var", "undefined": "None", "null": "None", "nil": "None"}
OPEN, CLOSE = {"(", "[", "{"}, {")", "]", "}"}
CONTROL = {"if", "for", "while", "switch", "catch", "with", "return"}  # their parentheses hold no parameters
TYPE_PREFIXES = {"typeof", "keyof", "readonly", "asserts", "infer", "new", "unique"}
TYPE_JOINTS = {"|", "&", "is", "extends", "=>"}

_TRIPLE = r"[rRbBuUfF]{0,2}(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?''')"
_QUOTED = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
_REST = r"(?P<word>[\w$]+)|(?P<line>\n)|(?P<sign>=>|->|[^\w\s])"
_C_COMMENT = r"(?P<comment>//[^\n]*|/\*.*?\*/)"
_PYTHON = rf"(?P<comment>#[^\n]*)|(?P<string>{_TRIPLE}|[rRbBuUfF]{{0,2}}(?:{_QUOTED}))|{_REST}"
_SCRIPT = rf"{_C_COMMENT}|(?P<string>{_QUOTED}|`(?:\\.|[^`\\])*`)|{_REST}"
# Rust has 'a for lifetimes, Java """ for blocks.
_OTHER = re.compile(
    rf"{_C_COMMENT}|(?P<string>\"\"\".*?\"\"\"|\"(?:\\.|[^\"\\])*\"|'(?:\\.[^'\n]*|[^'\\\n])'|`[^`]*`)|{_REST}",
    re.DOTALL,
)
_PATTERNS = {"python": re.compile(_PYTHON, re.DOTALL)}
_PATTERNS |= dict.fromkeys(("javascript", "typescript", "tsx"), re.compile(_SCRIPT, re.DOTALL))
_SPELLED = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"(?!\d)[\w$]+")


def spell(text: str) -> str:
    """One character for each word or sign of a text, those of comments and strings too."""
    return characters(_SPELLED.findall(text))


def characters(found: Iterable[str]) -> str:
    """One character for each token, by hash: the same for the same token, and hardly ever for two."""
    return "".join(map(_character, found))


def fold(text: str, language: str) -> tuple[str, str]:
    """One character for each of `tokens`, twice: with each identifier by its number, and by its recency.

    Its number is that of first appearances; its recency, how many others were used since it last was. Two functions
    that differ by a consistent renaming fold to the same. Where they differ in more, one of the two shows better how
    much they have in common: one name more, and all later numbers move; two names swapped, and many recencies do.
    Literals and keywords stay what they are. Text that is no code folds to what `spell` gives.
    """
    if language == "text":
        return (spell(text),) * 2
    numbers: dict[str, int] = {}
    recent: list[str] = []  # the name that was used last in front
    numbered, ranked = [], []
    for token in tokens(text, language):
        if not _is_name(token, language):
            numbered.append(_character(token))
            ranked.append(numbered[-1])
            continue
        rank = 0
        if token in numbers:
            rank = recent.index(token) + 1
            recent.pop(rank - 1)
        recent.insert(0, token)
        numbered.append(chr(WORDS + numbers.setdefault(token, len(numbers)) % NAMES))
        ranked.append(chr(WORDS + rank % NAMES))
    return "".join(numbered), "".join(ranked)


def tokens(text: str, language: str) -> list[str]:
    """The tokens of code that say what it does: without comments, docstrings, types, `async`, `export`, semicolons.

    Of a string, the words are tokens of their own, each with a quote before it. `let` and `const` are `var`.
    """
    found = _lex(text, language)
    if language == "python":
        found = _without_python_types(found)
    elif language in ("typescript", "tsx", "javascript"):
        found = _without_script_types(found)
    kept: list[str] = []
    for token in found:
        if token[0] == "'":
            kept += ["'", *(f"'{part}" for part in _SPELLED.findall(token)[1:]), "'"]
        elif token != "\n" and token not in DROPPED:
            if kept and token in CLOSE and kept[-1] == ",":
                kept.pop()
            kept.append(SAME.get(token, token))
    return kept


def _is_name(token: str, language: str) -> bool:
    return token not in (PYTHON_KEYWORDS if language == "python" else KEYWORDS) and _WORD.fullmatch(token) is not None


@lru_cache(1 << 16)
def _character(token: str) -> str:
    return chr(1 + zlib.crc32(token.encode("utf-8", "surrogatepass")) % (WORDS - 1))


def _lex(text: str, language: str) -> list[str]:
    """Words and signs, and line ends of Python; strings begin with one single quote and have none at their end."""
    is_python = language == "python"
    found: list[str] = []
    depth = 0
    for match in _PATTERNS.get(language, _OTHER).finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind == "string":
            bare = token.lstrip("rRbBuUfF") if is_python else token
            quotes = 3 if bare[:3] in ('"""', "'''") else 1
            if not (is_python and quotes == 3 and depth == 0 and (not found or found[-1] == "\n")):  # a docstring
                found.append("'" + bare[quotes:-quotes])
        elif kind == "line":
            if is_python and found and found[-1] != "\n":
                found.append(token)
        elif kind != "comment":
            depth += (token in OPEN) - (token in CLOSE)
            found.append(token)
    return found


def _without_python_types(found: list[str]) -> list[str]:
    """Without `: int` of parameters and variables, and without `-> int`."""
    ends = _brackets(found)
    kept: list[str] = []
    heads: list[bool] = []  # of each open bracket: does it hold a function's parameters?
    number = 0
    while number < len(found):
        token = found[number]
        if token in OPEN:
            heads.append(token == "(" and len(kept) > 1 and kept[-2] == "def")
        elif token in CLOSE and heads:
            heads.pop()
        elif token == "->" or (token == ":" and (heads[-1] if heads else _is_variable(kept))):
            after = _after_type(found, ends, number + 1)
            if after > number + 1:
                number = after
                continue
        kept.append(token)
        number += 1
    return kept


def _is_variable(kept: list[str]) -> bool:
    """Whether what stands at the end, before a colon, is a name, or an attribute, that began the line."""
    number = len(kept) - 1
    while number > 1 and kept[number - 1] == ".":
        number -= 2
    if number < 0 or not (_is_name(kept[number], "python") or kept[number] == "self"):
        return False
    return number == 0 or kept[number - 1] == "\n"


def _without_script_types(found: list[str]) -> list[str]:
    """Without `: string` of parameters, variables and results, `as string`, `<string>`, `?` and `!`."""
    ends = _brackets(found)
    kept: list[str] = []
    heads: list[bool] = []  # of each open bracket: does it hold a function's parameters?
    number = 0
    while number < len(found):
        token, before = found[number], kept[-1] if kept else ""
        following = found[number + 1] if number + 1 < len(found) else ""
        in_head = bool(heads) and heads[-1]
        after = number
        if token in OPEN:
            heads.append(token == "(" and before not in CONTROL and _is_head(found, ends, number))
        elif token in CLOSE:
            if heads and heads.pop() and following == ":":
                kept.append(token)
                after = _after_type(found, ends, number + 2)
        elif token == "?":
            after += in_head and following in (":", ",", ")")
        elif token == "!":
            after += following in (".", ")", ";", ",", "[", "]") and _is_value_end(before)
        elif token == ":":
            if in_head or (len(kept) > 1 and kept[-2] in ("const", "let", "var")):
                after = _after_type(found, ends, number + 1)
        elif token in ("as", "satisfies") and _is_value_end(before):
            after = _after_type(found, ends, number + 1)
        elif token == "<" and _WORD.match(before):
            after = _after_arguments(found, ends, number)
        if after == number:
            kept.append(token)
            after += 1
        number = after
    return kept


def _is_value_end(token: str) -> bool:
    return token in (")", "]", "}") or _WORD.match(token) is not None or token[:1] == "'"


def _is_head(found: list[str], ends: dict[int, int], number: int) -> bool:
    """Whether a parenthesis holds the parameters of a function: a body follows, maybe after the result's type."""
    end = ends.get(number, len(found)) + 1
    if end < len(found) and found[end] == ":":
        end = _after_type(found, ends, end + 1)
    return end < len(found) and found[end] in ("{", "=>")


def _brackets(found: list[str]) -> dict[int, int]:
    """The number of the closing bracket of each opening one that has one."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for number, token in enumerate(found):
        if token in OPEN:
            opened.append(number)
        elif token in CLOSE and opened:
            ends[opened.pop()] = number
    return ends


def _after_type(found: list[str], ends: dict[int, int], number: int) -> int:
    """Where a type ends that begins at a token: `list[str] | None`, `Map<string, A[]>`, `{a: B}`, `(a: B) => C`.

    There itself where no type begins.
    """
    begin = number
    if number < len(found) and found[number] in ("|", "&"):  # before the first of several lines
        number += 1
    while True:
        while number < len(found) and found[number] in TYPE_PREFIXES:
            number += 1
        if number >= len(found):
            return begin
        if number in ends:
            number = ends[number] + 1
        elif _is_value_end(found[number]) and found[number] not in CLOSE:
            number += 1
        else:
            return begin
        while number < len(found):  # .B, <C>, []
            if found[number] == "[" and number in ends:
                number = ends[number] + 1
            elif found[number] == "." and number + 1 < len(found) and _WORD.match(found[number + 1]):
                number += 2
            elif found[number] == "<":
                after = _after_arguments(found, ends, number, in_type=True)
                if after == number:
                    return number
                number = after
            else:
                break
        if number >= len(found) or found[number] not in TYPE_JOINTS:
            return number
        if found[number] == "=>" and found[number - 1] != ")":  # of the function whose result the type is of
            return number
        number += 1


def _after_arguments(found: list[str], ends: dict[int, int], number: int, in_type: bool = False) -> int:
    """Where `<A, B extends C = D>` ends that begins at a token; there itself where it is a comparison.

    Outside of types a bracket must follow: `f<A>(b)`.
    """
    begin = number
    while number < len(found) and found[number] in ("<", ",", "="):
        after = _after_type(found, ends, number + 1)
        if after == number + 1:
            return begin
        number = after
    if number >= len(found) or found[number] != ">":
        return begin
    if in_type or (number + 1 < len(found) and found[number + 1] in OPEN):
        return number + 1
    return begin
