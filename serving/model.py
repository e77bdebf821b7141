"""The MLflow PyFunc that generates code. It is logged as code with every model, with this package, and loads without
Ratchet.

    model = mlflow.pyfunc.load_model("models:/code_model_fine_tuning_model@production")
    model.predict(["def add(a, b):\n"], params={"max_new_tokens": 32})

Logged artifacts: `model`, a folder as `save_pretrained` writes it (a full model, or a PEFT adapter that
is merged while loading), and for an adapter optionally `base_model`. Weights are safetensors; nothing is
unpickled. The defaults of the generation parameters stand in the folder's generation_config.json.
"""

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from serving import fim
from serving.params import PARAM_NAMES, REQUEST_ID, GenerationParams, invalid, refuse_unknown
from serving.text import cut, decode_completion, encode_prompt


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
    params.append(ParamSpec(REQUEST_ID, DataType.string, ""))
    return ModelSignature(outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(params))


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


def load_causal_lm(folder: Path, **options: Any) -> Any:
    """The causal language model in a folder, as `save_pretrained` writes it: safetensors only, and every weight there.

    `options` go to `from_pretrained`. Raises MlflowException (INVALID_PARAMETER_VALUE) for another kind of model, for
    weights that are missing or of another shape, which transformers would fill in at random, and for a folder from
    which no model loads.
    """
    from transformers import AutoModelForCausalLM

    config = causal_config(folder)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **options,
        )
    except Exception as error:  # whatever a broken file, or the architecture's own code, raises
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise  # not the folder's fault
        raise invalid(f"No model loads from {folder}: {first_line(error)}") from error
    _refuse_incomplete(folder, model, found)
    return model


