"""What the command lines of the services share."""

import math
from typing import Any

import click


class Finite(click.FloatRange):
    """A number in a range; nan, which is in none and beyond none, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number. Expected {self._describe_range()}.", param, ctx)
        return float(number)
