"""One training job from start to end: base model, data, baseline, fine-tuning, evaluation, registration."""

import importlib.util
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from contract import names
from contract.errors import InputError, Unreachable
from trainer import base_model, evidence, plots, register, tracking
from trainer.base_model import BaseModel
from trainer.checked_job import Job, commit
from trainer.config import Config
from trainer.data.prepare import Dataset, check_sources
from trainer.evaluation.runs import Evaluation
from trainer.preparation import check_length, prepare_data
from trainer.tracking import say
from trainer.training import checkpoints, distributed
from trainer.training.adapter import target_modules
from trainer.training.batches import TrainingData, split
from trainer.training.divergence import check_figures
from trainer.training.liveness import mark_dead, unfinished
from trainer.training.loop import RESULT, chooses_padding_free, train
from trainer.training.recorder import LOSS, Recorder
from trainer.training.spool import Spool
from trainer.trial import try_out


def prepare(config: Config, folder: Path) -> Job:
    """Check tracking server, data and model, loading it. Raises InputError for what is wrong; trains nothing.

    The prepared data lie in `folder`, as long as the job is used.
    """
    base_model.quiet()
    if config.distributed.machine_rank == 0:
        client = tracking.connect(config.tracking.uri)
    else:  # only the first machine talks to the tracking server
        client = MlflowClient(config.tracking.uri)
    root = checkpoints.root(config)
    say(f"Base model: {config.model.name}")
    base = base_model.resolve(config.model)
    positions = base_model.positions(base)
    check_length(config, positions)
    tokenizer = base_model.load_tokenizer(base)
    check_sources(config.data)
    model = base_model.load_model(base, config.model, tokenizer)
    _check_fit(config, model)
    distributed.processes(config, model.device.type)
    if config.trainer.batching == "padding_free":
        chooses_padding_free(model, config)
    if about_adapter := try_out(base, model, tokenizer, config):
        say(f"  {about_adapter}")
    data = prepare_data(config, tokenizer, folder, positions, model.get_input_embeddings().weight.shape[0])
    if not len(data.train):
        raise InputError(f"data.source is {config.data.source!r}. Expected something to train on.")
    if not any(example.completion for example in data.held_out):
        raise InputError(
            f"data.eval_source is {config.data.eval_source!r}, whose rows have tests and no completions. Expected some "
            "with one: a candidate has to be better by its likelihood."
        )
    _check_unseen(base, data)
    evaluation = Evaluation.of(config.eval, config.seed, data.held_out, data.held_out_digest)
    evaluation.check(tokenizer, positions)
    split(_training_data(data), config.trainer.validation_fraction, config.seed)
    return Job(config, client, base, tokenizer, model, str(model.dtype), data, evaluation, root)


def run(job: Job) -> register.Registered | None:
    """Evaluate base model and incumbent unless that was done before, fine-tune, evaluate, log and register.

    Goes on with the run of the same job that did not finish, if there is one. None on all machines but the first.
    """
    if job.config.distributed.machine_rank > 0:
        with checkpoints.job_folder(job.config, f"{job.key}-{job.config.distributed.machine_rank}") as folder:
            _train(job, folder, None)
            checkpoints.empty(folder)
        return None
    experiment_id = mlflow.set_experiment(job.config.tracking.experiment_name).experiment_id
    with checkpoints.job_folder(job.config, job.key) as folder:
        for dead in mark_dead(job.client, experiment_id, job.root):
            say(f"Run {dead.info.run_name} was left RUNNING by a trainer that died: marked KILLED")
        earlier = unfinished(job.client, experiment_id, job.key, job.root) if job.config.checkpoint.resume else None
        base_run_id, base_table, base_metrics = evidence.evaluate_base(job, experiment_id)
        evidence.evaluate_incumbent(job, experiment_id)
        resume = earlier.info.run_id if earlier is not None else None
        tags = {**job.tags(names.CANDIDATE), **job.digest_tags(names.CANDIDATE), "job": job.key}
        name = job.config.tracking.run_name
        with tracking.run(job.client, experiment_id, name, tags, job.root, resume) as active:
            run_id = active.info.run_id
            checkpoints.belongs_to(folder, run_id)
            if earlier is not None:
                resumes = int(earlier.data.tags.get("resumes", "0")) + 1
                mlflow.set_tags({"resumes": resumes, f"resume_{resumes}/git_commit": commit() or "unknown"})
                _fetch_checkpoint(job, run_id, folder)
            if "config.yaml" not in [item.path for item in job.client.list_artifacts(run_id)]:
                if (twins := job.data.report.held_out_twins) is not None:
                    mlflow.log_metric(names.HELD_OUT_TWINS, twins)
                job.log_inputs()
            mlflow.set_tag("base_run_id", base_run_id)
            word = "Going on with" if earlier is not None else "Fine-tuning"
            say(f"{word} {job.base.short_name} ({job.config.method_in_words}), run {active.info.run_name}")
            say(f"  {tracking.page_of(job.config, active)}")
            if not checkpoints.is_whole(folder / RESULT):
                _train(job, folder, run_id)
            registered, metrics = _finish(job, folder, run_id, base_table, base_metrics)
        checkpoints.empty(folder)
        if job.config.checkpoint.to_tracking:
            checkpoints.delete_remote(job.client, run_id)
    say(_comparison(base_metrics, metrics))
    return registered