def causal_config(folder: Path) -> Any:
    """The configuration of the causal language model in a folder.

    Raises MlflowException (INVALID_PARAMETER_VALUE) where it names another kind of model, or cannot be read.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the architecture's own code raises
        raise invalid(f"No model loads from {folder}: {first_line(error)}") from error
    given = getattr(config, "architectures", None) or []
    named = [given] if isinstance(given, str) else [str(name) for name in given]
    causal = {name for names in KNOWN.values() for name in ([names] if isinstance(names, str) else names)}
    if named and not any(name in causal or name.endswith(("ForCausalLM", "LMHeadModel")) for name in named):
        raise invalid(
            f"{folder} holds a {named[0]}, which is no causal language model. Expected one that continues a text, such "
            "as LlamaForCausalLM (`architectures` in its config.json)."
        )
    return config


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
        raise invalid(
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
        cut(decode_completion(tokenizer, ids, row[longest:].tolist()), params.stop)
        for ids, row in zip(encoded, output, strict=True)
    ]


def default_config() -> dict[str, Any]:
    """The `model_config` to log with the PyFunc: MLflow lets only its keys be set at loading."""
    from serving.engine import Limits

    return {"device": "auto", "dtype": "auto", **asdict(Limits())}


class CodeGenerationModel(PythonModel):
    """Generates a completion for each prompt.

    `model_config` at loading: `device` (auto, cpu, cuda), `dtype` (auto, bfloat16, float32), and the fields of
    serving.engine.Limits.
    """

    # MLflow would ask, with a warning at each import, for a type hint on model_input; a hint fixes one form
    # of input, and `predict` takes several.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Load the weights, merging a PEFT adapter. Raises MlflowException for pickled weights."""
        from transformers import AutoTokenizer

        from serving.engine import Engine, Limits

        config = dict(context.model_config or {})
        folder = Path(context.artifacts["model"])
        device = choose_device(config.pop("device", "auto"))
        dtype = choose_dtype(config.pop("dtype", "auto"), device)
        if not any(folder.glob("*.safetensors")):
            raise invalid(f"{folder} holds no *.safetensors. Expected weights in that format: no pickle is loaded.")
        if (folder / "adapter_config.json").is_file():
            from peft import PeftConfig

            base = context.artifacts.get("base_model") or PeftConfig.from_pretrained(folder).base_model_name_or_path
            model = _with_adapter(load_causal_lm(Path(base), dtype=dtype), folder)
        else:
            model = load_causal_lm(folder, dtype=dtype)
        self.model = model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.defaults = read_defaults(folder)
        self.fim = fim.tokens(self.tokenizer)
        self.engine = Engine(
            self.model,
            self.tokenizer,
            Limits(**config),
            lambda prompts, params, stopping: generate(self.model, self.tokenizer, prompts, params, stopping),
        )
        if path := os.environ.get("SERVING_CHANNEL"):
            from serving import channel

            channel.listen(self, path)

    def predict(  # type: ignore[no-untyped-def]
        self, context: Any, model_input, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Completions, one for each prompt.

        `model_input`: a list of strings; a dict or a list of dicts with `prompt` and, row by row, any
        generation parameter; or a DataFrame with these columns. Raises MlflowException: bad input as
        INVALID_PARAMETER_VALUE (HTTP 400), a full queue or no memory as RESOURCE_EXHAUSTED (429), too late as
        TEMPORARILY_UNAVAILABLE (503), else INTERNAL_ERROR (500).
        """
        given = dict(params or {})
        request_id = given.pop(REQUEST_ID, "")
        defaults = self.defaults.updated(given)
        rows = [(prompt, defaults.updated(changes)) for prompt, changes in parse_input(model_input)]
        requests = self.engine.submit(rows, request_id)
        try:
            return [request.future.result().text for request in requests]
        finally:
            for request in requests:  # where one has failed, nobody waits for the others
                request.cancel()

    def prompt_of(self, asked: Mapping[str, Any]) -> str:
        """The prompt of a request of the gateway's: `prompt`, with `suffix` the text after a gap; or chat `messages`.

        Raises MlflowException where the model has no chat template.
        """
        if "messages" not in asked:
            prompt, suffix = str(asked["prompt"]), str(asked.get("suffix") or "")
            return fim.fill(prompt, suffix, self.fim or fim.NEUTRAL) if suffix else prompt
        if not self.tokenizer.chat_template:
            raise invalid("The model has no chat template. Expected a prompt, by /v1/completions.")
        try:
            return str(
                self.tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # whatever the template's own code raises
            raise invalid(f"The model's chat template refuses the messages: {error}") from error


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
        raise invalid("The input has no rows. Expected at least one prompt.")
    return [_parse_row(row, number) for number, row in enumerate(rows)]


def _with_adapter(model: Any, folder: Path) -> Any:
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
            raise invalid(f"'{name}' has {len(values)} values for {len(rows)} prompts. Expected one, or as many.")
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
        raise invalid(f"Row {number} is a {type(row).__name__}. Expected a text, or a dict with 'prompt'.")
    # MLflow's parser makes numpy values; tolist() of a scalar is a plain scalar.
    values = {
        str(name): value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        for name, value in row.items()
    }
    if set(values) == {"0"} and isinstance(values["0"], str):  # a DataFrame's one column without a name
        return values["0"], {}
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        raise invalid(f"Row {number} has prompt={prompt!r}. Expected a text under 'prompt'.")
    # In a DataFrame a cell without a value is NaN: that row takes the default.
    return prompt, {name: value for name, value in values.items() if not _is_missing(value)}


def first_line(error: Exception) -> str:
    """What an error says first; with the next line where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


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
        if names - {REQUEST_ID} == set(PARAM_NAMES) and isinstance(params, Mapping):
            refuse_unknown({name: value for name, value in params.items() if name != REQUEST_ID})
        return enforce(params, schema)

    vars(enforce_known)["refuses_unknown"] = True
    vars(mlflow.pyfunc)["_enforce_params_schema"] = enforce_known


_refuse_params_that_mlflow_drops()
mlflow.models.set_model(CodeGenerationModel())
