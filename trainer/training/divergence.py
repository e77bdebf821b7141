"""A training whose numbers are none: it ends at once, and registers nothing."""

import math

from contract.errors import RatchetError

ADVICE = "Try a lower trainer.lr (now {lr:g}), more trainer.warmup_steps, or trainer.max_grad_norm=1."


class Diverged(RatchetError):
    """A loss, or what it is computed from, is NaN or infinite; the command exits with 1."""


def check_finite(by_step: dict[int, float], what: str, lr: float) -> None:
    """Raise Diverged for a value that is NaN or infinite, with the first step that has one."""
    for step, value in by_step.items():
        if not math.isfinite(value):
            raise Diverged(
                f"The {what} is {value} at step {step}: the training has diverged, and nothing is registered. "
                f"{ADVICE.format(lr=lr)}"
            )


def check_figures(figures: dict[str, float], lr: float) -> None:
    """Raise Diverged for a trained model whose likelihoods are NaN or infinite."""
    for name, value in figures.items():
        if name.endswith("/nll_per_token") and not math.isfinite(value):
            raise Diverged(
                f"{name} of the trained model is {value}: its weights have diverged in the last steps, and nothing is "
                f"registered. {ADVICE.format(lr=lr)}"
            )
