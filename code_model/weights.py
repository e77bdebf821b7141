"""From a folder, as `save_pretrained` writes it, to a model in memory: safetensors only, and every weight there."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from code_model.params import GenerationParams, invalid


def choose_device(device: str) -> str:
    """`auto` → cuda where torch sees a GPU, else cpu. Raises MlflowException for a GPU that is not there."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise invalid(f"device is {device!r}. Expected auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise invalid("device is 'cuda', but torch sees no GPU here. Expected cpu or auto.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_dtype(dtype: str, device: str) -> Any:
    """`auto` → torch.bfloat16 where the GPU, or the CPU's matrix unit, computes in it, else torch.float32."""
    import torch

    if dtype not in ("auto", "bfloat16", "float32"):
        raise invalid(f"dtype is {dtype!r}. Expected auto, bfloat16 or float32.")
    if dtype == "auto":
        if device == "cuda":
            dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        else:
            dtype = "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"
    return getattr(torch, dtype)


def load_causal_lm(folder: Path, trust_remote_code: bool = False, **options: Any) -> Any:
    """The causal language model in a folder, as `save_pretrained` writes it: safetensors only, and every weight there.

    `options` go to `from_pretrained`. Raises MlflowException (INVALID_PARAMETER_VALUE) for another kind of model, for
    weights that are missing or of another shape, which transformers would fill in at random, and for a folder from
    which no model loads.
    """
    from transformers import AutoModelForCausalLM

    config = causal_config(folder, trust_remote_code)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **options,
        )
    except Exception as error:  # whatever a broken file, or the architecture's own code, raises
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise  # not the folder's fault
        raise _unloadable(folder, error) from error
    _refuse_incomplete(folder, model, found)
    return model


def causal_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The configuration of the causal language model in a folder.

    Raises MlflowException (INVALID_PARAMETER_VALUE) where it names another kind of model, one that is quantized, one
    whose code lies in its folder and is not trusted, or cannot be read.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    given = _read_json(folder / "config.json")
    if not trust_remote_code:
        _refuse_own_code(folder, given)
    if (quantized := given.get("quantization_config")) is not None:
        method = quantized.get("quant_method", "") if isinstance(quantized, dict) else ""
        raise invalid(
            f"{folder} holds weights that are already quantized ({method or 'quantization_config in config.json'}). "
            "Expected 16-bit weights: take the model that it was made from."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever the architecture's own code raises
        raise _unloadable(folder, error) from error
    named = config.architectures or []
    named = [named] if isinstance(named, str) else [str(name) for name in named]
    what = named[0] if named else f"model of type {config.model_type}"
    if config.get_text_config() is not config:
        raise invalid(
            f"{folder} holds a {what}, which takes more than text (images or sound). Expected a model for text alone, "
            "such as LlamaForCausalLM (`architectures` in its config.json)."
        )
    causal = {name for names in KNOWN.values() for name in ([names] if isinstance(names, str) else names)}
    known = any(name in causal or name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)
    known = known or (trust_remote_code and "AutoModelForCausalLM" in (given.get("auto_map") or {}))
    if not (known if named else config.model_type in KNOWN or trust_remote_code):
        raise invalid(
            f"{folder} holds a {what}, which is not a causal language model. Expected one that continues a text, such "
            "as LlamaForCausalLM (`architectures` in its config.json)."
        )
    return config


def _unloadable(folder: Path, error: Exception) -> MlflowException:
    """What to say of a folder from which transformers loads nothing."""
    for path in folder.glob("*.index.json"):
        if not _read_json(path):
            return invalid(f"{path} is not the JSON object that says which file holds which weight. Fetch it again.")
    return invalid(
        f"No model loads from {folder}: {first_line(error).rstrip('.')}. Expected config.json and *.safetensors, "
        "whole, as save_pretrained writes them, of an architecture that transformers has."
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it cannot be read, which transformers then reports."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_own_code(folder: Path, config: dict[str, Any]) -> None:
    """Raise MlflowException for a model whose code lies in its folder: transformers would ask a terminal about it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    own = config.get("auto_map")
    if own and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        code = next(iter(own.values()), own) if isinstance(own, dict) else own
        raise invalid(
            f"{folder} holds a model of type {config.get('model_type')!r} whose code comes with it ({code}), and that "
            "code is not run. Expected an architecture that transformers has itself. Who has read the code may train "
            "with model.trust_remote_code=true; such a version is not served."
        )


def _refuse_incomplete(folder: Path, model: Any, found: Mapping[str, Any]) -> None:
    """Raise MlflowException where `from_pretrained`'s loading info names weights that were not loaded."""
    architecture = type(model).__name__
    missing = sorted(found["missing_keys"])
    if missing:
        raise invalid(
            f"{folder} lacks {_some(missing)} of {architecture}. Expected all weights, as save_pretrained writes them: "
            "is a shard missing, or config.json another model's?"
        )
    mismatched = sorted(
        f"{name} ({list(there)}, expected {list(wanted)})" for name, there, wanted in found["mismatched_keys"]
    )
    if mismatched:
        raise invalid(
            f"{folder} holds weights of another shape than its config.json says: {_some(mismatched)} of {architecture}."
        )
    # A layer more than config.json has would be left out. Other weights may be there: those of a vision tower, say.
    kinds = {re.sub(r"\d+", "N", name) for name in model.state_dict()}
    if more := sorted(name for name in found["unexpected_keys"] if re.sub(r"\d+", "N", name) in kinds):
        raise invalid(
            f"{folder} holds {_some(more)}, which its config.json has no place for: does it name too few layers?"
        )


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(names[:3])
    more = len(names) - 3
    return shown if more <= 0 else f"{shown} and {more} more weight{'s' if more > 1 else ''}"


def with_adapter(model: Any, folder: Path) -> Any:
    """A model with a PEFT adapter merged into it. Raises MlflowException where the adapter lacks weights."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, folder, use_safetensors=True)
    if missing := next((str(item.message) for item in caught if "missing adapter keys" in str(item.message)), None):
        raise invalid(f"{folder} is an adapter that does not fit its base model: {missing}")
    return model.merge_and_unload()


def read_defaults(folder: Path) -> GenerationParams:
    """The generation parameters that a model folder's generation_config.json sets."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return GenerationParams()
    config = GenerationConfig.from_pretrained(folder)
    known = {
        name: value
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
        if (value := getattr(config, name, None)) is not None
    }
    if not config.do_sample:
        known = {name: known[name] for name in ("max_new_tokens", "repetition_penalty") if name in known}
    return GenerationParams().updated(known)


def first_line(error: Exception) -> str:
    """What an error says first; with the next line where the first only announces it."""
    if isinstance(error, KeyError):  # which says the key alone
        return f"KeyError {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
