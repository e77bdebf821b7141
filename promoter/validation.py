"""Validation: load a version as serving does, ask it something, look at what comes out, within a time limit.

In a process of its own (`python -m promoter.validation FOLDER`), which is killed when its time is over.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from contract import versions
from contract.names import MANIFEST_SHA256
from contract.versions import UnknownVersion
from promoter import artifacts

PROMPTS = (
    'def add(a, b):\n    """Return the sum of two numbers."""\n',
    'def read_text(path):\n    """Return the contents of a text file."""\n',
)
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Check:
    """One check, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Result:
    """The checks, in the order in which they were made, and a (prompt, completion) pair for each prompt answered."""

    checks: list[Check]
    samples: list[tuple[str, str]]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def validate(folder: Path, version: ModelVersion, time_limit_s: float) -> Result:
    """Check a version whose files lie in `folder`. Code in them runs only where they are those of the manifest."""
    manifest = artifacts.against_manifest(folder, version.tags.get(MANIFEST_SHA256))
    pickles = artifacts.no_pickle(folder)
    files = [
        Check("files as at training", manifest.passed, manifest.detail),
        Check("no pickled code", pickles.passed, pickles.detail),
    ]
    try:
        files.append(Check("a protocol that serving knows", True, str(versions.protocol_of(folder, version.tags))))
    except UnknownVersion as error:
        files.append(Check("a protocol that serving knows", False, error.message))
    if not all(check.passed for check in files):
        return Result(files, [])
    child = subprocess.Popen(
        [sys.executable, "-m", "promoter.validation", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        late = f"not within {time_limit_s:g} s (the policy's safety.smoke_time_limit_s)"
        return Result([*files, Check("loads and answers in time", False, late)], [])
    finally:
        with suppress(ProcessLookupError):  # and all that the model has started
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    try:
        found = json.loads(output.splitlines()[-1])
        result = Result([*files, *(Check(**check) for check in found["checks"])], [tuple(p) for p in found["samples"]])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return Result([*files, Check("loads", False, f"its process ended with {child.returncode}: {last}")], [])
    return result


def ask(folder: str) -> Result:
    """Load a PyFunc model and generate with it."""
    import mlflow  # and with the model torch and transformers
    from mlflow.exceptions import MlflowException

    started = time.monotonic()
    try:
        model = mlflow.pyfunc.load_model(folder)
    except Exception as error:  # whatever a model's code raises while loading is the finding
        return Result([Check("loads", False, f"{type(error).__name__}: {error}")], [])
    checks = [Check("loads", True, f"in {time.monotonic() - started:.1f} s")]
    params = {"max_new_tokens": MAX_NEW_TOKENS}
    started = time.monotonic()
    try:
        completions = model.predict(list(PROMPTS), params=params)
        again = model.predict(list(PROMPTS), params=params)
    except Exception as error:
        return Result([*checks, Check("generates", False, f"{type(error).__name__}: {error}")], [])
    checks.append(Check("generates", True, f"{len(PROMPTS)} prompts twice in {time.monotonic() - started:.1f} s"))
    texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
    answered = texts and len(completions) == len(PROMPTS)
    checks.append(Check("answers one text per prompt", answered, f"a {type(completions).__name__}"))
    if not answered:
        return Result(checks, [])
    filled = sum(bool(text.strip()) for text in completions)
    checks.append(Check("completions are not empty", filled == len(PROMPTS), f"{filled} of {len(PROMPTS)}"))
    checks.append(Check("greedy decoding repeats itself", completions == again, "the same prompts asked twice"))
    try:
        model.predict([PROMPTS[0]], params={"no_such_parameter": 1})
        refused = False
    except MlflowException as error:
        refused = "no_such_parameter" in str(error)
    checks.append(Check("refuses an unknown parameter by name", refused, "asked with no_such_parameter"))
    return Result(checks, list(zip(PROMPTS, completions, strict=True)))


if __name__ == "__main__":
    answer = ask(sys.argv[1])
    print(json.dumps({"checks": [asdict(check) for check in answer.checks], "samples": answer.samples}))
