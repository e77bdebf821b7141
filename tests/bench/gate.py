"""How long the gate takes over many paired examples, against scipy's bootstrap of the same difference.

    python -m tests.bench.gate [--pairs 100000] [--resamples 10000] [--simulated 2000]

The peer is `scipy.stats.bootstrap` with the same number of resamples, by its percentile method: its BCa leaves each
example out once by a table of pairs × pairs numbers, which takes hours here.
"""

import time
from collections.abc import Callable

import click
import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from promoter.gate import Evidence, Finding, decide, differences
from promoter.policy import load
from promoter.statistics import Floats, bca_interval


def evidence(version: str, rows: pd.DataFrame) -> Evidence:
    means = {f"eval/{column}": float(rows[column].mean()) for column in ("syntax_ok", "edit_similarity")}
    return Evidence(
        *("m", version, f"run{version}", "data", "plain", "greedy"),
        metrics={"eval/nll_per_token": float(rows["nll"].sum() / rows["tokens"].sum()), **means},
        tables={"eval/examples.parquet": rows},
        base_model="base@1",
        signature={"inputs": [], "outputs": []},
        files={name: Finding(True, "") for name in ("manifest", "no_pickle")},
    )


def table(pairs: int, seed: int, nll: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    tokens = np.random.default_rng(0).integers(5, 80, pairs)
    return pd.DataFrame(
        {
            "example_id": [f"{number:016x}" for number in range(pairs)],
            "nll": rng.gamma(4, (1.6 + nll) / 4, pairs) * tokens,
            "tokens": tokens,
            "syntax_ok": rng.random(pairs) < 0.9,
            "edit_similarity": rng.random(pairs),
        }
    )


def simulate(gates: int) -> None:
    """How often a difference of equal models looks better at alpha 0.05, as docs/promotion.md says."""
    draws: dict[str, Callable[[np.random.Generator, int], Floats]] = {
        "normal": lambda rng, n: rng.normal(0, 1, n),
        "Laplace": lambda rng, n: rng.laplace(0, 1, n),
        "Student's t, 3": lambda rng, n: rng.standard_t(3, n),
        "skewed right": lambda rng, n: rng.exponential(1, n) - 1,
        "skewed left": lambda rng, n: 1 - rng.exponential(1, n),
    }
    rng = np.random.default_rng(1)
    for n in (20, 30, 100):
        for name, draw in draws.items():
            wrong = sum(bca_interval(draw(rng, n), np.ones(n), 0.05, 1000, seed).low > 0 for seed in range(gates))
            print(f"{n:>4} pairs, {name:<15}{wrong / gates:>7.1%}")


@click.command()
@click.option("--simulated", default=0, show_default=True, help="Gates between equal models to simulate first.")
@click.option("--pairs", default=100_000, show_default=True, help="Examples that both versions were judged on.")
@click.option("--resamples", default=10_000, show_default=True, help="Of the bootstrap.")
def main(simulated: int, pairs: int, resamples: int) -> None:
    """Time a whole decision by the default policy: a paired metric, a pass-or-fail guard, another guard."""
    simulate(simulated) if simulated else None
    candidate, incumbent = evidence("2", table(pairs, 2, -0.05)), evidence("1", table(pairs, 1, 0.0))
    policy = load("default")
    significance = policy.significance.model_copy(update={"resamples": resamples})
    policy = policy.model_copy(update={"significance": significance})
    times = []
    for _ in range(3):
        began = time.perf_counter()
        decision = decide(policy, candidate, incumbent, "Staging")
        times.append(time.perf_counter() - began)
    ours = decision.comparisons[0]
    gate_s = min(times)
    print(
        f"Gate, {pairs:,} pairs, {resamples:,} resamples, 3 metrics: {gate_s:.2f} s; three times: {np.round(times, 2)}"
    )
    print(f"  improvement {ours.improvement:.4f}, from {ours.low:.4f} to {ours.high:.4f}")
    found = differences("eval/nll_per_token", "lower_is_better", candidate, incumbent)
    values, weights = found["improvement"].to_numpy(), found["weight"].to_numpy()
    began = time.perf_counter()
    theirs = bootstrap(
        (values, weights),
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True,
        confidence_level=1 - 2 * ours.alpha,
        n_resamples=resamples,
        batch=20,
        method="percentile",
        rng=0,
    ).confidence_interval
    scipy_s = time.perf_counter() - began
    print(f"scipy.stats.bootstrap, percentile, 1 metric: {scipy_s:.2f} s, from {theirs.low:.4f} to {theirs.high:.4f}")
    print(f"Ratio: {scipy_s / gate_s:.1f} times as fast as scipy")


if __name__ == "__main__":
    main()
