"""The pictures of a run: the loss curve, and base against candidate example by example."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator


def loss_curve(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Training loss (nats per token) by optimizer step, as PNG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    curve = pd.Series(dict(losses))
    axes.plot(curve.index, curve, marker="o", markersize=3, alpha=0.5, label="as logged")
    axes.plot(curve.index, curve.ewm(alpha=0.2).mean(), color="tab:red", label="smoothed (EMA, 0.2)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    axes.set(xlabel="optimizer step", ylabel="training loss (nats per token)", title="Loss on completions")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def base_against_candidate(base: pd.DataFrame, candidate: pd.DataFrame, path: Path) -> None:
    """Each held-out example's nll per token under both models, as PNG; below the line the candidate is better."""
    pairs = base.merge(candidate, on="example_id", suffixes=("_base", "_candidate"))
    x = pairs["nll_base"] / pairs["tokens_base"]
    y = pairs["nll_candidate"] / pairs["tokens_candidate"]
    better = int((y < x).sum())
    finite = np.concatenate([x, y])[np.isfinite(np.concatenate([x, y]))]
    top = finite.max(initial=0.1) * 1.05  # a diverged model's points lie outside
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.fill_between([0, top], [0, top], color="tab:green", alpha=0.08, label="candidate better")
    axes.plot([0, top], [0, top], color="gray", linewidth=1)
    for kind, rows in pairs.groupby("kind_base"):
        axes.scatter(x[rows.index], y[rows.index], s=14, label=f"{kind}: {len(rows)}")
    axes.set(
        xlim=(0, top),
        ylim=(0, top),
        xlabel="base (nats per token)",
        ylabel="candidate (nats per token)",
        title=f"Held-out examples: the candidate is better on {better} of {len(pairs)}",
    )
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)
