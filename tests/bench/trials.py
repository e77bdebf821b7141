"""How often a trial's statistics are wrong, and how soon they are right: `python -m tests.bench.trials`.

Twelve users with differing rates of acceptance come in bursts of twenty requests, whose rates differ too; somebody
looks after each of 6,000 requests. Printed beside the same figures of PyPI's `ville` (asymptotic, of the same paper)
on the same requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import click
import numpy as np
import ville

from promoter.trials.sequential import SHARPEST_AT, Floats, effect

USERS, BURST, REQUESTS = 12, 20, 6000
LEAST_RATE, MOST_RATE = 0.12, 0.42  # of acceptance, the users'
BURSTS_DIFFER = 0.4  # standard deviation, in log odds
ALPHA, WITHIN = 0.05, 0.05
EXPECTED = 0.3


@dataclass(frozen=True)
class World:
    """What a simulated trial compares."""

    name: str
    share: float
    points: float = 0.0  # by which the challenger's rate differs
    factor: float = 1.0  # of the challenger's rate


WORLDS = (
    World("equal", 0.5),
    World("equal", 0.1),
    World("equal", 0.05),
    World("15 points worse", 0.5, -0.15),
    World("15 points worse", 0.1, -0.15),
    World("nearly dead", 0.1, factor=0.05),
    World("5 points worse", 0.5, -0.05),
    World("10 points better", 0.5, 0.10),
)


@dataclass(frozen=True)
class Requests:
    """One simulated trial, (n,) each."""

    outcomes: Floats
    challenger: np.ndarray
    users: np.ndarray


def trials(world: World, number: int, seed: int, rates: tuple[float, float]) -> Iterator[Requests]:
    """Simulated trials in a world."""
    random = np.random.default_rng(seed)
    of_user = np.linspace(*rates, USERS)
    for _ in range(number):
        users = random.integers(0, USERS, REQUESTS // BURST)
        odds = np.log(of_user[users] / (1 - of_user[users])) + random.normal(0, BURSTS_DIFFER, len(users))
        rate, users = np.repeat(1 / (1 + np.exp(-odds)), BURST), np.repeat(users, BURST)
        challenger = random.random(REQUESTS) < world.share
        theirs = np.clip(rate * world.factor + world.points, 0.01, 0.99)
        outcomes = (random.random(REQUESTS) < np.where(challenger, theirs, rate)).astype(float)
        yield Requests(outcomes, challenger, users)


@dataclass(frozen=True)
class Figures:
    """Of all trials in a world."""

    worse: float  # share that was called worse
    median: float  # requests until then
    within: float  # share that was called at most 5 points worse
    ville_worse: float
    ville_median: float


def measure(world: World, number: int, seed: int, rates: tuple[float, float]) -> Figures:
    """Look after each request."""
    worse, within, theirs = [], [], []
    for one in trials(world, number, seed, rates):
        path = effect(one.outcomes, one.challenger, np.full(REQUESTS, world.share), one.users, ALPHA, EXPECTED)
        worse.append(_first(path.high < 0))
        within.append(_first(path.low > -WITHIN))
        # Two-sided, so twice alpha on each side; it begins when as many challengers have come.
        least = max(20, round(10 / world.share))
        peer = ville.AsymptoticABTest(2 * ALPHA, world.share, SHARPEST_AT, least).fit(one.outcomes, one.challenger)
        theirs.append(_first(peer.upper_ < 0))
    return Figures(
        *(float(np.mean(np.array(worse) <= REQUESTS)), float(np.median(worse))),
        float(np.mean(np.array(within) <= REQUESTS)),
        *(float(np.mean(np.array(theirs) <= REQUESTS)), float(np.median(theirs))),
    )


def _first(hits: np.ndarray) -> int:
    return int(hits.argmax()) + 1 if hits.any() else REQUESTS + 1


@click.command()
@click.option("--trials", "number", default=1000, show_default=True, help="Simulated trials of each world.")
@click.option(
    "--rates", nargs=2, default=(LEAST_RATE, MOST_RATE), show_default=True, help="The users' rates, from, to."
)
@click.option("--seed", default=1, show_default=True)
def main(number: int, rates: tuple[float, float], seed: int) -> None:
    """Print the table."""
    click.echo("challenger        share  called worse  median requests  within 5 points | ville: worse  median  ratio")
    for place, world in enumerate(WORLDS):
        it = measure(world, number, seed + place, rates)
        found, theirs = it.median <= REQUESTS, it.ville_median <= REQUESTS
        ratio = f"{it.median / it.ville_median:.2f}" if found and theirs else ""
        click.echo(
            f"{world.name:16s}  {world.share:5.0%}  {it.worse:12.1%}  {it.median if found else '':>15}  "
            f"{it.within:15.1%} | {it.ville_worse:12.1%}  {it.ville_median if theirs else '':>6}  {ratio:>5}"
        )


if __name__ == "__main__":
    main()
