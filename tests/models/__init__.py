"""Tiny models with random weights, by architecture: made in a second, saved as people's models are."""

import json
from pathlib import Path
from typing import Any

# By the names that the configurations of the architectures have for them.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 4096),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 8,
    # Mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    # DeepSeek's attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # State spaces
    "state_size": 8,
    "expand": 2,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_expand": 1,
    "mamba_n_groups": 1,
}
# What the generation_config.json of Qwen2.5-Coder-Instruct, Qwen3, Llama 3 and Gemma 3 hold: keys of sampling.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}


def make(
    folder: Path, tokenizer: Any, architecture: str, generation: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Save a model of a transformers class such as `Qwen2ForCausalLM`, and the tokenizer beside it.

    `generation` becomes its generation_config.json as it stands, whatever transformers thinks of it; `changes` go to
    its configuration.
    """
    import torch
    import transformers

    kind = getattr(transformers, architecture)
    own = kind.config_class()  # which of the sizes it knows
    torch.manual_seed(0)
    config = kind.config_class(
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | {name: size for name, size in SIZES.items() if _has(own, name)}
        | changes,
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _has(config: Any, name: str) -> bool:
    """Whether a configuration has a value of that name that can be set."""
    return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)


def change_weights(folder: Path, change: Any) -> None:
    """Rewrite a model's weights: `change` gets and changes the dict of tensors by name."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
