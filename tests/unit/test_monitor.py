"""Looks at production: what is unlike trained code, what a look may spend, how quality is compared, the page."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from contract.names import NO_DRIFT
from services.monitor import budget, report
from services.monitor.inputs import Piece, by_chance, compare
from services.monitor.jobs import Unknown
from services.monitor.look import INPUTS, QUALITY, REPOSITORY_MOVED, Limits, Look, Verdict, _known, facts_of
from services.monitor.production import _piece
from services.monitor.quality import compare as compare_quality

DAY_S = 86_400.0


def code(words: list[str], dice: random.Random) -> str:
    return "\n".join(f"{dice.choice(words)}({dice.choice(words)}, {dice.choice(words)})" for _ in range(15))


def pieces(number: int, theme: str, dice: random.Random, files: int = 40) -> list[Piece]:
    """Of code in which each file has words of its own, and some of its theme."""
    found = []
    for _ in range(number):
        file = dice.randrange(files)
        own = random.Random(f"{theme} {file}")
        words = [f"{theme}{own.randrange(200)}_{own.choice('abcdef')}{own.randrange(900)}" for _ in range(12)]
        found.append(Piece(code(words, dice), f"{theme}{file}.py"))
    return found


def test_foreign_prompts_are_found_and_ones_own_are_not() -> None:
    dice = random.Random(1)
    sample = pieces(1500, "invoice", dice)
    own = compare(sample, pieces(160, "invoice", dice))
    assert own.p > 0.2
    assert own.share < 0.06
    mixed = compare(sample, pieces(160, "invoice", dice) + pieces(40, "planet", dice))
    assert mixed.p < 1e-4
    assert mixed.share == pytest.approx(0.2, abs=0.05)
    assert all(word.startswith("planet") for word, _ in mixed.words[:5])


def test_too_little_is_no_verdict() -> None:
    dice = random.Random(2)
    sample, prompts = pieces(300, "invoice", dice), pieces(60, "invoice", dice)
    for known, asked, why in (
        (sample[:199], prompts, "pieces of training code can be compared with, and it takes 200"),
        (sample, prompts[:49], "prompts of .* files can be compared, and it takes 50 of 5"),
        (sample, [], "0 prompts"),
        ([], prompts, "0 pieces"),
        (sample, [Piece(piece.code, "one.py") for piece in prompts * 2], "of 1 files"),
    ):
        with pytest.raises(ValueError, match=why):
            compare(known, asked)


def test_chance_is_that_of_whole_files() -> None:
    """Values that a file's prompts have in common say no more than one of them."""
    dice, below = np.random.default_rng(3), 0
    for _ in range(200):
        of_file = dice.random(40) < 0.3
        groups = [str(number) for number in range(40) for _ in range(8)]
        theirs = np.repeat(np.arange(40) < 10, 8)
        below += by_chance(np.repeat(of_file, 8).astype(float), np.ones(320), groups, theirs, dice) <= 0.1
    assert below <= 34  # of 200, at a true level of 10%: seven in a million are above


def test_a_difference_that_is_plain_is_not_chance() -> None:
    groups, theirs = [str(number) for number in range(60)], np.arange(60) < 20
    p = by_chance(theirs.astype(float), np.ones(60), groups, theirs, np.random.default_rng(0))
    assert p == pytest.approx(1e-5, rel=0.01)  # as small as it is looked for


def test_all_looks_of_a_year_spend_alpha_once() -> None:
    now, spent, last = 0.0, 0.0, None
    while now < budget.YEAR_S:
        spent += budget.to_spend(0.05, last, now)
        last, now = now, now + random.Random(now).choice((60.0, DAY_S, 9 * DAY_S))
    assert spent == pytest.approx(0.05, rel=0.05)
    assert budget.to_spend(0.05, 0.0, 400 * DAY_S) == budget.to_spend(0.05, 0.0, 30 * DAY_S)
    assert budget.to_spend(0.05, 100.0, 50.0) == 0.0  # a clock that was set back


def evaluated(files: int, nats: float, prefix: str) -> pd.DataFrame:
    dice = random.Random(prefix)
    rows = [
        {"group": f"{prefix}{file}.py", "tokens": 10, "nll": 10 * (nats + dice.gauss(0, 0.2))}
        for file in range(files)
        for _ in range(4)
    ]
    return pd.DataFrame(rows)


