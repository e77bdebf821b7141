"""Where a completion ends: models write on behind the function that they were asked for."""

import re

from code_model import fim
from trainer.data.example import KINDS, Example
from trainer.data.languages import LANGUAGES

# Triple quotes; else what may hold some that are none: a string of one line, a comment.
STRINGS_AND_COMMENTS = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*')


def first_function(completion: str, language: str, prompt: str = "\n") -> str:
    """A function body up to where the function has ended, as its language tells at the left margin.

    In Python that is where something else begins there, outside strings and comments.
    """
    lines = completion.split("\n")
    ends = LANGUAGES[language].ends
    if ends is not None:
        end = next((number + 1 for number, line in enumerate(lines) if ends.match(line)), len(lines))
        return "\n".join(lines[:end]) + "\n" * (end < len(lines))
    open_string = _open_string(prompt, "")
    for number, line in enumerate(lines):
        begins = number > 0 or prompt.endswith("\n") or not prompt  # else it goes on with the prompt's last line
        if begins and not open_string and line.strip() and not line[0].isspace() and line[0] != "#":
            return "\n".join(lines[:number]) + "\n" * (number > 0)
        open_string = _open_string(line, open_string)
    return completion


def _open_string(text: str, before: str) -> str:
    """The triple quotes of the Python string that is open at the end of a text, or nothing; `before`: at its start."""
    position = 0
    while position < len(text):
        if before:
            end = text.find(before, position)
            if end < 0:
                return before
            position, before = end + 3, ""
            continue
        match = STRINGS_AND_COMMENTS.search(text, position)
        if match is None:
            return ""
        before = match[0] if match[0] in ('"""', "'''") else ""
        position = match.end()
    return before


def cut(example: Example, completion: str) -> str:
    """A completion up to where the function that it completes, or stands in, has ended; models write on.

    Left whole where the reference would not be: it goes on behind a function itself.
    """
    if example.language == "text":
        return completion
    prompt = fim.read(example.prompt).prefix if example.kind in KINDS else example.prompt
    line = (example.function or "").lstrip("\n")
    margin = line[: len(line) - len(line.lstrip())]
    if example.completion:
        in_function = _function_at(margin, example.completion, example.language, prompt) == example.completion
    else:
        last_line = prompt.rstrip().rpartition("\n")[2]
        in_function = last_line[:1].isspace() or last_line.endswith((":", '"""', "'''"))
    return _function_at(margin, completion, example.language, prompt) if in_function else completion


def _function_at(margin: str, completion: str, language: str, prompt: str) -> str:
    """`first_function` of one that is indented by `margin`."""
    lines = completion.split("\n")
    moved: list[str] = []
    for number, line in enumerate(lines):
        begins = number > 0 or prompt.endswith("\n")
        if begins and line.strip() and not line.startswith(margin):
            break
        moved.append(line.removeprefix(margin) if begins else line)
    whole = len(moved) == len(lines)
    text = "\n".join(moved) + ("" if whole else "\n")
    kept = first_function(text, language, prompt)
    if whole and kept == text:
        return completion
    return "".join(f"{line}\n" for line in lines[: kept.count("\n")])