def _train(job: Job, folder: Path, run_id: str | None) -> None:
    """Train until the job's folder holds the result. Raises KeyboardInterrupt where it was asked to stop before."""
    config = job.config
    count = distributed.processes(config, job.model.device.type)
    with tracking.stop_file(folder / "stop") as signals:
        if count * config.distributed.machines > 1:
            np.save(folder / "lengths.npy", job.data.train_lengths)
            job.release_model()
            base = job.base
            task = distributed.Task(
                *(job.key, base.name, str(base.folder), base.revision, str(job.data.train.path.absolute())),
                *(config.tracking.uri, run_id),
            )
            done = distributed.train_together(folder, config, task, count)
        else:
            assert run_id is not None
            if config.lora.load_in_4bit:
                job.release_model()
                job.model = base_model.load_model(job.base, config.model, job.tokenizer, in_4bit=True)
            recorder = Recorder(job.client, run_id, folder / "spool", config.tracking.system_metrics_interval_s)
            try:
                checkpoint = checkpoints.newest(folder / "checkpoints")
                done = train(job.model, job.tokenizer, _training_data(job.data), config, folder, recorder, checkpoint)
            finally:
                recorder.close()
    if not done or signals:  # after the last step too: what is there is not lost
        raise tracking.Terminated("SIGTERM") if signal.SIGTERM in signals else KeyboardInterrupt


def _finish(
    job: Job, folder: Path, run_id: str, base_table: pd.DataFrame, base_metrics: dict[str, float]
) -> tuple[register.Registered, dict[str, float]]:
    """Evaluate, log and register what the job's folder holds as the result."""
    _deliver_metrics(job, folder, run_id)
    totals = checkpoints.facts_of(folder / RESULT)["totals"]
    losses = {item.step: item.value for item in job.client.get_metric_history(run_id, LOSS)}
    mlflow.log_metrics({**totals, "run/mean_loss": sum(losses.values()) / len(losses)})
    before = evidence.logged_before(job, job.client.get_run(run_id))
    if before is not None:
        logged, judged = before
    else:
        job.model = _tuned(job, folder / RESULT)
        with evidence.saved(job, names.CANDIDATE, run_id) as (saved, model):
            judged = job.evaluation.run(model, "the fine-tuned model", base_table)
            check_figures(judged.metrics, job.config.trainer.lr)
            with tempfile.TemporaryDirectory() as temporary:
                plots.loss_curve(sorted(losses.items()), Path(temporary, "loss.png"))
                plots.base_against_candidate(base_table, judged.table, Path(temporary, "base_against_candidate.png"))
                mlflow.log_artifacts(temporary, "plots")
            if job.config.trainer.method == "lora":
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    mlflow.log_artifact(str(folder / RESULT / name), "adapter")
            logged = evidence.log(job, model, saved, names.CANDIDATE, judged.metrics, base_metrics)
    return evidence.register_version(job, run_id, names.CANDIDATE, logged, judged), judged.metrics


