"""What a run logs of the code that it was trained and judged on, so that other code can be compared with it."""

import random
from itertools import chain
from pathlib import Path

import pandas as pd

from code_model import fim
from contract.monitoring import CODE, code_before
from contract.names import GROUP, REPOSITORY
from trainer.data.example import KINDS, Example, ExampleFile

MOST = 12_000


def write_sample(train: ExampleFile, held_out: list[Example], path: Path) -> int:
    """Write what stands before the cursor in the held-out examples of code, and in some to train on, drawn at random.

    Columns: `code`, `group` (its file), `repository`, `language`. Returns how many.
    """
    order = list(range(len(train)))
    random.Random(0).shuffle(order)
    rows: list[dict[str, str]] = []
    for example in chain(held_out, (train[number] for number in order)):
        code = code_before(fim.read(example.prompt).prefix) if example.kind in KINDS else ""
        if code:
            rows.append(
                {CODE: code, GROUP: example.group, REPOSITORY: example.repository, "language": example.language}
            )
        if len(rows) >= MOST:
            break
    pd.DataFrame(rows, columns=[CODE, GROUP, REPOSITORY, "language"]).to_parquet(path, index=False)
    return len(rows)
