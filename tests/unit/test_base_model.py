"""Base models: what a name leads to, and what is said where it leads nowhere."""

import json
from types import SimpleNamespace

import pytest
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from code_model.pyfunc import CodeGenerationModel
from contract.errors import InputError
from tests import models
from trainer import base_model
from trainer.config import EvalConfig, ModelConfig
from trainer.data.example import Example
from trainer.data.items import Row, Unusable
from trainer.data.rows import parse
from trainer.evaluation.models import LoadedModel
from trainer.evaluation.table import evaluate


def test_local_folder_is_identified_by_its_weights(tiny, tmp_path) -> None:
    first = base_model.resolve(ModelConfig(name=str(tiny.folder)))
    assert first.revision.startswith("sha256:")
    assert base_model.resolve(ModelConfig(name=str(tiny.folder))).identity == first.identity
    model = base_model.load_model(first, ModelConfig(device="cpu"), base_model.load_tokenizer(first))
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert base_model.resolve(ModelConfig(name=str(tmp_path))).revision != first.revision


def test_bundled_model_is_unpacked_once(tiny) -> None:
    config = tiny.folder / "config.json"
    before = config.stat().st_mtime_ns
    again = base_model.resolve(ModelConfig(name=base_model.TINY, cache_dir=str(tiny.folder.parent)))
    assert again == tiny
    assert config.stat().st_mtime_ns == before
    assert [path.name for path in tiny.folder.parent.iterdir()] == [tiny.folder.name]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bundled:gpt-9", "Expected one of bundled:smollm2-135m, bundled:tiny-random"),
        ("./nowhere", "which is no folder"),
        ("/no/such/folder", "which is no folder"),
        ("two words", "which is no folder"),
    ],
)
def test_bad_name_is_refused(name: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        base_model.resolve(ModelConfig(name=name))
    assert expected in caught.value.message
    assert name in caught.value.message


def test_folder_without_safetensors_says_what_it_holds(tmp_path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*Expected config\.json and \*\.safetensors"):
        base_model.resolve(ModelConfig(name=str(tmp_path)))


def test_hub_id_without_a_hub_is_a_clear_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"no-such-org/model.*the Hub cannot be reached.*bundled:smollm2-135m"):
        base_model.resolve(ModelConfig(name="no-such-org/model"))


def test_messages_without_a_template_become_paragraphs_and_the_template_is_saved(tiny, tmp_path) -> None:
    tokenizer = base_model.load_tokenizer(tiny)
    assert tokenizer.chat_template is None
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "  you {{ }}\n"}]
    assert base_model.chat_template(tokenizer, messages) == "hi\n\n  you {{ }}\n\n\n"
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "hi\n\n  you {{ }}\n\n\n"


def test_a_template_that_refuses_messages_says_where(tiny, tmp_path) -> None:
    tokenizer = base_model.load_tokenizer(tiny)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    row = Row(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "x.jsonl, line 3"
    )
    with pytest.raises(Unusable) as caught:
        parse(row, lambda messages: base_model.chat_template(tokenizer, messages, "org/name"), "text")
    assert str(caught.value) == "x.jsonl, line 3: the chat template of org/name says: roles must alternate"


UP = "model.layers.1.mlp.up_proj.weight"


def lacks(weights: dict[str, torch.Tensor]) -> None:
    del weights[UP]


def lacks_many(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if "layers.1" in name]:
        del weights[name]


def other_shape(weights: dict[str, torch.Tensor]) -> None:
    weights[UP] = weights[UP][:3]


def load(folder) -> object:
    """As a job does: configuration first, then the tokenizer, then the weights."""
    config = ModelConfig(name=str(folder), device="cpu")
    base = base_model.resolve(config)
    base_model.positions(base)
    return base_model.load_model(base, config, base_model.load_tokenizer(base))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lacks, f"lacks {UP} of Qwen2ForCausalLM"),
        (lacks_many, "more weights of Qwen2ForCausalLM"),
        (other_shape, rf"another shape than its config.json says: {UP} \(\[3, 32\], expected \[64, 32\]\)"),
    ],
)
def test_incomplete_weights_are_refused_in_trainer_and_serving(tiny, tmp_path, change, expected: str) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "Qwen2ForCausalLM")
    models.change_weights(folder, change)
    with pytest.raises(InputError, match=expected) as caught:
        load(folder)
    assert str(folder) in caught.value.message
    context = SimpleNamespace(artifacts={"model": str(folder)}, model_config={"device": "cpu"})
    with pytest.raises(MlflowException, match=expected) as refused:
        CodeGenerationModel().load_context(context)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_weights_that_are_no_numbers_are_refused(tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "Qwen2ForCausalLM")
    models.change_weights(folder, lambda weights: weights[UP].fill_(float("nan")))
    with pytest.raises(InputError, match=r"give no numbers \(NaN or infinite\)"):
        load(folder)


