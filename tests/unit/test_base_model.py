"""Base models: what a name leads to, and what is said where it leads nowhere."""

import pytest
import torch

from trainer import base_model
from trainer.config import ModelConfig
from trainer.errors import InputError


def test_local_folder_is_identified_by_its_weights(tiny, tmp_path) -> None:
    first = base_model.resolve(ModelConfig(name=str(tiny.folder)))
    assert first.revision.startswith("sha256:")
    assert base_model.resolve(ModelConfig(name=str(tiny.folder))).identity == first.identity
    model = base_model.load_model(first, ModelConfig(device="cpu"))
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


def test_messages_without_a_template_become_paragraphs(tiny) -> None:
    tokenizer = base_model.load_tokenizer(tiny)
    assert base_model.chat_template(tokenizer, [{"role": "user", "content": "hi"}]) == "hi\n\n"
