"""The registry of metrics: what the evaluation table gives, example by example, and which way is better.

A metric is a weighted mean over the rows of a table: Σ value / Σ weight. Its name is PREFIX/NAME, PREFIX/KIND/NAME or
PREFIX/KIND/CURSOR/NAME: `eval/nll_per_token` over all held-out examples, `eval/fim/nll_per_token` over those of one
kind, `eval/fim/midline/nll_per_token` over those of them with the cursor in the middle of a line, `humaneval/pass_at_1`
over a benchmark's tasks. The trainer's summary, the gate, the promoter's tables, the policies' checks and the table in
docs/evaluation.md (`make docs`) all read METRICS.

To add one: a column in the evaluation table (trainer/evaluation) where it needs a new one, and an entry here.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any, Literal

from contract.names import EVALUATION_TABLE

if TYPE_CHECKING:  # imported where tables are read: names alone are wanted by command lines
    import pandas as pd

Direction = Literal["lower_is_better", "higher_is_better"]
# Where in its line the cursor of a gap is: before everything, behind the indentation, behind a token, inside of one.
CURSORS = LINE_START, INDENTED, MIDLINE, MIDTOKEN = "line_start", "indented", "midline", "midtoken"
Column = Callable[["pd.DataFrame", int], Any]  # (table, k of pass@k) → a Series of numbers, one a row


@dataclass(frozen=True)
class Definition:
    """What a metric is computed from. Examples whose column `where` is empty, or whose weight is 0, do not count."""

    name: str
    help: str
    direction: Direction
    columns: tuple[str, ...]  # of the evaluation table
    value: Column
    weight: Column
    where: str
    highest: float = math.inf  # value of an example, as a share of its weight; the lowest is 0
    pass_or_fail: bool = False  # the value is 0 or 1
    shown: bool = False  # by `promoter compare` by default


def _ones(table: "pd.DataFrame", k: int) -> Any:
    import pandas as pd

    return pd.Series(1.0, index=table.index)


def _mean_of(name: str, help: str, *, pass_or_fail: bool = False, shown: bool = True) -> Definition:
    """A metric that is the plain mean of its column."""
    return Definition(
        name,
        help,
        "higher_is_better",
        (name,),
        lambda table, k: table[name].astype(float),
        _ones,
        name,
        1.0,
        pass_or_fail,
        shown,
    )


def _nll(table: "pd.DataFrame", k: int) -> Any:
    return table["nll"].astype(float)


def _tokens(table: "pd.DataFrame", k: int) -> Any:
    return table["tokens"].astype(float)


def _nats(name: str, help: str) -> Definition:
    """A metric that is the mean of its column, in nats an example. NaN is no absence: it makes the metric NaN."""
    columns = (name, "tokens")
    return Definition(
        name, help, "lower_is_better", columns, lambda table, k: table[name].astype(float), _has_reference, "tokens"
    )


def _has_reference(table: "pd.DataFrame", k: int) -> Any:
    return (table["tokens"] > 0).astype(float)


def _bytes(table: "pd.DataFrame", k: int) -> Any:
    sizes = table["reference"].fillna("").map(lambda text: len(text.encode())).astype(float)
    return sizes.where(table["tokens"] > 0, 0.0)


def _pass_at(table: "pd.DataFrame", k: int) -> Any:
    drawn = table[["samples", "samples_passed"]].astype(float)
    return drawn.apply(lambda row: pass_at_k(row["samples"], row["samples_passed"], k), axis=1)


def pass_at_k(samples: float, passed: float, k: int) -> float:
    """The chance that of k of the samples one passes: 1 − C(n−c, k) / C(n, k), unbiased (Chen et al. 2021).

    NaN where there are fewer than k samples.
    """
    if not samples >= k:
        return float("nan")
    return 1.0 - comb(int(samples - passed), k) / comb(int(samples), k)


def first_lines_match(completion: str, reference: str) -> bool:
    """Whether the first lines with something in them are the same, but for space behind them."""
    first, wanted = (text.lstrip("\n").split("\n", 1)[0].rstrip() for text in (completion, reference))
    return first == wanted


def stops(completion: str, reference: str) -> bool:
    """Whether a completion has as many lines as the reference."""
    return completion.rstrip("\n").count("\n") == reference.rstrip("\n").count("\n")


PASS_AT = "pass_at_"  # and k
METRICS: dict[str, Definition] = {
    item.name: item
    for item in (
        Definition(
            "nll_per_token",
            "negative log-likelihood of the reference, in nats a token",
            "lower_is_better",
            ("nll", "tokens"),
            _nll,
            _tokens,
            "tokens",
            shown=True,
        ),
        Definition(
            "nll_per_byte",
            "the same, in nats a byte: comparable between tokenizers",
            "lower_is_better",
            ("nll", "tokens", "reference"),
            _nll,
            _bytes,
            "tokens",
        ),
        _nats(
            "first_token_nll", "the same of what the reference begins with, in nats: the first token behind the cursor"
        ),
        _nats("first_line_nll", "the same of the reference's first line, in nats"),
        _mean_of("first_line_match", "share of completions with the reference's first line", pass_or_fail=True),
        _mean_of("stops", "share of completions with as many lines as the reference", pass_or_fail=True, shown=False),
        _mean_of(
            "ends",
            "share of references behind which the model finds the end of text likeliest",
            pass_or_fail=True,
            shown=False,
        ),
        _mean_of("syntax_ok", "share of completions that are valid code", pass_or_fail=True),
        _mean_of("exact_match", "share of completions that are the reference", pass_or_fail=True),
        _mean_of("edit_similarity", "1 − Levenshtein distance to the reference, normalised (0 to 1)"),
        _mean_of("passed", "share of greedy completions whose test passes", pass_or_fail=True, shown=False),
        Definition(
            PASS_AT,
            "chance that one of k sampled completions passes its test (pass@k)",
            "higher_is_better",
            ("samples", "samples_passed"),
            _pass_at,
            _ones,
            "samples_passed",
            1.0,
        ),
    )
}
# Logged beside them, without a value for each example: name → (direction, help). For floors and tables.
DERIVED: dict[str, tuple[Direction, str]] = {
    "perplexity": ("lower_is_better", "e to the nll_per_token"),
}
# What `promoter compare` shows unless other metrics are asked for.
SHOWN = tuple(f"eval/{name}" for name in (*[name for name, item in METRICS.items() if item.shown], *DERIVED))
PER_EXAMPLE = "one of " + ", ".join(f"{name}K" if name == PASS_AT else name for name in METRICS)
_NAME = re.compile(
    rf"(?P<prefix>[\w.-]+)/(?:(?P<kind>[\w.-]+)/)?(?:(?P<cursor>{'|'.join(CURSORS)})/)?"
    rf"(?P<name>{'|'.join(name for name in METRICS if name != PASS_AT)}|{PASS_AT}(?P<k>[1-9]\d*))"
)


class NoValue(ValueError):
    """A table does not give a metric; the message says why."""


@dataclass(frozen=True)
class Metric:
    """A metric as a policy or a run names it."""

    name: str  # as logged, e.g. eval/fim/nll_per_token
    table: str  # artifact of the run, e.g. eval/examples.parquet
    kind: str | None  # of the examples; None: all
    cursor: str | None  # of these; None: all
    definition: Definition
    k: int  # of pass@k; 0 for other metrics

    @property
    def column(self) -> str:
        """The last part of the name."""
        return f"{self.definition.name}{self.k}" if self.k else self.definition.name

    @property
    def pass_or_fail(self) -> bool:
        return self.definition.pass_or_fail


def parse(name: str) -> Metric | None:
    """The metric of that name, or None where it has no value for each example."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    prefix, kind, cursor, column, k = match.groups()
    if kind in CURSORS and cursor is None:
        kind, cursor = None, kind
    table = EVALUATION_TABLE if prefix == "eval" else f"eval/{prefix}.parquet"
    return Metric(name, table, kind, cursor, METRICS[PASS_AT if k else column], int(k or 0))


