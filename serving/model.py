"""The MLflow PyFunc that generates code. It is logged as code with every model and loads without Ratchet.

    model = mlflow.pyfunc.load_model("models:/code_model_fine_tuning_model@production")
    model.predict(["def add(a, b):\n"], params={"max_new_tokens": 32})

Logged artifacts: `model`, a folder as `save_pretrained` writes it (a full model, or a PEFT adapter that
is merged while loading), and for an adapter optionally `base_model`. Weights are safetensors; nothing is
unpickled. The defaults of the generation parameters stand in the folder's generation_config.json.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_EXHAUSTED
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema


@dataclass(frozen=True)
class GenerationParams:
    """The parameters that `predict` takes, with their defaults. Each may also stand in an input row."""

    max_new_tokens: int = 64  # tokens
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 0 to 1: sample from the smallest set of tokens with this probability
    top_k: int = 0  # sample from so many tokens; 0: from all
    repetition_penalty: float = 1.0  # 1: none
    seed: int = -1  # of sampling; -1: a new one each time
    stop: tuple[str, ...] = ()  # the completion ends before the first of these texts

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature <= 10, "0 to 10"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("seed", -1 <= self.seed < 2**63, "-1 or more, below 2^63"),
        ):
            if not ok:
                raise _invalid(f"{name} is {getattr(self, name)}. Expected {expected}.")

    def updated(self, changes: Mapping[str, Any]) -> "GenerationParams":
        """A copy with some values changed. Raises MlflowException for an unknown name or a wrong type."""
        refuse_unknown(changes)
        values: dict[str, Any] = {}
        for name, value in changes.items():
            default = getattr(GenerationParams(), name)
            try:
                if name == "stop":
                    stop = [value] if isinstance(value, str) else list(value)
                    if not all(isinstance(item, str) and item for item in stop):
                        raise ValueError
                    values[name] = tuple(stop)
                elif isinstance(value, (bool, str)) or (isinstance(default, int) and int(value) != value):
                    raise ValueError
                else:
                    values[name] = type(default)(value)
            except (TypeError, ValueError, OverflowError):
                kind = "a list of texts" if name == "stop" else "a " + type(default).__name__
                raise _invalid(f"{name} is {value!r}. Expected {kind}.") from None
        return replace(self, **values)


PARAM_NAMES = tuple(item.name for item in fields(GenerationParams))


def refuse_unknown(params: Mapping[str, Any]) -> None:
    """Raise MlflowException (INVALID_PARAMETER_VALUE) naming the parameters that do not exist."""
    unknown = sorted(str(name) for name in params if name not in PARAM_NAMES)
    if unknown:
        raise _invalid(
            f"Unknown generation parameter {', '.join(map(repr, unknown))}. Expected: {', '.join(PARAM_NAMES)}."
        )


def signature(defaults: GenerationParams) -> ModelSignature:
    """The logged signature: parameters with their defaults, one text out for each row in.

    It names no input columns, since MLflow would then refuse a plain list of strings.
    """
    types = {int: DataType.long, float: DataType.double}
    params = [
        ParamSpec(name, DataType.string, list(value), shape=(-1,))
        if name == "stop"
        else ParamSpec(name, types[type(value)], value)
        for name, value in asdict(defaults).items()
    ]
    return ModelSignature(outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(params))


def choose_device(device: str) -> str:
    """`auto` → cuda where torch sees a GPU, else cpu. Raises MlflowException for a GPU that is not there."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise _invalid(f"device is {device!r}. Expected auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise _invalid("device is 'cuda', but torch sees no GPU here. Expected cpu or auto.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_dtype(dtype: str, device: str) -> Any:
    """`auto` → torch.bfloat16 where the GPU, or the CPU's matrix unit, computes in it, else torch.float32."""
    import torch

    if dtype not in ("auto", "bfloat16", "float32"):
        raise _invalid(f"dtype is {dtype!r}. Expected auto, bfloat16 or float32.")
    if dtype == "auto":
        if device == "cuda":
            dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        else:
            dtype = "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"
    return getattr(torch, dtype)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, by itself: completions are tokenised apart, here as in training."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if ids:
        return ids
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [start]


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], params: GenerationParams, stopping: Any = None
) -> list[str]:
    """The completions of some prompts as one batch, without the prompts.

    `stopping`: a transformers.StoppingCriteria that ends some of them early.
    """
    import torch

    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest = max(len(ids) for ids in encoded)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest + params.max_new_tokens > limit:
        raise _invalid(
            f"A prompt of {longest} tokens and max_new_tokens={params.max_new_tokens} exceed the model's "
            f"{limit} positions. Expected a shorter prompt or fewer new tokens."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    padded = [[pad] * (longest - len(ids)) + ids for ids in encoded]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded]
    sampling: dict[str, Any] = {"do_sample": False}
    if params.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
        }
        torch.manual_seed(params.seed) if params.seed >= 0 else torch.seed()
    if params.stop:
        sampling |= {"stop_strings": list(params.stop), "tokenizer": tokenizer}
    if stopping is not None:
        sampling["stopping_criteria"] = [stopping]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),  # (B, T)
            attention_mask=torch.tensor(mask, device=model.device),  # (B, T)
            max_new_tokens=params.max_new_tokens,
            repetition_penalty=params.repetition_penalty,
            pad_token_id=pad,
            **sampling,
        )  # (B, T + new)
    return [
        _cut(decode_completion(tokenizer, ids, row[longest:].tolist()), params.stop)
        for ids, row in zip(encoded, output, strict=True)
    ]


