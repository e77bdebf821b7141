"""Each way to train does train, in this process, on a real tracking server: and those that should agree do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tracking import Stack
from trainer import base_model
from trainer.config import load_config
from trainer.data.example import Example
from trainer.training import checkpoints
from trainer.training.batches import TrainingData
from trainer.training.divergence import Diverged
from trainer.training.kernels import fused_lora, padding_free
from trainer.training.loop import RESULT, train
from trainer.training.recorder import LOSS, Recorder

pytestmark = pytest.mark.integration

EXAMPLES = [
    Example(f"def f{number}(x):\n", "    return x\n" + f"    # {number}\n" * (number % 5), group=f"file{number % 7}")
    for number in range(42)
]


@pytest.fixture
def trained(stack: Stack, tiny, tmp_path):
    """Trains as some overrides say; returns (losses by step, totals, folder of the result, metrics)."""

    def run(
        *overrides: str, folder: Path = tmp_path, steepness: float = 1.0
    ) -> tuple[list[float], dict[str, float], Path, dict[str, Any]]:
        config = load_config(None, ["trainer.max_steps=8", "trainer.lr=1e-2", "model.dtype=float32", *overrides])
        tokenizer = base_model.load_tokenizer(tiny)
        lengths = [len(tokenizer(item.prompt + item.completion).input_ids) + 1 for item in EXAMPLES]
        experiment = stack.client.get_experiment_by_name("settings")
        experiment_id = experiment.experiment_id if experiment else stack.client.create_experiment("settings")
        run_id = stack.client.create_run(experiment_id).info.run_id
        recorder = Recorder(stack.client, run_id, folder / "spool", 0)
        model = base_model.load_model(tiny, config.model, tokenizer)
        model.model.norm.weight.data *= steepness
        assert train(model, tokenizer, TrainingData(EXAMPLES, lengths), config, folder, recorder, None)
        assert recorder.spool.wait(30)
        recorder.close()
        history = sorted(stack.client.get_metric_history(run_id, LOSS), key=lambda item: item.step)
        totals = checkpoints.facts_of(folder / RESULT)["totals"]
        return [item.value for item in history], totals, folder / RESULT, stack.client.get_run(run_id).data.metrics

    return run


@pytest.mark.parametrize("overrides", [("trainer.logging_steps=1",), ("checkpoint.save_steps=2",)], ids=" ".join)
def test_a_training_that_diverges_ends_and_leaves_nothing_to_go_on_from(trained, tmp_path, overrides) -> None:
    """The loss is a number still, and the gradient is too large for one: the next weights would be none."""
    with pytest.raises(
        Diverged, match=r"The gradient's norm is inf at step \d: .* Try a lower trainer.lr \(now 0.01\)"
    ):
        trained(*overrides, steepness=1e20)
    assert checkpoints.newest(tmp_path / "checkpoints") is None
    assert not checkpoints.is_whole(tmp_path / RESULT)


@pytest.mark.parametrize(
    "overrides",
    [
        ("lora.use_rslora=true",),
        ("lora.use_dora=true",),
        ("lora.target_modules=q_proj,v_proj",),
        ("lora.lora_dropout=0.1",),
        ("trainer.method=full", "trainer.lr=1e-3"),
        ("trainer.method=full", "trainer.lr=1e-3", "model.dtype=bfloat16"),
        ("trainer.gradient_checkpointing=true",),
        ("trainer.dataloader_num_workers=1",),
        ("trainer.optim=adafactor", "trainer.lr=1e-2"),
        ("trainer.group_by_length=false",),
        ("model.dtype=bfloat16",),
        ("model.dtype=bfloat16", "lora.use_dora=true"),
    ],
    ids=" ".join,
)
def test_the_loss_falls(trained, overrides: tuple[str, ...]) -> None:
    losses, totals, result, _ = trained(*overrides)
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.1
    assert totals["run/tokens"] > 0
    assert 0 < totals["run/mfu"] < 1.5  # measured against a product of the same shape, which varies
    assert (result / "adapter_model.safetensors").exists() != (overrides[0] == "trainer.method=full")


def test_padding_free_gradient_checkpointing_and_accumulation_change_no_loss(trained, tmp_path) -> None:
    expected, totals, result, _ = trained("trainer.batching=padding_free", folder=tmp_path / "a")
    for number, other in enumerate(
        (
            ("trainer.batching=padded",),
            ("trainer.gradient_checkpointing=true",),
            ("trainer.batch_size=4", "trainer.gradient_accumulation_steps=2"),
        )
    ):
        losses, others, folder, _ = trained(*other, folder=tmp_path / str(number))
        assert losses == pytest.approx(expected, rel=1e-4)
        assert others["run/tokens"] == totals["run/tokens"]
        one, another = (load_file(path / "adapter_model.safetensors") for path in (result, folder))
        assert all(torch.allclose(one[name], another[name], atol=2e-3) for name in one)


def test_early_stopping_keeps_the_best_weights(trained) -> None:
    losses, _, result, metrics = trained(
        *("trainer.validation_fraction=0.3", "trainer.eval_steps=2", "trainer.early_stopping_patience=2"),
        *("trainer.max_steps=400", "trainer.lr=0.1", "trainer.lr_scheduler_type=constant_with_warmup"),
    )
    assert len(losses) < 400
    state = json.loads((result.parent / "checkpoints" / f"checkpoint-{len(losses)}" / "trainer_state.json").read_text())
    best = result.parent / "checkpoints" / f"checkpoint-{state['best_global_step']}"
    kept, wanted = (load_file(folder / "adapter_model.safetensors") for folder in (result, best))
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    assert metrics["validation/loss"] > state["best_metric"]  # the last two were no better


def test_the_model_is_left_as_it_was(tiny, trained, monkeypatch) -> None:
    models = []
    load = base_model.load_model
    monkeypatch.setattr(base_model, "load_model", lambda *args: models.append(load(*args)) or models[-1])
    trained()
    config = load_config(None, ["model.dtype=float32"])
    fresh = load(tiny, config.model, base_model.load_tokenizer(tiny)).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in models[0].state_dict().items())
    assert models[0].config._attn_implementation != padding_free.NAME


def test_a_fused_layer_computes_what_pefts_does(tiny) -> None:
    from trainer.training.adapter import add_adapter

    config = load_config(None, ["model.dtype=bfloat16"])
    gradients = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = add_adapter(base_model.load_model(tiny, config.model, base_model.load_tokenizer(tiny)), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        assert not fused or fused_lora.fuse(model) == 14  # all linear layers of both blocks
        ids = torch.arange(3, 60)[None]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients.append({name: item.grad.clone() for name, item in model.named_parameters() if item.requires_grad})
        gradients[-1]["loss"] = loss.detach()
    assert float(gradients[0].pop("loss")) == pytest.approx(float(gradients[1].pop("loss")), rel=1e-2)
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).norm() / expected.norm()
        assert error < 0.05, name  # bfloat16 has 8 bits


@pytest.mark.parametrize("override", ["lora.use_dora=true", "lora.lora_dropout=0.1", "model.dtype=float32"])
def test_what_cannot_be_fused_is_left_to_peft(tiny, override: str) -> None:
    from trainer.training.adapter import add_adapter

    config = load_config(None, ["model.dtype=bfloat16", override])
    assert (
        fused_lora.fuse(add_adapter(base_model.load_model(tiny, config.model, base_model.load_tokenizer(tiny)), config))
        == 0
    )


def test_padding_free_is_refused_where_examples_would_see_each_other(tiny) -> None:
    from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

    assert padding_free.is_exact(
        base_model.load_model(tiny, load_config(None, []).model, base_model.load_tokenizer(tiny)), 64
    )
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    assert not padding_free.is_exact(recurrent, 64)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    windowed = MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, sliding_window=4)
    assert padding_free.is_exact(MistralForCausalLM(windowed), 64)
