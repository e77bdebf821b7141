"""Fixtures that several test modules share."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.images import ROOT

os.environ["TQDM_DISABLE"] = "1"
os.environ["TRAINER_NICE"] = "0"  # else a test that runs the trainer in its own process would go on behind the others
os.environ.setdefault("RATCHET_HOME", "var")  # as the Makefile does: nothing in the folders of whoever runs them
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # several processes compute at once here: none is to wait spinning
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # an image more to pull; every container here is closed by its test
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A base model with random weights and one token per byte, unpacked once."""
    from trainer.base_model import TINY, resolve
    from trainer.config import ModelConfig

    return resolve(ModelConfig(name=TINY, cache_dir=str(tmp_path_factory.mktemp("models"))))


# The modules that take minutes, the longest first: with several workers none of them is left for the end.
LONG = (
    "faults/test_serving",
    "integration/test_docs",
    "integration/test_never_loses_work",
    "integration/test_distributed",
    "faults/test_promoter",
    "integration/test_evaluate_version",
    "integration/test_try",
    "integration/test_serving",
    "integration/test_stores",
    "integration/test_whole_path",
    "integration/test_earlier_versions",
    "integration/test_promoter",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(f"{item.path.parent.name}/{item.path.stem}", len(LONG)))


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
