"""The evaluation table's page: what it says of each row, and that data stay data."""

import json
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from code_model import fim
from trainer.evaluation import page as pages
from trainer.evaluation.page import page

HOSTILE = "</script><img src=x onerror=alert(1)><!-- <script>"


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    plain = {
        "example_id": "0",
        "group": "a.py",
        "repository": "src",
        "kind": "row",
        "language": "python",
        "prompt": "x = ",
        "reference": "1\n",
        "function": None,
        "completion": "1\n",
        "nll": 3.0,
        "tokens": 2,
        "syntax_ok": True,
        "exact_match": True,
        "edit_similarity": 1.0,
    }
    return pd.DataFrame([plain | {"example_id": str(number)} | row for number, row in enumerate(rows)])


class _Reader(HTMLParser):
    """The elements of a page, and the text of its data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._in_data = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self._in_data = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        self.text += data if self._in_data else ""


def data_of(html: str) -> dict[str, Any]:
    return dict(json.loads(_Reader(html).text))


def test_a_row_beside_the_base_models() -> None:
    ours = table({"nll": 3.0}, {"completion": None, "exact_match": None, "edit_similarity": None, "nll": 8.0})
    base = table({"completion": "2\n", "nll": 4.0}, {"completion": None, "nll": 7.0})
    first, second = data_of(page(ours, base, "the fine-tuned model"))["rows"]
    assert (first["loss"], first["gain"], first["exact"], first["similarity"]) == (1.5, 0.5, True, 1.0)
    assert (first["completion"], first["base"], first["reference"]) == ("1\n", "2\n", "1\n")
    assert (second["loss"], second["gain"], second["exact"], second["completion"]) == (4.0, -0.5, None, None)


def test_without_the_base_models_table_nothing_is_gained() -> None:
    found = data_of(page(table({}), None, "the base model"))
    assert (found["title"], found["rows"][0]["gain"], found["rows"][0]["base"]) == (
        *("Evaluation of the base model", None, None),
    )
    assert "Gain" not in found["about"]


def test_a_row_that_the_base_model_was_not_judged_on_has_no_gain() -> None:
    [row] = data_of(page(table({"example_id": "new"}), table({}), "x"))["rows"]
    assert (row["gain"], row["base"]) == (None, None)


def test_a_gap_is_shown_as_what_is_before_and_after_it() -> None:
    context = fim.Context("def f():\n", "\nf()\n", "a.py", (fim.File("b.py", "x = 1\n"),))
    gap = {"kind": "fim", "prompt": fim.write(context), "cursor": "block"}
    first, second = data_of(page(table(gap, {"prompt": gap["prompt"]}), None, "x"))["rows"]
    assert (first["prompt"], first["suffix"], first["cursor"]) == ("def f():\n", "\nf()\n", "block")
    assert (first["others"], second["others"]) == ("b.py\nx = 1\n", None)
    assert (second["prompt"], second["suffix"], second["cursor"]) == (gap["prompt"], None, None)  # a text, no gap


@pytest.mark.parametrize("nll", [None, float("nan"), float("inf")])
def test_what_is_no_number_is_left_out(nll: float | None) -> None:
    rows = table({"nll": nll}, {"nll": 1.0, "reference": None, "tokens": 0})
    assert [row["loss"] for row in data_of(page(rows, rows, "x"))["rows"]] == [None, None]


def test_markup_in_data_is_text() -> None:
    columns = ("group", "repository", "kind", "language", "prompt", "reference", "completion", "outcome", "detail")
    hostile = page(table(dict.fromkeys(columns, HOSTILE)), table({"completion": HOSTILE}), HOSTILE)
    plain = page(table({}), table({}), "x")
    assert _Reader(hostile).elements == _Reader(plain).elements
    row = data_of(hostile)["rows"][0]
    assert {row[name] for name in (*columns, "base")} == {HOSTILE}


def test_the_page_needs_nothing_else() -> None:
    html = page(table({}), None, "x")
    assert _Reader(html).links == []
    assert "default-src 'none'" in html
    assert not any(word in html for word in ("http:", "https:", "@import", "url(", "localStorage", "innerHTML"))


def test_long_texts_are_shortened_and_say_so() -> None:
    long = "start " + "x" * 50_000 + " end"
    [row] = data_of(page(table({"prompt": long, "completion": long}), None, "x"))["rows"]
    assert row["prompt"].startswith("[… 30,010 characters left out …]\n")  # what is next to the cursor stays
    assert row["prompt"].endswith(" end")
    assert row["completion"].startswith("start xxx")
    assert row["completion"].endswith("30,010 characters left out …]")


def test_a_large_table_makes_a_page_that_is_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter texts first; then rows are left out, those without a completion before the others."""
    rows = [{"prompt": "é" * 3_000, "completion": "y" if number % 2 else None} for number in range(40)]
    monkeypatch.setattr(pages, "MOST_BYTES", 220_000)
    found = data_of(page(table(*rows), None, "x"))
    assert len(found["rows"]) == 40
    assert found["rows"][0]["prompt"].count("é") == 2_000
    monkeypatch.setattr(pages, "MOST_BYTES", 50_000)
    html = page(table(*rows), None, "x")
    found = data_of(html)
    assert len(html.encode()) <= 50_000
    assert 0 < len(found["rows"]) < 40
    assert [row["completion"] for row in found["rows"]][:10] == ["y"] * 10
    assert f"The other {40 - len(found['rows'])} are in examples.parquet" in found["about"]
