"""How long serving's page takes with years behind it, and its pictures for docs/monitoring.md.

    .venv/bin/python -m tests.bench.page [--versions 1000] [--decisions 1500] [--pictures docs]

A registered model with so many versions and decision records on a real tracking server (SQLite), sixty days of counts
with 10,000 completions each, a real serving. Printed are the median, the 95th percentile and the longest of 60 looks,
and their ratio to what MLflow's own page of that model waits for: the model, and its first hundred versions.
"""

import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import mlflow
import requests
from sqlalchemy import create_engine, text

from contract.names import PRODUCTION, PROMOTIONS, STAGES
from contract.outcomes import AWAITING, PROMOTED, REFUSED
from serving.gateway.events.facts import Completion
from serving.gateway.events.sender import Sender
from serving.gateway.events.store import AFTER_S, STEP, Event, Store, step_of
from serving.gateway.feedback import new_id
from serving.settings import ServingSettings
from tests.bench.registry import MODEL, fill
from tests.support.events import completion
from tests.support.serving import register, serving_process
from tests.support.tracking import Stack, make_stack, server
from trainer.base_model import TINY, resolve
from trainer.config import ModelConfig

DAYS, A_DAY, LOOKS = 60, 10_000, 60
WHY = "eval/nll_per_token 1.0620 (version {before}) → {after} (version {version}): {more} better, 1.0% better wanted"
FIGURES = {PROMOTED: ("0.9060", "14.7%"), REFUSED: ("1.0571", "0.5%"), AWAITING: ("0.9217", "13.2%")}


def decide(stack: Stack, versions: int, count: int) -> None:
    """So many decision records, the last one awaiting approval; every tenth promoted. The last of these serves."""
    client = stack.client
    experiment = client.create_experiment(PROMOTIONS)
    every = [1 + number * (versions - 1) // count for number in range(count)]
    promoted = every[8::10]

    def record(number: int) -> None:
        version = every[number]
        outcome = AWAITING if number == count - 1 else PROMOTED if version in promoted else REFUSED
        before = str(max([1, *(other for other in promoted if other < version)]))
        after, more = FIGURES[outcome]
        at = int(time.time()) - (count - number) * 4 * 3600
        tags = {
            "model": MODEL,
            "version": str(version),
            "stage": STAGES[PRODUCTION],
            "moved_from": "nothing",
            "replaces": before,
            "action": "auto-promote",
            "outcome": outcome,
            "by": ("ada", "bo", "ci")[number % 3],
            "why": WHY.format(version=version, before=before, after=after, more=more),
            "decided_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(at)),
        }
        run = client.create_run(experiment, start_time=1000 * at, tags=tags)
        client.set_terminated(run.info.run_id)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(record, range(count)))
    client.set_registered_model_alias(MODEL, PRODUCTION, str(promoted[-1]))
    client.set_registered_model_alias(MODEL, "previous", str(promoted[-2]))


def live(stack: Stack, version: str) -> None:
    """Have a version answer: a tiny model in its place."""
    with tempfile.TemporaryDirectory() as folder:
        number = register(stack, "tiny", resolve(ModelConfig(name=TINY, cache_dir=folder)).folder)
    tiny = stack.client.get_model_version("tiny", number)
    engine = create_engine(f"sqlite:///{stack.home / 'mlflow.db'}")
    with engine.begin() as connection:
        there = {"source": tiny.source, "model": MODEL, "number": version}
        connection.execute(
            text("UPDATE model_versions SET source = :source WHERE name = :model AND version = :number"), there
        )
    engine.dispose()


