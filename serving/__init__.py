"""Serves the version in production: `python -m serving --help`."""

import os

# Nothing goes to anybody: MLflow and the Hub's client would report their use to their makers.
os.environ.setdefault("DO_NOT_TRACK", "true")
