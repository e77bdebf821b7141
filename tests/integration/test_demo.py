"""`make demo` twice: the second time the gate keeps an equal candidate out. And the loop's demonstration."""

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


def run_module(home: Path, tracking: int, serving: int, *module: str) -> str:
    env = os.environ | {
        "RATCHET_HOME": str(home),
        "TRACKING_PORT": str(tracking),
        "SERVING_PORT": str(serving),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{tracking}",
    }
    result = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@doses.full
def test_the_demo_twice(tmp_path: Path) -> None:
    tracking, serving = free_port(), free_port()

    def run(*module: str) -> str:
        return run_module(tmp_path, tracking, serving, *module)

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


@doses.full
def test_the_loops_demo(tmp_path: Path) -> None:
    """It exits with 1 where a round ends otherwise than it should."""
    ports = free_port(), free_port()
    try:
        output = run_module(tmp_path, *ports, "infra.loop_demo")
        assert "it is not worse by more than" in output
        assert "Production: version 3" in output
    finally:
        run_module(tmp_path, *ports, "infra.processes", "down")
