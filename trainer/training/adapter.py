"""The LoRA adapter: which layers of a model get one, and which cannot."""

from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers.pytorch_utils import Conv1D

from code_model.decoding import calls
from trainer.config import Config

# Layers whose weights the fused kernels of these architectures read themselves, by `model_type`: PEFT refuses an
# adapter there (peft.tuners.tuners_utils).
STATE_SPACES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
OF_STATE_SPACES = ("out_proj", "conv1d")


def add_adapter(model: Any, config: Config) -> Any:
    """The model with a LoRA adapter to train; the adapter is float32 whatever the base is."""
    excluded = list(left_out(model)) if config.lora.target_modules == "all-linear" else []
    if config.lora.load_in_4bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.trainer.gradient_checkpointing)
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=config.lora.r,
            lora_alpha=config.lora.lora_alpha,
            lora_dropout=config.lora.lora_dropout,
            target_modules=target_modules(config),
            exclude_modules=excluded or None,
            use_rslora=config.lora.use_rslora,
            use_dora=config.lora.use_dora,
        ),
    )


def target_modules(config: Config) -> str | list[str]:
    """`all-linear`, or the names of the modules that get an adapter."""
    targets = config.lora.target_modules
    return targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]


def left_out(model: Any) -> dict[str, str]:
    """The linear layers that `all-linear` leaves out, by name, each with the reason.

    Those whose class computes something else than a linear layer (routers that return more than one tensor), and those
    that are never called, since the model's own code reads their weights: an adapter would change nothing there.
    """
    mixes = model.config.model_type in STATE_SPACES
    called = calls(model)
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, (torch.nn.Linear, Conv1D)) or module is head:
            continue
        kind = type(module)
        own = kind.forward not in (torch.nn.Linear.forward, Conv1D.forward)
        if own and not kind.__module__.startswith("bitsandbytes") and not _computes_linearly(module):
            found[name] = f"a {kind.__name__}"
        elif mixes and name.rpartition(".")[2] in OF_STATE_SPACES:
            found[name] = "part of a state-space mixer"
        elif module not in called and ".experts." not in name:  # an expert may just not have been chosen
            found[name] = "never called: the model reads its weights itself"
    return found


def _computes_linearly(layer: Any) -> bool:
    """Whether a layer with a `forward` of its own, such as Falcon's, gives what a linear layer would."""
    weight = layer.weight
    states = torch.linspace(-1, 1, layer.in_features, device=weight.device, dtype=weight.dtype)[None]  # (1, in)
    with torch.inference_mode():
        try:
            given = layer(states)
        except Exception:  # it wants something else
            return False
        expected = torch.nn.functional.linear(states, weight, layer.bias)
    same_kind = isinstance(given, torch.Tensor) and given.shape == expected.shape
    return same_kind and torch.allclose(given.float(), expected.float(), atol=1e-2, rtol=1e-2)


def in_words(left: dict[str, str], adapted: Any) -> str:
    """What has no adapter although `all-linear` asked for one, for people; empty where that is nothing.

    `left`: what `left_out` said of the model, which is `adapted` now.
    """
    kinds: dict[tuple[str, str], int] = {}
    for name, reason in left.items():
        key = (name.rpartition(".")[2], reason)
        kinds[key] = kinds.get(key, 0) + 1
    parts = [f"{count} × {name} ({reason})" for (name, reason), count in kinds.items()]
    # Experts are one tensor of three dimensions. PEFT knows how to adapt those of some architectures.
    bare = [name for name, weight in adapted.named_parameters() if weight.dim() == 3 and ".experts." in name]
    if count := sum("lora_" not in name and "base_layer" not in name for name in bare):
        parts.append(f"{count} × routed experts (PEFT adapts none of this architecture)")
    return f"No adapter on: {', '.join(parts)}" if parts else ""