def lower_is_better(name: str) -> bool:
    """Whether less of a metric is better, by its name; also of what the registry does not know, such as a loss."""
    last = name.rpartition("/")[2]
    known = METRICS.get(last) or METRICS.get(PASS_AT if last.startswith(PASS_AT) else "")
    if known is not None:
        return known.direction == "lower_is_better"
    if last in DERIVED:
        return DERIVED[last][0] == "lower_is_better"
    return any(word in name for word in ("loss", "memory", "seconds"))


def per_example(metric: Metric, table: "pd.DataFrame") -> "pd.DataFrame":
    """Columns `value` and `weight` (float64) by example_id. Raises NoValue where the table does not say.

    Examples that the metric is not defined for are left out: a row without a reference has no likelihood.
    """
    import numpy as np

    for column, wanted in (("kind", metric.kind), ("cursor", metric.cursor)):
        if wanted is not None:
            if column not in table:
                raise NoValue(f"{metric.table} has no column '{column}'")
            table = table[table[column] == wanted]
            if not len(table):
                raise NoValue(f"{metric.table} has zero examples of {column} {wanted}")
    if not len(table):
        raise NoValue(f"{metric.table} has zero examples")
    for column in ("example_id", *metric.definition.columns):
        if column not in table:
            raise NoValue(f"{metric.table} has no column '{column}'")
    try:
        if "tokens" in metric.definition.columns:
            _check_tokens(metric, table)
        frame = values(metric.definition, table, metric.k)
        frame.index = frame.index.astype(str)
    except NoValue:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise NoValue(f"{metric.table}: {metric.column} is no number everywhere: {error}") from error
    if not len(frame):
        raise NoValue(f"{metric.table} has zero examples with {metric.name}")
    bad = int((~np.isfinite(frame.to_numpy())).any(axis=1).sum())
    if bad:
        raise NoValue(f"{metric.table}: {bad} of {len(frame)} examples have no finite {metric.column}")
    most = metric.definition.highest
    rates = (frame["value"] / frame["weight"]).to_numpy()
    out = (rates < 0) | (rates > most * (1 + 1e-9))
    if out.any():
        limits = f"from 0 to {most:g}" if math.isfinite(most) else "at least 0"
        raise NoValue(
            f"{metric.table}: {int(out.sum())} examples have a {metric.column} such as {rates[out][0]:g}. "
            f"Expected {limits}"
        )
    if not frame.index.is_unique:
        raise NoValue(f"{metric.table}: {int(frame.index.duplicated().sum())} example_ids are there twice")
    return frame


