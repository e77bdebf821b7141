"""What runs Ratchet on one machine: the demo, the doctor, background processes, env files."""

import os

# Nothing goes to anybody: MLflow and the Hub's client would report their use to their makers.
os.environ.setdefault("DO_NOT_TRACK", "true")
