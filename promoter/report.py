"""Tables for people and programs: text, Markdown or JSON."""

import json
import math
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from promoter.gate import Decision

SHOWN_METRICS = (
    "eval/nll_per_token",
    "eval/perplexity",
    "eval/syntax_ok",
    "eval/exact_match",
    "eval/edit_similarity",
)


def render(table: pd.DataFrame, output_format: str) -> str:
    """A table as text, markdown or json (a list of objects; a missing value is null)."""
    if output_format == "json":
        return json.dumps(
            [{key: _jsonable(value) for key, value in row.items()} for row in table.to_dict(orient="records")],
            indent=2,
        )
    shown = table.map(_cell)
    if shown.empty:
        return "(nothing)"
    return shown.to_markdown(index=False) if output_format == "markdown" else shown.to_string(index=False)


def runs_table(runs: list[Run], metrics: tuple[str, ...]) -> pd.DataFrame:
    """One row per run: name, role, status, start, duration, the metrics, id."""
    rows = []
    for run in runs:
        ended = run.info.end_time
        rows.append(
            {
                "run": run.info.run_name,
                "role": run.data.tags.get("role", ""),
                "status": run.info.status,
                "started": _time(run.info.start_time),
                "seconds": round((ended - run.info.start_time) / 1000) if ended else None,
                **{_short(name): run.data.metrics.get(name) for name in metrics},
                "data": run.data.tags.get("dataset_digest", "")[:8],
                "run_id": run.info.run_id,
            }
        )
    return pd.DataFrame(rows)


def versions_table(client: MlflowClient, versions: list[ModelVersion], metrics: tuple[str, ...]) -> pd.DataFrame:
    """One row per version: number, aliases, stage, role, validation, the metrics of its run."""
    rows = []
    for version in versions:
        run = client.get_run(version.run_id) if version.run_id else None  # None: registered by hand
        rows.append(
            {
                "version": int(version.version),
                "aliases": ", ".join(sorted(version.aliases)),
                "stage": version.tags.get("stage", ""),
                "role": version.tags.get("role", ""),
                "validation": version.tags.get("validation_status", ""),
                **{_short(name): run.data.metrics.get(name) if run else None for name in metrics},
                "data": version.tags.get("dataset_digest", "")[:8],
                "run": run.info.run_name if run else "",
            }
        )
    return pd.DataFrame(rows)


def history_table(runs: list[Run]) -> pd.DataFrame:
    """One row per promotion, newest first: when, what, from, to, who, why."""
    return pd.DataFrame(
        [
            {
                "when": _time(run.info.start_time),
                "action": run.data.tags.get("action", ""),
                "version": run.data.tags.get("version", ""),
                "stage": run.data.tags.get("stage", ""),
                "replaced": run.data.tags.get("replaces", ""),
                "by": run.data.tags.get("by", ""),
                "why": run.data.tags.get("why", ""),
            }
            for run in runs
        ]
    )


def decision_text(decision: Decision) -> str:
    """The gate's verdict for a terminal: a line per check."""
    lines = [f"  {'✓' if reason.passed else '✗'} {reason.check}: {reason.detail}" for reason in decision.reasons]
    return "\n".join([f"Gate: {'passed' if decision.passed else 'NOT passed'}", *lines])


def decision_report(record: dict[str, Any]) -> str:
    """The decision record as Markdown, for a colleague to read."""
    lines = [
        f"# {record['model']} version {record['version']} → {record['stage']}",
        "",
        f"{record['action']} by {record['by']}. {record['why']}.",
        "",
    ]
    if record.get("reasons"):
        lines += ["| check | passed | detail |", "|---|---|---|"]
        lines += [f"| {item['check']} | {item['passed']} | {item['detail']} |" for item in record["reasons"]]
    return "\n".join(lines) + "\n"


def _short(metric: str) -> str:
    return metric.removeprefix("eval/")


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _cell(value: Any) -> str:
    if _jsonable(value) is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if value.is_integer() else f"{value:.4f}"


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
