"""The MLflow PyFunc that generates code. This package is logged with every version, and loads without Ratchet.

    model = mlflow.pyfunc.load_model("models:/code_model_fine_tuning_model@production")
    model.predict(["def add(a, b):\n"], params={"max_new_tokens": 32})

Logged artifacts: `model`, a folder as `save_pretrained` writes it (a full model, or a PEFT adapter that
is merged while loading), and for an adapter optionally `base_model`. Weights are safetensors; nothing is
unpickled. The defaults of the generation parameters stand in the folder's generation_config.json.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from code_model import fim
from code_model.context import WINDOW, budget_of, prompt
from code_model.inputs import parse_input
from code_model.messages import CompletionRequest
from code_model.params import PARAM_NAMES, REQUEST_ID, GenerationParams, invalid, refuse_unknown
from code_model.weights import choose_device, choose_dtype, load_causal_lm, read_defaults, with_adapter
from code_model.whole_batch import generate, positions

# The path of the Unix socket to answer on, where the model is served (contract.names.SERVING_CHANNEL).
SOCKET = "SERVING_CHANNEL"


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


def default_config() -> dict[str, Any]:
    """The `model_config` to log with the PyFunc: MLflow lets only its keys be set at loading."""
    from code_model.engine import Limits

    return {"device": "auto", "dtype": "auto", **asdict(Limits())}


class CodeGenerationModel(PythonModel):
    """Generates a completion for each prompt.

    `model_config` at loading: `device` (auto, cpu, cuda), `dtype` (auto, bfloat16, float32), and the fields of
    code_model.engine.Limits.
    """

    # MLflow would ask, with a warning at each import, for a type hint on model_input; a hint fixes one form
    # of input, and `predict` takes several.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Load the weights, merging a PEFT adapter. Raises MlflowException for pickled weights."""
        from transformers import AutoTokenizer

        from code_model.decoding import gives_numbers
        from code_model.engine import Engine, Limits

        config = dict(context.model_config or {})
        folder = Path(context.artifacts["model"])
        device = choose_device(config.pop("device", "auto"))
        dtype = choose_dtype(config.pop("dtype", "auto"), device)
        if not any(folder.glob("*.safetensors")):
            raise invalid(f"{folder} holds no *.safetensors. Expected weights in that format: no pickle is loaded.")
        if (folder / "adapter_config.json").is_file():
            from peft import PeftConfig

            base = context.artifacts.get("base_model") or PeftConfig.from_pretrained(folder).base_model_name_or_path
            model = with_adapter(load_causal_lm(Path(base), dtype=dtype), folder)
        else:
            model = load_causal_lm(folder, dtype=dtype)
        self.model = model.to(device).eval()
        if not gives_numbers(self.model):
            raise invalid(f"The model in {folder} gives no numbers: its weights, or what they compute, are NaN.")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.defaults = read_defaults(folder)
        self.engine = Engine(
            self.model,
            self.tokenizer,
            Limits(**config),
            lambda prompts, params, stopping: generate(self.model, self.tokenizer, prompts, params, stopping),
        )
        if path := os.environ.get(SOCKET):
            from code_model import engine_server

            engine_server.listen(self.engine, self.to_prompt, path)

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

    def to_prompt(self, request: CompletionRequest) -> tuple[str, GenerationParams]:
        """The prompt, and all generation parameters, of a request of the gateway's.

        Raises MlflowException for parameters that are wrong, and for a chat where the model has no chat template.
        """
        return self._prompt_of(request), self.defaults.updated(request.get("params") or {})

    def _around(self, request: CompletionRequest) -> str:
        """The prompt of what an editor knows around its cursor: as in training, and as much of it as then."""
        text = str(request["prompt"])
        known = fim.read(text)
        suffix, path = str(request.get("suffix") or ""), str(request.get("path") or "")
        extra = request.get("extra") or []
        if not (suffix or path or extra or known.path or known.suffix is not None):
            return text
        others = (*known.others, *(fim.File(item["path"], item["text"]) for item in extra))
        asked = fim.Context(known.prefix, suffix or known.suffix, path or known.path, others)
        tokens = (request.get("params") or {}).get("max_new_tokens") or self.defaults.max_new_tokens
        budget = budget_of(getattr(self.model.config, WINDOW, None), positions(self.model.config), int(tokens))
        return prompt(asked, self.tokenizer, min(budget, self.engine.limits.max_prompt_tokens or budget))

    def _prompt_of(self, request: CompletionRequest) -> str:
        if "messages" not in request:
            return self._around(request)
        if not self.tokenizer.chat_template:
            raise invalid("The model has no chat template. Expected a prompt, by /v1/completions.")
        try:
            return str(
                self.tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # whatever the template's own code raises
            raise invalid(f"The model's chat template refuses the messages: {error}") from error


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
