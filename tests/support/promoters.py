"""Promoters as processes that can be killed, and what has to hold whoever was."""

import multiprocessing
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from contract.names import EVIDENCE, STAGES, VALIDATED, VALIDATION

CONTEXT = multiprocessing.get_context("forkserver")  # with its imports done: a promoter starts in milliseconds
CONTEXT.set_forkserver_preload(["promoter.cli", "promoter.report", "mlflow.store.artifact.mlflow_artifacts_repo"])


@dataclass
class Promoter:
    """A `promoter …` process."""

    process: BaseProcess
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    def end(self, timeout_s: float = 120) -> int:
        """Wait for its end; the exit code, or minus the signal that ended it."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"still running\n{self.output}"
        return self.process.exitcode


def start(url: str, *arguments: str, lease_s: float = 30) -> Promoter:
    handle, log = tempfile.mkstemp(prefix="promoter-", suffix=".log")
    os.close(handle)
    process = CONTEXT.Process(target=_main, args=(log, url, arguments, lease_s), daemon=True)
    process.start()
    return Promoter(process, Path(log))


def _main(log: str, url: str, arguments: tuple[str, ...], lease_s: float) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {"PROMOTER_LEASE_S": str(lease_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "USER": "tester"}
    from promoter.cli import main

    main(["--tracking-uri", url, *arguments])


def mark_validated(client: MlflowClient, version: ModelVersion) -> None:
    """Tag a version as `promoter validate` does, where it is no model that could be asked, or may answer nothing."""
    client.set_model_version_tag(version.name, str(version.version), VALIDATION, "passed")
    client.set_model_version_tag(version.name, str(version.version), VALIDATED, version.tags[EVIDENCE][:16])


def assert_sound(client: MlflowClient, model: str) -> None:
    """What holds at every moment, whoever was killed: no alias names an archived version."""
    for alias, number in client.get_registered_model(model).aliases.items():
        stage = client.get_model_version(model, str(number)).tags.get("stage")
        assert stage != "Archived", f"alias {alias} names version {number}, which is archived"


def assert_settled(client: MlflowClient, model: str) -> None:
    """What holds once a promoter has come to its end: tags and records say what the aliases say."""
    assert_sound(client, model)
    aliases = {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}
    stages = {aliases[alias]: stage for alias, stage in reversed(STAGES.items()) if alias in aliases}
    versions = list(client.search_model_versions(f"name = '{model}'"))
    in_production = [version.version for version in versions if version.tags.get("stage") == "Production"]
    assert len(in_production) == ("production" in aliases)
    for version in versions:
        if "promotion_run_id" in version.tags:  # what a version tells of itself has come true
            assert client.get_run(version.tags["promotion_run_id"]).info.status == "FINISHED", version.version
        told = re.findall(r"/runs/(\w+)/", str(version.description))
        assert all(client.get_run(run_id).info.status == "FINISHED" for run_id in told), version.version
        assert bool(told) or "gate" not in version.tags
        stage = version.tags.get("stage")
        assert stage == stages.get(str(version.version), "Archived" if stage else None), (version.version, aliases)
    experiment = client.get_experiment_by_name("promotions")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.model = '{model}' and attributes.status = 'RUNNING'")
    assert [run.info.run_id for run in found] == []
    for alias in ("production", "staging"):
        if alias in aliases:
            version = client.get_model_version(model, aliases[alias])
            record = client.get_run(version.tags["promotion_run_id"])
            assert record.info.status == "FINISHED"
            assert (record.data.tags["version"], record.data.tags["stage"].lower()) == (aliases[alias], alias)
            assert record.info.run_id in str(version.description)
            reports = {item.path for item in client.list_artifacts(record.info.run_id)}
            assert reports == {"decision.json", "decision.md", "decision.html"}
