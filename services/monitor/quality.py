"""How well the version in production knows code that was committed since it was trained.

Its likelihood of that code, against the one by which the gate let it through: that of the held-out examples of its own
run. Files are compared, and not examples, as the gate does it.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.names import EVALUATES, EVALUATION_TABLE, GROUP
from contract.tracking import read_table
from services.monitor.inputs import by_chance
from services.monitor.jobs import Unknown, trainer

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MOST_EXAMPLES = 256
LEAST_FILES = 5
# Of the run that made the version: how its examples were made and judged.
AS_IT_WAS = (
    *("trainer.max_length", "data.include", "data.exclude", "data.function_weight", "data.fim_weight"),
    *("data.next_block_weight", "data.require_docstring", "data.redact_secrets", "data.near_duplicate_threshold"),
    *("seed", "model.dtype"),
)


@dataclass(frozen=True)
class Quality:
    """Likelihoods in nats a token, of new code less held-out code: above zero is worse."""

    files: int
    examples: int
    new: float
    held_out: float
    p: float  # how likely such a difference is by chance
    weeks: tuple[tuple[str, float, int], ...]  # the Monday, nats a token, files

    @property
    def difference(self) -> float:
        """Of new code and held-out code."""
        return self.new - self.held_out


def judge(
    client: "MlflowClient", version: "ModelVersion", run: "Run", found: list[dict[str, Any]], seed: int = 0
) -> Quality:
    """By what `trainer changes` found. Raises Unknown where there is too little new code, or none can be judged."""
    tables = [_new_code(client, version, run, item) for item in found if item["changed_at"]]
    if not tables:
        raise Unknown("no file has changed since it was trained")
    held_out = read_table(client, run.info.run_id, EVALUATION_TABLE)
    return compare(held_out, tables, [item["changed_at"] for item in found if item["changed_at"]], seed)


def compare(
    held_out: "pd.DataFrame", tables: list["pd.DataFrame"], changed_at: list[dict[str, int]], seed: int = 0
) -> Quality:
    """Of evaluation tables: the gate's, and one of each source's new code with the times of its files."""
    sums: defaultdict[tuple[bool, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    weeks: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    examples = 0
    for is_new, source, table in [(False, -1, held_out), *((True, n, table) for n, table in enumerate(tables))]:
        for group, rows in table[table["tokens"] > 0].groupby(GROUP):
            of_table = float(rows["nll"].sum()), float(rows["tokens"].sum())
            of_file = sums[is_new, f"{source} {group}"]
            of_file[0], of_file[1] = of_file[0] + of_table[0], of_file[1] + of_table[1]
            if is_new:
                examples += len(rows)
                if (at := changed_at[source].get(str(group))) is not None:
                    weeks[_monday(at)].append(of_table)
    theirs = np.array([is_new for is_new, _ in sums])
    nats, tokens = (np.array([values[number] for values in sums.values()]) for number in (0, 1))
    if theirs.sum() < LEAST_FILES or (~theirs).sum() < LEAST_FILES:
        raise Unknown(f"{theirs.sum()} files of new code can be judged by, and it takes {LEAST_FILES}")
    names = [name for _, name in sums]
    return Quality(
        files=int(theirs.sum()),
        examples=examples,
        new=float(nats[theirs].sum() / tokens[theirs].sum()),
        held_out=float(nats[~theirs].sum() / tokens[~theirs].sum()),
        p=by_chance(nats / tokens, tokens, names, theirs, np.random.default_rng(seed)),
        weeks=tuple(
            (week, sum(n for n, _ in values) / sum(t for _, t in values), len(values))
            for week, values in sorted(weeks.items())
        ),
    )


def _new_code(client: "MlflowClient", version: "ModelVersion", run: "Run", item: dict[str, Any]) -> "pd.DataFrame":
    """The evaluation table of a source's new code."""
    settings = [f"{name}={_value(run.data.params[name])}" for name in AS_IT_WAS if name in run.data.params]
    experiment = client.get_experiment(run.info.experiment_id).name
    trainer(
        *("evaluate", "--model-uri", f"models:/{version.name}/{version.version}", "--data", item["source"], *settings),
        *(f"data.eval_since={item['since']}", f"data.max_eval_examples={MOST_EXAMPLES}", "eval.max_generated=0"),
        f"tracking.experiment_name={experiment}",
    )
    runs = client.search_runs(
        [run.info.experiment_id],
        f"tags.{EVALUATES} = '{version.name}/{version.version}' AND params.`data.eval_since` = '{item['since']}'",
        order_by=["attributes.start_time DESC"],
    )
    for one in runs:
        if one.data.params.get("data.eval_source") == item["source"] and one.info.status == "FINISHED":
            return read_table(client, one.info.run_id, EVALUATION_TABLE)
    raise Unknown(f"the evaluation of '{item['source']}' is not to be found")


def _value(logged: str) -> str:
    return "null" if logged == "None" else logged


def _monday(at: int) -> str:
    day = datetime.fromtimestamp(at, UTC)
    return datetime.fromtimestamp(at - 86_400 * day.weekday(), UTC).strftime("%Y-%m-%d")
