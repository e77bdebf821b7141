"""How long a prompt may be: what the free memory has room for."""

from types import SimpleNamespace

import pytest
import torch
from mlflow.exceptions import MlflowException
from transformers import LlamaConfig

from code_model import memory
from code_model.engine import Engine, Limits
from code_model.params import GenerationParams
from trainer import base_model
from trainer.config import ModelConfig


def shape(**changes):
    config = LlamaConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=8, num_key_value_heads=2, **changes)
    return SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device("cpu"))


def test_keys_and_values_of_a_token() -> None:
    assert memory.bytes_per_token(shape()) == 2 * 4 * 2 * 8 * 2
    assert memory.bytes_per_token(shape(head_dim=16)) == 2 * 4 * 2 * 16 * 2


def test_a_containers_limit_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = memory.free_bytes(torch.device("cpu"))
    assert unlimited is not None
    assert unlimited > 10_000_000
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert memory.free_bytes(torch.device("cpu")) == 1_000_000
    assert memory.tokens_that_fit(shape()) == int(memory.SHARE * 1_000_000 / 256)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) > 10_000_000


def test_a_prompt_beyond_the_memory_is_refused(tiny, monkeypatch) -> None:
    tokenizer = base_model.load_tokenizer(tiny)
    model = base_model.load_model(tiny, ModelConfig(device="cpu"), tokenizer)
    monkeypatch.setattr(memory, "tokens_that_fit", lambda model: 50)
    engine = Engine(model, tokenizer, Limits(), lambda *_: [])
    fits, too_long = (
        engine.submit([("x" * length, GenerationParams(max_new_tokens=8))])[0].future for length in (40, 43)
    )
    assert fits.result(timeout=30).usage.completion_tokens > 0
    with pytest.raises(MlflowException, match="exceed the 50 tokens that this machine's memory has room for"):
        too_long.result(timeout=30)
