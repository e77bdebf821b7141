"""Models as people bring them: trained, registered, served as judged and exported, or refused by name."""

import json
import subprocess
from pathlib import Path

import mlflow
import numpy
import pytest
import torch
from click.testing import CliRunner
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import models
from tests.models import matrix, tokenizers
from tests.support.doses import FULL
from tests.support.tracking import Stack
from trainer import base_model
from trainer.cli import main as trainer

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


REFUSED = {
    "RwkvForCausalLM": "completes a text otherwise than it reads it",
    "BertLMHeadModel": "in which a token sees those that come after it",
    "tokenizer: WordPiece": "Expected one that keeps every space, line and letter of code",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("matrix") / "mlflow.db"


@pytest.mark.parametrize(
    "case", [case for case in matrix.CASES if FULL or case.name in matrix.EVERYDAY], ids=lambda case: case.name
)
def test_a_model_is_trained_right_and_served_as_it_was_judged(case: matrix.Case, tmp_path, database: Path) -> None:
    row = matrix.try_out(case, tmp_path, database)
    assert not row.wrong, str(row)
    if case.name in REFUSED:
        assert REFUSED[case.name] in row.refused
    else:
        assert not row.refused
        assert sorted(row.found) == sorted(matrix.COLUMNS)


def test_chats_are_served_by_the_template_that_was_trained(stack: Stack, tiny, tmp_path) -> None:
    rows = tmp_path / "chats.jsonl"
    chat = [[{"role": "user", "content": f"add {n}"}, {"role": "assistant", "content": f"sum {n}"}] for n in range(12)]
    rows.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chat))
    arguments = [
        *(f"model.name={tiny.folder}", f"data.source={rows}", "data.eval_fraction=0.3", "eval.max_new_tokens=4"),
        *("trainer.max_steps=1", f"tracking.uri={stack.url}", "tracking.experiment_name=chats"),
    ]
    result = CliRunner().invoke(trainer, arguments)
    assert result.exit_code == 0, result.output
    mlflow.set_tracking_uri(stack.url)
    served = mlflow.pyfunc.load_model("models:/chats_model/2").unwrap_python_model()
    prompt, _ = served.to_prompt({"messages": [{"role": "user", "content": "add 3"}]})
    assert prompt == "add 3\n\n"


def test_a_version_is_once_in_the_store_and_exported_in_each_form(stack: Stack, tmp_path) -> None:
    base = models.make(tmp_path / "base", tokenizers.wrap(tokenizers.llama()), "LlamaForCausalLM", vocab_size=900)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in matrix.ROWS))
    tracking = (f"tracking.uri={stack.url}", "tracking.experiment_name=exported")
    settings = (f"model.name={base}", f"data.source={rows}", "data.eval_fraction=0.3", "trainer.max_steps=1", *tracking)
    result = CliRunner().invoke(trainer, [*settings, "model.dtype=float32", "trainer.lr=1e-2", "eval.max_new_tokens=4"])
    assert result.exit_code == 0, result.output

    mlflow.set_tracking_uri(stack.url)
    versions = [stack.client.get_model_version(f"exported{form}", "2") for form in ("_model", "_pytorch_model")]
    assert versions[0].source == versions[1].source
    loaded = Path(mlflow.artifacts.download_artifacts("models:/exported_model/2", dst_path=str(tmp_path / "version")))
    assert len(list(loaded.rglob("*.safetensors"))) == 1

    def export(form: str, version: int, output: str, **env: str):
        options = ["--model-uri", f"models:/exported_model/{version}", "--format", form, "-o", str(tmp_path / output)]
        return CliRunner().invoke(trainer, ["export", *options, *tracking], env=env)

    for form, output in (("adapter", "adapter"), ("merged", "merged")):
        done = export(form, 2, output)
        assert done.exit_code == 0, done.output
        assert f"version 2 as {form}: " in done.output
    on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "merged")("def f():\n").input_ids])
    with torch.inference_mode():
        assert torch.allclose(on_base(ids).logits, merged(ids).logits, atol=1e-5)

    again = export("merged", 2, "merged")
    assert (again.exit_code, "which is there already" in again.output) == (2, True)
    none = export("adapter", 1, "none")
    assert (none.exit_code, "has no adapter: it is a base model" in none.output) == (2, True)
    missing = export("gguf", 2, "m.gguf", GGUF_CONVERTER_DIR=str(tmp_path))
    assert (missing.exit_code, "Do: make gguf-converter" in missing.output) == (2, True)
    assert not list(tmp_path.glob(".*"))  # nothing half-written

    subprocess.run(["make", "-s", "gguf-converter", f"RATCHET_HOME={tmp_path}"], cwd=ROOT, check=True)
    done = export("gguf", 2, "m.gguf", RATCHET_HOME=str(tmp_path))
    assert done.exit_code == 0, done.output
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert numpy.allclose(tensors["output_norm.weight"], merged.model.norm.weight.detach().numpy())


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
