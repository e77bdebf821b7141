"""The metrics of an evaluation table, by the registry (contract.metrics)."""

import math
import sys

import pandas as pd

from contract import metrics
from contract.metrics import PASS_AT
from trainer.config import EvalConfig


def summarise(table: pd.DataFrame, config: EvalConfig, prefix: str = "eval") -> dict[str, float]:
    """Metrics of an evaluation table: over all, by kind where there are several, and of gaps by where the cursor is."""
    ks = sorted({int(word) for word in config.pass_at.split(",") if int(word) <= config.samples})
    parts = [(prefix, table)]
    if table["kind"].nunique() > 1:
        parts += [(f"{prefix}/{kind}", rows) for kind, rows in table.groupby("kind")]
    gaps = table[table["kind"] == "fim"] if "cursor" in table else table[:0]
    parts += [(f"{prefix}/fim/{cursor}", rows) for cursor, rows in gaps.groupby("cursor")] if len(gaps) else []
    found: dict[str, float] = {}
    for name, rows in parts:
        found[f"{name}/examples"] = float(len(rows))
        found |= metrics.summary(rows, name, ks)
        if (nll := found.get(f"{name}/nll_per_token")) is not None:
            found[f"{name}/perplexity"] = math.exp(min(nll, math.log(sys.float_info.max)))
        if config.samples == 0 and (passed := found.get(f"{name}/passed")) is not None:
            found[f"{name}/{PASS_AT}1"] = passed  # greedy: the one sample
    return found


def in_words(found: dict[str, float], prefix: str) -> str:
    """The figures that one looks at first."""
    shown = (
        ("nll_per_token", "nll per token", 4),
        ("edit_similarity", "edit similarity", 3),
        ("passed", "tests passed", 3),
    )
    words = [
        f"{words} {found[f'{prefix}/{name}']:.{digits}f}"
        for name, words, digits in shown
        if f"{prefix}/{name}" in found
    ]
    drawn = sorted(name for name in found if name.startswith(f"{prefix}/{PASS_AT}"))
    return ", ".join([*words, *(f"{name.removeprefix(f'{prefix}/')} {found[name]:.3f}" for name in drawn)])
