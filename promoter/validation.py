"""Validation of a staged version: load it as serving does, generate with it, look at what comes out."""

import time
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

PROMPTS = (
    'def add(a, b):\n    """Return the sum of two numbers."""\n',
    'def read_text(path):\n    """Return the contents of a text file."""\n',
)


@dataclass(frozen=True)
class Check:
    """One check, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


def validate(model_uri: str, max_new_tokens: int = 32) -> tuple[list[Check], list[tuple[str, str]]]:
    """Load a PyFunc version and generate with it. Returns the checks and (prompt, completion) pairs.

    What keeps the version from being fetched is raised as it is: it says nothing about the model.
    """
    folder = mlflow.artifacts.download_artifacts(model_uri)
    started = time.monotonic()
    try:
        model = mlflow.pyfunc.load_model(folder)
    except Exception as error:  # whatever a model's code raises while loading is the finding
        return [Check("loads", False, f"{type(error).__name__}: {error}")], []
    checks = [Check("loads", True, f"in {time.monotonic() - started:.1f} s")]
    params = {"max_new_tokens": max_new_tokens}
    started = time.monotonic()
    try:
        completions = model.predict(list(PROMPTS), params=params)
        again = model.predict(list(PROMPTS), params=params)
    except Exception as error:
        return [*checks, Check("generates", False, f"{type(error).__name__}: {error}")], []
    checks.append(Check("generates", True, f"{len(PROMPTS)} prompts twice in {time.monotonic() - started:.1f} s"))
    texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
    answered = texts and len(completions) == len(PROMPTS)
    checks.append(Check("answers one text per prompt", answered, f"a {type(completions).__name__}"))
    if not checks[-1].passed:
        return checks, []
    filled = sum(bool(text.strip()) for text in completions)
    checks.append(Check("completions are not empty", filled == len(PROMPTS), f"{filled} of {len(PROMPTS)}"))
    checks.append(Check("greedy decoding repeats itself", completions == again, "the same prompts asked twice"))
    try:
        model.predict([PROMPTS[0]], params={"no_such_parameter": 1})
        refused = False
    except MlflowException as error:
        refused = "no_such_parameter" in str(error)
    checks.append(Check("refuses an unknown parameter by name", refused, "asked with no_such_parameter"))
    return checks, list(zip(PROMPTS, completions, strict=True))
