"""How much of everything the tests do: everyday doses, or with TEST_DOSES=full (`make test-long`) those of a night.

What is checked is the same. A test that runs with the full doses alone is one more round of what the others show.
"""

import os
import signal

import pytest

_WORDS = {"": False, "everyday": False, "full": True}
_given = os.environ.get("TEST_DOSES", "")
if _given not in _WORDS:
    raise pytest.UsageError(f"TEST_DOSES is {_given!r}. Expected everyday or full.")
FULL = _WORDS[_given]

SWAPS = 20 if FULL else 4  # of the served version, under load
SERVING_OUTAGE_S = 120 if FULL else 15  # without a tracking server
TRAINING_OUTAGE_S = 300 if FULL else 20
KILLS = 10 if FULL else 3  # of one training job
STEPS = 120 if FULL else 40  # of such a job: enough to be killed in
EPOCHS = (40, 150) if FULL else (15, 40)  # of one that is killed in its container, and of one that goes on elsewhere
SIGNALS = (
    ((signal.SIGINT, 130), (signal.SIGTERM, 143)) if FULL else ((signal.SIGTERM, 143),)
)  # to save at, with exit codes
KILL_EVERY = 1 if FULL else 4  # so many writes of a promoter: kill it after each of them, or after some
PROMOTERS = 20 if FULL else 6  # at once
STRATEGIES = ("ddp", "fsdp") if FULL else ("ddp",)  # under which two processes train as one does; fsdp does all weights
DYING = ("ddp", "fsdp") if FULL else ("fsdp",)  # under which one of two processes dies
FUZZED = (100_000, 500) if FULL else (1_000, 5)  # requests: ours, and schemathesis's for each operation
EVENTS_OUTAGE_S = 300 if FULL else 0  # without a tracking server, at least
COMPLETIONS = 2000 if FULL else 150  # of which editors tell some five events each
LARGE_FILE_MB = 200 if FULL else 80  # through a tracking server with 48 MB of memory for temporary files

full = pytest.mark.skipif(not FULL, reason="with the full doses alone: make test-long")