def _deliver_metrics(job: Job, folder: Path, run_id: str) -> None:
    """Wait until all metrics have arrived. Raises Unreachable when the server stays away too long."""
    spool = Spool(job.client, run_id, folder / "spool", say)
    try:
        if spool.wait(5.0):
            return
        patience = job.config.tracking.patience_s
        say(f"Trained; waiting up to {patience} s for the tracking server")
        if not spool.wait(patience):
            raise Unreachable(
                f"The tracking server at {job.config.tracking.uri} did not come back within {patience} s "
                "(tracking.patience_s). Nothing is lost: the same command evaluates and registers what was trained."
            )
    finally:
        spool.close()


def _tuned(job: Job, result: Path) -> Any:
    """The fine-tuned model as one that stands alone: the adapter merged into the base model's own weights."""
    from peft import PeftModel

    if job.config.trainer.method == "full":
        job.release_model()
        return base_model.load_model(
            BaseModel("the result", result, "", job.base.trust_remote_code), job.config.model, job.tokenizer
        )
    if job.config.lora.load_in_4bit:
        job.release_model()  # merged in 4 bits, what was learnt would be rounded away
    if job.model is None:
        job.load_base()
    model = PeftModel.from_pretrained(job.model, result, torch_device=str(job.model.device))
    return model.merge_and_unload().eval()


def _fetch_checkpoint(job: Job, run_id: str, folder: Path) -> None:
    """Get the newest checkpoint from the run's artifacts, where it is newer than what is here."""
    saved = folder / "checkpoints"
    saved.mkdir(exist_ok=True)
    here = checkpoints.newest(saved)
    if checkpoints.is_whole(folder / RESULT):
        return
    for step in reversed(checkpoints.remote(job.client, run_id)):
        if here is not None and checkpoints.step_of(here) >= step:
            return
        say(f"Fetching checkpoint {step} from the tracking server")
        fetched = checkpoints.download(job.client, run_id, step, saved)
        if fetched is not None:
            best = json.loads((fetched / "trainer_state.json").read_text())["best_global_step"]
            if best and best != step:
                checkpoints.download(job.client, run_id, best, saved)
            return


def _training_data(data: Dataset) -> TrainingData:
    return TrainingData(data.train, data.train_lengths.tolist())


def _check_unseen(base: BaseModel, data: Dataset) -> None:
    """Raise InputError where the examples to judge by are those that somebody is trained on."""
    if data.train_digest == data.held_out_digest:
        raise InputError(
            f"The examples to train on and to judge by are the same (digest {data.train_digest}). Expected others in "
            "data.eval_source than in data.source."
        )
    if data.held_out_digest in base.train_digests:
        raise InputError(
            f"model.name is '{base.name}', which was itself tuned on the examples to judge by (digest "
            f"{data.held_out_digest}). Expected examples in data.eval_source that it has not seen, or another model."
        )


def _check_fit(config: Config, model: Any) -> None:
    """Raise InputError where settings ask for what this model does not have."""
    if config.lora.load_in_4bit:
        if model.device.type != "cuda":
            raise InputError(
                f"lora.load_in_4bit is true, and the model is on the {model.device.type}. Expected an NVIDIA GPU: "
                "QLoRA's 4-bit layers run there only. Drop it, or choose a smaller base model."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                "lora.load_in_4bit is true, and bitsandbytes is missing. Do: pip install -e '.[gpu]', or in the stack "
                "set TRAINER_EXTRA=gpu in .env and build its images again."
            )
    if config.lora.target_modules != "all-linear":
        head = model.get_output_embeddings()
        tied = head is not None and head.weight is model.get_input_embeddings().weight
        modules = {name: module for name, module in model.named_modules() if isinstance(module, (Linear, Conv1D))}
        linear = {name.rpartition(".")[2] for name, module in modules.items() if not (tied and module is head)}
        for name in target_modules(config):
            if name not in linear:
                why = "does not have"
                if tied and modules.get(name) is head:
                    why = "shares with its embedding: merging an adapter there would change what the model reads"
                raise InputError(
                    f"lora.target_modules names '{name}', which {config.model.name} {why}. "
                    f"Expected all-linear, or some of {', '.join(sorted(linear))}."
                )


def _comparison(base: dict[str, float], candidate: dict[str, float]) -> str:
    metrics = [name for name in candidate if name in base and not name.endswith("/examples")]
    table = pd.DataFrame({"base": base, "candidate": candidate}).loc[metrics]
    return table.to_string(float_format=lambda value: f"{value:.4f}")
