"""Tables for people and programs: text, Markdown or JSON."""

import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from contract import names
from contract.errors import InputError, shortened
from contract.metrics import SHOWN
from contract.outcomes import NOT_PASSED, PASSED
from promoter.decision import Decision

MOST_NAMED = 8  # metrics or params, in a message
LEAST_OF_A_REASON = 24  # characters


@dataclass(frozen=True)
class Columns:
    """What a table shows besides the fixed columns: metrics and params of runs, tags of runs or versions."""

    metrics: tuple[str, ...] = SHOWN
    params: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def check(self, runs: Collection[Run]) -> None:
        """Raise InputError for a metric or param that none of the runs has, but for the metrics shown by default."""
        wanted = set(self.metrics) - set(SHOWN)
        for option, names_given, kind in (("--metric", wanted, "metrics"), ("--param", set(self.params), "params")):
            known = {name for run in runs for name in getattr(run.data, kind)}
            for name in sorted(names_given - known) if runs else ():
                near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:MOST_NAMED]
                raise InputError(f"{option} is '{name}', which none of these runs has. There are: {', '.join(near)}.")

    def of(self, run: Run | None, version_tags: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The columns' values; None for those that are missing."""
        data = run.data if run is not None else None
        tags = {**(data.tags if data else {}), **(version_tags or {})}
        return {
            **{_short(name): data.metrics.get(name) if data else None for name in self.metrics},
            **{name: data.params.get(name) if data else None for name in self.params},
            **{name: tags.get(name) for name in self.tags},
        }


def render(table: pd.DataFrame, output_format: str) -> str:
    """A table as text, markdown or json (a list of objects; a missing value is null)."""
    if output_format == "json":
        return to_json(table.to_dict(orient="records"))
    shown = table.map(_cell)
    if shown.empty:
        return "(nothing)"
    return shown.to_markdown(index=False) if output_format == "markdown" else shown.to_string(index=False)


def to_json(facts: object) -> str:
    """JSON that every parser takes: a figure that is not finite is null."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(facts), indent=2, default=str)


def runs_table(runs: list[Run], columns: Columns) -> pd.DataFrame:
    """One row per run: name, role, status, start, duration, the chosen columns, id."""
    rows = []
    for run in runs:
        ended = run.info.end_time
        rows.append(
            {
                "run": run.info.run_name,
                "role": run.data.tags.get(names.ROLE, ""),
                "status": run.info.status,
                "started": _time(run.info.start_time),
                "seconds": round((ended - run.info.start_time) / 1000) if ended else None,
                **columns.of(run),
                "data": run.data.tags.get(names.DATASET_DIGEST, "")[:8],
                "run_id": run.info.run_id,
            }
        )
    return pd.DataFrame(rows)


def versions_table(versions: Sequence[ModelVersion], runs: dict[str, Run], columns: Columns) -> pd.DataFrame:
    """One row per version: number, aliases, stage, role, validation, gate, the chosen columns of run and tags."""
    rows = []
    for version in versions:
        run = runs.get(version.run_id or "")  # None: registered by hand
        rows.append(
            {
                "version": int(version.version),
                "aliases": ", ".join(sorted(version.aliases)),
                "stage": version.tags.get(names.STAGE, ""),
                "role": version.tags.get(names.ROLE, ""),
                "validation": version.tags.get(names.VALIDATION, ""),
                "gate": version.tags.get(names.GATE, ""),
                **columns.of(run, version.tags),
                "data": version.tags.get(names.DATASET_DIGEST, "")[:8],
                "run": run.info.run_name if run else "",
            }
        )
    return pd.DataFrame(rows)


def history_table(runs: list[Run]) -> pd.DataFrame:
    """One row per record, newest first: when, what, from, to, who, why, and the run that holds the evidence."""
    return pd.DataFrame(
        [
            {
                "when": _time(run.info.start_time),
                "action": run.data.tags.get("action", ""),
                "outcome": run.data.tags.get("outcome", ""),
                "version": run.data.tags.get("version", ""),
                "from": run.data.tags.get("moved_from", ""),
                "to": run.data.tags.get("stage", ""),
                "replaced": run.data.tags.get("replaces", ""),
                "by": run.data.tags.get("by", ""),
                "why": run.data.tags.get("why", ""),
                "evidence": run.info.run_id,
            }
            for run in runs
        ]
    )


def fitted(history: pd.DataFrame, width: int = 120) -> pd.DataFrame:
    """A history that fits a terminal: run ids and reasons are shortened."""
    if history.empty:
        return history
    history = history.assign(evidence=history["evidence"].str[:8])
    others = history.drop(columns="why").to_dict("list")
    taken = sum(max(map(len, map(str, [name, *cells]))) + 1 for name, cells in others.items())
    room = max(LEAST_OF_A_REASON, width - taken - 2)  # a space, and the mark of what was left out
    return history.assign(why=[shortened(text, room) for text in history["why"]])


def check_text(name: str, passed: bool, detail: str) -> str:
    """A check for a terminal."""
    mark = click.style(PASSED, fg="green") if passed else click.style(NOT_PASSED, fg="red", bold=True)
    return f"  {mark} {name}: {detail}"


def decision_text(decision: Decision) -> str:
    """The gate's verdict for a terminal: a line per check, those that failed in red."""
    verdict = (
        click.style("passed", fg="green", bold=True)
        if decision.passed
        else click.style("NOT passed", fg="red", bold=True)
    )
    failed = [reason.check for reason in decision.reasons if not reason.passed]
    lines = [f"Gate: {verdict}" + (f" ({', '.join(failed)})" if failed else "")]
    in_order = [reason for reason in decision.reasons if reason.group == "evidence" and reason.passed]
    if in_order:
        lines.append(check_text("evidence", True, f"{len(in_order)} checks passed (all are in the report)"))
    for reason in decision.reasons:
        if reason in in_order:
            continue
        lines.append(check_text(reason.check, reason.passed, reason.detail))
    return "\n".join(lines)


def _short(metric: str) -> str:
    return metric.removeprefix("eval/")


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if value.is_integer() else f"{value:.4f}"
