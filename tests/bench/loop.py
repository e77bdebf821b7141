"""A simulated year of the loop, again and again: does it promote what is no better, find what is, and keep its budget?

    python -m tests.bench.loop [--rounds 200] [--years 200] [--whole 1] [--files 60] [--gain 0.15]

A round stands in for hours: the candidate is an evaluation table that is drawn, as if the trainer had made it. No
candidate is better than production, but that of round 150 in the second figure, by `--gain` nats a token. All else is
real. The whole years (`--whole`) have tracking server, registry, the loop as it looks each day, and `promoter promote`
as a command; the others have the gate's decision and its ledger's alpha alone, so that there are enough to count.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner
from mlflow import MlflowClient
from scipy.stats import binomtest
from tqdm import tqdm

from contract import names
from contract.lease import lease
from contract.tracking import connect
from infra import gate_demo
from promoter.cli import main as promoter
from promoter.decision import Evidence
from promoter.gate import decide
from promoter.policy import load
from promoter.statistics import spend
from services.loop import __main__ as loop_command
from services.loop import state
from services.loop.config import Loop
from services.loop.jobs import Done
from services.loop.rounds import HOUR_S, WEEK_S
from tests.support.gate import evidence
from tests.support.tracking import make_stack, server

BETTER_IN = 150
MODEL = "year_model"
DAY_S = 86_400.0
BUDGET = {"rounds": 4, "hours": 12.0, "disk_gb": 0.001}


def table(rng: np.random.Generator, files: int, gain: float = 0.0) -> Any:
    """An evaluation table of examples that are the same each time, eight of a file."""
    rows = gate_demo.table(-gain, 0.9, int(rng.integers(1, 2**31)), 8 * files)
    rows["group"] = [f"package/module_{number % files}.py" for number in range(len(rows))]
    return rows


@dataclass
class Jobs:
    """The trainer and its time stand in; the promoter is the real one."""

    client: MlflowClient
    uri: str
    rng: np.random.Generator
    clock: "Clock"
    files: int
    better: Callable[[int], float]  # the gain of a round's candidate, by its number
    trained: int = 0
    asked: list[str] = field(default_factory=list)

    def gpus(self) -> int:
        """Two, so that hours and GPU hours differ."""
        return 2

    def free_gb(self) -> float:
        """Enough."""
        return 1000.0

    def run(self, part: str, arguments: Sequence[str], most_s: float, tick: Callable[[float], None]) -> Done:
        """What the job would have answered."""
        if part == "promoter":
            result = CliRunner().invoke(promoter, ["--tracking-uri", self.uri, *arguments])
            self.asked.append(arguments[0])
            return Done(result.exit_code, result.stdout, result.output.strip().splitlines()[-1], 1.0)
        if arguments[0] == "changes":
            head = f"c{self.trained}"
            one = {"source": "/srv/app", "since": head, "head": f"c{self.trained + 1}", "commits": ["more"] * 60}
            return Done(0, json.dumps([one | {"functions": 100, "new_functions": 20}]), "", 1.0)
        if "--dry-run" not in arguments:
            self.trained += 1
            name = next(item.partition("=")[2] for item in arguments if item.startswith("tracking.run_name="))
            rows = table(self.rng, self.files, self.better(self.trained))
            gate_demo.register(self.client, MODEL, rows, name=name)
            seconds = min(float(self.rng.uniform(0.2, 8)) * HOUR_S, most_s)
            for part_of_it in np.arange(0, seconds, 600.0):
                tick(float(part_of_it))
            self.clock.now += seconds
            return Done(0, "", "", seconds)
        return Done(0, "", "", 1.0)


@dataclass
class Clock:
    """The tracking server's, simulated."""

    now: float

    def __call__(self, uri: str) -> float:
        return self.now


