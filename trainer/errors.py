"""The one exception that a person who typed something wrong gets to see."""

import click


class InputError(click.ClickException):
    """Bad input: says what was wrong, what was expected and what to do; the command exits with 2."""

    exit_code = 2