class CodeGenerationModel(PythonModel):
    """Generates a completion for each prompt.

    `model_config` at loading: `device` (auto, cpu, cuda) and `dtype` (auto, bfloat16, float32).
    """

    # MLflow would ask, with a warning at each import, for a type hint on model_input; a hint fixes one form
    # of input, and `predict` takes several.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Load the weights, merging a PEFT adapter. Raises MlflowException for pickled weights."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        config = context.model_config or {}
        folder = Path(context.artifacts["model"])
        device = choose_device(config.get("device", "auto"))
        dtype = choose_dtype(config.get("dtype", "auto"), device)
        if not any(folder.glob("*.safetensors")):
            raise _invalid(f"{folder} holds no *.safetensors. Expected weights in that format: no pickle is loaded.")
        if (folder / "adapter_config.json").is_file():
            from peft import PeftConfig, PeftModel

            base = context.artifacts.get("base_model") or PeftConfig.from_pretrained(folder).base_model_name_or_path
            model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
            model = PeftModel.from_pretrained(model, folder, use_safetensors=True).merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        self.model = model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.defaults = read_defaults(folder)
        # One generation at a time: MLflow calls `predict` from many threads, and the seed is torch's own.
        self.lock = threading.Lock()

    def predict(  # type: ignore[no-untyped-def]
        self, context: Any, model_input, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Completions, one for each prompt.

        `model_input`: a list of strings; a dict or a list of dicts with `prompt` and, row by row, any
        generation parameter; or a DataFrame with these columns. Raises MlflowException: bad input as
        INVALID_PARAMETER_VALUE (HTTP 400), no memory as RESOURCE_EXHAUSTED (429), else INTERNAL_ERROR (500).
        """
        defaults = self.defaults.updated(params or {})
        rows = [(prompt, defaults.updated(changes)) for prompt, changes in parse_input(model_input)]
        batches: dict[GenerationParams, list[int]] = {}
        for number, (_, row_params) in enumerate(rows):
            batches.setdefault(row_params, []).append(number)
        completions = [""] * len(rows)
        for batch_params, numbers in batches.items():
            try:
                with self.lock:
                    texts = generate(self.model, self.tokenizer, [rows[number][0] for number in numbers], batch_params)
            except MlflowException:
                raise
            except Exception as error:
                out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
                raise MlflowException(
                    f"Generation failed: {type(error).__name__}: {error}",
                    error_code=RESOURCE_EXHAUSTED if out_of_memory else INTERNAL_ERROR,
                ) from error
            for number, text in zip(numbers, texts, strict=True):
                completions[number] = text
        return completions


def parse_input(model_input: Any) -> list[tuple[str, dict[str, Any]]]:
    """(prompt, generation parameters of its own) of each row, whatever form the input has."""
    if isinstance(model_input, pd.DataFrame):
        rows: list[Any] = model_input.to_dict(orient="records")
    elif isinstance(model_input, pd.Series):
        rows = model_input.tolist()
    elif isinstance(model_input, Mapping):
        rows = _rows_of_columns(model_input)
    elif isinstance(model_input, (list, tuple, np.ndarray)):
        rows = list(model_input)
    else:
        rows = [model_input]
    if not rows:
        raise _invalid("The input has no rows. Expected at least one prompt.")
    return [_parse_row(row, number) for number, row in enumerate(rows)]


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


def _rows_of_columns(columns: Mapping[str, Any]) -> list[Any]:
    """A dict is one row, or columns: {"prompt": ["a", "b"], "max_new_tokens": 8} is two rows."""
    prompts = columns.get("prompt")
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if not isinstance(prompts, (list, tuple)):
        return [dict(columns)]
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    for name, value in columns.items():
        values = value.tolist() if isinstance(value, np.ndarray) else value
        if name == "prompt":
            continue
        if not isinstance(values, (list, tuple)) or name == "stop":
            values = [values] * len(rows)
        if len(values) != len(rows):
            raise _invalid(f"'{name}' has {len(values)} values for {len(rows)} prompts. Expected one, or as many.")
        for row, item in zip(rows, values, strict=True):
            row[name] = item
    return rows


def _parse_row(row: Any, number: int) -> tuple[str, dict[str, Any]]:
    if isinstance(row, np.ndarray):
        row = row.tolist()
    if isinstance(row, list) and len(row) == 1:  # a DataFrame's row sent as an array
        row = row[0]
    if isinstance(row, str):
        return row, {}
    if not isinstance(row, Mapping):
        raise _invalid(f"Row {number} is a {type(row).__name__}. Expected a text, or a dict with 'prompt'.")
    # MLflow's parser makes numpy values; tolist() of a scalar is a plain scalar.
    values = {
        str(name): value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        for name, value in row.items()
    }
    if set(values) == {"0"} and isinstance(values["0"], str):  # a DataFrame's one column without a name
        return values["0"], {}
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        raise _invalid(f"Row {number} has prompt={prompt!r}. Expected a text under 'prompt'.")
    # In a DataFrame a cell without a value is NaN: that row takes the default.
    return prompt, {name: value for name, value in values.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def decode_completion(tokenizer: Any, prompt_ids: list[int], new_ids: list[int]) -> str:
    """The text that the new tokens add; decoded with the prompt, since some tokenizers drop a first space."""
    head = tokenizer.decode(prompt_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = tokenizer.decode(prompt_ids + new_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text[len(head) :])


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.find(item) for item in stop if item in text), default=len(text))]


def _invalid(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def _refuse_params_that_mlflow_drops() -> None:
    """Make a loaded model refuse an unknown parameter by name; MLflow 3.17 drops it with a warning.

    MLflow removes it before `predict` is called, so this checks where it does so, for the parameters of
    this model only (test: test_loaded_model_refuses_an_unknown_param_that_mlflow_would_drop).
    """
    enforce = vars(mlflow.pyfunc)["_enforce_params_schema"]
    if getattr(enforce, "refuses_unknown", False):
        return

    def enforce_known(params: Any, schema: Any) -> Any:
        names = {spec.name for spec in schema.params} if schema is not None else set()
        if names == set(PARAM_NAMES) and isinstance(params, Mapping):
            refuse_unknown(params)
        return enforce(params, schema)

    vars(enforce_known)["refuses_unknown"] = True
    vars(mlflow.pyfunc)["_enforce_params_schema"] = enforce_known


_refuse_params_that_mlflow_drops()
mlflow.models.set_model(CodeGenerationModel())
