"""MLflow's PyFunc and Transformers flavors of one set of weights, with a manifest (contract.manifest) beside them."""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from contract import manifest

TASK = "text-generation"


class PyfuncWithManifest:
    """The flavor `mlflow.pyfunc` for `mlflow.models.Model.log`, with a manifest in each model that it saves."""

    def __init__(self) -> None:
        self.sha256 = ""  # of the manifest last written
        self.files: dict[str, str] = {}  # the sha256 of each file that it lists

    def save_model(self, path: str, mlflow_model: Model, **options: Any) -> None:
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **options)
        self.add_flavors(Path(path), mlflow_model)
        self.sha256 = manifest.write(Path(path))
        self.files = manifest.listed(Path(path))

    def add_flavors(self, folder: Path, mlflow_model: Model) -> None:
        """Nothing more."""


class BothFlavors(PyfuncWithManifest):
    """The same, and `mlflow.transformers` loads it too: that flavor names the PyFunc's weights, and has none."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Of a transformers model whose folder is the PyFunc's artifact `model`."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def add_flavors(self, folder: Path, mlflow_model: Model) -> None:
        import transformers

        if getattr(self.model.config, "auto_map", None):
            return  # `mlflow.transformers` would run the code that comes with it, and ask nobody

        self.tokenizer.save_pretrained(folder / "components" / "tokenizer")
        mlflow_model.add_flavor(
            "transformers",
            transformers_version=transformers.__version__,
            code=None,
            task=TASK,
            instance_type="TextGenerationPipeline",
            pipeline_model_type=type(self.model).__name__,
            source_model_name=self.model.name_or_path or type(self.model).__name__,
            model_binary=mlflow_model.flavors["python_function"]["artifacts"]["model"]["path"],
            torch_dtype=str(self.model.dtype),
            components=["tokenizer"],
            tokenizer_type=type(self.tokenizer).__name__,
        )
        mlflow_model.save(str(folder / MLMODEL_FILE_NAME))
