"""A job's trial: it leaves the model as it was, and says what it found."""

import pytest
import torch

from contract.errors import InputError
from tests import models
from tests.models import tokenizers
from trainer import base_model, job, trial
from trainer.config import load_config
from trainer.training import adapter
from trainer.training.kernels import flops, head_loss, padding_free


@pytest.fixture
def parts(tmp_path):
    def of(architecture: str, *overrides: str, **changes):
        folder = models.make(tmp_path / "m", tokenizers.wrap(tokenizers.byte_level()), architecture, **changes)
        settings = [f"model.name={folder}", "model.dtype=float32", "model.device=cpu", "data.source=x", *overrides]
        config = load_config(None, settings)
        base = base_model.resolve(config.model)
        tokenizer = base_model.load_tokenizer(base)
        return base, base_model.load_model(base, config.model, tokenizer), tokenizer, config

    return of


def state(model) -> dict:
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return weights | {"attention": model.config._attn_implementation, "training": model.training}


def test_it_leaves_the_model_as_it_was(parts) -> None:
    base, model, tokenizer, config = parts("LlamaForCausalLM", "trainer.max_length=64", "trainer.batch_size=2")
    before = state(model)
    trial.try_out(base, model, tokenizer, config)
    trial.largest_batch(model, tokenizer, config, "m")  # on a GPU alone, where memory ends with an error
    after = state(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name], name
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_a_batch_that_does_not_fit_is_told_with_what_to_do(parts, monkeypatch) -> None:
    _, model, tokenizer, config = parts("LlamaForCausalLM", "trainer.max_length=64", "trainer.batch_size=2")

    def too_large(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.model.layers[0], "forward", too_large)
    monkeypatch.setattr(trial, "chooses_padding_free", lambda *_: False)
    monkeypatch.setattr(trial.adapter, "left_out", lambda _: {})
    monkeypatch.setattr(trial.head_loss, "install", lambda _: None)
    with pytest.raises(InputError, match=r"2 examples of 64 tokens do not fit\. Expected a smaller"):
        trial.largest_batch(model, tokenizer, config, "m")


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", ""),
        ("PhimoeForCausalLM", "No adapter on: 2 × router (a PhimoeTopKRouter), 4 × routed experts"),
        (
            "MambaForCausalLM",
            "No adapter on: 2 × dt_proj (never called: the model reads its weights itself), ",
        ),
        ("MixtralForCausalLM", ""),
    ],
)
def test_all_linear_says_what_it_leaves_out(parts, architecture: str, expected: str) -> None:
    said = trial.try_out(*parts(architecture))
    assert said.startswith(expected)
    assert bool(said) == bool(expected)


def test_layers_that_peft_refuses_are_an_error_with_what_to_do(parts) -> None:
    base, model, tokenizer, config = parts("MambaForCausalLM", "lora.target_modules=out_proj")
    with pytest.raises(InputError, match=r"cannot be trained with this adapter: .*Name other layers with lora\.target"):
        trial.try_out(base, model, tokenizer, config)


@pytest.mark.parametrize("setting", ["lora.lora_dropout=0.1", "lora.use_dora=true"])
def test_what_peft_refuses_halfway_is_told_in_its_words(parts, setting: str) -> None:
    base, model, tokenizer, config = parts("Qwen3MoeForCausalLM", setting)
    with pytest.raises(InputError, match=r"cannot be trained with this adapter: .*(dropout|dora)"):
        trial.try_out(base, model, tokenizer, config)


def test_a_linear_layer_of_another_class_gets_an_adapter(parts) -> None:
    _, model, _, _ = parts("FalconForCausalLM")
    assert type(model.transformer.h[0].mlp.dense_h_to_4h) is not torch.nn.Linear
    assert adapter.left_out(model) == {}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("MistralForCausalLM", {"sliding_window": 1}), ("DogeForCausalLM", {"keep_window_size": 8})],
)
def test_a_model_that_judging_and_serving_would_read_differently_is_refused(parts, architecture, changes) -> None:
    with pytest.raises(InputError, match="completes a text otherwise than it reads it"):
        trial.try_out(*parts(architecture, **changes))


def test_an_adapter_on_a_head_that_is_also_the_embedding_is_refused(parts) -> None:
    for tied in (True, False):
        _, model, _, config = parts("LlamaForCausalLM", "lora.target_modules=lm_head", tie_word_embeddings=tied)
        if tied:
            with pytest.raises(InputError, match=r"'lm_head', which .* shares with its embedding"):
                job._check_fit(config, model)
        else:
            job._check_fit(config, model)


def test_figures_for_the_log_end_no_job(parts, monkeypatch) -> None:
    _, model, _, _ = parts("LlamaForCausalLM")

    class Odd:
        hidden_size = (32, 64)
        num_hidden_layers = 2

        @property
        def head_dim(self) -> int:
            raise RuntimeError("it differs from layer to layer")

    monkeypatch.setattr(type(model.config), "get_text_config", lambda self: Odd())
    assert flops.cost_of(model).per_pair == 0
    assert flops.matmul_flops(model, torch.float32) > 0


def test_the_loss_by_pieces_is_left_where_logits_are_capped_or_scaled(parts) -> None:
    for architecture, changes, fits in (
        ("LlamaForCausalLM", {}, True),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 300.0}, False),
        ("CohereForCausalLM", {"logit_scale": 0.99999}, False),
    ):
        _, model, _, config = parts(architecture, **changes)
        assert (head_loss.install(adapter.add_adapter(model, config)) is not None) == fits, architecture


@pytest.mark.parametrize("window", [8, 2000])  # one that is tried, and one that is looked for
def test_padding_free_rows_need_a_window_that_attention_knows(parts, window: int) -> None:
    for architecture, name, exact in (
        ("MistralForCausalLM", "sliding_window", True),
        ("PhimoeForCausalLM", "sliding_window", False),
        ("Llama4ForCausalLM", "attention_chunk_size", False),
    ):
        _, model, _, _ = parts(architecture, **{name: window})
        assert padding_free.is_exact(model, longest=window + 1) == exact, architecture
        assert padding_free.is_exact(model, longest=window), architecture
