"""The services that are not packages of their own: `tracking`."""

import os

# Nothing goes to anybody: MLflow and the Hub's client would report their use to their makers.
os.environ.setdefault("DO_NOT_TRACK", "true")
