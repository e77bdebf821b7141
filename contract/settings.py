"""Defaults of the libraries that every part wants. Called by each package's `__init__`, before the libraries load."""

import os

DEFAULTS = {
    # Nothing goes to anybody: MLflow and the Hub's client would report their use to their makers.
    "DO_NOT_TRACK": "true",
    # Artifacts come through the tracking server. On S3 it offers presigned URLs too, which lead past it to a store that
    # a client of the stack cannot reach; MLflow then retries for ten minutes. Set to true where clients do reach it.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}


def set_library_defaults() -> None:
    """Set what the environment does not say."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
