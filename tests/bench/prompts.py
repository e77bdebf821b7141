"""What the prompts of code bases that others wrote show, and how much of the code is wanted, as `trainer prepare` says.

    python -m tests.bench.prompts                       # the six code bases of tests/support/codebases.py
    python -m tests.bench.prompts flask zod trainer.max_length=512

Prepared with the default settings and the bundled model's tokenizer.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd

from tests.bench.leaks import prepare
from tests.support import codebases

DEFAULTS = ("model.name=bundled:smollm2-135m", "trainer.max_length=256")


def rows(name: str, settings: list[str]) -> list[dict[str, str]]:
    """A row for each side of the split of a code base."""
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as folder:
        prepare(name, Path(folder), [*DEFAULTS, *settings])
        report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    found = []
    for side, split in report["splits"].items():
        counts = {"examples": split["examples"], "files": split["groups"]}
        shares = {key: f"{value:.0%}" for key, value in split["shares"].items()}
        found.append({"data": name, "side": side, **counts, **shares})
    found[0]["of the source wanted"] = f"{report['source_as_targets']:.0%}"
    return found


def main() -> None:
    """Print a table of all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="names of code bases, and settings KEY=VALUE")
    options = parser.parse_args()
    settings = [item for item in options.data if "=" in item]
    names = [item for item in options.data if "=" not in item] or codebases.NAMES
    table = pd.DataFrame([row for name in names for row in rows(name, settings)]).fillna("")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
