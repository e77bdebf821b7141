"""An evaluation table against the version that it is about: a random sample of rows is computed again, and compared.

The rows are drawn from the system's randomness when they are needed: who writes a table cannot know which they will be.
What is compared: the likelihood of the reference and its tokens, the greedy text, and what follows from the row itself
(its id, whether the text is the reference, or its first line). What a sample finds: of a table with a share f of
invented rows, all but (1 - f)^LIKELIHOODS; at 5% that is four in five, at 10% 97 in a hundred.
"""

import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.entities import Run

from contract import metrics
from contract.files import sha256_of
from contract.names import EVAL_SETTINGS, EVALUATION_TABLE, VALIDATED
from promoter.decision import Finding

LIKELIHOODS, COMPLETIONS = 32, 8  # rows drawn
# The same model gives other figures in other batches and on other hardware. SmolLM2-135M in bfloat16, tuned, 60
# examples, in batches of 16 and one by one: 5.1% of a row's nats at most, 0.6% on average, 0.02% of all rows' (batches
# of 4 and of 32: 0.04% and 0.09%); in float32 nothing. Such noise is no bias, so the sum of n rows may differ by less,
# by 1/sqrt(n); and what few nats may differ by is a number of nats.
OF_A_ROW, OF_THE_SUM, NATS = 0.1, 0.04, 0.25
ROUNDING = 1e-3  # nats
# Logits by which a token of a greedy text may be less than the best one, in another batch: once, and elsewhere.
# Of 124 completions of SmolLM2-135M in bfloat16, base and tuned, three had one token that was 0.75 to 1.25 less; nine
# had one up to 0.5. Of some hundred validations in CI one met more. What somebody invents has many, and larger ones.
ONCE, NEAR_TIE = 3.0, 1.0
# A text that was made of other tokens than it is read as may be far off and yet be the version's own (once in CI, 4.25
# and 1.50): one of so many may be. Who invents half of a table is found in 96 of 100 validations.
ONE_OF = 8
TAG_CHARACTERS, DIGITS = 4000, 16
COLUMNS = ("example_id", "kind", "language", "prompt", "reference", "completion", "nll", "tokens")


@dataclass(frozen=True)
class Table:
    """An evaluation table of a run, as fetched, and how that run computed."""

    run_id: str
    path: str  # among the run's artifacts
    file: Path
    max_new_tokens: int | None  # None: the run does not say
    dtype: str

    @property
    def sha256(self) -> str:
        return sha256_of(self.file)


@dataclass(frozen=True)
class Sample:
    """The rows drawn from a table: of which the likelihood, and of which the text, is computed again."""

    likelihoods: Sequence[Mapping[str, Any]]
    completions: Sequence[Mapping[str, Any]]


