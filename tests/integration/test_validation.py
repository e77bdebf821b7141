"""`promoter validate` on a real tracking server: hostile versions, invented tables, and honest ones."""

import json
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.entities.model_registry import ModelVersion

from contract import names
from contract.files import sha256_of
from promoter import confined_process, confinement, recomputation, validation
from promoter.recomputation import Table
from tests.support.serving import register, variant
from tests.support.tracking import Stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(confinement.missing()), reason=confinement.missing()),
]
# Moves the alias while it is loaded, by whatever login and address it can find; then tells what it has seen.
HOSTILE = """
import json, os, pathlib
import mlflow
from mlflow import MlflowClient
from mlflow.pyfunc import PythonModel


def attempt(action):
    try:
        return f"done: {action()}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


class Hostile(PythonModel):
    def load_context(self, context):
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        inherited = MlflowClient()
        named = MlflowClient("URL")
        seen = {
            "variables": sorted(name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "AWS_"))),
            "inherited": attempt(lambda: inherited.set_registered_model_alias("MODEL", "production", "1")),
            "named": attempt(lambda: named.set_registered_model_alias("MODEL", "production", "1")),
            "secret": attempt(lambda: pathlib.Path("SECRET").read_text()),
            "home": attempt(lambda: (pathlib.Path.home() / "secret").read_text()),
            "itself": attempt(lambda: pathlib.Path(context.artifacts["model"], "config.json").write_text("{}")),
        }
        raise RuntimeError(json.dumps(seen))


mlflow.models.set_model(Hostile())
"""


