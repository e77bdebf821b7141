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
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch.nn import Linear
from tqdm import tqdm

from trainer import base_model, plots, register, tracking
from trainer.base_model import BaseModel
from trainer.collator import encode
from trainer.config import Config, to_yaml
from trainer.data import Dataset, load
from trainer.errors import InputError
from trainer.evaluate import evaluate, summarise
from trainer.train import add_adapter, target_modules, train

EVALUATION_TABLE = "eval/examples.parquet"
# On a run that evaluates a registered version, not the one that it makes: NAME/VERSION.
EVALUATES_TAG = "evaluates"


@dataclass(frozen=True)
class Job:
    """A checked job: everything that can be wrong with the input has been found by now."""

    config: Config
    client: MlflowClient
    base: BaseModel
    tokenizer: Any
    model: Any
    data: Dataset


def prepare(config: Config) -> Job:
    """Check tracking server, data and model, loading it. Raises InputError for what is wrong; trains nothing."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # of every load and save, seconds each
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft calls old names
    client = tracking.connect(config.tracking.uri)
    say(f"Base model: {config.model.name}")
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    say(f"Data: {config.data.source}")
    data = load(
        config.data,
        chat_template=lambda messages: base_model.chat_template(tokenizer, messages),
        token_count=lambda item: len(encode(tokenizer, item.prompt, item.completion).input_ids),
        max_length=config.trainer.max_length,
    )
    say("  " + ", ".join(f"{count} {name}" for name, count in data.counts.items()))
    model = base_model.load_model(base, config.model)
    _check_fit(config, model)
    return Job(config, client, base, tokenizer, model, data)


def run(job: Job) -> register.Registered:
    """Evaluate base model and incumbent unless that was done before, fine-tune, evaluate, log and register."""
    experiment_id = mlflow.set_experiment(job.config.tracking.experiment_name).experiment_id
    base_run_id, base_table = _evaluate_base(job, experiment_id)
    _evaluate_incumbent(job, experiment_id)
    base_metrics = summarise(base_table)

    with (
        tracking.run(job.client, job.config.tracking.run_name, _tags(job, tracking.CANDIDATE)) as active,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary)
        _log_inputs(job)
        mlflow.set_tag("base_run_id", base_run_id)
        say(f"Fine-tuning {job.base.short_name} with LoRA (rank {job.config.lora.r}), run {active.info.run_name}")
        transformers.set_seed(job.config.seed)  # here, so that what was evaluated before makes no difference
        model = add_adapter(job.model, job.config)
        callback = tracking.MlflowCallback(job.client, active.info.run_id)
        totals = train(model, job.tokenizer, job.data.train, job.config, callback, str(folder / "trainer"))
        mlflow.log_metrics(totals)
        plots.loss_curve(callback.losses, folder / "loss.png")
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
        table, metrics = _evaluate(job, model, "the fine-tuned model")
        plots.base_against_candidate(base_table, table, folder / "base_against_candidate.png")
        for picture in folder.glob("*.png"):
            mlflow.log_artifact(str(picture), "plots")
        mlflow.log_artifacts(str(folder / "adapter"), "adapter")
        registered = _register(job, active.info.run_id, model, tracking.CANDIDATE, metrics, base_metrics)
    say(_comparison(base_metrics, metrics))
    return registered


def say(line: str) -> None:
    """Print a line of progress at once, also where the output is piped."""
    print(line, flush=True)


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


def _evaluate_base(job: Job, experiment_id: str) -> tuple[str, pd.DataFrame]:
    """(run id, table) of the base model on this data; the first such run also registers it."""
    tags = _tags(job, tracking.BASE)
    version = _registered_base(job)
    earlier = _find_evaluation(job, experiment_id, tags)
    if earlier is not None:
        run_id, table = earlier.info.run_id, _read_table(job, earlier.info.run_id)
    else:
        with tracking.run(job.client, f"base-{job.base.short_name}", tags) as active:
            run_id = active.info.run_id
            _log_inputs(job)
            table, metrics = _evaluate(job, job.model, "the base model")
            if version is None:
                version = _register(job, run_id, job.model, tracking.BASE, metrics, {}).pyfunc
    if version is not None:
        job.client.set_tag(run_id, EVALUATES_TAG, f"{version.name}/{version.version}")
    return run_id, table


def _evaluate_incumbent(job: Job, experiment_id: str) -> None:
    """Evaluate the version in production on this data, where its own run did not: the gate compares like with like."""
    name, _ = register.model_names(job.config)
    version = _in_production(job, name)
    if version is None or (version.tags.get("role"), version.tags.get("base_model")) == ("base", job.base.identity):
        return
    tags = {**_tags(job, "incumbent"), EVALUATES_TAG: f"{name}/{version.version}"}
    comparable = all(version.tags.get(key) == tags[key] for key in ("dataset_digest", "eval_settings"))
    if comparable or _find_evaluation(job, experiment_id, tags) is not None:
        return
    with tracking.run(job.client, f"incumbent-version-{version.version}", tags):
        _log_inputs(job)
        options = {"device": job.config.model.device, "dtype": job.config.model.dtype}
        served = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}", model_config=options)
        python_model: Any = served.unwrap_python_model()
        what = f"version {version.version}, which is in production,"
        _evaluate(job, python_model.model, what, python_model.tokenizer)


def _in_production(job: Job, name: str) -> ModelVersion | None:
    try:
        return job.client.get_model_version_by_alias(name, "production")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
            return None
        raise


def _find_evaluation(job: Job, experiment_id: str, tags: dict[str, str]) -> Run | None:
    """An earlier run with these tags: it evaluated the same model on the same data in the same way."""
    same = f"tags.role = '{tags['role']}' and tags.dataset_digest = '{tags['dataset_digest']}'"
    runs = job.client.search_runs([experiment_id], f"{same} and attributes.status = 'FINISHED'")
    run = next((run for run in runs if tags.items() <= run.data.tags.items()), None)
    if run is not None:
        say(f"Evaluated on this data before: {run.info.run_name}")
    return run


def _read_table(job: Job, run_id: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        return pd.read_parquet(job.client.download_artifacts(run_id, EVALUATION_TABLE, folder))


def _registered_base(job: Job) -> ModelVersion | None:
    name, _ = register.model_names(job.config)
    versions = job.client.search_model_versions(f"name = '{name}'")
    wanted = {"role": tracking.BASE, "base_model": job.base.identity}.items()
    return next((version for version in versions if wanted <= version.tags.items()), None)


def _evaluate(job: Job, model: Any, what: str, tokenizer: Any = None) -> tuple[pd.DataFrame, dict[str, float]]:
    """Evaluate on the held-out examples and log table and metrics to the active run."""
    examples = job.data.held_out
    say(f"Evaluating {what} on {len(examples)} held-out examples")
    # Each example counts twice: once for its likelihood, once for the generated completion.
    with tqdm(total=2 * len(examples), unit="example", leave=False, disable=not sys.stderr.isatty()) as bar:
        table = evaluate(model, tokenizer or job.tokenizer, examples, job.data.language, job.config.eval, bar.update)
    metrics = summarise(table)
    mlflow.log_metrics(metrics)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(EVALUATION_TABLE).name
        table.to_parquet(path)
        mlflow.log_artifact(str(path), str(Path(EVALUATION_TABLE).parent))
    say(f"  nll per token {metrics['eval/nll_per_token']:.4f}, edit similarity {metrics['eval/edit_similarity']:.3f}")
    return table, metrics


def _register(
    job: Job, run_id: str, model: Any, role: str, metrics: dict[str, float], base_metrics: dict[str, float]
) -> register.Registered:
    say("Logging and registering the model")
    card = register.model_card(
        job.config,
        job.base.name,
        {**job.data.counts, "digest": job.data.held_out_digest},
        metrics,
        base_metrics,
    )
    mlflow.log_text(card, "model_card.md")
    tags = {**_tags(job, role), "train_dataset_digest": job.data.train_digest}
    with tempfile.TemporaryDirectory() as folder:
        register.save_model(model, job.tokenizer, job.config, card, Path(folder))
        nll = metrics["eval/nll_per_token"]
        what = "unchanged" if role == tracking.BASE else f"fine-tuned on {job.data.source}"
        description = f"{job.base.name}, {what}; held-out nll {nll:.4f} per token"
        registered = register.log_and_register(
            job.client, run_id, job.config, model, job.tokenizer, Path(folder), description, tags
        )
    for version in (registered.pyfunc, registered.pytorch):
        say(f"  {version.name} version {version.version}")
    return registered


def _tags(job: Job, role: str) -> dict[str, str]:
    """What makes two evaluations of one model the same; on runs and on versions."""
    dtype = str(job.model.dtype).removeprefix("torch.")
    return {
        tracking.ROLE: role,
        "base_model": job.base.identity,
        "dataset_digest": job.data.held_out_digest,
        "eval_settings": f"greedy, max_new_tokens={job.config.eval.max_new_tokens}, {dtype}, {job.data.language}",
    }


def _log_inputs(job: Job) -> None:
    """Config, data sets and commits of the active run."""
    config, data = job.config, job.data
    tracking.log_config(config)
    mlflow.log_text(to_yaml(config), "config.yaml")
    mlflow.log_dict(data.counts, "data/counts.json")
    held_out_source = config.data.eval_source or data.path
    for examples, digest, context, source in (
        (data.train, data.train_digest, "training", data.path),
        (data.held_out, data.held_out_digest, "evaluation", held_out_source),
    ):
        frame = pd.DataFrame([{"prompt": item.prompt, "completion": item.completion} for item in examples])
        name = f"{Path(source).name}-{context}"
        with warnings.catch_warnings():  # that a local path could be one of two equal kinds of source
            warnings.simplefilter("ignore", UserWarning)
            dataset = from_pandas(frame, source=source, name=name, digest=digest)
        mlflow.log_input(dataset, context=context)
    commits = {
        "git_commit": tracking.git_commit(Path.cwd()) or os.environ.get("GIT_COMMIT"),  # an image knows its own
        "data_git_commit": tracking.git_commit(data.folder),
    }
    mlflow.set_tags({key: commit for key, commit in commits.items() if commit})


def _comparison(base: dict[str, float], candidate: dict[str, float]) -> str:
    names = [name for name in candidate if name in base and name != "eval/examples"]
    table = pd.DataFrame({"base": base, "candidate": candidate}).loc[names]
    return table.to_string(float_format=lambda value: f"{value:.4f}")
