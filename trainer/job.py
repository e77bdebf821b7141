"""One training job from start to end: base model, data, baseline, fine-tuning, evaluation, registration."""

import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import transformers
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch.nn import Linear
from tqdm import tqdm

from trainer import base_model, git, plots, register, tracking
from trainer.base_model import BaseModel
from trainer.collator import token_counts
from trainer.config import Config, to_yaml
from trainer.data.logged import log_dataset
from trainer.data.prepare import Dataset, Limits, names
from trainer.data.prepare import prepare as data_prepare
from trainer.errors import InputError
from trainer.evaluation import runs
from trainer.evaluation.runs import EVALUATES, Evaluation, say
from trainer.train import add_adapter, target_modules, train


@dataclass(frozen=True)
class Job:
    """A checked job: everything that can be wrong with the input has been found by now."""

    config: Config
    client: MlflowClient
    base: BaseModel
    tokenizer: Any
    model: Any
    data: Dataset
    evaluation: Evaluation

    def tags(self, role: str) -> dict[str, str]:
        """The tags of a run, and of the version that it makes."""
        return self.evaluation.tags(role, self.base.identity, self.model, self.tokenizer)


def quiet() -> None:
    """Keep the libraries from talking: progress bars of every load and save, warnings about each other."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft calls old names


def prepare(config: Config, folder: Path) -> Job:
    """Check tracking server, data and model, loading it. Raises InputError for what is wrong; trains nothing.

    The prepared data lie in `folder`, as long as the job is used.
    """
    quiet()
    client = tracking.connect(config.tracking.uri)
    say(f"Base model: {config.model.name}")
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    positions = base_model.positions(base)
    data = prepare_data(config, tokenizer, folder, positions)
    if not len(data.train):
        raise InputError(f"data.source is {config.data.source!r}. Expected something to train on.")
    if not any(example.completion for example in data.held_out):
        raise InputError(
            f"data.eval_source is {config.data.eval_source!r}, whose rows have tests and no completions. Expected some "
            "with one: a candidate has to be better by its likelihood."
        )
    evaluation = Evaluation.of(config.eval, config.seed, data.held_out, data.held_out_digest)
    evaluation.check(tokenizer, positions)
    model = base_model.load_model(base, config.model)
    _check_fit(config, model)
    return Job(config, client, base, tokenizer, model, data, evaluation)


def prepare_data(config: Config, tokenizer: Any, folder: Path, positions: int | None) -> Dataset:
    """The data set for a model with this tokenizer and so many positions, written to `folder`."""
    most = positions - config.eval.max_new_tokens if positions is not None else config.trainer.max_length
    if most < 1:
        raise InputError(
            f"eval.max_new_tokens is {config.eval.max_new_tokens}. Expected less than {positions} positions."
        )
    limits = Limits(
        chat_template=lambda messages: base_model.chat_template(tokenizer, messages),
        token_counts=lambda examples: token_counts(tokenizer, examples),
        max_length=config.trainer.max_length,
        max_eval_length=most,
    )
    for source in names(config.data.eval_source) + names(config.data.source):
        say(f"Data: {source}")
        if source.startswith("runs:/"):
            tracking.connect(config.tracking.uri)
    with tqdm(desc="reading", unit="example", leave=False, disable=not sys.stderr.isatty()) as bar:
        data = data_prepare(config.data, limits, folder, bar.update)
    say("  " + data.report.in_words())
    return data


def run(job: Job) -> register.Registered:
    """Evaluate base model and incumbent unless that was done before, fine-tune, evaluate, log and register."""
    experiment_id = mlflow.set_experiment(job.config.tracking.experiment_name).experiment_id
    base_run_id, base_table, base_metrics = _evaluate_base(job, experiment_id)
    _evaluate_incumbent(job, experiment_id)

    with (
        tracking.run(job.client, job.config.tracking.run_name, job.tags(tracking.CANDIDATE)) as active,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary)
        _log_inputs(job)
        mlflow.set_tag("base_run_id", base_run_id)
        say(f"Fine-tuning {job.base.short_name} with LoRA (rank {job.config.lora.r}), run {active.info.run_name}")
        transformers.set_seed(job.config.seed)  # here, so that what was evaluated before makes no difference
        model = add_adapter(job.model, job.config)
        callback = tracking.MlflowCallback(job.client, active.info.run_id)
        totals = train(model, job.tokenizer, job.data, job.config, callback, str(folder / "trainer"))
        mlflow.log_metrics(totals)
        plots.loss_curve(callback.losses, folder / "loss.png")
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
        table, metrics = job.evaluation.run(model, job.tokenizer, "the fine-tuned model")
        plots.base_against_candidate(base_table, table, folder / "base_against_candidate.png")
        for picture in folder.glob("*.png"):
            mlflow.log_artifact(str(picture), "plots")
        mlflow.log_artifacts(str(folder / "adapter"), "adapter")
        registered = _register(job, active.info.run_id, model, tracking.CANDIDATE, metrics, base_metrics)
    say(_comparison(base_metrics, metrics))
    return registered


def _check_fit(config: Config, model: Any) -> None:
    """Raise InputError where settings ask for what this model does not have."""
    positions = getattr(model.config, "max_position_embeddings", None)
    wanted = config.trainer.max_length + config.eval.max_new_tokens
    if positions is not None and wanted > positions:
        raise InputError(
            f"trainer.max_length and eval.max_new_tokens come to {wanted} tokens. "
            f"Expected at most {positions}: the positions that {config.model.name} has."
        )
    if config.lora.target_modules != "all-linear":
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}
        for name in target_modules(config):
            if name not in linear:
                raise InputError(
                    f"lora.target_modules names '{name}', which {config.model.name} does not have. "
                    f"Expected all-linear, or some of {', '.join(sorted(linear))}."
                )


def _evaluate_base(job: Job, experiment_id: str) -> tuple[str, pd.DataFrame, dict[str, float]]:
    """(run id, table, metrics) of the base model on this data; the first such run also registers it."""
    tags = job.tags(tracking.BASE)
    version = _registered_base(job)
    earlier = runs.find(job.client, experiment_id, tags)
    if earlier is not None:
        run_id, table = earlier.info.run_id, runs.read_table(job.client, earlier.info.run_id)
        metrics = dict(earlier.data.metrics)
    else:
        with tracking.run(job.client, f"base-{job.base.short_name}", tags) as active:
            run_id = active.info.run_id
            _log_inputs(job)
            table, metrics = job.evaluation.run(job.model, job.tokenizer, "the base model")
            if version is None:
                version = _register(job, run_id, job.model, tracking.BASE, metrics, {}).pyfunc
    if version is not None:
        job.client.set_tag(run_id, EVALUATES, f"{version.name}/{version.version}")
    return run_id, table, metrics


def _evaluate_incumbent(job: Job, experiment_id: str) -> None:
    """Evaluate the version in production on this data, where its own run did not: the gate compares like with like."""
    name, _ = register.model_names(job.config)
    version = _in_production(job, name)
    if version is None or (version.tags.get("role"), version.tags.get("base_model")) == ("base", job.base.identity):
        return
    own = job.tags(tracking.EVALUATION)
    if all(version.tags.get(key) == own[key] for key in ("dataset_digest", "eval_settings")):
        return
    model, tokenizer = runs.load_version(version, job.config.model.device, job.config.model.dtype)
    job.evaluation.check(tokenizer, getattr(model.config, "max_position_embeddings", None))
    base = version.tags.get("base_model", "unknown")
    tags = job.evaluation.tags(tracking.EVALUATION, base, model, tokenizer)  # its own tokenizer's
    tags[EVALUATES] = f"{name}/{version.version}"
    if runs.find(job.client, experiment_id, tags) is not None:
        return
    with tracking.run(job.client, f"incumbent-version-{version.version}", tags):
        _log_inputs(job)
        job.evaluation.run(model, tokenizer, f"version {version.version}, which is in production,")


def _in_production(job: Job, name: str) -> ModelVersion | None:
    try:
        return job.client.get_model_version_by_alias(name, "production")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
            return None
        raise


def _registered_base(job: Job) -> ModelVersion | None:
    name, _ = register.model_names(job.config)
    versions = job.client.search_model_versions(f"name = '{name}'")
    wanted = {"role": tracking.BASE, "base_model": job.base.identity}.items()
    return next((version for version in versions if wanted <= version.tags.items()), None)


def _register(
    job: Job, run_id: str, model: Any, role: str, metrics: dict[str, float], base_metrics: dict[str, float]
) -> register.Registered:
    say("Logging and registering the model")
    card = register.model_card(
        job.config,
        job.base.name,
        {"train": len(job.data.train), "held out": len(job.data.held_out), "digest": job.data.held_out_digest},
        metrics,
        base_metrics,
    )
    mlflow.log_text(card, "model_card.md")
    tags = {**job.tags(role), "train_dataset_digest": job.data.train_digest}
    with tempfile.TemporaryDirectory() as folder:
        register.save_model(model, job.tokenizer, job.config, card, Path(folder))
        nll = metrics["eval/nll_per_token"]
        what = "unchanged" if role == tracking.BASE else f"fine-tuned on {job.config.data.source}"
        description = f"{job.base.name}, {what}; held-out nll {nll:.4f} per token"
        registered = register.log_and_register(
            job.client, run_id, job.config, model, job.tokenizer, Path(folder), description, tags
        )
    for version in (registered.pyfunc, registered.pytorch):
        say(f"  {version.name} version {version.version}")
    return registered


def _log_inputs(job: Job) -> None:
    """Config, data sets, their report, and commits of the active run."""
    config, data = job.config, job.data
    tracking.log_config(config)
    mlflow.log_text(to_yaml(config), "config.yaml")
    log_dataset(data)
    commit = git.commit(Path.cwd()) or os.environ.get("GIT_COMMIT")  # an image knows its own
    mlflow.set_tags({"git_commit": commit} if commit else {})


def _comparison(base: dict[str, float], candidate: dict[str, float]) -> str:
    metrics = [name for name in candidate if name in base and not name.endswith("/examples")]
    table = pd.DataFrame({"base": base, "candidate": candidate}).loc[metrics]
    return table.to_string(float_format=lambda value: f"{value:.4f}")
