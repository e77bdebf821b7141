"""The forms in which `predict` takes prompts: texts, dicts, columns, DataFrames; from all of them rows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from code_model.params import invalid


def parse_input(model_input: Any) -> list[tuple[str, dict[str, Any]]]:
    """(prompt, generation parameters of its own) of each row, whatever form the input has."""
    if isinstance(model_input, pd.DataFrame):
        rows: list[Any] = model_input.to_dict(orient="records")
    elif isinstance(model_input, pd.Series):
        rows = model_input.tolist()
    elif isinstance(model_input, Mapping):
        rows = _rows_of_columns(model_input)
    elif isinstance(model_input, (list, tuple, np.ndarray)):
        rows = list(model_input)
    else:
        rows = [model_input]
    if not rows:
        raise invalid("The input has no rows. Expected at least one prompt.")
    return [_parse_row(row, number) for number, row in enumerate(rows)]


def _rows_of_columns(columns: Mapping[str, Any]) -> list[Any]:
    """A dict is one row, or columns: {"prompt": ["a", "b"], "max_new_tokens": 8} is two rows."""
    prompts = columns.get("prompt")
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if not isinstance(prompts, (list, tuple)):
        return [dict(columns)]
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    for name, value in columns.items():
        values = value.tolist() if isinstance(value, np.ndarray) else value
        if name == "prompt":
            continue
        if not isinstance(values, (list, tuple)) or name == "stop":
            values = [values] * len(rows)
        if len(values) != len(rows):
            raise invalid(f"'{name}' has {len(values)} values for {len(rows)} prompts. Expected one, or as many.")
        for row, item in zip(rows, values, strict=True):
            row[name] = item
    return rows


def _parse_row(row: Any, number: int) -> tuple[str, dict[str, Any]]:
    if isinstance(row, np.ndarray):
        row = row.tolist()
    if isinstance(row, list) and len(row) == 1:  # a DataFrame's row sent as an array
        row = row[0]
    if isinstance(row, str):
        return row, {}
    if not isinstance(row, Mapping):
        raise invalid(f"Row {number} is a {type(row).__name__}. Expected a text, or a dict with 'prompt'.")
    # MLflow's parser makes numpy values; tolist() of a scalar is a plain scalar.
    values = {
        str(name): value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        for name, value in row.items()
    }
    if set(values) == {"0"} and isinstance(values["0"], str):  # a DataFrame's one column without a name
        return values["0"], {}
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        raise invalid(f"Row {number} has prompt={prompt!r}. Expected a text under 'prompt'.")
    # In a DataFrame a cell without a value is NaN: that row takes the default.
    return prompt, {name: value for name, value in values.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