def _check_tokens(metric: Metric, table: "pd.DataFrame") -> None:
    """Raise NoValue for counts that are none: such rows would be left out like those without a reference."""
    import pandas as pd

    tokens = pd.to_numeric(table["tokens"], errors="coerce")
    wrong = tokens.isna() | (tokens < 0)
    if "reference" in table:
        wrong |= (tokens == 0) & (table["reference"].fillna("").map(len) > 0)
    if wrong.any():
        first = table[wrong].iloc[0]
        raise NoValue(
            f"{metric.table}: {int(wrong.sum())} of {len(table)} examples have no count of tokens, such as "
            f"{first['example_id']} with {first['tokens']}. Expected 1 or more, and 0 where there is no reference"
        )


def values(definition: Definition, table: "pd.DataFrame", k: int = 0) -> "pd.DataFrame":
    """Columns `value` and `weight` by example_id, of the rows that a metric is defined for."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "value": definition.value(table, k).to_numpy(float),
            "weight": definition.weight(table, k).to_numpy(float),
        },
        index=table["example_id"].to_numpy(),
    )
    return frame[table[definition.where].notna().to_numpy() & (frame["weight"] > 0).to_numpy()]


def summary(table: "pd.DataFrame", prefix: str, pass_at: Iterable[int] = ()) -> dict[str, float]:
    """The metrics that a table gives: {PREFIX/NAME: value}. `pass_at`: each k of pass@k that is wanted."""
    found: dict[str, float] = {}
    for name, definition in METRICS.items():
        if not set(definition.columns) <= set(table):
            continue
        for k in pass_at if name == PASS_AT else (0,):
            frame = values(definition, table, k)
            if len(frame):
                # numpy's sums, and not pandas': one value that is not finite makes the metric so, and the gate says no.
                found[f"{prefix}/{name}{k or ''}"] = float(
                    frame["value"].to_numpy().sum() / frame["weight"].to_numpy().sum()
                )
    return found
