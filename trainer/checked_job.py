"""A training job whose input was checked: what all of its steps work with."""

import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow import MlflowClient

from contract import names
from contract.redaction import redact
from trainer import base_model, git, tracking
from trainer.base_model import BaseModel
from trainer.config import Config, to_yaml
from trainer.data.logged import log_dataset
from trainer.data.prepare import Dataset
from trainer.evaluation.runs import Evaluation
from trainer.training import checkpoints

MOST_DIGESTS = 150  # in a tag, which MLflow cuts at 5,000 characters


@dataclass
class Job:
    """A checked job: everything that can be wrong with the input has been found by now."""

    config: Config
    client: MlflowClient
    base: BaseModel
    tokenizer: Any
    model: Any  # None while somebody else needs its memory
    dtype: str
    data: Dataset
    evaluation: Evaluation
    root: Path  # of checkpoints

    @property
    def key(self) -> str:
        """The same for two commands that would train the same model on the same data in the same way."""
        return checkpoints.job_key(self.config, self.base.identity, self.data.train_digest, self.data.held_out_digest)

    def tags(self, role: str) -> dict[str, str]:
        """The tags of a run."""
        return self.evaluation.tags(role, self.base.identity, self.dtype, self.tokenizer)

    def train_digests(self, role: str) -> list[str]:
        """Digests of all that the base model was tuned on here, and the candidate."""
        own = [self.data.train_digest] if role == names.CANDIDATE else []
        return [*(item for item in self.base.train_digests if item not in own), *own]

    def digest_tags(self, role: str) -> dict[str, str]:
        """They as a tag of run and version."""
        digests = self.train_digests(role)[-MOST_DIGESTS:]
        return {names.TRAIN_DIGESTS: ",".join(digests)} if digests else {}

    def log_inputs(self) -> None:
        """Config, data sets, their report, and commits of the active run."""
        tracking.log_config(self.config)
        log_dataset(self.data)
        known = commit()
        mlflow.set_tags({"git_commit": known} if known else {})
        mlflow.log_text(redact(to_yaml(self.config)), "config.yaml")  # last: with it, all of this is there

    def load_base(self) -> None:
        """Have the base model in memory, and no other."""
        self.release_model()
        self.model = base_model.load_model(self.base, self.config.model, self.tokenizer)

    def release_model(self) -> None:
        """Free the memory that the model takes."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def commit() -> str | None:
    return git.commit(Path.cwd()) or os.environ.get("GIT_COMMIT")  # an image knows its own
