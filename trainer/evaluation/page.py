"""The evaluation table as a page to look at. It is no evidence: nothing reads it."""

import math
from typing import Any

import pandas as pd

from code_model import fim
from contract.names import GROUP, REPOSITORY
from trainer import pages
from trainer.data.example import KINDS

MOST_BYTES = 8_000_000  # of the page; MLflow shows a file of up to 50 MB, a browser filters this many in no time
TEXT_LIMITS = (20_000, 6_000, 2_000, 600)  # characters of one text: the first with which the page is small enough


def page(table: pd.DataFrame, base: pd.DataFrame | None, what: str) -> str:
    """The page, as HTML, of the evaluation table of `what`; beside the base model's table where that is given.

    Long texts are shortened, and then rows left out, until it has at most MOST_BYTES; the page says so.
    """
    if base is not None:
        own = ["nll", "completion"]
        others = base.drop_duplicates("example_id").set_index("example_id")[own]
        table = table.join(others.rename(columns={name: f"base_{name}" for name in own}), on="example_id")
    if "completion" in table:  # what has one is the last to be left out
        table = table.sort_values("completion", key=pd.isna, kind="stable")
    found = table.to_dict("records")
    for limit in TEXT_LIMITS:
        html = _html(found, len(found), limit, what)
        if (size := len(html.encode())) <= MOST_BYTES:
            return html
    kept = len(found)
    while size > MOST_BYTES:
        kept = int(kept * 0.95 * MOST_BYTES / size)
        html = _html(found[:kept], len(found), limit, what)
        size = len(html.encode())
    return html


def _html(found: list[dict[Any, Any]], of: int, limit: int, what: str) -> str:
    rows = [_row(row, limit) for row in found]
    completed = sum(row["completion"] is not None for row in rows)
    about = f"{len(rows)} held-out examples, {completed} of them with a completion. Open one to see its texts."
    if any(row["gain"] is not None for row in rows):
        about += " Gain: how many nats per token the loss is below the base model's."
    if len(rows) < of:
        about += f" The other {of - len(rows)} are in examples.parquet: there are too many for a page."
    return pages.render("examples.html", {"title": f"Evaluation of {what}", "about": about, "rows": rows})


def _row(row: dict[Any, Any], limit: int) -> dict[str, Any]:
    """What the page says of a row: texts of about `limit` characters at most, figures; None for what is not known."""

    def value(name: str) -> Any:
        found = row.get(name)
        return None if pd.isna(found) else found

    def number(name: str) -> float | None:
        found = value(name)
        return float(found) if found is not None and math.isfinite(found) else None

    def text(name: str) -> str | None:
        return _shortened(str(found), limit) if (found := value(name)) is not None else None

    prompt = str(row["prompt"])
    shown = fim.read(prompt) if row["kind"] in KINDS else fim.Context(prompt)
    others = "\n".join(f"{path}\n{text}" for path, text in shown.others)
    nll, base_nll, tokens = number("nll"), number("base_nll"), int(row["tokens"])
    exact = value("exact_match")
    return {
        "id": row["example_id"],
        "group": str(row[GROUP]),
        "repository": str(row[REPOSITORY]),
        "kind": str(row["kind"]),
        "cursor": text("cursor"),
        "language": str(row["language"]),
        "tokens": tokens,
        "loss": nll / tokens if nll is not None and tokens else None,
        "gain": (base_nll - nll) / tokens if nll is not None and base_nll is not None and tokens else None,
        "exact": bool(exact) if exact is not None else None,
        "similarity": number("edit_similarity"),
        "others": _shortened(others, limit) if others else None,
        "prompt": _shortened(shown.prefix, limit, from_start=True),
        "suffix": _shortened(shown.suffix, limit) if shown.suffix is not None else None,
        "reference": text("reference") or "",
        "completion": text("completion"),
        "base": text("base_completion"),
        "outcome": text("outcome"),
        "detail": text("detail"),
    }


def _shortened(text: str, limit: int, from_start: bool = False) -> str:
    """At most so many characters of a text, with a note on those that are missing."""
    if len(text) <= limit:
        return text
    note = f"[… {len(text) - limit:,} characters left out …]"
    return f"{note}\n{text[-limit:]}" if from_start else f"{text[:limit]}\n{note}"
