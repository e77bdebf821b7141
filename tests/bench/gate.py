"""How often the gate is wrong, simulated; and how long it takes, against scipy's bootstrap of the same difference.

    python -m tests.bench.gate [--simulated 2000] [--pairs 100000] [--resamples 10000]

Simulated gates compare equal models. "before" is the method up to version 0.2, which drew examples and not files: the
BCa bootstrap, and alpha/(k(k+1)) for the k-th try.

The peer of the timing is `scipy.stats.bootstrap` with the same number of resamples, by its percentile method: its BCa
leaves each example out once by a table of pairs × pairs numbers, which takes hours here.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import click
import numpy as np
import pandas as pd
from scipy.special import comb, ndtr, ndtri, stdtr, stdtrit, zeta
from scipy.stats import bootstrap
from tqdm import tqdm

from promoter.decision import Evidence, Finding
from promoter.gate import decide, differences
from promoter.policy import load
from promoter.statistics import Floats, compare, spend

ALPHA, SIXTH = 0.05, 5  # the sixth try comes after five
ROUNDS, LATE = 500, 300
MARGINS = (0.05, 0.1, 0.15, 0.2)
GAIN = 1 / 3  # of the differences' spread
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
Item = TypeVar("Item")


def spend_before(earlier: int) -> float:
    return ALPHA / ((earlier + 1) * (earlier + 2))


def lows_before(values: Floats, alphas: list[float], resamples: int, seed: int) -> Floats:
    """Lower BCa bounds of the mean, (gates, alphas), of values (gates, n): each example drawn by itself."""
    n = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float32)
    found = np.empty((len(values), len(alphas)))
    wide = math.sqrt(n / (n - 1))
    for start in range(0, len(values), 500):
        part = values[start : start + 500]
        estimate = part.mean(axis=1)
        drawn = np.sort((counts @ part.T.astype(np.float32)).T / n, axis=1)  # (gates, resamples)
        near = 1e-6 * np.abs(part).max(axis=1)
        below = ((drawn < (estimate - near)[:, None]).sum(1) + (drawn <= (estimate + near)[:, None]).sum(1)) / 2
        bias = ndtri(np.clip(below / resamples, 0.5 / resamples, 1 - 0.5 / resamples))
        deviations = part - estimate[:, None]  # of the jackknife's means, but for a factor
        squares = (deviations**2).sum(axis=1)
        acceleration = (deviations**3).sum(axis=1) / (6 * np.where(squares, squares, 1) ** 1.5)
        for column, alpha in enumerate(alphas):
            z = wide * stdtrit(n - 1, alpha)
            stretch = 1 - acceleration * (bias + z)
            level = np.where(stretch > 0, ndtr(bias + (bias + z) / np.where(stretch > 0, stretch, 1)), 0.0)
            place = level * (resamples - 1)
            left = place.astype(int)
            right = np.minimum(left + 1, resamples - 1)
            gates = np.arange(len(part))
            low = drawn[gates, left] + (place - left) * (drawn[gates, right] - drawn[gates, left])
            found[start : start + 500, column] = np.where(squares > 0, low, estimate)
    return found


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    return tqdm(items, desc=what, total=total, leave=False, disable=not sys.stderr.isatty())


def pass_at_k(rng: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """Differences of pass@5 out of 10 answers, of problems that are hardly ever solved."""
    chance = rng.beta(0.1, 1.5, size)
    by_count = 1 - comb(10 - np.arange(11), 5) / comb(10, 5)
    return np.asarray(by_count[rng.binomial(10, chance)] - by_count[rng.binomial(10, chance)], float)


SHAPES: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(0, 1, size),
    "Laplace": lambda rng, size: rng.laplace(0, 1, size),
    "Student's t, 3": lambda rng, size: rng.standard_t(3, size),
    "exponential, right": lambda rng, size: rng.exponential(1, size) - 1,
    "exponential, left": lambda rng, size: 1 - rng.exponential(1, size),
    "lognormal 1.5, left": lambda rng, size: math.exp(1.125) - np.exp(1.5 * rng.normal(0, 1, size)),
    "mostly ties": lambda rng, size: rng.normal(0, 1, size) * (rng.random(size) < 0.1),
    "sparse pass@k": pass_at_k,
    "pass or fail": lambda rng, size: (rng.random(size) < 0.15) * np.sign(rng.random(size) - 0.5),
}


def of_files(rng: np.random.Generator, gates: int, sizes: Floats, correlation: float) -> Floats:
    """Differences of examples in files, (gates, examples); what the examples of a file share makes the correlation."""
    file = np.repeat(np.arange(len(sizes)), sizes.astype(int))
    shared = rng.normal(0, 1, (gates, len(sizes)))[:, file]
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(0, 1, (gates, len(file)))


def rates(values: Floats, groups: Floats, what: str) -> str:
    """How many of the gates pass at 5%, 2.5% and the sixth try's alpha: before | after."""
    before = lows_before(values, [ALPHA, ALPHA / 2, spend_before(SIXTH)], 10_000, 1) > 0
    group, ones = groups.astype(np.int64), np.ones(values.shape[1])
    levels = np.array([ALPHA, ALPHA / 2, spend(ALPHA, SIXTH)])
    p_values = [compare(row, ones, group, levels[-1], 1000, 1).p_value for row in progress(values, what, len(values))]
    after = np.array(p_values)[:, None] <= levels
    return "".join(
        f"{old:>9.{digits}%} |{new:>7.{digits}%}"
        for old, new, digits in zip(before.mean(axis=0), after.mean(axis=0), (1, 1, 2), strict=True)
    )


