"""MLflow's PyFunc flavor, with a manifest (contract.manifest) in each model that it saves."""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model

from contract import manifest


class PyfuncWithManifest:
    """The flavor `mlflow.pyfunc` for `mlflow.models.Model.log`, with a manifest in each model that it saves."""

    def __init__(self) -> None:
        self.sha256 = ""  # of the manifest last written

    def save_model(self, path: str, mlflow_model: Model, **options: Any) -> None:
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **options)
        self.sha256 = manifest.write(Path(path))
