"""Models as people bring them, with an instruct model's sampling keys: trained, registered, served as judged."""

import json

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner

from tests import models
from tests.support.tracking import Stack
from trainer import base_model
from trainer.cli import main as trainer

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "LlamaForCausalLM"])
def test_it_is_registered_and_answers_as_it_was_judged(stack: Stack, tiny, tmp_path, architecture: str) -> None:
    own = {**models.SAMPLING, "no_repeat_ngram_size": 2, "eos_token_id": [5, 9]}
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), architecture, own)
    name = f"instruct_{architecture}"
    rows = tmp_path / "rows.jsonl"  # whose completions are cut nowhere, as those of functions and gaps are
    lines = [{"prompt": f"add {n} to {3 * n}: ", "completion": f"{4 * n} is what it makes"} for n in range(20)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [
        *(f"model.name={folder}", "model.dtype=float32", f"data.source={rows}", "data.eval_fraction=0.3"),
        *("eval.max_new_tokens=12", "trainer.lr=1e-2"),
        *(f"tracking.uri={stack.url}", f"tracking.experiment_name={name}"),
    ]
    result = CliRunner().invoke(trainer, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "generation_config.json").read_text()) == own  # the base's stays as it was
    mlflow.set_tracking_uri(stack.url)
    for number in ("1", "2"):  # the base model, and the tuned one
        version = stack.client.get_model_version(f"{name}_model", number)
        served = mlflow.pyfunc.load_model(f"models:/{name}_model/{number}", model_config={"dtype": "float32"})
        assert served.unwrap_python_model().engine.ends == {0, 5, 9}
        table = pd.read_parquet(stack.client.download_artifacts(str(version.run_id), "eval/examples.parquet"))
        assert len(table) > 2
        assert any(table["completion"])
        answers = served.predict(table["prompt"].tolist(), params={"max_new_tokens": 12})
        assert answers == table["completion"].tolist()


def test_a_folder_that_lacks_weights_is_refused_before_anything_is_trained(stack: Stack, tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "Qwen2ForCausalLM")
    models.change_weights(folder, lambda weights: weights.pop("model.layers.0.self_attn.q_proj.weight"))
    arguments = [f"model.name={folder}", "data.source=package:asyncio", f"tracking.uri={stack.url}"]
    result = CliRunner().invoke(trainer, [*arguments, "tracking.experiment_name=lacking"])
    assert result.exit_code == 2
    assert "lacks model.layers.0.self_attn.q_proj.weight of Qwen2ForCausalLM" in result.output
    assert stack.client.get_experiment_by_name("lacking") is None


def test_without_a_source_it_says_how_to_name_one_and_the_stack_says_what_it_takes(monkeypatch) -> None:
    monkeypatch.delenv("DATA_SOURCE", raising=False)
    for command in (["train"], ["prepare"]):
        result = CliRunner().invoke(trainer, command)
        assert result.exit_code == 2
        assert "data.source is not set" in result.output
        assert "data.source=path/to/your/src" in result.output
    monkeypatch.setenv("DATA_SOURCE_FALLBACK", "package:email")
    result = CliRunner().invoke(trainer, ["train", "tracking.uri=http://127.0.0.1:1"])
    assert result.output.startswith("No SOURCE_DIR and no data.source: this takes package:email")
    assert "SOURCE_DIR=path/to/your/repo docker compose run --rm trainer" in result.output
    assert result.exit_code == 3  # no tracking server
