"""Saves and logs a model once, in two flavors, PyFunc and Transformers, and registers both as versions, or neither."""

import importlib.metadata
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import code_model
import code_model.pyfunc
from code_model.context import WINDOW
from code_model.weights import read_defaults
from contract.errors import RatchetError
from contract.files import sha256_of
from contract.messages import PROTOCOL
from contract.names import IDEMPOTENCY_KEY, MANIFEST_SHA256, PROTOCOL_TAG, pyfunc_model, pytorch_model
from contract.tracking import create_once
from contract.versions import metadata_of_release
from trainer import tracking
from trainer.base_model import TRAIN_DIGESTS, greedy
from trainer.config import Config
from trainer.pyfunc_flavor import BothFlavors


@dataclass(frozen=True)
class Registered:
    """The versions of one model in the registry."""

    pyfunc: ModelVersion
    pytorch: ModelVersion


def model_names(config: Config) -> tuple[str, str]:
    """Registered names: (PyFunc, plain Transformers)."""
    experiment = config.tracking.experiment_name
    return pyfunc_model(experiment), pytorch_model(experiment)


def save_model(
    model: Any, tokenizer: Any, config: Config, card: str, train_digests: Sequence[str], folder: Path
) -> None:
    """Write weights (safetensors), tokenizer, generation defaults and model card to a folder.

    `train_digests`, of what the model was tuned on, stand in its config.json, and go wherever the model goes.
    """
    setattr(model.config, WINDOW, config.trainer.max_length)
    if train_digests:
        setattr(model.config, TRAIN_DIGESTS, list(train_digests))
    model.generation_config = greedy(model.generation_config, tokenizer)
    model.generation_config.max_new_tokens = config.eval.max_new_tokens
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


class Logged(NamedTuple):
    """A model in the store."""

    source: str
    model_id: str | None
    tags: dict[str, str]  # that each of its versions has


def log_model(model: Any, tokenizer: Any, folder: Path) -> Logged:
    """Log a model that loads from a folder, and that folder, to the active run.

    Raises RatchetError where what is logged is not what lies in the folder, which is what was judged.
    """
    # No input example: MLflow would load the model once more to try it, 4 s of a laptop; `promoter validate` does.
    warnings.filterwarnings("ignore", message="(?s).*An input example was not provided")
    flavors = BothFlavors(model, tokenizer)
    info = Model.log(
        artifact_path=None,
        name="model",
        flavor=flavors,
        python_model=code_model.pyfunc.__file__,
        code_paths=[str(Path(code_model.pyfunc.__file__).parent)],
        metadata=metadata_of_release(),
        artifacts={"model": str(folder)},
        model_config=code_model.pyfunc.default_config(),
        pip_requirements=_requirements("mlflow", "torch", "transformers", "peft", "accelerate"),
        signature=code_model.pyfunc.signature(read_defaults(folder)),
    )
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"artifacts/{folder.name}/{path.relative_to(folder).as_posix()}"
        if flavors.files.get(name) != sha256_of(path):
            raise RatchetError(
                f"{name} of the logged model is not the file that was judged. Run the same command again."
            )
    return Logged(info.model_uri, info.model_id, {MANIFEST_SHA256: flavors.sha256, PROTOCOL_TAG: str(PROTOCOL)})


def register(
    client: MlflowClient,
    run_id: str,
    config: Config,
    logged: Logged,
    description: str,
    tags: dict[str, str],
    key: str,
) -> Registered:
    """Register a model that the active run has logged under both names, or neither.

    Interrupted or failed half-way, it takes back the version that it had made; killed, the next call with the same
    `key` finds it, and makes no second one. The run ends with it.
    """
    names = model_names(config)
    # The PyFunc comes last: it is the version that the promoter looks at.
    forms = [(name, f"{key}/{name}") for name in (names[1], names[0])]
    try:
        with tracking.deferred_interrupts():
            versions = [_create_version(client, name, own, logged, run_id, description, tags) for name, own in forms]
            mlflow.end_run("FINISHED")
    except BaseException:
        with tracking.deferred_interrupts():
            if mlflow.active_run() is not None:  # else only a held-back Ctrl-C came through: all is done
                _take_back(client, names, run_id)
        raise
    return Registered(pyfunc=versions[1], pytorch=versions[0])


def find_version(client: MlflowClient, name: str, key: str) -> ModelVersion | None:
    """The version that was made with this key, if it was."""
    return next(iter(client.search_model_versions(f"name = '{name}' and tags.`{IDEMPOTENCY_KEY}` = '{key}'")), None)


def _create_version(
    client: MlflowClient,
    name: str,
    key: str,
    logged: Logged,
    run_id: str,
    description: str,
    tags: dict[str, str],
) -> ModelVersion:
    """Register a logged model, or find the version that an earlier try made, whose reply was lost."""
    _ensure_registered_model(client, name)

    def create() -> ModelVersion:
        return client.create_model_version(
            name,
            logged.source,
            run_id,
            tags={**tags, **logged.tags, IDEMPOTENCY_KEY: key},
            description=description,
            model_id=logged.model_id,
        )

    return create_once(lambda: find_version(client, name, key), create)


def _take_back(client: MlflowClient, names: tuple[str, str], run_id: str) -> None:
    """Delete the versions that a run has made; found by the run, since a reply may have been lost."""
    for name in names:
        for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            client.delete_model_version(version.name, version.version)


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _requirements(*packages: str) -> list[str]:
    """The installed versions as pip requirements, without a build's local part (`+cpu`)."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in packages]


def figures(metrics: dict[str, float], base_metrics: dict[str, float]) -> str:
    """What came of judging a model, as a table in Markdown; beside the base model's where it was tuned."""
    rows = "\n".join(
        f"| {name} | " + (f"{base_metrics[name]:.4f} | " if base_metrics else "") + f"{value:.4f} |"
        for name, value in sorted(metrics.items())
        if name.startswith("eval/") and (not base_metrics or name in base_metrics)
    )
    header = "| metric | base | this model |\n|---|---|---|" if base_metrics else "| metric | value |\n|---|---|"
    return f"{header}\n{rows}"


def model_card(config: Config, base_name: str, data: dict[str, Any], tuned: bool, judged: str) -> str:
    """The model card in Markdown, with the Hub's front matter.

    `judged`: its figures. The card in a version's folder says where they are: it is judged with the folder's files.
    """
    what = (
        f"`{base_name}`, fine-tuned ({config.method_in_words}) on {data['train']} examples."
        if tuned
        else f"`{base_name}`, unchanged: the model that a fine-tuned one has to beat."
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
base_model: {json.dumps(base_name)}
---
# {config.tracking.experiment_name}

{what}

Data: `{config.data.source}`; held out: {data["held out"]} examples (digest `{data["digest"]}`).

{judged}

It continues code: give it a prompt such as a signature with its docstring. What it writes is a guess to be
read and tested, not to be run unseen.
"""