def test_newer_code_that_is_known_less_well_is_told_by_the_week() -> None:
    held_out, new = evaluated(30, 1.0, "old"), evaluated(20, 1.5, "new")
    times = {f"new{file}.py": int((19_000 + 7 * (file % 3)) * DAY_S) for file in range(20)}
    found = compare_quality(held_out, [new], [times])
    assert (found.files, found.examples) == (20, 80)
    assert found.difference == pytest.approx(0.5, abs=0.1)
    assert found.p < 1e-4
    assert [(week, files) for week, _, files in found.weeks] == [
        ("2022-01-03", 7),
        ("2022-01-10", 7),
        ("2022-01-17", 6),
    ]
    assert compare_quality(held_out, [evaluated(20, 1.0, "like")], [{}]).p > 0.05
    with pytest.raises(Unknown, match="4 files of new code"):
        compare_quality(held_out, [evaluated(4, 1.5, "few")], [{}])


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"inputs": [{"prompt": "x = 1\n" * 20, "path": "a.py"}]}, "x = 1"),
        ({"inputs": [{"prompt": "<|fim_prefix|>" + "y = 2\n" * 20 + "<|fim_suffix|>z<|fim_middle|>"}]}, "y = 2"),
        ({"inputs": ["w = 3\n" * 20]}, "w = 3"),
        ({"inputs": [{"messages": [{"role": "user", "content": "hello"}]}]}, None),
        ({"inputs": [{"prompt": 5}]}, None),
        ({"inputs": []}, None),
        ("text", None),
        (None, None),
    ],
)
def test_what_is_taken_of_a_trace(inputs: Any, code: str | None) -> None:
    info = SimpleNamespace(request_time=1_700_000_000_000, tags={"user": "ada", "repository": "r"})
    found = _piece(SimpleNamespace(info=info, data=SimpleNamespace(spans=[SimpleNamespace(inputs=inputs)])))
    if code is None:
        assert found is None
    else:
        assert found is not None
        assert set(found.code.strip().split("\n")) == {code}
        assert found.group in ("r a.py", 'r ["ada", "2023-11-14"]')


def seen(**changed: Any) -> Look:
    values: dict[str, Any] = {
        "model": "m",
        "version": "2",
        "at": 1e9,
        "spent": {"inputs": 0.001, "quality": 0.0},
        "known": {},
    }
    return Look(**(values | changed))


def test_what_was_found_stays_found_until_another_version_is_there() -> None:
    def run(version: str, outcome: str) -> Any:
        tags = {"version": version, "outcome": outcome, "looked_at": "1000000000"}
        return SimpleNamespace(data=SimpleNamespace(tags=tags))

    known = _known([run("1", "quality"), run("2", "inputs, repository")], cast(Any, SimpleNamespace(version="2")))
    assert known == {"inputs": "2001-09-09", "repository": "2001-09-09"}
    look = seen(known=known)
    look.verdicts = [look.by_chance(INPUTS, 0.5, True, "3%"), Verdict(REPOSITORY_MOVED, False, "1%")]
    assert look.verdicts[0].why == "found on 2001-09-09; now 3%"
    assert look.outcome == "inputs"
    with pytest.raises(Unknown, match="too soon"):
        look.by_chance(QUALITY, 1e-5, True, "worse")
    look.spent["quality"] = 0.001
    assert not look.by_chance(QUALITY, 1e-5, False, "hardly worse").drifted
    look.verdicts.append(look.by_chance(QUALITY, 1e-5, True, "worse"))
    assert look.outcome == "inputs, quality"
    assert seen().outcome == NO_DRIFT
    assert not seen(verdicts=[Verdict(INPUTS, None, "no traces")]).is_known
    assert seen(known={"quality": "2001-09-09"}).outcome == "quality"  # which was not asked


def test_the_page_shows_what_others_have_named_and_runs_none_of_it(tmp_path: Path) -> None:
    change = {
        "source": "<script>alert(1)</script>", "since": "a" * 40, "head": "b" * 40, "functions": 10, "new_functions": 5,
        "added": 1, "deleted": 0, "changed": 1, "renamed": 0, "files": 3, "characters": {"python": [10, 20]},
        "most": [["<img src=x onerror=alert(2)>.py", 5, 10]], "changed_at": {},
    }  # fmt: skip
    look = seen(changes=[change], verdicts=[Verdict(REPOSITORY_MOVED, True, "50% <b>new</b>")])
    before = SimpleNamespace(
        data=SimpleNamespace(tags={"looked_at": "900000000"}, metrics={"repository/changed_functions": 0.1})
    )
    files = report.files(look, [cast(Any, before)])
    page = files["drift.html"]
    assert "<script>" not in page
    assert "<img" not in page
    assert page.count("<circle") == 2
    assert facts_of(look)["outcome"] == "repository"
    assert Limits().functions == 0.2