@pytest.fixture
def hostile(stack: Stack, tiny, tmp_path: Path, monkeypatch) -> tuple[str, str]:
    """A version whose code attacks: the model's name and its number. What it is after is there to be had."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("the secret")
    monkeypatch.setenv("HOME", str(home))
    for name, value in (
        ("MLFLOW_TRACKING_URI", stack.url),
        ("MLFLOW_TRACKING_USERNAME", "promoter"),
        ("MLFLOW_TRACKING_PASSWORD", "secret"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ):
        monkeypatch.setenv(name, value)
    code = tmp_path / "pyfunc.py"
    model = "hostile_model"
    words = {"URL": stack.url, "MODEL": model, "SECRET": str(home / "secret")}
    text = HOSTILE
    for word, value in words.items():
        text = text.replace(f'"{word}"', json.dumps(value))
    code.write_text(text)
    return model, register(stack, model, tiny.folder, python_model=str(code))


def ask(folder: Path, confined: bool) -> dict[str, str]:
    """What a hostile version has seen while it was loaded."""
    code = validation.versions.code_of(folder, {})
    request = {
        "folder": str(folder),
        "code": str(code.folder),
        "package": code.package,
        "generate": code.generate,
        "smoke": {"prompts": ["x"], "max_new_tokens": 1},
        "again": [],
    }
    answer = confined_process.run(validation.WORKER, request, [folder], 120, confined)
    assert answer.found is not None, answer.why
    [loads] = answer.found["checks"]
    assert not loads["passed"]
    found: dict[str, str] = json.loads(loads["detail"].removeprefix("RuntimeError: "))
    return found


def test_a_version_that_calls_mlflow_while_it_is_loaded_reaches_nobody(stack: Stack, hostile, tmp_path: Path) -> None:
    model, number = hostile
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{number}", dst_path=str(tmp_path / "fetched")))
    before = (folder / "manifest.json").read_text()
    seen = ask(folder, confined=True)
    assert seen["variables"] == []
    assert not [name for name in ("inherited", "named", "secret", "home", "itself") if seen[name].startswith("done")]
    assert "PermissionError" in seen["secret"]
    assert "Permission denied" in seen["named"]
    assert (folder / "manifest.json").read_text() == before
    assert stack.client.get_registered_model(model).aliases == {}
    # The attack itself works: without the confinement it moves the alias.
    assert ask(folder, confined=False)["named"].startswith("done")
    assert stack.client.get_registered_model(model).aliases != {}
    stack.client.delete_registered_model_alias(model, "production")


def test_code_that_no_release_has_is_not_run(stack: Stack, hostile) -> None:
    model, number = hostile
    result = stack.promoter("validate", "--model-name", model, "--version", number)
    assert result.exit_code == 1, result.output
    assert "✗ code of the release that made it: not as Ratchet" in result.output
    assert "pyfunc.py is another" in result.output
    assert "loads" not in result.output
    assert stack.client.get_registered_model(model).aliases == {}
    assert stack.client.get_model_version(model, number).tags["validation_status"] == "failed"


MODEL = "recomputed_model"


@pytest.fixture(scope="module")
def evaluated(stack: Stack, tiny, tmp_path_factory) -> dict[str, Path]:
    """Two versions with their evaluation, version 1 in production: the table of each, by its number."""
    return {number: _evaluated(stack, tiny.folder, tmp_path_factory.mktemp("model"), int(number)) for number in "12"}


def _evaluated(stack: Stack, base: Path, scratch: Path, seed: int) -> Path:
    from transformers import AutoTokenizer

    from code_model.weights import load_causal_lm
    from trainer.config import EvalConfig
    from trainer.data.example import Example
    from trainer.evaluation.models import LoadedModel
    from trainer.evaluation.table import evaluate

    folder = variant(base, scratch / "model", seed)
    number = register(stack, MODEL, folder)
    examples = [Example(f"def f{n}(a):\n", f"    return a + {n}\n", f"{n}.py", "function", "python") for n in range(12)]
    examples += [Example("<fim_prefix>def g(<fim_suffix>): pass<fim_middle>", "a, b", "g.py", "fim", "python")]
    import torch

    model = load_causal_lm(folder, dtype=torch.float32)
    table = evaluate(
        LoadedModel(model, AutoTokenizer.from_pretrained(folder)), examples, EvalConfig(max_new_tokens=6), 0
    )
    path = scratch / "examples.parquet"
    table.to_parquet(path)
    client = stack.client
    run_id = str(client.get_model_version(MODEL, number).run_id)
    client.log_artifact(run_id, str(path), "eval")
    for name, value in (
        (names.DATASET_DIGEST, "data"),
        (names.PROMPT_TEMPLATE, "as they are"),
        (names.EVAL_SETTINGS, "greedy, max_new_tokens=6, float32, python"),
    ):
        client.set_tag(run_id, name, value)
    if number == "1":
        client.set_registered_model_alias(MODEL, "production", number)
    return path


def test_honest_evaluations_are_computed_again_and_tagged(stack: Stack, evaluated: dict[str, Path]) -> None:
    result = stack.promoter("validate", "--model-name", MODEL, "--version", "2")
    assert result.exit_code == 0, result.output
    assert "✓ code of the release that made it" in result.output
    assert result.output.count("✓ evaluation recomputed: 13 likelihoods and 8 completions of run") == 2
    assert "unconfined" not in result.output
    for number, path in evaluated.items():
        tags = stack.client.get_model_version(MODEL, number).tags
        assert recomputation.validated(tags, sha256_of(path))
    assert stack.client.get_model_version(MODEL, "2").tags["validation_status"] == "passed"
    # The incumbent's is not computed a second time.
    first = stack.client.get_model_version(MODEL, "1")
    own = validation._of_version(stack.client, first, str(first.run_id), [names.EVALUATION_TABLE], 0, True, smoke=False)
    assert own.checks == []


def _checked(stack: Stack, tmp_path: Path, table: pd.DataFrame) -> validation.Result:
    """What comes of a table about version 2."""
    folder = mlflow.artifacts.download_artifacts(f"models:/{MODEL}/2", dst_path=str(tmp_path / "version"))
    table.to_parquet(tmp_path / "table.parquet")
    given = Table("run", "eval/examples.parquet", tmp_path / "table.parquet", 6, "float32")
    version: ModelVersion = stack.client.get_model_version(MODEL, "2")
    return validation.validate(Path(folder), version, 120, [given], smoke=False)


def test_the_table_of_another_model_is_no_evidence(stack: Stack, evaluated: dict[str, Path], tmp_path: Path) -> None:
    result = _checked(stack, tmp_path, pd.read_parquet(evaluated["1"]))
    assert (result.checks[-1].name, result.passed, result.recomputed) == ("evaluation recomputed", False, ())
    assert "nats, and the table says" in result.checks[-1].detail


def test_an_invented_table_fails_the_command(stack: Stack, evaluated: dict[str, Path], tmp_path: Path) -> None:
    number = register(stack, MODEL, variant_of(stack, tmp_path))
    run_id = str(stack.client.get_model_version(MODEL, number).run_id)
    table = pd.read_parquet(evaluated["1"])
    table["nll"] *= 0.9
    table.to_parquet(tmp_path / "examples.parquet")
    stack.client.log_artifact(run_id, str(tmp_path / "examples.parquet"), "eval")
    first = stack.client.get_run(str(stack.client.get_model_version(MODEL, "1").run_id))
    for name in names.GROUND:
        stack.client.set_tag(run_id, name, first.data.tags[name])
    result = stack.promoter("validate", "--model-name", MODEL, "--version", number)
    assert result.exit_code == 1, result.output
    assert "✗ evaluation recomputed" in result.output
    tags = stack.client.get_model_version(MODEL, number).tags
    assert (tags["validation_status"], names.VALIDATED in tags) == ("failed", False)


def variant_of(stack: Stack, scratch: Path) -> Path:
    """The weights of version 1: a table about the incumbent's own bytes, with better figures."""
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1", dst_path=str(scratch / "first")))
    [weights] = folder.glob("artifacts/*")
    return Path(shutil.copytree(weights, scratch / "copied"))


def test_validation_has_a_time_limit(stack: Stack, evaluated: dict[str, Path], tmp_path: Path) -> None:
    policy = tmp_path / "hasty.yaml"
    policy.write_text(
        "primary: {metric: eval/nll_per_token, direction: lower_is_better}\nsafety: {smoke_time_limit_s: 0.5}\n"
    )
    late = stack.promoter("validate", "--model-name", MODEL, "--version", "1", "--policy", str(policy), "--dry-run")
    assert late.exit_code == 1
    assert names.VALIDATION not in stack.client.get_model_version(MODEL, "1").tags  # a dry run
    assert "✗ loads and answers in time: not within 0.5 s" in late.output


def test_where_nothing_confines_the_code_runs_only_when_that_is_wished(
    stack: Stack, evaluated: dict[str, Path], monkeypatch
) -> None:
    monkeypatch.setattr(confinement, "_landlock_version", lambda: -1)
    command = ("validate", "--model-name", MODEL, "--version", "1", "--dry-run")
    refused = stack.promoter(*command)
    assert refused.exit_code == 2
    assert "lacks Landlock" in refused.output
    assert "--unconfined" in refused.output
    done = stack.promoter(*command, "--unconfined")
    assert done.exit_code == 0, done.output
    assert "unconfined: --unconfined was given; its code ran with your rights" in done.output