def whole_year(rounds: int, files: int, seed: int, better: Callable[[int], float]) -> dict[str, Any]:
    """Look by look, day by day, until so many rounds have been. Which candidates passed, and whether budgets held."""
    loop = Loop.model_validate(
        {
            "model": MODEL,
            "data": {"sources": ["/srv/app"]},
            "triggers": {"drift": False},
            "training": {"budget": BUDGET},
            "cooldown_hours": 12,
            "freeze_after": 1_000_000,  # 200 refusals are what is wanted
        }
    )
    clock = Clock(1.6e9)
    with tempfile.TemporaryDirectory() as folder, server(stack := make_stack(Path(folder))):
        client = connect(stack.url, "the bench's", "nothing")
        rng = np.random.default_rng(seed)
        jobs = Jobs(client, stack.url, rng, clock, files, better)
        first = gate_demo.register(client, MODEL, table(rng, files), name="the incumbent")
        client.set_registered_model_alias(MODEL, names.PRODUCTION, str(first.version))
        before, loop_command.server_time = loop_command.server_time, clock  # type: ignore[attr-defined]
        bar = tqdm(total=rounds, desc=f"a whole year, {seed}", leave=False, disable=not sys.stderr.isatty())
        try:
            with lease(client, MODEL, "loop", 60.0, names.ROUNDS, "training") as claim:
                while jobs.trained < rounds:
                    done = jobs.trained
                    with redirect_stdout(io.StringIO()):
                        loop_command.look(client, loop, jobs, claim)
                    bar.update(jobs.trained - done)
                    clock.now += DAY_S / 2
            found = [(run, state.round_of(run)) for run in state.runs(client, MODEL)]
        finally:
            loop_command.server_time = before  # type: ignore[attr-defined]
            bar.close()
    passed = [number for number, (run, _) in enumerate(found, 1) if run.data.tags["end"] != "refused"]
    weeks = [
        [other for _, other in found if one.spent_at - WEEK_S < other.spent_at <= one.spent_at] for _, one in found
    ]
    most = {"rounds": max(map(len, weeks)), "hours": max(sum(o.trained_s for o in week) / HOUR_S for week in weeks)}
    ends = {run.data.tags["end"]: run.data.tags.get("why") for run, _ in found}
    return {"passed": passed, "most": most, "rounds": len(found), "ends": ends}


def judged(version: str, rows: Any) -> Evidence:
    """A version with its table, and the means that the trainer would have logged."""
    means = {f"eval/{column}": float(rows[column].mean()) for column in ("syntax_ok", "exact_match", "edit_similarity")}
    return evidence(
        version, rows, metrics={"eval/nll_per_token": float(rows["nll"].sum() / rows["tokens"].sum()), **means}
    )


def year(numbers: Iterable[int], files: int, seed: int, better: Callable[[int], float]) -> list[int]:
    """Which of these rounds' candidates pass the gate, by its decision and the ledger's alpha for that round."""
    rng, policy = np.random.default_rng(seed), load("default")
    incumbent = judged("1", table(rng, files))
    passed = []
    for number in numbers:
        alpha = spend(policy.significance.alpha, number - 1)
        found = decide(policy, judged(str(number + 1), table(rng, files, better(number))), incumbent, "Staging", alpha)
        if found.passed:
            passed.append(number)
    return passed


def share(hits: int, of: int) -> str:
    low, high = binomtest(hits, of).proportion_ci(method="wilson")
    return f"{hits} of {of} ({hits / of:.1%}; 95%: {low:.1%} to {high:.1%})"


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Of a year.")
@click.option("--years", default=200, show_default=True, help="Of the gate's decision and its alpha.")
@click.option("--whole", default=1, show_default=True, help="With server, registry, loop and promoter.")
@click.option("--files", default=60, show_default=True, help="That candidates are judged by, with 8 examples each.")
@click.option("--gain", default=0.15, show_default=True, help="Of round 150's candidate, in nats a token.")
def main(rounds: int, years: int, whole: int, files: int, gain: float) -> None:
    """See what many rounds do to the gate, and to the budget."""
    numbers = range(1, rounds + 1)
    bar = partial(tqdm, leave=False, disable=not sys.stderr.isatty())
    false = sum(bool(year(numbers, files, seed, lambda _: 0.0)) for seed in bar(range(years), desc="no gain"))
    click.echo(f"years in which a candidate passed that was no better: {share(false, years)}; goal 5%")
    hits = sum(bool(year([BETTER_IN], files, seed, lambda _: gain)) for seed in bar(range(years), desc="a gain"))
    click.echo(f"years in which round {BETTER_IN}'s gain of {gain:g} was found: {share(hits, years)}; goal 80%")
    for seed in range(whole):
        began = time.monotonic()
        found = whole_year(rounds, files, seed, lambda number: gain if number == BETTER_IN else 0.0)
        click.echo(
            f"a whole year with that gain: {found['rounds']} rounds in {time.monotonic() - began:.0f} s; passed: "
            f"{found['passed'] or 'none'}; most in seven days: {found['most']['rounds']} of {BUDGET['rounds']} rounds, "
            f"{found['most']['hours']:.3f} of {BUDGET['hours']:g} hours; {json.dumps(found['ends'])[:300]}"
        )


if __name__ == "__main__":
    main()
