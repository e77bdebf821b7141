"""The versions that earlier releases logged (tests/fixtures), registered as they were."""

import json
import tarfile
import tempfile
from pathlib import Path

import mlflow

from contract.names import EVALUATION_KEY
from tests.support.images import ROOT
from tests.support.tracking import Stack

FIXTURES = ROOT / "tests" / "fixtures"


def register_as_logged(stack: Stack, model: str, protocol: int) -> str:
    """Register the version that speaks this protocol; returns its number."""
    mlflow.set_tracking_uri(stack.url)
    tags = json.loads((FIXTURES / f"protocol-{protocol}.json").read_text())
    mlflow.set_experiment(model.removesuffix("_model"))
    run_tags = {key: value for key, value in tags.items() if key not in ("manifest_sha256", EVALUATION_KEY)}
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(tags=run_tags) as run:
        with tarfile.open(FIXTURES / f"protocol-{protocol}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        mlflow.log_artifacts(str(Path(folder, "version")), "model")
    client = stack.client
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    return str(client.create_model_version(model, f"runs:/{run.info.run_id}/model", run.info.run_id, tags).version)
