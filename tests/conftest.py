"""Fixtures that several test modules share."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

os.environ["TQDM_DISABLE"] = "1"
os.environ["TRAINER_NICE"] = "0"  # else a test that runs the trainer in its own process would go on behind the others
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # several processes compute at once here: none is to wait spinning
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # an image more to pull; every container here is closed by its test
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A base model with random weights and one token per byte, unpacked once."""
    from trainer.base_model import TINY, resolve
    from trainer.config import ModelConfig

    return resolve(ModelConfig(name=TINY, cache_dir=str(tmp_path_factory.mktemp("models"))))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine with Compose. Without one the tests that need it are skipped; in CI they fail."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "ls"], capture_output=True).returncode == 0:
        return
    message = (
        "No Docker engine with Compose answers. Get one: `make engine`, and `make offline-images` to pull nothing."
    )
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def base_image(variable: str) -> str:
    """What an image variable names: in the environment, in .env.offline, or by the compose file's default."""
    offline = ROOT / ".env.offline"
    if named := os.environ.get(variable):
        return named
    if offline.exists() and (found := re.search(rf"^{variable}=(.+)$", offline.read_text(), re.MULTILINE)):
        return found[1]
    found = re.search(rf"\$\{{{variable}:-([^}}]+)\}}", (ROOT / "docker-compose.yml").read_text())
    assert found, f"docker-compose.yml has no {variable}"
    return found[1]
