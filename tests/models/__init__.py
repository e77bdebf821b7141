"""Tiny models with random weights, by architecture: made in a second, saved as people's models are."""

import json
from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
# What the generation_config.json of Qwen2.5-Coder-Instruct, Qwen3, Llama 3 and Gemma 3 hold: keys of sampling.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}


def make(folder: Path, tokenizer: Any, architecture: str, generation: dict[str, Any] | None = None) -> Path:
    """Save a model of a transformers class such as `Qwen2ForCausalLM`, and the tokenizer beside it.

    `generation` becomes its generation_config.json as it stands, whatever transformers thinks of it.
    """
    import torch
    import transformers

    kind = getattr(transformers, architecture)
    own = kind.config_class()  # which of the sizes it knows
    torch.manual_seed(0)
    config = kind.config_class(
        vocab_size=len(tokenizer),
        **{name: size for name, size in SIZES.items() if hasattr(own, name)},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def change_weights(folder: Path, change: Any) -> None:
    """Rewrite a model's weights: `change` gets and changes the dict of tensors by name."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