def simulate(gates: int) -> None:
    """Print the tables of docs/promotion.md."""
    rng = np.random.default_rng(1)
    sixth = f"sixth try, {spend_before(SIXTH):.2%} | {spend(ALPHA, SIXTH):.2%}"
    columns = f"{'at 5%':>18}{'at 2.5%':>18}{sixth:>32}"
    print(f"False passes of {gates:,} gates between equal models, before | after\n")
    print(f"{'independent pairs':<34}{columns}")
    for n in (20, 30, 100, 200):
        for name, draw in SHAPES.items():
            label = f"{n:>4} {name}"
            print(f"{label:<34}{rates(draw(rng, (gates, n)), np.arange(n), label)}", flush=True)
    print(f"\n{'files × examples, correlation':<34}{columns}")
    for files, size in ((6, 10), (6, 0), (10, 20), (12, 5), (30, 20), (30, 0)):
        # Unequal: a few files have most of the examples.
        sizes = np.round(np.geomspace(2, 40, files)) if not size else np.full(files, float(size))
        for correlation in (0.0, 0.1, 0.3, 0.5):
            label = f"{files:>4} × {size or '2 to 40':<8} {correlation}"
            values = of_files(rng, gates, sizes, correlation)
            print(f"{label:<34}{rates(values, np.repeat(np.arange(files), sizes.astype(int)), label)}", flush=True)
    powers(rng, gates)
    in_a_row(rng, max(50, gates // 10))
    many_rounds(rng, gates)


def powers(rng: np.random.Generator, gates: int) -> None:
    """What the caution costs: how many real gains are found."""
    left: Draw = lambda rng, size: (4 - rng.gamma(4, 1, size)) / 2  # noqa: E731 - skewness -1
    right: Draw = lambda rng, size: (rng.gamma(4, 1, size) - 4) / 2  # noqa: E731
    print("\nReal gains that are found, before | after; the gain in spreads of a group's difference")
    first = f"first try, {spend_before(0):.2%} | {spend(ALPHA, 0):.2%}"
    print(f"{'groups, gain, shape':<44}{'at 5%':>18}{first:>32}")
    for n, gain, name, draw in (
        (100, GAIN, "normal", SHAPES["normal"]),
        (100, GAIN, "Student's t, 3, of spread 1", lambda rng, size: rng.standard_t(3, size) / math.sqrt(3)),
        (100, GAIN, "exponential, right", SHAPES["exponential, right"]),
        (100, GAIN, "exponential, left", SHAPES["exponential, left"]),
        (30, 0.6, "normal", SHAPES["normal"]),
        (6, 2.5, "normal", SHAPES["normal"]),
        (6, 2.5, "gamma 4, right", right),
        (6, 2.5, "gamma 4, left", left),
        (12, 1.6, "normal", SHAPES["normal"]),
        (12, 1.6, "gamma 4, right", right),
        (12, 1.6, "gamma 4, left", left),
        (12, 2.5, "exponential, left", SHAPES["exponential, left"]),
    ):
        values, ones, group = draw(rng, (gates, n)) + gain, np.ones(n), np.arange(n)
        before = (lows_before(values, [ALPHA, spend_before(0)], 10_000, 1) > 0).mean(axis=0)
        label = f"{n:>4}  {gain:.2f}  {name}"
        p_values = np.array(
            [compare(row, ones, group, 0.01, 1000, 1).p_value for row in progress(values, label, gates)]
        )
        after = [(p_values <= alpha).mean() for alpha in (ALPHA, spend(ALPHA, 0))]
        print(f"{label:<44}{before[0]:>9.1%} |{after[0]:>7.1%}{before[1]:>23.1%} |{after[1]:>7.1%}", flush=True)


def in_a_row(rng: np.random.Generator, series: int) -> None:
    """Fifty equal candidates, one after the other, on the same data; the incumbent's luck is in all of them."""
    print(f"\nFifty equal candidates in a row, {series:,} times: any false promotion, before | after")
    for files, size, correlation in ((100, 1, 0.0), (12, 5, 0.1), (10, 20, 0.1), (10, 20, 0.3), (30, 20, 0.3)):
        sizes, group = np.full(files, float(size)), np.repeat(np.arange(files), size)
        before = after = 0
        label = f"{files:>4} × {size:<3} {correlation}"
        for number in progress(range(series), label):
            common = of_files(rng, 1, sizes, correlation)
            values = (common - of_files(rng, 50, sizes, correlation)) / math.sqrt(2)
            # 10,000 resamples tell nothing below 1/10,000; the smallest of them is taken for those.
            lows = lows_before(values, [spend_before(k) for k in range(50)], 10_000, number)
            before += bool((np.diag(lows) > 0).any())
            after += any(
                compare(row, np.ones(len(row)), group, spend(ALPHA, k), 1000, 1).p_value <= spend(ALPHA, k)
                for k, row in enumerate(values)
            )
        print(f"{label:<34}{before / series:>9.1%} |{after / series:>7.1%}", flush=True)


def many_rounds(rng: np.random.Generator, series: int, groups: int = 100) -> None:
    """500 rounds without a promotion, by ours and by schemes for the false discovery rate."""
    k = np.arange(1, ROUNDS + 1)
    # LORD++ (Ramdas et al. 2017) and SAFFRON (Ramdas et al. 2018) with their authors' constants, before a first
    # discovery: what comes later, with us, is another incumbent.
    lord = ALPHA / 2 * 0.07720838 * np.log(np.maximum(k, 2)) / (k * np.exp(np.sqrt(np.log(k))))
    decay = k**-1.6 / zeta(1.6)
    ours = np.array([spend(ALPHA, earlier) for earlier in range(ROUNDS)])
    print(f"\n{ROUNDS} rounds without any gain, {groups} groups, {series:,} times: any false promotion")
    print(f"{'':<34}{'ours':>9}{'LORD++':>9}{'SAFFRON':>9}")
    for label in ("fresh groups in each round", "the same groups in all rounds"):
        wrong = np.zeros(3)
        for _ in progress(range(series), label):
            values = rng.normal(0, 1, (ROUNDS, groups))
            if label.startswith("the same"):
                values = (values + rng.normal(0, 1, groups)) / math.sqrt(2)
            t = values.mean(axis=1) / values.std(axis=1, ddof=1) * math.sqrt(groups)
            p_values = stdtr(groups - 1, -t)
            # compare() is never surer than this t, so that it need not be asked where t says no.
            wrong[0] += any(
                compare(values[i], np.ones(groups), np.arange(groups), ours[i], 1000, 1).p_value <= ours[i]
                for i in np.flatnonzero(p_values <= ours)
            )
            wrong[1] += bool((p_values <= lord).any())
            candidates = np.concatenate([[0], np.cumsum(p_values <= 0.5)[:-1]])
            wrong[2] += bool((p_values <= 0.5 * ALPHA / 2 * decay[np.arange(ROUNDS) - candidates]).any())
        print(f"{label:<34}" + "".join(f"{rate:>9.1%}" for rate in wrong / series), flush=True)
    alphas = [ours[LATE - 1], lord[LATE - 1], 0.5 * ALPHA / 2 * decay[LATE // 2 - 1]]
    tries = max(20, series // 20)
    refused = f"before: none, an alpha of {spend_before(LATE - 1):.1e} was refused"
    print(f"\nReal gains found in round {LATE}, {tries} times ({refused})")
    print(f"{'groups, gain':<34}" + "".join(f"{alpha:>9.1e}" for alpha in alphas) + "  (alpha of the three)")
    for gain in (GAIN, 0.5):
        for n in (100, 150, 200, 250, 300) if gain < 0.5 else (60, 80, 100, 120, 150):
            label = f"{n:>4}  {gain:.2f}"
            values = rng.normal(gain, 1, (tries, n))
            p_values = np.array(
                [compare(row, np.ones(n), np.arange(n), alphas[0], 1000, 1).p_value for row in progress(values, label)]
            )
            print(f"{label:<34}" + "".join(f"{(p_values <= alpha).mean():>9.1%}" for alpha in alphas), flush=True)


def simulate_guards(gates: int) -> None:
    """How often a guard of 90% confidence passes: a share on which two equal models differ in one of ten examples."""
    print(
        "\nGuards, confidence 90%: passes of an equal candidate, and of one that is worse by the whole max_regression"
    )
    print(f"{'examples, files':<20}" + "".join(f"{f'limit {margin:g}':>18}" for margin in MARGINS))
    rng = np.random.default_rng(1)
    for n, files in ((30, 10), (64, 12), (100, 20), (200, 30), (400, 50)):
        cells = []
        for margin in MARGINS:
            for drop in (0.0, margin):
                passed = 0
                for _ in range(gates):
                    draw = rng.random(n)
                    change = np.where(draw < 0.05 + drop, -1.0, np.where(draw < 0.1 + drop, 1.0, 0.0))
                    found = compare(change, np.ones(n), rng.integers(0, files, n), 0.1, 1000, 1, margin, worst=1.0)
                    passed += found.p_value <= 0.1
                cells.append(passed / gates)
        pairs = zip(cells[::2], cells[1::2], strict=True)
        print(
            f"{n:>5} of {files:>3}{'':<9}" + "".join(f"{equal:>10.0%} {worse:>6.0%} " for equal, worse in pairs),
            flush=True,
        )


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
            "group": [f"file_{number // 10}.py" for number in range(pairs)],
            "syntax_ok": rng.random(pairs) < 0.9,
            "edit_similarity": rng.random(pairs),
        }
    )


@click.command()
@click.option("--simulated", default=0, show_default=True, help="Gates between equal models to simulate first.")
@click.option("--pairs", default=100_000, show_default=True, help="Examples that both versions were judged on.")
@click.option("--resamples", default=10_000, show_default=True, help="Of the bootstrap.")
def main(simulated: int, pairs: int, resamples: int) -> None:
    """Time a whole decision by the default policy: a paired metric, a pass-or-fail guard, another guard."""
    if simulated:
        simulate(simulated)
        simulate_guards(min(simulated, 400))
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
    found = differences("eval/nll_per_token", candidate, incumbent)
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
