"""A prompt that fits: of all that an editor knows around its cursor, what helps most, to a number of tokens.

Training makes its prompts here, and so does serving of what a client sends. First comes the cursor's own line, then the
lines after it and before it, nearest first; where the file does not fit whole, its imports (first those whose names
stand near the cursor) and the heads of the classes and functions that the cursor is in; last, pieces of other files, as
far as there is room.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from code_model.fim import Context, File, rendered
from code_model.text import encode_prompt

WINDOW = "ratchet_window"  # in config.json: tokens of the examples that a model was tuned on
FOR_COMPLETION = 1 / 8  # of the window: what a prompt leaves
MOST_TOKENS = 2048  # of a prompt, where no window is known
SUFFIX_SHARE = 0.25  # of the room: lines after the cursor
OUTLINE_SHARE = 0.25  # imports and heads of what the cursor is in
LEAST_OUTLINE = 48  # tokens: two heads and an import, where that is half of the room or less
OTHERS_SHARE = 0.2  # pieces of other files, where the file itself would take all; of a large window only
LEAST_OF_OTHERS = 3  # lines of another file: fewer say nothing
LARGE = 384  # tokens
FULL = 0.97  # of the budget: more is not worth another try
TRIES = 4
CHUNK = 32  # lines counted at a time
REMEMBERED = 100_000  # texts of which the number of tokens is known
LONG = 400  # characters of a text: that of a longer one is not remembered
LONGEST_TOKEN = 128  # characters; what is longer than so many for each token does not fit
MOST_CHARACTERS = 100_000  # of a file that are looked at, or
LOOKED_AT = 16  # for each token that may be shown, if that is more
HEAD_SHARE = 0.3  # of those before the cursor: the file's beginning, where its imports stand

Count = Callable[[Sequence[str]], Sequence[int]]  # tokens of each text
Size = Callable[[Context], int]  # tokens of a context as the model reads it


# The first line of an import, in the languages that we know.
IMPORT = re.compile(
    r"(import|from|use|using|package|require|require_relative|require_once|include|include_once|source|mod)\b[^=]*$"
    r"|import\b|#\s*(include|import)\b|extern crate\b|export\s+(\*|\{.*\})\s*from\b|@import\b"
    r"|(const|let|var)\s.*=\s*require\("
)
MOST_IMPORT_LINES = 400  # of one import
WORD = re.compile(r"[^\W\d]\w+")
NO_HEAD = re.compile(
    r"#\s*(if|ifdef|ifndef|else|elif|endif|define|undef|pragma|error|line)\b|\s*(public|private|protected|internal)\s*:"
    r"|\s*(//|#\s|/?\*)"
)  # of the preprocessor; a label; a comment
QUOTES = re.compile(r'"""|\'\'\'|/\*|\*/')  # around strings and comments of several lines


class Counter:
    """Counts the tokens of texts by themselves, and remembers those of many."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        if len(self._known) > REMEMBERED:
            self._known = {}  # not cleared: other threads may look into it
        known = self._known
        counted: dict[str, int] = {}
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            found = self._tokenizer(new, add_special_tokens=False)["input_ids"]
            counted = dict(zip(new, map(len, found), strict=True))
            known.update((text, count) for text, count in counted.items() if len(text) <= LONG)
        return [counted[text] if text in counted else known[text] for text in texts]


@lru_cache(maxsize=8)
def counter(tokenizer: Any) -> "Counter":
    """The tokenizer's counter, with what it remembers."""
    return Counter(tokenizer)


def sizer(tokenizer: Any) -> Size:
    """What tells how many tokens a context has as this tokenizer's model reads it."""
    return lambda context: len(encode_prompt(tokenizer, rendered(context, tokenizer)))


def prompt(context: Context, tokenizer: Any, budget: int) -> str:
    """A context as this tokenizer's model expects it, in at most so many tokens; line ends as in training."""
    prefix, suffix = context.prefix.replace("\r\n", "\n"), context.suffix and context.suffix.replace("\r\n", "\n")
    context = context._replace(prefix=prefix, suffix=suffix)
    return rendered(fit(context, budget, counter(tokenizer), sizer(tokenizer)), tokenizer)


def budget_of(window: int | None, positions: int | None, new_tokens: int) -> int:
    """Tokens that a prompt may have, for a model to add so many: what it was tuned on, if that is known."""
    room = (positions or MOST_TOKENS + new_tokens) - new_tokens
    return max(1, min(room, int(window * (1 - FOR_COMPLETION)) if window else MOST_TOKENS))


