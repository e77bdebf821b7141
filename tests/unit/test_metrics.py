"""Metrics from tables are what the trainer logs of them."""

import numpy as np
import pandas as pd
import pytest

from contract import metrics
from contract.metrics import NoValue, parse, per_example
from trainer.config import EvalConfig
from trainer.evaluation.summary import summarise


def table() -> pd.DataFrame:
    rng, n = np.random.default_rng(3), 40
    rows = pd.DataFrame(
        {
            "example_id": [f"e{number}" for number in range(n)],
            "kind": ["function", "fim"] * (n // 2),
            "reference": ["ünder" if number % 3 else "" for number in range(n)],
            "nll": rng.gamma(2, 3, n),
            "tokens": [7 if number % 3 else 0 for number in range(n)],
            "syntax_ok": [None if number % 2 else bool(number % 4) for number in range(n)],
            "exact_match": [bool(number % 5 == 0) if number % 3 else None for number in range(n)],
            "edit_similarity": [rng.random() if number % 3 else None for number in range(n)],
            "passed": [bool(number % 7) if number < 20 else None for number in range(n)],
            "samples": 5,
            "samples_passed": rng.integers(0, 6, n),
        }
    )
    rows.loc[20:, ["samples", "samples_passed"]] = np.nan
    return rows


def test_every_metric_is_the_weighted_mean_of_its_examples() -> None:
    config = EvalConfig(samples=5, pass_at="1,5")
    rows = table()
    logged = summarise(rows, config)
    checked = 0
    for name, value in logged.items():
        metric = parse(name)
        if metric is None:
            assert name.rpartition("/")[2] in ("examples", "perplexity"), name
            continue
        found = per_example(metric, rows)
        assert found["value"].sum() / found["weight"].sum() == pytest.approx(value), name
        checked += 1
    assert checked == (5 + 3) + (5 + 3) + (4 + 3)  # over all; of functions; of gaps, which are not parsed


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [
        ("eval/nll_per_token", "eval/examples.parquet", None),
        ("eval/fim/edit_similarity", "eval/examples.parquet", "fim"),
        ("humaneval/pass_at_10", "eval/humaneval.parquet", None),
    ],
)
def test_where_a_metric_stands(name: str, path: str, kind: str | None) -> None:
    metric = parse(name)
    assert metric is not None
    assert (metric.name, metric.table, metric.kind) == (name, path, kind)


@pytest.mark.parametrize("name", ["loss", "eval/perplexity", "run/peak_memory_mb", "eval/pass_at_0", "a/b/c/passed"])
def test_what_has_no_value_for_each_example(name: str) -> None:
    assert parse(name) is None


def test_a_kind_that_is_not_there_is_zero_examples() -> None:
    metric = parse("eval/next_block/passed")
    assert metric is not None
    with pytest.raises(NoValue, match="zero examples of kind next_block"):
        per_example(metric, table())


@pytest.mark.parametrize("column", ["nll", "first_token_nll", "first_line_nll"])
def test_a_likelihood_that_is_no_number_is_not_left_out(column: str) -> None:
    """Or the model with the most of them would have the best figures."""
    rows = pd.DataFrame(
        {"example_id": ["a", "b", "c"], "tokens": [3, 4, 0], "reference": ["x", "yy", ""], "nll": [1.0, 2.0, np.nan]}
        | {key: [1.0, 3.0, np.nan] for key in ("first_token_nll", "first_line_nll")}
    )
    found = metrics.summary(rows, "eval")
    assert found["eval/nll_per_token"] == pytest.approx(3 / 7)
    assert found["eval/first_line_nll"] == pytest.approx(2.0)
    rows.loc[0, column] = np.nan
    name = "nll_per_token" if column == "nll" else column
    assert np.isnan(metrics.summary(rows, "eval")[f"eval/{name}"])
