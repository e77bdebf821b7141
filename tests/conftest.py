"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A base model with random weights and one token per byte, unpacked once."""
    from trainer.base_model import TINY, resolve
    from trainer.config import ModelConfig

    return resolve(ModelConfig(name=TINY, cache_dir=str(tmp_path_factory.mktemp("models"))))


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parents[1]