def fit(context: Context, budget: int, count: Count, size: Size) -> Context:
    """The context cut to at most `budget` tokens, and to hardly less where there is more to show.

    `count` counts texts by themselves, which is nearly what they take as a part of the whole; `size` is exact. What
    cannot be made to fit (a path longer than the budget) comes back as short as it gets.
    """
    context = _near(context, max(MOST_CHARACTERS, LOOKED_AT * budget))
    best, most = Context("", context.suffix and "", context.path), -1
    room = budget - size(best)
    for _ in range(TRIES):
        cut = _cut(context, max(room, 0), count)
        taken = size(cut)
        if most < taken <= budget:
            best, most = cut, taken
        if cut == context or FULL * budget <= taken <= budget:
            break
        room += budget - taken
    while most < 0 < room:
        room = int(room * 0.9)
        cut = _cut(context, room, count)
        if size(cut) <= budget:
            return cut
    return best


def _near(context: Context, most: int) -> Context:
    """Of a very long file what is near the cursor, and its beginning: so many characters on either side."""
    prefix, suffix = context.prefix, context.suffix
    if len(prefix) > most:
        head = prefix[: int(most * HEAD_SHARE)].rpartition("\n")
        tail = prefix[-int(most * (1 - HEAD_SHARE)) :].partition("\n")
        prefix = "".join(head[:2]) + (tail[2] or tail[0])
    return context._replace(prefix=prefix, suffix=suffix and suffix[:most])


def _cut(context: Context, room: int, count: Count) -> Context:
    """The context to about so many tokens, path and markers not counted."""
    before, after = _lines(context.prefix), _lines(context.suffix or "")
    line = before.pop() if before and not before[-1].endswith("\n") else ""
    line, taken = _part_of(line, room, count, end=True)
    room -= taken
    for_others = int(room * OTHERS_SHARE) if context.others and room >= LARGE else 0
    room -= for_others
    sizes_before, sizes_after = _sizes(before[::-1], room, count), _sizes(after, room, count)
    # What one side does not need is the other's.
    for_after = min(sum(sizes_after), max(int(room * SUFFIX_SHARE), room - sum(sizes_before)))
    kept_after, partly = _fitting(sizes_after, for_after), ""
    room -= sum(kept_after)
    if after and not kept_after:  # a long line: as much of it as there is room for
        most = max(int(room * SUFFIX_SHARE), room - sum(sizes_before))
        partly, taken = _part_of(after[0], most, count, end=False)
        room -= taken
    kept, outline = _fitting(sizes_before, room), ""
    if len(kept) < len(before):
        share = int(room * OUTLINE_SHARE)
        most = max(share, min(LEAST_OUTLINE, room // 2))
        kept = _fitting(sizes_before, room - most)
        hidden = len(before) - len(kept)
        near = "".join([*before[hidden:], line, *after[: len(kept_after)]])
        chosen, used = _outline(before, line, hidden, near, share, room - sum(kept), count)
        room -= used
        kept = _fitting(sizes_before, room)  # with what the outline has left
        outline = "".join(text for end, text in chosen if end <= len(before) - len(kept))
    room -= sum(kept)
    prefix = "".join([outline, *before[len(before) - len(kept) :], line])
    suffix = None if context.suffix is None else partly or "".join(after[: len(kept_after)])
    return Context(prefix, suffix, context.path, tuple(_others(context.others, room + for_others, count)))


def _lines(text: str) -> list[str]:
    """With their ends; splitlines() would also split at form feeds."""
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _sizes(lines: Sequence[str], room: int, count: Count) -> list[int]:
    """Tokens of the first lines, as many as fit into so many tokens."""
    sizes: list[int] = []
    for start in range(0, len(lines), CHUNK):
        sizes += count([line[: max(room, 0) * LONGEST_TOKEN + 1] for line in lines[start : start + CHUNK]])
        if sum(sizes) > room:
            break
    return _fitting(sizes, room)


def _fitting(sizes: Sequence[int], room: int) -> list[int]:
    """The first of some sizes, as many as come to so much together."""
    for number, size in enumerate(sizes):
        room -= size
        if room < 0:
            return list(sizes[:number])
    return list(sizes)


def _part_of(line: str, room: int, count: Count, end: bool) -> tuple[str, int]:
    """A line, or as much of its end or its beginning as fits into so many tokens, and how many that are."""
    most = max(room, 1) * LONGEST_TOKEN
    while line and most:
        line = line[-most:] if end else line[:most]
        [size] = count([line])
        if size <= room:
            return line, size
        most = int(len(line) * max(room, 0) / size * 0.9)
    return "", 0


class _Piece(NamedTuple):
    """Lines worth showing that are out of sight."""

    line: int  # the first
    text: str
    words: frozenset[str] = frozenset()  # of an import: those that tell whether it is of use


def _outline(
    before: Sequence[str], line: str, hidden: int, near: str, share: int, most: int, count: Count
) -> tuple[list[tuple[int, str]], int]:
    """Of the first `hidden` lines those to show: ([(line behind, text)] in order, tokens).

    The innermost head, the outermost and one import may take `most` tokens. The other heads, and the imports whose
    names stand near, keep within `share`.
    """
    words = set(WORD.findall(near))
    heads = list(_heads(before, line, hidden))
    imports = sorted(_imports(before[:hidden]), key=lambda piece: not piece.words & words)
    pieces = [*heads[:1], *heads[1:][-1:], *heads[1:-1], *imports]
    sizes = dict(zip(pieces, count([piece.text for piece in pieces]), strict=True)) if pieces else {}
    chosen: dict[int, tuple[int, str]] = {}
    used = 0

    def show(piece: _Piece, room: int) -> bool:
        nonlocal used
        text, size = piece.text, sizes[piece]
        if used + size > room:
            text = _shortened(text, words)
            [size] = count([text])
        fits = piece.line not in chosen and used + size <= room
        if fits:
            chosen[piece.line] = piece.line + piece.text.count("\n"), text
            used += size
        return fits

    for piece in pieces[: min(len(heads), 2)]:
        show(piece, most)
    any(show(piece, most) for piece in imports)
    for piece in pieces:
        if not piece.words or piece.words & words:
            show(piece, share)
    return [chosen[number] for number in sorted(chosen)], used


def _shortened(text: str, words: set[str]) -> str:
    """An import of several lines without those between its first and its last that have none of the words."""
    lines = _lines(text)
    return "".join(
        line for number, line in enumerate(lines) if number in (0, len(lines) - 1) or words & set(WORD.findall(line))
    )


def imports_of(text: str) -> list[str]:
    """The imports in a file, each with all of its lines."""
    return [piece.text for piece in _imports(_lines(text))]


def _imports(lines: Sequence[str]) -> Iterator[_Piece]:
    number = 0
    while number < len(lines):
        if not IMPORT.match(lines[number]):
            number += 1
            continue
        end, text = number + 1, lines[number]
        while end < min(len(lines), number + MOST_IMPORT_LINES) and _is_open(text):
            text += lines[end]
            end += 1
        yield _Piece(number, text, frozenset(WORD.findall(text)))
        number = end


def _is_open(text: str) -> bool:
    return any(text.count(opening) > text.count(closing) for opening, closing in ("()", "{}")) or text.endswith("\\\n")


def _heads(before: Sequence[str], line: str, hidden: int) -> Iterator[_Piece]:
    """The first lines of what the cursor is in, by indentation, and of a string or comment that would begin inside."""
    opened, quoted = _quoted(before, hidden)
    if opened is not None:
        yield _Piece(opened, before[opened])
    depth = _depth(line) if line else None
    going_on = False  # the line below is the end of a head of several lines, or its brace
    for number in range(len(before) - 1, -1, -1):
        text = before[number]
        if not text.strip() or number in quoted or NO_HEAD.match(text):
            continue
        own = _depth(text)
        depth = own + 1 if depth is None else depth
        if own < depth or (going_on and own == depth):
            going_on = text.lstrip()[0] in ")]}" or text.strip() == "{"
            depth = own
            if number < hidden and not going_on:
                yield _Piece(number, text)
        if depth == 0 and not going_on:
            return


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" \t")) if line.strip() else len(line.rstrip("\n"))


