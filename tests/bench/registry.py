"""`promoter compare`, `best` and others on a registry with years in it, against a client loop over the same server.

    python -m tests.bench.registry [--runs 10000] [--metrics 50] [--versions 1000]

Each task runs in a process of its own, so that its memory is its own: seconds (without Python's imports), requests to
the server, and by how much the process grew. The peers do what one writes first: fetch all runs and sort; ask for each
version's run.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import requests
from mlflow import MlflowClient
from sqlalchemy import MetaData, create_engine

from tests.support.tracking import Stack, make_stack, server

EXPERIMENT, MODEL = "years", "years_model"
METRIC = "eval/nll_per_token"


def fill(stack: Stack, runs: int, metrics: int, versions: int) -> None:
    """Put runs and versions into the server's SQLite, past its API, which would take an hour."""
    experiment_id = int(stack.client.create_experiment(EXPERIMENT))
    stack.client.create_registered_model(MODEL)
    engine = create_engine(f"sqlite:///{stack.home / 'mlflow.db'}")
    known = MetaData()
    known.reflect(engine)
    rng = np.random.default_rng(0)
    names = [METRIC, *(f"eval/metric_{number}" for number in range(metrics - 1))]
    ids = [f"{number:032x}" for number in range(runs)]
    tags = {"role": "candidate", "dataset_digest": "d", "prompt_template": "as they are", "eval_settings": "greedy"}
    with engine.begin() as connection:

        def insert(table: str, rows: list[dict[str, object]]) -> None:
            defaults = {"workspace": "default"} if "workspace" in known.tables[table].c else {}
            for start in range(0, len(rows), 50_000):
                connection.execute(
                    known.tables[table].insert(), [defaults | row for row in rows[start : start + 50_000]]
                )

        insert(
            "runs",
            [
                {
                    "run_uuid": run_id,
                    "name": f"run-{number}",
                    "experiment_id": experiment_id,
                    "user_id": "ada",
                    "status": "FINISHED",
                    "lifecycle_stage": "active",
                    "source_type": "LOCAL",
                    "source_name": "",
                    "start_time": 10**12 + number,
                    "end_time": 10**12 + number + 1000,
                    "artifact_uri": "mlflow-artifacts:/x",
                    "entry_point_name": "",
                    "source_version": "",
                }
                for number, run_id in enumerate(ids)
            ],
        )
        values = rng.gamma(9, 0.2, (runs, metrics))
        rows = [
            {"key": name, "value": float(value), "timestamp": 0, "step": 0, "is_nan": False, "run_uuid": run_id}
            for run_id, row in zip(ids, values, strict=True)
            for name, value in zip(names, row, strict=True)
        ]
        insert("latest_metrics", rows)
        insert("metrics", rows)
        insert("tags", [{"key": k, "value": v, "run_uuid": run_id} for run_id in ids for k, v in tags.items()])
        insert("params", [{"key": f"p{k}", "value": str(k), "run_uuid": run_id} for run_id in ids for k in range(20)])
        insert(
            "model_versions",
            [
                {
                    "name": MODEL,
                    "version": number + 1,
                    "creation_time": 10**12,
                    "last_updated_time": 10**12,
                    "description": "",
                    "user_id": None,
                    "current_stage": "None",
                    "source": "models:/m-1",
                    "run_id": ids[number * (runs // versions)],
                    "status": "READY",
                    "status_message": None,
                    "run_link": None,
                    "storage_location": None,
                }
                for number in range(versions)
            ],
        )
        insert(
            "model_version_tags",
            [{"name": MODEL, "version": n + 1, "key": k, "value": v} for n in range(versions) for k, v in tags.items()],
        )
    engine.dispose()


def promoter(*arguments: str) -> None:
    from promoter.cli import main

    main(["--tracking-uri", sys.argv[2], *arguments], standalone_mode=False)


def compare() -> None:
    promoter("compare", "--experiment-name", EXPERIMENT)


def compare_by_loop() -> None:
    client = MlflowClient(sys.argv[2])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        runs += page
        if not (token := page.token):
            break
    for run in sorted(runs, key=lambda run: run.data.metrics[METRIC])[:20]:
        print(run.info.run_name, run.data.metrics[METRIC])


def best() -> None:
    promoter("best", "--experiment-name", EXPERIMENT)


def best_by_loop() -> None:
    client = MlflowClient(sys.argv[2])
    found = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{MODEL}'", page_token=token)
        found += [(client.get_run(str(version.run_id)).data.metrics[METRIC], version.version) for version in page]
        if not (token := page.token):
            break
    print(min(found))


def compare_versions() -> None:
    promoter("compare-versions", "--experiment-name", EXPERIMENT)


TASKS = {task.__name__: task for task in (compare, compare_by_loop, best, best_by_loop, compare_versions)}


def peak_mb() -> float:
    """The most memory that this process has used, in MB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def measure(name: str) -> None:
    """Run one task, and print what it took as the last line."""
    importlib.import_module("promoter.cli")  # what every command pays for, whatever it does

    count = 0
    send = requests.Session.send

    def counted(session: requests.Session, request: requests.PreparedRequest, **options: object) -> requests.Response:
        nonlocal count
        count += 1
        return send(session, request, **options)  # type: ignore[arg-type]

    requests.Session.send = counted  # type: ignore[assignment,method-assign]
    before, began = peak_mb(), time.perf_counter()
    TASKS[name]()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "requests": count, "mb": peak_mb() - before}))


@click.command()
@click.option("--runs", default=10_000, show_default=True)
@click.option("--metrics", default=50, show_default=True, help="Of each run.")
@click.option("--versions", default=1000, show_default=True)
def main(runs: int, metrics: int, versions: int) -> None:
    """Fill a tracking server on SQLite, and compare the promoter with a client loop on it."""
    with tempfile.TemporaryDirectory() as home:
        stack = make_stack(Path(home))
        with server(stack):
            fill(stack, runs, metrics, versions)
        with server(stack):  # started again, as in years it is
            print(f"{runs:,} runs of {metrics} metrics, {versions:,} versions")
            found = {}
            for name in TASKS:
                command = [sys.executable, "-m", "tests.bench.registry", "--task", stack.url, name]
                began = time.perf_counter()
                child = subprocess.run(command, capture_output=True, text=True)
                if child.returncode:
                    raise SystemExit(child.stderr)
                took = time.perf_counter() - began
                found[name] = json.loads(child.stdout.splitlines()[-1])
                print(
                    "  {0:<18}{seconds:>8.2f} s {requests:>6} requests {mb:>7.0f} MB".format(name, **found[name]),
                    f"  whole process {took:.2f} s",
                )
            for ours in ("compare", "best"):
                ratio = found[f"{ours}_by_loop"]["seconds"] / found[ours]["seconds"]
                print(f"Ratio of {ours}: {ratio:.1f} times as fast as the loop")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        measure(sys.argv[3])
    else:
        main()
