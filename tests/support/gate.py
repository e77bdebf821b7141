"""Evidence on two versions, for the gate and its report."""

import math
from typing import Any

import numpy as np
import pandas as pd

from promoter.decision import Evidence, Finding
from promoter.policy import Policy

N, GROUPS = 60, 20  # examples, and the files that they are from
SIGNATURE = {"inputs": [{"type": "string"}], "outputs": [{"type": "string"}], "params": {"max_new_tokens": "long"}}


def policy(**sections: Any) -> Policy:
    values: dict[str, Any] = {
        "primary": {"metric": "eval/nll_per_token", "direction": "lower_is_better", "min_relative_improvement": 0.01},
        "significance": {"resamples": 1000},
    }
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Policy.model_validate(values)


def table(nll: float = 0.0, ok: float = 0.8, n: int = N, seed: int = 1, noise: float = 0.05) -> pd.DataFrame:
    """Examples that are the same for every seed; nll: change per token; ok: share that parses."""
    tokens = np.random.default_rng(0).integers(5, 50, n)
    own = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "example_id": [f"e{number}" for number in range(n)],
            "group": [f"file{number % GROUPS}.py" for number in range(n)],
            "kind": "function",
            "reference": "return 1",
            "prompt": "def f():",
            "completion": "return 2",
            "nll": (2.0 + nll + own.normal(0, noise, n)) * tokens,
            "tokens": tokens,
            "syntax_ok": np.arange(n) < round(ok * n),
        }
    )


def evidence(version: str, rows: pd.DataFrame | None = None, **changes: Any) -> Evidence:
    rows = table() if rows is None else rows
    found: dict[str, Any] = {
        "metrics": {
            "eval/nll_per_token": float(rows["nll"].sum() / rows["tokens"].sum()) if len(rows) else math.nan,
            "eval/syntax_ok": float(rows["syntax_ok"].mean()) if len(rows) else math.nan,
        },
        "tables": {"eval/examples.parquet": rows},
        "run_id": f"run{version}",
        "dataset_digest": "data",
        "prompt_template": "plain",
        "eval_settings": "greedy",
        "base_model": "base@1",
        "validation": "passed",
        "recomputed": True,
        "signature": SIGNATURE,
        "files": {"manifest": Finding(True, "as they were"), "no_pickle": Finding(True, "none")},
    }
    return Evidence(model="m", version=version, **found | changes)


BETTER = table(-0.3, seed=2)