def _quoted(lines: Sequence[str], seen_from: int) -> tuple[int | None, set[int]]:
    """(the line where a string or comment begins that goes on at line `seen_from`; the lines inside of all)."""
    mark, where = "", 0
    opened: int | None = None
    inside: set[int] = set()
    for number, line in enumerate(lines):
        if number == seen_from and mark:
            opened = where
        for found in QUOTES.finditer(line):
            quote = found[0]
            if mark and (quote == mark or (mark == "/*" and quote == "*/")):
                inside.update(range(where + 1, number + 1))
                mark = ""
            elif not mark and quote != "*/" and not _in_text(line, found.start()):
                mark, where = quote, number
    if seen_from >= len(lines) and mark:
        opened = where
    return opened, inside


def _in_text(line: str, end: int) -> bool:
    """Whether a place in a line is in a comment, or in a string that begins and ends in it."""
    before = line[:end]
    if before.lstrip().startswith(("#", "//")):
        return True
    return any(before.count(quote) % 2 for quote in "\"'") and not before.endswith(("'", '"'))


def _others(others: Sequence[File], room: int, count: Count) -> Iterator[File]:
    """The beginnings of pieces of other files, in order, to so many tokens."""
    for path, text in others:
        lines = _lines(text)
        [head] = count([f"# {path}\n"])
        sizes = _sizes(lines, room - head, count)
        if len(sizes) >= min(len(lines), LEAST_OF_OTHERS):
            yield File(path, "".join(lines[: len(sizes)]))
            room -= head + sum(sizes)
