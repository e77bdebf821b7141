"""`trainer evaluate` and `trainer prepare` on a real tracking server: any version, any data, equal terms."""

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from contract.monitoring import SAMPLE, SOURCES
from tests.support.data import write_jsonl, write_tree
from tests.support.tracking import Stack
from trainer.cli import main
from trainer.data.prepare import OUTPUTS

pytestmark = pytest.mark.integration

EXPERIMENT = "judged"
MODEL = f"{EXPERIMENT}_model"


@pytest.fixture(scope="module")
def settings(tiny) -> list[str]:
    return [
        *(f"model.name={tiny.folder}", f"tracking.experiment_name={EXPERIMENT}", "data.source=package:asyncio"),
        *("data.max_eval_examples=70", "data.max_train_examples=24", "trainer.max_length=600", "trainer.lr=1e-2"),
        "eval.max_new_tokens=8",
    ]


@pytest.fixture(scope="module")
def trained(stack: Stack, settings: list[str]) -> Stack:
    """Version 1 is the base model, version 2 a fine-tuned one; both judged on HumanEval too."""
    job = stack.popen("trainer", *settings, "eval.benchmark=humaneval", "eval.benchmark_max_new_tokens=4")
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    return stack


def run(stack: Stack, *arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"MLFLOW_TRACKING_URI": stack.url})


def evaluate(stack: Stack, settings: list[str], *arguments: str) -> dict[str, float]:
    uri = f"models:/{MODEL}/2"
    result = run(stack, "evaluate", "--model-uri", uri, "--format", "json", *arguments, *settings)
    assert result.exit_code == 0, (result.output, result.exception)
    return dict(json.loads(result.stdout))


def newest_run(stack: Stack):
    experiment = stack.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return stack.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]


def test_benchmark_is_judged_in_a_training_run(trained: Stack, tmp_path) -> None:
    version = trained.client.get_model_version(MODEL, "2")
    found = trained.client.get_run(str(version.run_id))
    assert found.data.metrics["humaneval/examples"] == 164
    assert found.data.metrics["humaneval/pass_at_1"] == 0  # random weights
    table = pd.read_parquet(
        trained.client.download_artifacts(found.info.run_id, "eval/humaneval.parquet", str(tmp_path))
    )
    assert len(table) == 164
    assert set(table["outcome"]) <= {"failed", "timeout", "memory", "output"}
    assert "humaneval with max_new_tokens=4" in found.data.tags["eval_settings"]
    artifacts = {item.path for item in trained.client.list_artifacts(found.info.run_id, "data")}
    assert artifacts == {"data/report.json", "data/report.md", "data/lengths.png", SAMPLE, SOURCES}
    sources = Path(trained.client.download_artifacts(found.info.run_id, SOURCES, str(tmp_path)))
    assert [one["source"] for one in json.loads(sources.read_text())] == [found.data.params["data.source"]]


def test_same_examples_give_the_same_figures_and_count_as_evidence(trained: Stack, settings: list[str]) -> None:
    version = trained.client.get_model_version(MODEL, "2")
    own = trained.client.get_run(str(version.run_id))
    replay = (
        f"model.name={settings[0].partition('=')[2]}",
        "tracking.experiment_name=elsewhere",
    )  # and no other setting
    for arguments, given in ((("eval.benchmark=humaneval", "eval.benchmark_max_new_tokens=4"), settings), ((), replay)):
        data = ("--data", f"runs:/{version.run_id}") if given is replay else ()
        metrics = evaluate(trained, list(given), *data, *arguments)
        assert metrics["eval/nll_per_token"] == pytest.approx(own.data.metrics["eval/nll_per_token"], rel=1e-3)
        found = newest_run(trained)
        assert found.data.tags["dataset_digest"] == own.data.tags["dataset_digest"]
        assert found.data.tags["eval_settings"] == own.data.tags["eval_settings"]
        assert found.data.tags["evaluates"] == f"{MODEL}/2"
        assert found.info.status == "FINISHED"
    before = newest_run(trained).info.run_id
    assert evaluate(trained, list(replay), "--data", f"runs:/{version.run_id}") == metrics  # known
    assert newest_run(trained).info.run_id == before
    evaluate(trained, list(replay), "--data", f"runs:/{version.run_id}", "--again")
    assert newest_run(trained).info.run_id != before


