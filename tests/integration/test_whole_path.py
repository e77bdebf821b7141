"""The real path on SQLite with a tiny model: train, gate, validate, promote, serve, roll back."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import requests
import torch

from contract.files import free_port
from services.tracking.readiness import wait_until
from tests.support import docs
from tests.support.promoters import mark_validated
from tests.support.tracking import Stack

pytestmark = pytest.mark.integration

MODEL = "code_model_fine_tuning_model"


@pytest.fixture(scope="module")
def trained(stack: Stack, tiny) -> Stack:
    """Version 1 is the base model, version 2 a fine-tuned one."""
    job = stack.popen(
        *("trainer", f"model.name={tiny.folder}", "data.source=package:asyncio", "data.max_train_examples=30"),
        *(
            "data.max_eval_examples=24",
            "data.eval_fraction=0.4",
            "trainer.max_length=600",
            "trainer.lr=1e-2",
            "eval.max_new_tokens=16",
            "eval.max_generated=0",  # random weights write no code, which the shipped policy wants
        ),
    )
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert "100%|" not in output  # plain lines in a pipe
    return stack


def metrics_of(stack: Stack, number: str) -> dict[str, float]:
    version = stack.client.get_model_version(MODEL, number)
    return stack.client.get_run(str(version.run_id)).data.metrics


def test_training_logs_everything_and_registers_both_models(trained: Stack, tmp_path) -> None:
    client = trained.client
    for number, role in (("1", "base"), ("2", "candidate")):
        version = client.get_model_version(MODEL, number)
        assert version.tags["role"] == role
        assert client.get_model_version("code_model_fine_tuning_pytorch_model", number).run_id == version.run_id
    run = client.get_run(str(version.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.lr"] == "0.01"
    assert run.data.tags["dataset_digest"] == version.tags["dataset_digest"]
    assert {"train/loss", "train/tokens_per_second", "run/peak_memory_mb"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) > 1
    datasets = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert datasets["evaluation"].digest == run.data.tags["dataset_digest"]
    assert json.loads(datasets["training"].profile)["num_rows"] == 30
    artifacts = {
        item.path for folder in ("", "plots", "eval") for item in client.list_artifacts(run.info.run_id, folder)
    }
    assert {
        *("config.yaml", "model_card.md", "generation_config.json", "data", "adapter"),
        *("plots/loss.png", "plots/base_against_candidate.png", "eval/examples.parquet"),
    } <= artifacts
    table = pd.read_parquet(client.download_artifacts(run.info.run_id, "eval/examples.parquet", str(tmp_path)))
    assert len(table) == 24
    assert table["nll"].sum() / table["tokens"].sum() == pytest.approx(run.data.metrics["eval/nll_per_token"])
    assert metrics_of(trained, "2")["eval/nll_per_token"] < metrics_of(trained, "1")["eval/nll_per_token"]


def test_both_registered_forms_hold_the_same_weights(trained: Stack) -> None:
    mlflow.set_tracking_uri(trained.url)
    pyfunc = mlflow.pyfunc.load_model(f"models:/{MODEL}/2", model_config={"device": "cpu", "dtype": "float32"})
    pytorch = mlflow.transformers.load_model(
        "models:/code_model_fine_tuning_pytorch_model/2", return_type="components", dtype=torch.float32
    )
    ids = torch.tensor([pytorch["tokenizer"]("def f():\n").input_ids])
    served = pyfunc.unwrap_python_model().model
    with torch.inference_mode():
        assert torch.equal(served(ids).logits, pytorch["model"](ids).logits)


def test_gate_stages_production_and_history(trained: Stack) -> None:
    """In one test, since each step stands on the one before."""
    client = trained.client
    first = ("promote", "--stage", "Production", "--version", "1", "--by", "tester")
    unseen = trained.promoter(*first)
    assert (unseen.exit_code, "`promoter validate --version 1`" in unseen.output) == (1, True)
    mark_validated(client, client.get_model_version(MODEL, "1"))  # random weights may not answer
    assert "no incumbent" in trained.promoter(*first, "--dry-run").output
    assert trained.promoter(*first).exit_code == 0

    dry = trained.promoter("auto-promote", "--dry-run")
    assert dry.exit_code == 0
    assert "staging" not in client.get_registered_model(MODEL).aliases

    gated = trained.promoter("auto-promote", "--stage", "Staging", "--format", "json")
    assert gated.exit_code == 0
    decision = json.loads(gated.output)
    assert decision["passed"]
    assert decision["incumbent"]["version"] == "1"

    [reason] = [item for item in decision["reasons"] if item["check"] == "files as at training"]
    assert reason["passed"], reason
    [comparison, *_] = decision["comparisons"]
    assert (comparison["metric"], comparison["pairs"]) == ("eval/nll_per_token", 24)
    assert 0 < comparison["low"] < comparison["improvement"] < comparison["high"]

    validated = trained.promoter("validate")
    assert "✓ files as at training" in validated.output
    assert "✓ refuses an unknown parameter by name" in validated.output
    # Random weights may answer with nothing but spaces, which is a no.
    status = client.get_model_version(MODEL, "2").tags["validation_status"]
    assert (validated.exit_code, status) in ((0, "passed"), (1, "failed"))
    client.set_model_version_tag(MODEL, "2", "validation_status", "failed")
    refused = trained.promoter("promote", "--stage", "Production")
    assert (refused.exit_code, "has not failed validation" in refused.output) == (1, False)
    assert "✗ validation: failed" in refused.output
    assert client.get_registered_model(MODEL).aliases["production"] == "1"
    client.set_model_version_tag(MODEL, "2", "validation_status", "passed")

    promoted = trained.promoter("promote", "--stage", "Production", "--by", "tester")
    assert promoted.exit_code == 0, promoted.output
    assert client.get_registered_model(MODEL).aliases == {"production": "2", "previous": "1"}
    version = client.get_model_version(MODEL, "2")
    assert (version.tags["stage"], version.tags["promoted_by"]) == ("Production", "tester")
    assert client.get_model_version(MODEL, "1").tags["stage"] == "Previous"
    assert f"runs/{version.tags['promotion_run_id']}/artifacts/decision.html" in str(version.description)
    record = client.download_artifacts(version.tags["promotion_run_id"], "decision.json")
    assert json.loads(Path(record).read_text())["replaces"] == "1"

    again = trained.promoter("promote", "--stage", "Production", "--version", "2")
    assert (again.exit_code, "Nothing to do" in again.output) == (0, True)
    history = json.loads(trained.promoter("history", "--format", "json").output)
    assert [(row["version"], row["from"], row["to"]) for row in history] == [
        ("2", "Staging", "Production"),
        ("2", "nothing", "Staging"),
        ("1", "nothing", "Production"),
    ]
    worse = trained.promoter("promote", "--stage", "Staging", "--version", "1")
    assert (worse.exit_code, "NOT passed" in worse.output) == (1, True)
    everything = json.loads(trained.promoter("history", "--all", "--format", "json").output)
    assert [row["outcome"] for row in everything][:1] == ["refused"]
    assert len(everything) == len(history) + 3


def test_tables_in_every_format(trained: Stack) -> None:
    for command in ("compare", "compare-versions", "best"):
        text = trained.promoter(command)
        assert text.exit_code == 0, text.output
        assert trained.promoter(command, "--format", "markdown").output.startswith("|")
        rows = json.loads(trained.promoter(command, "--format", "json").output)
        assert all("nll_per_token" in row for row in rows)
    assert [row["role"] for row in json.loads(trained.promoter("compare", "--format", "json").output)] == [
        "candidate",  # the better one first
        "base",
    ]


def test_serving_answers_with_the_production_version(trained: Stack) -> None:
    port = free_port()
    server = trained.popen("serving", SERVING_PORT=str(port))
    url = f"http://127.0.0.1:{port}"

    def ask(**body: object) -> requests.Response:
        return requests.post(f"{url}/invocations", json=body, timeout=60)

    try:
        assert wait_until(lambda: docs.answers(url), 60, lambda: server.poll() is None)
        for body in (
            {"inputs": ["def f():\n"]},
            {"inputs": {"prompt": "def f():\n"}},
            {"inputs": [{"prompt": "def f():\n"}]},
            {"dataframe_split": {"columns": ["prompt"], "data": [["def f():\n"]]}},
        ):
            reply = ask(**body)
            assert reply.status_code == 200, reply.text
            assert len(reply.json()["predictions"]) == 1
        refused = ask(inputs=["def f():\n"], params={"max_tokens": 3})
        assert (refused.status_code, "Unknown generation parameter 'max_tokens'" in refused.text) == (400, True)
    finally:
        server.terminate()
        output, _ = server.communicate(timeout=20)
    assert "version 2 (production)" in output


def test_rollback_puts_the_previous_version_back(trained: Stack) -> None:
    dry = trained.promoter("rollback", "--dry-run")
    assert (dry.exit_code, "would be: rolled back" in dry.output) == (0, True)
    assert trained.promoter("rollback", "--reason", "test").exit_code == 0
    assert trained.client.get_registered_model(MODEL).aliases == {"production": "1"}
    assert trained.client.get_model_version(MODEL, "2").tags["stage"] == "Archived"
    nothing_left = trained.promoter("rollback")
    assert (nothing_left.exit_code, "no version to roll back to" in nothing_left.output) == (2, True)
    # What was rolled back is not promoted again by itself.
    assert "Nothing to do" in trained.promoter("auto-promote").output


def test_candidate_on_new_data_meets_the_incumbent_on_that_data(trained: Stack, tiny) -> None:
    """The trainer evaluates the version in production on the new data; only so can the gate compare."""
    assert (
        trained.promoter("promote", "--stage", "Production", "--version", "2", "--force", "--reason", "t").exit_code
        == 0
    )
    job = trained.popen(
        *("trainer", f"model.name={tiny.folder}", "data.source=package:email", "data.max_train_examples=8"),
        *(
            "data.max_eval_examples=24",
            "data.eval_fraction=0.4",
            "trainer.max_length=600",
            "trainer.lr=1e-9",
            "eval.max_new_tokens=16",
            "eval.max_generated=0",
        ),
    )
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert "Evaluating version 2, which is in production" in output
    decision = json.loads(trained.promoter("auto-promote", "--format", "json").output)
    assert decision["candidate"]["dataset_digest"] == decision["incumbent"]["dataset_digest"]
    assert decision["incumbent"]["version"] == "2"
    assert not decision["passed"]  # at this learning rate it is the base model still
    failed = {reason["check"] for reason in decision["reasons"] if not reason["passed"]}
    assert {"improvement", "significance"} <= failed
    assert {check.split()[0] for check in failed} <= {"improvement", "significance", "guard"}


def test_the_version_in_production_is_not_moved_down(trained: Stack) -> None:
    number = trained.client.get_registered_model(MODEL).aliases["production"]
    for command in (("promote", "--stage", "Staging"), ("archive",)):
        result = trained.promoter(*command, "--version", number)
        assert (result.exit_code, "is in production" in result.output) == (2, True)
