"""The manifest of a logged model: the sha256 of each of its files, by which promoter and serving know it unchanged.

`manifest.json` in the model's folder: {"files": {path: {"sha256": …, "bytes": …}}}, of all files but itself. Its own
sha256 goes into the version's tag `manifest_sha256`: kept in the database, and not beside the files.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model

NAME = "manifest.json"
TAG = "manifest_sha256"  # of a version


class PyfuncWithManifest:
    """The flavor `mlflow.pyfunc` for `mlflow.models.Model.log`, with a manifest in each model that it saves."""

    def __init__(self) -> None:
        self.sha256 = ""  # of the manifest last written

    def save_model(self, path: str, mlflow_model: Model, **options: Any) -> None:
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **options)
        self.sha256 = write(Path(path))


def write(folder: Path) -> str:
    """Write the manifest of a model's folder; returns its sha256."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts  # MLflow deletes those before it uploads
    }
    manifest = folder / NAME
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    return _sha256(manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
