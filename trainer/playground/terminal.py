"""Answers in a terminal: side by side where it is wide enough, and a conversation."""

import contextlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from contract.errors import InputError
from trainer.playground.cursor import MARKER, Place, in_text
from trainer.playground.models import Answer

NARROWEST = 38  # characters of a column
BETWEEN = " │ "
HELP = f"Code, completed at {MARKER} or at its end. A line with a dot alone, or Ctrl-D, ends it; Ctrl-C leaves."


def side_by_side(answers: Sequence[Answer], place: Place, width: int) -> str:
    """The answers as text of at most `width` characters a line: in columns, or one below the other."""
    start = place.prefix.rpartition("\n")[2]  # the line that the first of them goes on with
    wide = (width - len(BETWEEN) * (len(answers) - 1)) // len(answers)
    if len(answers) == 1 or wide < NARROWEST:
        return "\n\n".join("\n".join(_column(item, start, max(width, 1))) for item in answers)
    columns = [_column(item, start, wide) for item in answers]
    height = max(len(column) for column in columns)
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return "\n".join(BETWEEN.join(cell + " " * (wide - _width(cell)) for cell in row).rstrip() for row in rows)


def converse(read: Callable[[str], str], write: Callable[[str], object], complete: Callable[[Place], str]) -> None:
    """Read code and write completions of it, until there is no more.

    `read`: gives a line for a prompt, as `input` does; raises EOFError at the end.
    """
    write(HELP)
    while True:
        lines: list[str] = []
        ended = False
        while True:
            try:
                line = read("… " if lines else "> ")
            except EOFError:
                ended = True
                break
            if line == ".":
                break
            lines.append(line)
        if ended and not lines:
            return
        try:
            write(f"\n{complete(in_text(chr(10).join(lines)))}\n")
        except InputError as error:
            write(f"{error.message}\n")


@contextlib.contextmanager
def until_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends what is within, which is how one leaves it; SIGTERM, which is a kind of it here, ends the command."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if type(interrupt) is not KeyboardInterrupt:
            raise


def input_line(prompt: str) -> str:
    """A line from the terminal, with editing where Python has it."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("tab: self-insert")  # code has tabs
    return input(prompt)


def _column(answer: Answer, start: str, width: int) -> list[str]:
    facts = f"{answer.tokens} tokens, {answer.seconds:.2f} s"
    if answer.probability is not None:
        facts += f", {answer.probability:.0%} sure"
    if not answer.ended:
        facts += ", cut off"
    text = [_visible(line) for line in f"{start}{answer.text}".rstrip("\n").split("\n")]
    return [*_wrapped([answer.name, facts], width), "─" * width, *_wrapped(text, width)]


def _visible(line: str) -> str:
    """A line without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else "�" for char in line.removesuffix("\r").expandtabs(4))


def _wrapped(lines: Iterable[str], width: int) -> list[str]:
    """Lines of at most so many characters' width."""
    found = []
    for line in lines:
        piece, used = "", 0
        for char in line:
            if used + _width(char) > width and piece:
                found.append(piece)
                piece, used = "", 0
            piece, used = piece + char, used + _width(char)
        found.append(piece)
    return found


def _width(text: str) -> int:
    """How many places of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