def download(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path | None:
    """An artifact of a run, brought into a folder; None if the run does not have it."""
    if path not in (item.path for item in client.list_artifacts(run_id, path.rpartition("/")[0])):
        return None
    return Path(client.download_artifacts(run_id, path, str(folder)))


def fetch(client: MlflowClient, run: Run, path: str, folder: Path) -> Table | None:
    """A table of a run, brought into a folder; None if the run does not have it."""
    file = download(client, run.info.run_id, path, folder)
    if file is None:
        return None
    settings = str(run.data.tags.get(EVAL_SETTINGS, ""))
    name = Path(path).stem
    pattern = r"(?:^|, )max_new_tokens=(\d+)" if path == EVALUATION_TABLE else rf"{name} with max_new_tokens=(\d+)"
    found = re.search(pattern, settings)
    known = [dtype for dtype in ("bfloat16", "float32") if dtype in settings.split(", ")]
    return Table(
        run.info.run_id,
        path,
        file,
        int(found[1]) if found and len(found[1]) < 7 else None,
        known[0] if known else str(run.data.params.get("model.dtype", "auto")),
    )


def draw(table: Table) -> Sample | str:
    """Rows of a table, by chance; or what is wrong with it."""
    try:
        rows = pd.read_parquet(table.file)
    except (pa.ArrowException, ValueError, OSError) as error:
        return f"it is broken: {error}"
    if lacks := [name for name in COLUMNS if name not in rows.columns]:
        return f"it has no column {', '.join(lacks)}"
    chance = random.Random(os.urandom(32))
    found: list[dict[str, Any]] = rows.astype(object).where(rows.notna(), None).to_dict("records")  # type: ignore[assignment]
    judged = [row for row in found if row["reference"]]
    written = [row for row in found if row["completion"] is not None]
    return Sample(
        chance.sample(judged, min(LIKELIHOODS, len(judged))),
        chance.sample(written, min(COMPLETIONS, len(written))),
    )


def request(table: Table, sample: Sample) -> dict[str, Any]:
    """What to ask of the version (validation_worker.py). It is not told the likelihoods."""
    asked = ("prompt", "reference", "kind")
    return {
        "dtype": table.dtype if table.dtype in ("bfloat16", "float32") else "auto",
        "max_new_tokens": table.max_new_tokens,
        "likelihoods": [{name: str(row[name]) for name in asked} for row in sample.likelihoods],
        "completions": [{name: str(row[name] or "") for name in (*asked, "completion")} for row in sample.completions],
    }


def compare(table: Table, sample: Sample, answer: Any) -> Finding:
    """Whether a table says what its version computed."""
    try:
        if "error" in answer:
            return Finding(False, f"cannot be computed again: {str(answer['error'])[:300]}")
        likelihoods = [(float(item["nll"]), int(item["tokens"])) for item in answer["likelihoods"]]
        texts = [(str(item["text"]), float(item["gap"]), float(item["next_gap"])) for item in answer["completions"]]
        if (len(likelihoods), len(texts)) != (len(sample.likelihoods), len(sample.completions)):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        return Finding(False, "the version's process gave no answer that one could compare")
    for row in (*sample.likelihoods, *sample.completions):
        if why := _of_itself(row):
            return Finding(False, f"example {row['example_id']}: {why}")
    for row, (nll, tokens) in zip(sample.likelihoods, likelihoods, strict=True):
        if why := _of_likelihood(row, nll, tokens):
            return Finding(False, f"example {row['example_id']}: {why}")
    written, computed = sum(float(row["nll"]) for row in sample.likelihoods), sum(nll for nll, _ in likelihoods)
    if not _near(written, computed, OF_THE_SUM / math.sqrt(max(1, len(likelihoods)))):
        return Finding(
            False,
            f"{len(likelihoods)} references have {computed:.2f} nats together, and the table says {written:.2f}. "
            f"Expected a difference of {OF_THE_SUM / math.sqrt(len(likelihoods)):.2%} at most",
        )
    off = [
        f"example {row['example_id']}: {why}"
        for row, (text, gap, next_gap) in zip(sample.completions, texts, strict=True)
        if (why := _of_text(row, text, gap, next_gap))
    ]
    if len(off) > len(texts) // ONE_OF:
        return Finding(False, off[0])
    counted = f"{len(likelihoods)} likelihoods and {len(texts)} completions"
    return Finding(True, f"{counted} of run {table.run_id} ({table.path}) are what the version computes")


def _of_itself(row: Mapping[str, Any]) -> str:
    """What does not fit together within a row; as trainer/data/example.py and trainer/evaluation/table.py make it."""
    test = f"\0{row['test']}" if row.get("test") is not None else ""
    text = f"{row['prompt']}\0{row['reference']}{test}"
    expected = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if row["example_id"] != expected:
        return f"its prompt and reference make the id {expected}"
    if row["reference"] and row["completion"] is not None:
        completion, reference = str(row["completion"]), str(row["reference"])
        for name, value in (
            ("exact_match", completion.strip() == reference.strip()),
            ("first_line_match", metrics.first_lines_match(completion, reference)),
            ("stops", metrics.stops(completion, reference)),
        ):
            said = row.get(name)
            if said is not None and bool(said) != value:
                return f"{name} is {said}, and by its completion and reference it is {value}"
    parts = [row[name] for name in ("first_token_nll", "first_line_nll", "nll") if row.get(name) is not None]
    if any(part > whole + ROUNDING for part, whole in pairwise(parts)):
        return f"its first token, first line and all of it have {', '.join(f'{part:.3f}' for part in parts)} nats"
    return ""


def _of_likelihood(row: Mapping[str, Any], nll: float, tokens: int) -> str:
    if row["tokens"] != tokens:
        return f"its reference has {tokens} tokens, and the table says {row['tokens']}"
    written = row["nll"] if isinstance(row["nll"], (int, float)) else math.nan
    if not _near(written, nll, OF_A_ROW):
        return (
            f"its reference has {nll:.3f} nats, and the table says {written:.3f}. Expected a difference of "
            f"{OF_A_ROW:.0%} at most"
        )
    return ""


def _near(written: float, computed: float, share: float) -> bool:
    """Whether nats are those computed, but for noise; never where either is not a number."""
    return abs(written - computed) <= share * abs(computed) + NATS


def _of_text(row: Mapping[str, Any], text: str, gap: float, next_gap: float) -> str:
    """A completion of code ends with its function (trainer/evaluation/truncation.py), so at the end of a line."""
    written = str(row["completion"])
    ends = written == text or (row["language"] != "text" and (not written or written.endswith("\n")))
    if ends and text.startswith(written):
        return ""
    if written and 0 <= gap <= ONCE and 0 <= next_gap <= NEAR_TIE:  # at a near tie another batch goes another way
        return ""
    return (
        f"the version completes it with {text[:60]!r}…, and the table says {written[:60]!r}…, of which a token is "
        f"{gap:.2f} logits below the likeliest, and another {next_gap:.2f}. Expected {ONCE} and {NEAR_TIE} at most"
    )


def validated(tags: Mapping[str, str], digest: str) -> bool:
    """Whether a table with this sha256 was computed again from the version with these tags, and found right."""
    return digest[:DIGITS] in tags.get(VALIDATED, "").split(",")


def with_validated(tags: Mapping[str, str], digests: Sequence[str]) -> str:
    """The value of the tag VALIDATED with some tables more; the oldest go where there is no room."""
    earlier = [item for item in tags.get(VALIDATED, "").split(",") if item]
    new = [digest[:DIGITS] for digest in digests]
    both = [*(item for item in earlier if item not in new), *dict.fromkeys(new)]
    return ",".join(both[-(TAG_CHARACTERS // (DIGITS + 1)) :])