def count(store: Store, versions: list[str]) -> None:
    """Sixty days of counts: each version is accepted a little more often than the one before, and is quicker."""
    rng = random.Random(0)
    rows: list[tuple[str, str, str, float]] = []
    for back in range(DAYS):
        number = len(versions) - 1 - back * len(versions) // DAYS
        version, rate = versions[number], 0.22 + 0.03 * number + rng.gauss(0, 0.01)
        weekend = time.gmtime(time.time() - back * 86_400).tm_wday > 4
        asked = A_DAY // (8 if weekend else 1)
        shown = asked * 2 // 5
        accepted = int(shown * rate)
        counts: Counter[str] = Counter(completions=asked, shown=shown, accepted=accepted)
        counts |= Counter(empty=asked // 25, cut_off=asked // 12)
        counts |= Counter(shown_characters=shown * 41, accepted_characters=accepted * 39)
        for seconds, left in zip(AFTER_S, (0.93, 0.86, 0.77), strict=True):
            counts[f"watched_characters_{seconds}"] = accepted * 39
            counts[f"kept_characters_{seconds}"] = int(accepted * 39 * left)
        for _ in range(asked):
            took = rng.lognormvariate(-1.0 - 0.08 * number, 0.5)
            counts[f"seconds{STEP}{step_of(took)}"] += 1
            counts[f"first_token{STEP}{step_of(took / 5)}"] += 1
        day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - back * 86_400))
        rows += [(day, name, version, value) for name, value in counts.items()]
    connection = sqlite3.connect(store.path)
    connection.executemany("INSERT INTO days VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()


def trace(stack: Stack, versions: list[str], folder: Path) -> None:
    """A week of traces with what was told of them, for the picture of MLflow's overview."""
    rng, store = random.Random(0), Store(folder, "here", 1 << 28)
    for _ in range(600):
        ago, took = rng.uniform(0, 7 * 86_400), rng.lognormvariate(-1.2, 0.5)
        began = time.time_ns() - int(ago * 1e9)
        made: Completion = completion(
            id=new_id("cmpl"),
            began_ns=began,
            ended_ns=began + int(took * 1e9),
            user=rng.choice(("ada", "bo", "cem")),
            model=MODEL,
            version=versions[-1] if ago < 4 * 86_400 else versions[-2],
            prompt_tokens=rng.randint(100, 700),
            completion_tokens=rng.randint(4, 60),
            first_token_s=took / 5,
            language=rng.choice(("python", "python", "typescript")),
        )
        store.completed(made)
        if rng.random() < 0.4:
            store.told(Event(made.id, viewed=True, shown_ms=rng.randint(760, 6000), accepted=rng.random() < 0.31))
    with Sender(ServingSettings(mlflow_tracking_uri=stack.url), store, folder / "lock") as sender:
        while sender.send():
            pass


def pictures(stack: Stack, url: str, folder: Path) -> None:
    """The page, light, dark and on a phone, and MLflow's overview of the traces."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name, scheme, width in (("page", "light", 1180), ("page-dark", "dark", 1180), ("page-phone", "light", 390)):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            page.goto(url)
            page.screenshot(path=folder / f"{name}.png", full_page=name == "page")
        experiment = stack.client.get_experiment_by_name("serving")
        assert experiment is not None
        context = browser.new_context(viewport={"width": 1280, "height": 1500})
        context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');")
        for tab in ("usage", "quality"):
            page = context.new_page()
            page.goto(f"{stack.url}/#/experiments/{experiment.experiment_id}/overview/{tab}")
            page.wait_for_timeout(6000)
            page.screenshot(path=folder / f"mlflow-overview-{tab}.png", animations="disabled")


def measured(look: Callable[[], object]) -> list[float]:
    """Milliseconds of each of so many looks."""
    found = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        look()
        found.append(1000 * (time.perf_counter() - began))
    return sorted(found)


@click.command(help=__doc__)
@click.option("--versions", default=1000, show_default=True)
@click.option("--decisions", default=1500, show_default=True)
@click.option("--pictures", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write pictures there.")
def main(versions: int, decisions: int, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory() as home:
        stack = make_stack(Path(home))
        with server(stack):
            mlflow.set_tracking_uri(stack.url)
            os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
            fill(stack, versions, 1, versions)
            decide(stack, versions, decisions)
            shown = [str(1 + (decisions - 2 - 10 * back) * (versions - 1) // decisions) for back in (3, 2, 1, 0)]
            if folder is not None:
                live(stack, shown[-1])
            Path(home, "serving").mkdir()
            count(Store(Path(home, "serving", "events"), "here", 1 << 28), shown)
            if folder is not None:
                trace(stack, shown, Path(home, "traces"))
            with serving_process(stack, MODEL, Path(home, "serving")) as serving:

                def look() -> None:
                    page = requests.get(serving.url, timeout=30)
                    assert page.status_code == 200
                    assert "What waits for approval" in page.text
                    assert "Is it better" in page.text
                    assert "not known at present" not in page.text

                api = f"{stack.url}/api/2.0/mlflow"

                def peer() -> None:
                    requests.get(f"{api}/registered-models/get", {"name": MODEL}, timeout=30).raise_for_status()
                    filter_string = f"name = '{MODEL}'"
                    given: dict[str, str | int] = {"filter": filter_string, "max_results": 100}
                    requests.get(f"{api}/model-versions/search", given, timeout=30).raise_for_status()

                first = measured(look)[-1]
                ours, theirs = measured(look), measured(peer)
                print(f"{versions} versions, {decisions} decisions, {A_DAY} completions a day for {DAYS} days")
                print(f"the first look of a worker: {first:.0f} ms")
                for name, found in (("the page", ours), ("MLflow's model page", theirs)):
                    p50, p95 = statistics.median(found), found[int(0.95 * LOOKS)]
                    print(f"{name:20} p50 {p50:5.0f} ms, p95 {p95:5.0f} ms, longest {found[-1]:5.0f} ms")
                print(f"ratio of the medians: {statistics.median(ours) / statistics.median(theirs):.2f}")
                if folder is not None:
                    serving.wait_for_version(shown[-1])
                    pictures(stack, serving.url, folder)


if __name__ == "__main__":
    main()
