"""The report: all in one file, nothing from elsewhere, and nothing of a model's output run as markup."""

import re

from promoter import report
from promoter.decision import Evidence
from promoter.gate import decide
from promoter.records import Entry
from tests.support.gate import BETTER, GROUPS, evidence, policy, table

ENTRY = Entry("m", "2", "Staging", "nothing", "1", "gate", "promoted", "ada", "better by far")


def html(candidate: Evidence, incumbent: Evidence | None) -> str:
    return report.html(ENTRY, decide(policy(), candidate, incumbent, "Staging"))


def test_the_page_has_verdict_reasons_plot_and_examples() -> None:
    text = html(evidence("2", BETTER), evidence("1"))
    assert "m version 2 → Staging: promoted" in text
    assert text.index("better by far") < text.index("Is it better?") < text.index("Each file's change")
    assert text.count("<rect") == GROUPS + 1  # a bar for each file, and the interval
    assert text.count("candidate, version 2") == 5
    assert "Got better most" in text
    assert "Got worse most" not in text  # none did


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    rows = BETTER.assign(completion="<script>alert(1)</script>", prompt="</pre><img src=x onerror=alert(1)>")
    text = html(evidence("2", rows), evidence("1"))
    assert not re.search(r"<(script|img|link|iframe|object)\b", text)
    assert not re.search(r"(src|href)\s*=", re.sub(r"<pre>.*?</pre>", "", text, flags=re.S))
    assert "url(" not in text
    assert "&lt;script&gt;" in text


def test_the_page_of_a_refusal_without_pairs_and_of_a_rollback() -> None:
    text = html(evidence("2", dataset_digest="other"), evidence("1"))
    assert "<svg" not in text
    assert "not comparable" in text
    assert "Before: version 1" in report.markdown(ENTRY, None)
    assert "m version 2" in report.html(ENTRY, None)


def test_many_files_make_a_plot_of_a_few_hundred_bars() -> None:
    files = {"group": [f"{number}.py" for number in range(5000)]}
    versions = [table(change, n=5000, seed=seed).assign(**files) for change, seed in ((-0.3, 2), (0.0, 1))]
    text = html(evidence("2", versions[0]), evidence("1", versions[1]))
    assert text.count("<rect") == report.BARS + 1
    assert len(text) < 150_000


def test_markdown_keeps_its_table_whatever_stands_in_a_cell() -> None:
    decision = decide(policy(), evidence("2", eval_settings="a|b\nc"), evidence("1"), "Staging")
    lines = report.markdown(ENTRY, decision).splitlines()
    [row] = [line for line in lines if "decoding" in line]
    assert re.fullmatch(r"\| [^|]+ \| [^|]+ \| ([^|]|\\\|)+ \|", row)