def test_a_layer_that_config_json_does_not_name_is_not_dropped_in_silence(tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match="does it name too few layers"):
        load(folder)
    models.change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if ".1." in name])
    models.change_weights(folder, lambda weights: weights.update(vision_tower=torch.zeros(1)))
    load(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny, tmp_path) -> None:
    tokenizer = base_model.load_tokenizer(tiny)
    folder = models.make(tmp_path / "m", tokenizer, "LlamaForCausalLM")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    model, rows = load(folder), [Example("<more>", "y")]
    with pytest.raises(InputError, match=r"makes token 257, and the model's embedding has 257 rows"):
        evaluate(LoadedModel(model, AutoTokenizer.from_pretrained(folder)), rows, EvalConfig(), 0)
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no tokenizer loads|Expected the model's own files, such as tokenizer\.json"):
        load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="no tokenizer loads"):
        load(folder)


def test_adapters_and_pointers_are_no_weights(tiny, tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(InputError, match=r"holds a PEFT adapter.*merge_and_unload"):
        base_model.resolve(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a model and a PEFT adapter.*take it out of the folder"):
        base_model.resolve(ModelConfig(name=str(tmp_path)))
    for path in tmp_path.glob("adapter*"):
        path.unlink()
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match=r"model\.safetensors' is Git LFS's pointer.*git lfs pull"):
        base_model.resolve(ModelConfig(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"m.gguf": b"GGUF"}, "made to be served: take the model that it was converted from"),
        ({"pytorch_model.bin": b"PK"}, "Pickled weights can run code and are not loaded"),
        ({"config.json": b"{}", "consolidated.00.pth": b"PK"}, "Expected config.json and \\*.safetensors"),
    ],
)
def test_other_formats_are_refused_with_what_to_do(tmp_path, files: dict[str, bytes], expected: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        base_model.resolve(ModelConfig(name=str(tmp_path)))


def test_the_path_of_a_file_is_no_folder(tmp_path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"m\.gguf', a GGUF file, made to be served by llama\.cpp"):
        base_model.resolve(ModelConfig(name=str(tmp_path / "m.gguf")))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_quantized_models_are_refused_by_name(tiny, tmp_path, method: str) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(InputError, match=rf"already quantized \({method}\)\. Expected 16-bit weights"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_eight_bits_are_refused_without_a_config_too(tiny, tmp_path, dtype) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    models.change_weights(folder, lambda weights: weights.update({UP: weights[UP].to(dtype)}))
    with pytest.raises(InputError, match=rf"holds {UP} as .*already quantized"):
        base_model.resolve(ModelConfig(name=str(folder)))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
print("the folder's code runs")
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny, tmp_path):
    """A model whose code lies in its folder."""
    folder = models.make(tmp_path / "own", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(CODE)
    return folder


def test_code_that_comes_with_a_model_is_not_run_unless_its_owner_says_so(own_code, tmp_path, capsys) -> None:
    with pytest.raises(InputError, match=r"'own_llama' whose code comes with it.*model\.trust_remote_code=true"):
        load(own_code)
    context = SimpleNamespace(artifacts={"model": str(own_code)}, model_config={"device": "cpu"})
    with pytest.raises(MlflowException, match="whose code comes with it"):
        CodeGenerationModel().load_context(context)
    assert "runs" not in capsys.readouterr().out
    config = ModelConfig(name=str(own_code), device="cpu", trust_remote_code=True)
    base = base_model.resolve(config)
    model = base_model.load_model(base, config, base_model.load_tokenizer(base))
    assert "runs" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "tuned")  # as a version has it: not served
    context = SimpleNamespace(artifacts={"model": str(tmp_path / "tuned")}, model_config={"device": "cpu"})
    with pytest.raises(MlflowException, match="whose code comes with it"):
        CodeGenerationModel().load_context(context)


def test_models_that_take_images_too_are_refused_by_name(tiny, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {}, "vision_config": {}}))
    save_file({"w.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    base = base_model.resolve(ModelConfig(name=str(tmp_path)))
    with pytest.raises(InputError, match=r"model of type gemma3, which takes more than text \(images or sound\)"):
        base_model.positions(base)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{oops", r"generation_config\.json' cannot be read.*Expected a JSON object"),
        ("[]", "it holds a JSON array"),
        ('{"eos_token_id": "2"}', r"has the eos_token_id '2'\. Expected token ids, 0 to 256"),
        ('{"eos_token_id": [2, 999999]}', r"has the eos_token_id \[2, 999999\]"),
        ('{"eos_token_id": true}', "has the eos_token_id True"),
    ],
)
def test_a_generation_config_that_transformers_passes_over_is_refused(
    tiny, tmp_path, content: str, expected: str
) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        load(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_act": "nonsense"}, r"KeyError 'nonsense'\. Expected config\.json and"),
        ({"quantization_config": {}}, "already quantized"),
        ({"max_position_embeddings": -1}, ""),
    ],
)
def test_odd_configurations_are_told_with_what_to_do(tiny, tmp_path, change: dict, expected: str) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    if not expected:
        assert LoadedModel(load(folder), base_model.load_tokenizer(tiny)).positions is None
        return
    with pytest.raises(InputError, match=expected):
        load(folder)


