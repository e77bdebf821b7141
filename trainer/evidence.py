"""What a training job brings as evidence: base model, incumbent and candidate, each judged as what is logged of it.

A model is saved as a version's folder, and loaded from there to be judged; what is logged afterwards is that folder, by
its manifest's sha256. A version that was registered before is judged in a process of its own.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import names
from contract.files import sha256_of
from contract.names import EVALUATED_MANIFEST, EVALUATES, EVALUATION_TABLE, MANIFEST_SHA256, PRODUCTION
from contract.redaction import redact
from contract.tracking import read_table
from trainer import base_model, register, tracking
from trainer.base_model import BaseModel
from trainer.checked_job import Job
from trainer.evaluation import runs
from trainer.evaluation.models import LoadedModel
from trainer.evaluation.runs import Judged
from trainer.evaluation.version_process import open_version
from trainer.tracking import say

LOGGED = "logged_model"  # tag of a run: what it has logged, and not registered yet


def evaluate_base(job: Job, experiment_id: str) -> tuple[str, pd.DataFrame, dict[str, float]]:
    """(run id, table, metrics) of the base model on this data; the first such run also registers it."""
    tags = job.tags(names.BASE)
    version = _registered_base(job)
    if version is not None and not job.base.trust_remote_code:
        tags |= runs.manifest_tag(version)
    earlier = runs.find(job.client, experiment_id, tags)
    if earlier is not None:
        run_id, table = earlier.info.run_id, read_table(job.client, earlier.info.run_id, EVALUATION_TABLE)
        metrics = dict(earlier.data.metrics)
    else:
        with tracking.run(job.client, experiment_id, f"base-{job.base.short_name}", tags, job.root) as active:
            run_id = active.info.run_id
            job.log_inputs()
            if version is None:
                with saved(job, names.BASE, run_id) as (folder, model):
                    judged = job.evaluation.run(model, "the base model")
                    logged = log(job, model, folder, names.BASE, judged.metrics, {})
                del model
                version = register_version(job, run_id, names.BASE, logged, judged).pyfunc
                job.load_base()
            elif job.base.trust_remote_code:  # such a version is not loaded
                judged = job.evaluation.run(LoadedModel(job.model, job.tokenizer), "the base model")
            else:
                with open_version(version, job.config.model.device, job.config.model.dtype) as process:
                    judged = job.evaluation.run(process, "the base model")
            table, metrics = judged.table, judged.metrics
    if version is not None:
        job.client.set_tag(run_id, EVALUATES, f"{version.name}/{version.version}")
    return run_id, table, metrics


def evaluate_incumbent(job: Job, experiment_id: str) -> None:
    """Evaluate the version in production on this data, where its own run did not: the gate compares like with like."""
    name, _ = register.model_names(job.config)
    version = _in_production(job, name)
    if version is None or (version.tags.get(names.ROLE), version.tags.get(names.BASE_MODEL)) == (
        names.BASE,
        job.base.identity,
    ):
        return
    same = names.evaluation_key(version.tags) == names.evaluation_key(job.tags(names.EVALUATION))
    if same and names.EVIDENCE in version.tags:
        return
    with open_version(version, job.config.model.device, job.config.model.dtype) as model:
        job.evaluation.check(model.tokenizer, model.positions)
        base = version.tags.get(names.BASE_MODEL, "unknown")
        tags = job.evaluation.tags(names.EVALUATION, base, model.dtype, model.tokenizer)  # its own tokenizer's
        tags |= {EVALUATES: f"{name}/{version.version}", **runs.manifest_tag(version)}
        if runs.find(job.client, experiment_id, tags) is not None:
            return
        with tracking.run(job.client, experiment_id, f"incumbent-version-{version.version}", tags, job.root):
            job.log_inputs()
            job.evaluation.run(model, f"version {version.version}, which is in production,")


@contextmanager
def saved(job: Job, role: str, run_id: str) -> Iterator[tuple[Path, LoadedModel]]:
    """The job's model saved as the folder of a version, and the model that loads from there, which becomes the job's.

    Only one of the two is in memory at a time. A model whose code comes with it is judged as it is: that code does not
    lie in the folder, and such a version is not served.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")  # its name in the store
        judged = f"How it was judged: the artifact `model_card.md` of run `{run_id}`."
        card = _card(job, role, judged)
        register.save_model(job.model, job.tokenizer, job.config, card, job.train_digests(role), folder)
        tokenizer = job.tokenizer
        if not job.base.trust_remote_code:
            job.release_model()
            as_saved = BaseModel(job.base.name, folder, "")
            tokenizer = base_model.load_tokenizer(as_saved)
            job.model = base_model.load_model(as_saved, job.config.model, tokenizer)
            job.model.name_or_path = job.base.name
        yield folder, LoadedModel(job.model, tokenizer)


