"""What a run logs of the code that it was trained on, so that others can be compared with it: `data/sample.parquet`."""

import random
from pathlib import Path

import pandas as pd

from code_model import fim
from contract.monitoring import CODE, code_before
from contract.names import GROUP, REPOSITORY
from trainer.data.example import KINDS, ExampleFile

MOST = 4000


def write_sample(examples: ExampleFile, path: Path) -> int:
    """Write what stands before the cursor in some of the examples of code, drawn at random.

    Columns: `code`, `group` (its file), `repository`, `language`. Returns how many.
    """
    order = list(range(len(examples)))
    random.Random(0).shuffle(order)
    rows: list[dict[str, str]] = []
    for number in order:
        example = examples[number]
        code = code_before(fim.read(example.prompt).prefix) if example.kind in KINDS else ""
        if code:
            rows.append(
                {CODE: code, GROUP: example.group, REPOSITORY: example.repository, "language": example.language}
            )
        if len(rows) >= MOST:
            break
    pd.DataFrame(rows, columns=[CODE, GROUP, REPOSITORY, "language"]).to_parquet(path, index=False)
    return len(rows)
