"""Serves the version in production: `python -m serving --help`."""

import os

# Nothing goes to anybody: MLflow and the Hub's client would report their use to their makers.
os.environ.setdefault("DO_NOT_TRACK", "true")

# Artifacts come through the tracking server. On S3 it offers presigned URLs too, which lead past it to a store that a
# client of the stack cannot reach; MLflow then retries for ten minutes. Set to true where clients do reach it.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
