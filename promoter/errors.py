"""What a person sees when a command cannot go on."""

import click


class InputError(click.ClickException):
    """Bad input: says what was wrong, what was expected and what to do; the command exits with 2."""

    exit_code = 2


class Unreachable(click.ClickException):
    """The tracking server, or its store, does not do its work; the command exits with 3."""

    exit_code = 3


class Busy(click.ClickException):
    """Somebody else is promoting this model, or has taken over; the command exits with 4 and has moved nothing."""

    exit_code = 4
