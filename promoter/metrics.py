"""Metrics from evaluation tables: which column of which table a metric is the mean of, example by example."""

import re
from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd

PER_EXAMPLE = "one of nll_per_token, nll_per_byte, syntax_ok, exact_match, edit_similarity, passed, pass_at_K"
PASS_OR_FAIL = ("syntax_ok", "exact_match", "passed")
_NAME = re.compile(
    r"(?P<prefix>[\w.-]+)/(?:(?P<kind>[\w.-]+)/)?"
    r"(?P<name>nll_per_token|nll_per_byte|syntax_ok|exact_match|edit_similarity|passed|pass_at_(?P<k>[1-9]\d*))"
)


class NoValue(ValueError):
    """A table does not give a metric; the message says why."""


@dataclass(frozen=True)
class Metric:
    """A metric that is a weighted mean over the examples of a table: Σ value / Σ weight."""

    name: str  # as logged, e.g. eval/fim/nll_per_token
    table: str  # artifact of the run, e.g. eval/examples.parquet
    kind: str | None  # of the examples; None: all
    column: str  # the last part of the name
    k: int | None  # of pass_at_K

    @property
    def pass_or_fail(self) -> bool:
        return self.column in PASS_OR_FAIL


def parse(name: str) -> Metric | None:
    """The metric of that name, or None where it has no value for each example."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    prefix, kind, column, k = match.groups()
    table = "eval/examples.parquet" if prefix == "eval" else f"eval/{prefix}.parquet"
    return Metric(name, table, kind, column, int(k) if k else None)


def per_example(metric: Metric, table: pd.DataFrame) -> pd.DataFrame:
    """Columns `value` and `weight` (float64) by example_id. Raises NoValue where the table does not say.

    Examples that the metric is not defined for are left out: a row without a reference has no likelihood.
    """
    if metric.kind is not None:
        if "kind" not in table:
            raise NoValue(f"{metric.table} has no column 'kind'")
        table = table[table["kind"] == metric.kind]
    if not len(table):
        raise NoValue(f"{metric.table} has zero examples" + (f" of kind {metric.kind}" if metric.kind else ""))
    values, weights = _columns(metric, table)
    frame = pd.DataFrame(
        {"value": values.to_numpy(float), "weight": weights.to_numpy(float)}, index=table["example_id"].to_numpy()
    )
    if metric.column.startswith("nll"):
        frame = frame[frame["weight"] > 0]
    else:
        frame = frame[table[_needs(metric)[0]].notna().to_numpy()]
    if not len(frame):
        raise NoValue(f"{metric.table} has zero examples with {metric.name}")
    bad = int((~np.isfinite(frame.to_numpy())).any(axis=1).sum())
    if bad:
        raise NoValue(f"{metric.table}: {bad} of {len(frame)} examples have no finite {metric.column}")
    if not frame.index.is_unique:
        raise NoValue(f"{metric.table}: {int(frame.index.duplicated().sum())} example_ids are there twice")
    return frame


def _needs(metric: Metric) -> tuple[str, ...]:
    if metric.column.startswith("nll"):
        return ("nll", "tokens") if metric.column == "nll_per_token" else ("nll", "tokens", "reference")
    return ("samples_passed", "samples") if metric.k else (metric.column,)


def _columns(metric: Metric, table: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """(value, weight) of each row; the metric is Σ value / Σ weight."""
    for column in ("example_id", *_needs(metric)):
        if column not in table:
            raise NoValue(f"{metric.table} has no column '{column}'")
    try:
        if metric.column == "nll_per_token":
            return table["nll"].astype(float), table["tokens"].astype(float)
        if metric.column == "nll_per_byte":
            sizes = table["reference"].fillna("").map(lambda text: len(text.encode())).astype(float)
            return table["nll"].astype(float), sizes.where(table["tokens"] > 0, 0.0)
        ones = pd.Series(1.0, index=table.index)
        if metric.k is None:
            return table[metric.column].astype(float), ones
        drawn = table[["samples", "samples_passed"]].astype(float)
        return drawn.apply(lambda row: _pass_at(metric.k or 1, row["samples"], row["samples_passed"]), axis=1), ones
    except (TypeError, ValueError, AttributeError) as error:
        raise NoValue(f"{metric.table}: {metric.column} is no number everywhere: {error}") from error


def _pass_at(k: int, samples: float, passed: float) -> float:
    """As trainer.evaluation.table.pass_at_k; NaN where it is not defined."""
    if not samples >= k:
        return np.nan
    return 1.0 - comb(int(samples - passed), k) / comb(int(samples), k)