def log(
    job: Job, model: LoadedModel, folder: Path, role: str, metrics: dict[str, float], base_metrics: dict[str, float]
) -> register.Logged:
    """Log a model that was judged, as it was `saved`, to the active run, with a card that has the figures."""
    say("Logging and registering the model")
    mlflow.log_text(redact(_card(job, role, register.figures(metrics, base_metrics))), "model_card.md")
    mlflow.log_artifact(str(folder / "generation_config.json"))
    logged = register.log_model(model.model, model.tokenizer, folder)
    # Together, and last: with them, a run that is killed here needs to be registered only.
    judged = {} if job.base.trust_remote_code else {EVALUATED_MANIFEST: logged.tags[MANIFEST_SHA256]}
    mlflow.set_tags({LOGGED: json.dumps(logged._asdict()), **judged})
    return logged


def logged_before(job: Job, run: Run) -> tuple[register.Logged, Judged] | None:
    """What a run that goes on had logged, and how that was judged; None where it has still to do so."""
    if LOGGED not in run.data.tags:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(job.client.download_artifacts(run.info.run_id, EVALUATION_TABLE, temporary))
        evidence = sha256_of(table)
        if run.data.tags.get(names.EVIDENCE) != evidence:
            return None
        logged = register.Logged(**json.loads(run.data.tags[LOGGED]))
        return logged, Judged(pd.read_parquet(table), dict(run.data.metrics), evidence)


def register_version(job: Job, run_id: str, role: str, logged: register.Logged, judged: Judged) -> register.Registered:
    """Register what was logged, bound to the table by which it was judged. The active run ends with it."""
    of_run = job.tags(role)
    tags = {name: of_run[name] for name in (names.ROLE, names.BASE_MODEL, names.DATASET_DIGEST)}
    tags |= {names.EVALUATION_KEY: names.evaluation_key(of_run) or "", names.EVIDENCE: judged.evidence}
    tags |= job.digest_tags(role)
    # A base model is registered once, whichever run does it; a fine-tuned one once by its run.
    key = f"base {job.base.identity}" if role == names.BASE else run_id
    what = "unchanged" if role == names.BASE else f"fine-tuned on {job.config.data.source}"
    nll = judged.metrics["eval/nll_per_token"]
    description = f"{job.base.name}, {what}; held-out nll {nll:.4f} per token"
    registered = register.register(job.client, run_id, job.config, logged, description, tags, key)
    for version in (registered.pyfunc, registered.pytorch):
        say(f"  {version.name} version {version.version}")
    return registered


def _card(job: Job, role: str, judged: str) -> str:
    return register.model_card(
        job.config,
        job.base.name,
        {"train": len(job.data.train), "held out": len(job.data.held_out), "digest": job.data.held_out_digest},
        role == names.CANDIDATE,
        judged,
    )


def _in_production(job: Job, name: str) -> ModelVersion | None:
    try:
        return job.client.get_model_version_by_alias(name, PRODUCTION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
            return None
        raise


def _registered_base(job: Job) -> ModelVersion | None:
    name, _ = register.model_names(job.config)
    versions = job.client.search_model_versions(f"name = '{name}'")
    wanted = {names.ROLE: names.BASE, names.BASE_MODEL: job.base.identity}.items()
    return next((version for version in versions if wanted <= version.tags.items()), None)
