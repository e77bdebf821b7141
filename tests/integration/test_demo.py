"""`make demo` twice: the second time the gate keeps an equal candidate out, and serving is not restarted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from contract.files import free_port
from tests.support import doses
from tests.support.images import ROOT

pytestmark = pytest.mark.integration
MODEL = "code_model_fine_tuning_model"


@doses.full
def test_the_demo_twice(tmp_path: Path) -> None:
    tracking, serving = free_port(), free_port()
    env = os.environ | {
        "RATCHET_HOME": str(tmp_path),
        "TRACKING_PORT": str(tracking),
        "SERVING_PORT": str(serving),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{tracking}",
    }

    def run(*module: str) -> str:
        result = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    try:
        assert f"In production: {MODEL} version 2 (candidate)" in run("infra.demo")
        process = json.loads((tmp_path / "run" / "serving.json").read_text())
        again = run("infra.demo")
        assert "The gate keeps the candidate out; the incumbent goes on serving." in again
        assert "It is running already, and follows the alias." in again
        assert json.loads((tmp_path / "run" / "serving.json").read_text()) == process
        client = MlflowClient(f"http://127.0.0.1:{tracking}")
        assert str(client.get_model_version_by_alias(MODEL, "production").version) == "2"
        assert requests.get(f"http://127.0.0.1:{serving}/ping", timeout=10).headers["X-Model-Version"] == "2"
    finally:
        run("infra.processes", "down")
