"""A prepared data set in MLflow: both sides of the split as inputs of the run, its report as artifacts."""

import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.data.meta_dataset import MetaDataset

from contract.monitoring import SAMPLE, SOURCES
from trainer import git
from trainer.data.prepare import REPORTS, Dataset
from trainer.data.sample import write_sample
from trainer.data.sources import Source


class _Logged(MetaDataset):
    """Where the data are from, their digest and their number; MLflow's own kinds want the data in memory."""

    def __init__(self, source: Any, name: str, digest: str, rows: int) -> None:
        self._rows = rows
        super().__init__(source, name, digest)

    @property
    def profile(self) -> dict[str, int]:
        """As MLflow's UI shows it."""
        return {"num_rows": self._rows}

    def to_dict(self) -> dict[str, str]:
        return super().to_dict() | {"profile": json.dumps(self.profile)}


def log_dataset(data: Dataset) -> None:
    """Log the data set to the active run."""
    for context, digest, rows, location in (
        ("training", data.train_digest, len(data.train), data.location),
        ("evaluation", data.held_out_digest, len(data.held_out), data.eval_location),
    ):
        if rows:
            name = f"{re.split('[/:]', location.rstrip('/'))[-1]}-{context}"
            mlflow.log_input(_Logged(_source(location), name, digest, rows), context=context)
    for name in REPORTS:
        mlflow.log_artifact(str(data.train.path.with_name(name)), "data")
    with tempfile.TemporaryDirectory() as temporary:
        sample = Path(temporary, Path(SAMPLE).name)
        if len(data.train) and write_sample(data.train, data.held_out, sample):
            mlflow.log_artifact(str(sample), str(Path(SAMPLE).parent))
    sources = [
        {
            "source": _anywhere(source),
            "repository": source.repository or source.name,
            "commit": source.commit or _commit(source),
        }
        for source in data.sources
    ]
    mlflow.log_text(json.dumps(sources, indent=2), SOURCES)
    commits = [git.commit(folder) for folder in data.folders] + data.commits
    if known := [commit for commit in commits if commit]:
        mlflow.set_tag("data_git_commit", ", ".join(dict.fromkeys(known)))


def _commit(source: Source) -> str | None:
    """Of a source that git tracks, and does not only lie in somebody's repository."""
    if source.root is None or not git.output(source.root, "ls-files", "--", "."):
        return None
    return git.commit(source.root)


def _anywhere(source: Source) -> str:
    """As configured, with the whole path."""
    if source.commit is not None:
        return f"git:{source.root}{source.name.removeprefix(source.repository)}"
    return source.location if source.folder is not None and not source.name.startswith("package:") else source.name


def _source(location: str) -> Any:
    scheme, _, rest = location.partition(":")
    if scheme == "hub":
        name, _, split = rest.partition(":")
        return HuggingFaceDatasetSource(path=name, split=split or "train")
    if location.startswith("s3://") or Path(location).is_absolute():
        with warnings.catch_warnings():  # that a local path could be one of two equal kinds of source
            warnings.simplefilter("ignore", UserWarning)
            return resolve_dataset_source(location)
    return CodeDatasetSource(tags={"source": location})
