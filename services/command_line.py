"""What the command lines of the services share."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from contract.errors import disk_full, unexpected
from contract.tracking import as_ours


class Finite(click.FloatRange):
    """A number in a range; nan, which is in none and beyond none, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number. Expected {self._describe_range()}.", param, ctx)
        return float(number)


def terminate(*_: object) -> None:
    """Handle SIGTERM: end as Ctrl-C does, with what is open closed."""
    sys.exit(143)


@contextmanager
def failing_as_everywhere(left: str) -> Iterator[None]:
    """Raise any error as one of ours. `left`: what has become of the work, for the message."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        click.echo(f"\nInterrupted. {left}", err=True)
        sys.exit(130)
    except Exception as error:
        raise as_ours(error, left) or disk_full(error, left) or unexpected(error, left) from error