def test_other_data_with_tests(trained: Stack, settings: list[str], tmp_path: Path) -> None:
    rows = [
        {"prompt": "x = 1\n# ", "completion": "one", "language": "python", "test": "assert x == 1"},
        {"prompt": "def f():\n", "completion": "    return 1\n", "test": "assert f() == 1"},
    ]
    write_jsonl(tmp_path / "tests.jsonl", rows)
    metrics = evaluate(trained, settings, "--data", str(tmp_path / "tests.jsonl"))
    assert metrics["eval/examples"] == 2
    assert 0 <= metrics["eval/pass_at_1"] <= 1
    found = newest_run(trained)
    table = pd.read_parquet(
        trained.client.download_artifacts(found.info.run_id, "eval/examples.parquet", str(tmp_path))
    )
    assert sorted(table["test"]) == ["assert f() == 1", "assert x == 1"]
    assert "tests within 5 s and 1024 MB" in found.data.tags["eval_settings"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (f"models:/{MODEL}/99", f"one of the versions 2, 1 of {MODEL}"),
        (f"models:/{MODEL}@nobody", "which does not exist"),
        ("models:/nothing/1", "a registered model ("),
        (f"{MODEL}/1", "Expected models:/NAME/NUMBER or models:/NAME@ALIAS"),
    ],
)
def test_no_such_version(trained: Stack, uri: str, expected: str) -> None:
    result = run(trained, "evaluate", "--model-uri", uri, "data.source=package:email")
    assert result.exit_code == 2, result.output
    assert expected in result.output


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("runs:/nothing", "which is no run"),
        ("nowhere.jsonl", "data.eval_source is 'nowhere.jsonl', which does not exist"),
        ("benchmark:mbpp", "Expected one of humaneval"),
        ("", "data.eval_source is empty"),
    ],
)
def test_no_such_data(trained: Stack, settings: list[str], data: str, expected: str) -> None:
    result = run(trained, "evaluate", "--model-uri", f"models:/{MODEL}/2", "--data", data, *settings)
    assert result.exit_code == 2, result.output
    assert expected in result.output


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("eval.max_new_tokens=4000", "Expected examples of at most 96 tokens"),
        ("eval.max_new_tokens=9000", "Expected less than 4096 positions"),
        ("eval.benchmark=humaneval eval.benchmark_max_new_tokens=3500", "Expected at most 4096, the positions"),
        ("eval.test_timeout_s=0.00001", "not even an empty program runs"),
    ],
)
def test_settings_that_cannot_be(
    trained: Stack, settings: list[str], tmp_path: Path, override: str, expected: str
) -> None:
    write_jsonl(tmp_path / "tests.jsonl", [{"prompt": "x = 1\n" * 50, "completion": "y", "test": "assert x"}])
    data = ("--data", str(tmp_path / "tests.jsonl"))
    result = run(trained, "evaluate", "--model-uri", f"models:/{MODEL}/2", *data, *settings, *override.split())
    assert result.exit_code == 2, (result.output, result.exception)
    assert expected in result.output


def test_training_needs_something_to_compare_likelihoods_by(stack: Stack, settings: list[str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tests.jsonl", [{"prompt": "x = ", "test": "assert x"}])
    result = run(stack, "train", *settings, f"data.eval_source={tmp_path / 'tests.jsonl'}")
    assert (result.exit_code, "have tests and no completions" in result.output) == (2, True)


def test_prepare_writes_what_a_run_would_train_on(stack: Stack, tiny, tmp_path: Path) -> None:
    """Without a tracking server."""
    (tmp_path / "src").mkdir()
    write_tree(tmp_path / "src")
    arguments = (f"model.name={tiny.folder}", "trainer.max_length=600")
    result = CliRunner().invoke(
        main,
        ["prepare", "-o", str(tmp_path / "out"), f"data.source={tmp_path / 'src'}", *arguments],
        env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(OUTPUTS)
    assert "# Data report" in result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["examples"] == len((tmp_path / "out" / "train.jsonl").read_text().splitlines())
    refused = run(stack, "prepare", "-o", str(tmp_path / "out2"), "data.source=nowhere", *arguments)
    assert (refused.exit_code, (tmp_path / "out2").exists()) == (2, False)
