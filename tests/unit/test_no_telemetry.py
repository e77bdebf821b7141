"""What is sent to whom: nothing. MLflow reports its use to its maker unless it is told not to."""

import os
import subprocess
import sys

import pytest

ASK = "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"


def telemetry_is_off(imports: str, root) -> bool:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}  # without CI's own variables
    done = subprocess.run([sys.executable, "-c", imports + ASK], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("package", ["trainer", "promoter", "serving", "services", "infra"])
def test_telemetry_is_off_in_every_part(package: str, root) -> None:
    assert telemetry_is_off(f"import {package}; ", root)


def test_it_would_be_on_by_itself(root) -> None:
    assert not telemetry_is_off("", root)
