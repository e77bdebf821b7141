"""What `trainer try` does: a place in a file, a text, a conversation, or a page."""

import shutil
import sys

import click

from code_model.params import GenerationParams
from contract.errors import InputError
from trainer.config import Config
from trainer.playground.cursor import Place, in_file, in_text
from trainer.playground.models import Answer, answer, opened
from trainer.playground.terminal import converse, input_line, side_by_side, until_ctrl_c
from trainer.playground.web import Server


def run(config: Config, model_uri: str, with_base: bool, where: str | None, params: GenerationParams) -> None:
    """Complete at FILE:LINE:COLUMN, or where the text of the standard input says (`-`, or where it is no terminal).

    Without either, read code from the terminal until there is no more. Raises InputError.
    """
    place = _place(where)
    with opened(config, model_uri, with_base) as models:

        def complete(at: Place) -> str:
            answers = [answer(model, at, params) for model in models]
            return side_by_side(answers, at, shutil.get_terminal_size((100, 24)).columns)

        if place is not None:
            click.echo(complete(place))
        else:
            with until_ctrl_c():
                converse(input_line, click.echo, complete)
            click.echo()


def serve(config: Config, model_uri: str, with_base: bool, params: GenerationParams, port: int) -> None:
    """Serve the page until it is interrupted; port 0 is any that is free. Raises InputError."""
    with opened(config, model_uri, with_base) as models:

        def complete(place: Place, params: GenerationParams) -> list[Answer]:
            return [answer(model, place, params) for model in models]

        with Server([model.name for model in models], complete, params, port) as server:
            click.echo(f"Open {server.url} (Ctrl-C ends it)")
            with until_ctrl_c():
                server.serve_forever()


def _place(where: str | None) -> Place | None:
    """None where code is to be read from the terminal."""
    if where is not None and where != "-":
        return in_file(where)
    if where is None and sys.stdin.isatty():
        return None
    try:
        return in_text(sys.stdin.buffer.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"The text is not UTF-8: {error.reason} at byte {error.start}.") from error
