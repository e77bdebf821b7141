"""What a training run leaves as evidence: tables and versions that name each other by their sha256."""

import hashlib
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from contract import manifest, names
from tests.support.tracking import Stack
from tests.support.training import candidate
from trainer.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_unfinished_jobs")]


def train(stack: Stack, tiny, experiment: str, *more: str) -> Result:
    settings = [
        *(f"model.name={tiny.folder}", "data.source=package:asyncio", "data.max_eval_examples=8"),
        *("trainer.max_length=400", "eval.max_new_tokens=2", f"tracking.experiment_name={experiment}"),
        *("trainer.max_steps=2", "trainer.lr=1e-2", "tracking.system_metrics_interval_s=0", *more),
    ]
    return CliRunner().invoke(main, settings, env={"MLFLOW_TRACKING_URI": stack.url, "RATCHET_HOME": str(stack.home)})


def fetched(stack: Stack, run_id: str, path: str, folder: Path) -> Path:
    return Path(stack.client.download_artifacts(run_id, path, str(folder)))


def test_versions_and_their_runs_name_each_others_files(stack: Stack, tiny, tmp_path) -> None:
    result = train(stack, tiny, "bound")
    assert result.exit_code == 0, result.output
    for number in ("1", "2"):
        version = stack.client.get_model_version("bound_model", number)
        run = stack.client.get_run(str(version.run_id))
        (tmp_path / number).mkdir()
        table = fetched(stack, run.info.run_id, names.EVALUATION_TABLE, tmp_path / number)
        evidence = hashlib.sha256(table.read_bytes()).hexdigest()
        assert (version.tags[names.EVIDENCE], run.data.tags[names.EVIDENCE]) == (evidence, evidence)
        assert run.data.tags[names.EVALUATED_MANIFEST] == version.tags[names.MANIFEST_SHA256]
        assert len(pd.read_parquet(table)[names.GROUP].unique()) > 1
    trained_on = [item.dataset.digest for item in run.inputs.dataset_inputs if item.tags[0].value == "training"]
    assert run.data.tags[names.TRAIN_DIGESTS].split(",") == trained_on
    assert version.tags[names.TRAIN_DIGESTS].split(",") == trained_on
    assert 0 <= run.data.metrics[names.HELD_OUT_TWINS] <= 1
    assert names.TRAIN_DIGESTS not in stack.client.get_model_version("bound_model", "1").tags
    # The figures stand with the run: the folder was judged, and so cannot hold what came of it.
    mlflow.set_tracking_uri(stack.url)
    folder = Path(mlflow.artifacts.download_artifacts("models:/bound_model/2", dst_path=str(tmp_path / "version")))
    assert manifest.differences(folder, version.tags[names.MANIFEST_SHA256]) == []
    card = (folder / "artifacts" / "model" / "README.md").read_text()
    assert run.info.run_id in card
    assert "nll_per_token" not in card
    assert "| eval/nll_per_token | " in fetched(stack, run.info.run_id, "model_card.md", tmp_path).read_text()

    tuned_further = train(stack, tiny, "further", f"model.name={folder / 'artifacts' / 'model'}", "trainer.lr=2e-3")
    assert tuned_further.exit_code == 0, tuned_further.output
    second = candidate(stack, "further").data.tags[names.TRAIN_DIGESTS].split(",")
    assert second == trained_on  # the same data once more, and named once
    assert stack.client.get_model_version("further_model", "1").tags[names.TRAIN_DIGESTS].split(",") == trained_on


def test_the_registered_base_model_is_judged_on_other_data_by_its_own_files(stack: Stack, tiny) -> None:
    assert train(stack, tiny, "elsewhere").exit_code == 0
    assert train(stack, tiny, "elsewhere", "data.max_eval_examples=5").exit_code == 0
    found = stack.client.get_experiment_by_name("elsewhere")
    assert found is not None
    runs = stack.client.search_runs([found.experiment_id], "tags.role = 'base'")
    assert len({run.data.tags[names.DATASET_DIGEST] for run in runs}) == 2
    assert {run.data.tags[names.EVALUATES] for run in runs} == {"elsewhere_model/1"}
    base = stack.client.get_model_version("elsewhere_model", "1")
    assert {run.data.tags[names.EVALUATED_MANIFEST] for run in runs} == {base.tags[names.MANIFEST_SHA256]}


def test_what_was_judged_and_logged_is_registered_by_the_next_try(stack: Stack, tiny, monkeypatch) -> None:
    create = MlflowClient.create_model_version

    def fail_for_the_candidate(self, name, source, run_id, tags, **more):
        if tags[names.ROLE] == names.CANDIDATE:
            raise MlflowException("the registry broke")
        return create(self, name, source, run_id, tags=tags, **more)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_model_version", fail_for_the_candidate)
        assert "the registry broke" in train(stack, tiny, "broken").output
    failed = candidate(stack, "broken")
    result = train(stack, tiny, "broken")
    assert result.exit_code == 0, result.output
    assert "Evaluating the fine-tuned model" not in result.output
    run = candidate(stack, "broken")
    assert (run.info.run_id, run.info.status) == (failed.info.run_id, "FINISHED")
    logged = stack.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert len(logged) == 1
    version = stack.client.get_model_version("broken_model", "2")
    assert version.tags[names.EVIDENCE] == failed.data.tags[names.EVIDENCE]
    assert version.tags[names.MANIFEST_SHA256] == failed.data.tags[names.EVALUATED_MANIFEST]