def test_a_broken_index_is_named(tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{oops")
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is not the JSON object"):
        load(folder)


def test_weights_that_are_zero_are_refused(tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    models.change_weights(folder, lambda weights: [weight.zero_() for weight in weights.values()])
    with pytest.raises(InputError, match="find every token equally likely"):
        load(folder)


def test_weights_that_cannot_be_read_are_named(tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "LlamaForCausalLM")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"which cannot be read: .*Is a directory"):
        base_model.resolve(ModelConfig(name=str(folder)))


def test_weights_that_are_tied_are_not_missing(tiny) -> None:
    assert "lm_head.weight" not in load_file(tiny.folder / "model.safetensors")
    load(tiny.folder)


@pytest.mark.parametrize(
    "architecture",
    ["BertForMaskedLM", "RobertaForMaskedLM", "T5ForConditionalGeneration", "LlamaForSequenceClassification"],
)
def test_what_is_no_causal_language_model_is_refused_by_name(tiny, tmp_path, architecture: str) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), architecture)
    with pytest.raises(InputError, match=f"holds a {architecture}, which is not a causal language model"):
        load(folder)
    context = SimpleNamespace(artifacts={"model": str(folder)}, model_config={"device": "cpu"})
    with pytest.raises(MlflowException, match=architecture):
        CodeGenerationModel().load_context(context)


def test_a_model_whose_tokens_see_those_after_them_is_refused_whatever_it_is_called(tiny, tmp_path) -> None:
    folder = models.make(tmp_path / "m", base_model.load_tokenizer(tiny), "BertLMHeadModel")
    with pytest.raises(InputError, match="a BertLMHeadModel in which a token sees those that come after it"):
        load(folder)


@pytest.mark.parametrize(
    "architecture", ["Qwen2ForCausalLM", "LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM"]
)
def test_a_causal_model_is_one(tiny, tmp_path, architecture: str) -> None:
    load(models.make(tmp_path / "m", base_model.load_tokenizer(tiny), architecture))


@pytest.mark.parametrize("eos", [7, [7, 9], [9, 0]])
def test_the_generation_config_is_new_greedy_and_ends_where_base_and_tokenizer_do(tiny, tmp_path, eos) -> None:
    tokenizer = base_model.load_tokenizer(tiny)  # ends at 0
    given = {**models.SAMPLING, "no_repeat_ngram_size": 3, "num_beams": 4, "eos_token_id": eos}
    model = load(models.make(tmp_path / "m", tokenizer, "Qwen2ForCausalLM", given))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not set(saved) & {"temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "num_beams"}
    assert not saved.get("do_sample")
    assert set(saved["eos_token_id"]) == {0, *(eos if isinstance(eos, list) else [eos])}


def test_prompts_need_no_weights(tmp_path, tiny) -> None:
    config = ModelConfig(name=base_model.SMOLLM2, cache_dir=str(tmp_path))
    base = base_model.resolve(config, weights=False)
    assert sum(path.stat().st_size for path in base.folder.iterdir()) < 10_000_000
    assert base_model.positions(base) == 8192
    assert base_model.load_tokenizer(base)("def f(x):").input_ids
    assert base_model.resolve(ModelConfig(name=str(tiny.folder)), weights=False).folder == tiny.folder
