"""An evaluation table against what its version computes; and a version's code against that of its release."""

import json
import math
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import code_model
from contract.names import VALIDATED
from contract.versions import RELEASE, metadata_of_release
from promoter import recomputation, released_code
from promoter.recomputation import Table, compare, draw, request, validated, with_validated
from tests.support.versions import FIXTURES
from trainer.data.example import Example

GREEDY = "    return 1\n\n\ndef other():\n"


def rows(count: int = 8) -> list[dict[str, Any]]:
    """What an honest table says of a model that finds every token a nat, and always writes GREEDY."""
    examples = [Example(f"def f{number}():\n", "    return 1\n", language="python") for number in range(count)]
    return [
        {
            "example_id": example.example_id,
            "kind": example.kind,
            "language": example.language,
            "prompt": example.prompt,
            "reference": example.completion,
            "completion": "    return 1\n",
            "nll": 50.0,
            "tokens": 50,
            "exact_match": True,
        }
        for example in examples
    ]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Table]:
    def write(found: list[dict[str, Any]]) -> Table:
        pd.DataFrame(found).to_parquet(tmp_path / "examples.parquet")
        return Table("run", "eval/examples.parquet", tmp_path / "examples.parquet", 16, "bfloat16")

    return write


def verdict(
    table: Table, text: str = GREEDY, gap: float = 9.0, nll: float = 50.0, next_gap: float = 0.0
) -> tuple[bool, str]:
    sample = draw(table)
    assert not isinstance(sample, str), sample
    answer = {
        "likelihoods": [{"nll": nll, "tokens": 50} for _ in sample.likelihoods],
        "completions": [{"text": text, "gap": gap, "next_gap": next_gap} for _ in sample.completions],
    }
    found = compare(table, sample, answer)
    return found.passed, found.detail


def test_what_the_version_computes_passes(table) -> None:
    passed, detail = verdict(table(rows()))
    assert passed, detail
    assert detail == "8 likelihoods and 8 completions of run run (eval/examples.parquet) are what the version computes"


@pytest.mark.parametrize(("off", "passes"), [(0, True), (1, True), (2, False), (8, False)])
def test_one_of_eight_completions_may_be_far_off(table, off: int, passes: bool) -> None:
    """It was made of other tokens than it is read as. Of fewer none may be."""
    for count, allowed in ((8, passes), (7, passes and not off)):
        sample = draw(table(rows(count)))
        assert not isinstance(sample, str)
        answer = {
            "likelihoods": [{"nll": 50.0, "tokens": 50} for _ in sample.likelihoods],
            "completions": [
                {"text": "    no\n" if number < off else GREEDY, "gap": 4.25, "next_gap": 1.5}
                for number in range(len(sample.completions))
            ],
        }
        assert compare(table(rows(count)), sample, answer).passed is allowed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"nll": 40.0}, "has 50.000 nats, and the table says 40.000"),
        ({"nll": math.nan}, "the table says nan"),
        ({"nll": 49.2}, "8 references have 400.00 nats together, and the table says 393.60"),
        ({"tokens": 51}, "has 50 tokens, and the table says 51"),
        ({"completion": "    return 2\n", "exact_match": False}, "and the table says '    return 2"),
        ({"completion": "    ret", "exact_match": False}, "and the table says '    ret'"),
        ({"exact_match": False}, "exact_match is False, and by its completion and reference it is True"),
        ({"first_line_match": False}, "first_line_match is False, and by"),
        ({"stops": False}, "stops is False, and by"),
        (
            {"first_token_nll": 2.0, "first_line_nll": 1.0},
            "line and all of it have 2.000, 1.000",
        ),
        ({"first_line_nll": 51.0}, "have 51.000, 50.000 nats"),
        ({"prompt": "def another():\n"}, "its prompt and reference make the id"),
    ],
)
def test_what_is_invented_is_found(table, change: dict[str, Any], why: str) -> None:
    passed, detail = verdict(table([row | change for row in rows()]))
    assert not passed
    assert why in detail


def test_noise_of_other_batches_passes(table) -> None:
    found = [row | {"nll": 50 + sign} for row, sign in zip(rows(), [0.9, -0.9] * 4, strict=True)]
    assert verdict(table(found))[0]
    assert verdict(table(rows()), text="    return 1 + 0\n", gap=0.2)[0]  # a near tie
    # As bfloat16 has once in a while.
    assert verdict(table(rows()), text="    return 1 + 0\n", gap=2.9, next_gap=0.9)[0]
    assert not verdict(table(rows()), text="    return 1 + 0\n", gap=3.1, next_gap=0.2)[0]
    assert not verdict(table(rows()), text="    return 1 + 0\n", gap=2.9, next_gap=1.1)[0]
    assert not verdict(table(rows()), text="    return 1 + 0\n", gap=3.5)[0]
    assert not verdict(table(rows()), text="    return 1 + 0\n", gap=math.nan)[0]


def test_a_completion_of_text_is_not_cut(table) -> None:
    found = [row | {"language": "text"} for row in rows()]
    assert not verdict(table(found))[0]
    assert verdict(table(found), text="    return 1\n")[0]


def test_rows_of_which_no_text_was_asked_are_compared_by_likelihood_alone(table) -> None:
    found = [row | ({"completion": None, "exact_match": None} if n else {}) for n, row in enumerate(rows())]
    sample = draw(table(found))
    assert not isinstance(sample, str)
    assert (len(sample.likelihoods), len(sample.completions)) == (8, 1)
    assert verdict(table(found))[0]
    found = [row | {"reference": "", "nll": None, "exact_match": None} for row in rows()]
    ids = [Example(row["prompt"], "").example_id for row in found]
    sample = draw(table([row | {"example_id": number} for row, number in zip(found, ids, strict=True)]))
    assert not isinstance(sample, str)
    assert (len(sample.likelihoods), len(sample.completions)) == (0, 8)


def test_nobody_knows_which_rows_will_be_drawn_and_the_version_is_not_told_the_figures(table) -> None:
    found = table(rows(500))
    drawn = [draw(found) for _ in range(2)]
    ids = [{row["example_id"] for row in sample.likelihoods} for sample in drawn if not isinstance(sample, str)]
    assert [len(item) for item in ids] == [recomputation.LIKELIHOODS] * 2
    assert ids[0] != ids[1]
    asked = json.dumps(request(found, drawn[0]))  # type: ignore[arg-type]
    assert "nll" not in asked
    assert "50" not in [item for row in json.loads(asked)["likelihoods"] for item in row.values()]


@pytest.mark.parametrize(
    "answer",
    [
        *(None, [], {}, {"likelihoods": [], "completions": []}, {"likelihoods": [{"nll": 1}] * 8, "completions": []}),
        {"likelihoods": [{"nll": "x", "tokens": 1}] * 8, "completions": [{"text": "", "gap": 0, "next_gap": 0}] * 8},
        {
            "likelihoods": [{"nll": 1, "tokens": math.inf}] * 8,
            "completions": [{"text": "", "gap": 0, "next_gap": 0}] * 8,
        },
    ],
)
def test_an_answer_of_another_form_is_none(table, answer: Any) -> None:
    found = table(rows())
    sample = draw(found)
    assert not isinstance(sample, str)
    assert compare(found, sample, answer).detail == "the version's process gave no answer that one could compare"


def test_what_is_no_table_is_said(table, tmp_path: Path) -> None:
    found = table([{"example_id": "a", "nll": np.nan}])
    assert draw(found) == "it has no column kind, language, prompt, reference, completion, tokens"
    found.file.write_bytes(b"no parquet")
    assert str(draw(found)).startswith("it is broken")


def test_the_tag_keeps_the_newest_tables_within_its_length() -> None:
    tags: dict[str, str] = {}
    digests = [f"{number:064x}"[::-1] for number in range(1, 400)]
    for digest in digests:
        tags = {VALIDATED: with_validated(tags, [digest])}
    assert len(tags[VALIDATED]) <= 4000
    assert validated(tags, digests[-1])
    assert not validated(tags, digests[0])
    assert not validated({}, digests[0])
    assert with_validated(tags, [digests[-1]]) == tags[VALIDATED]


@pytest.fixture
def today(tmp_path: Path) -> Path:
    """What a version of this release has for code."""
    folder, package = tmp_path / "today", Path(code_model.__file__).parent
    shutil.copytree(package, folder / "code" / "code_model", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(package / "pyfunc.py", folder)
    _describe(folder)
    return folder


def _describe(folder: Path, metadata: dict[str, str] | None = None, **changes: str) -> None:
    flavor = {
        "loader_module": "mlflow.pyfunc.loaders.code_model",
        "code": "code",
        "model_code_path": "/somewhere/code_model/pyfunc.py",
    }
    described = {"flavors": {"python_function": flavor | changes}, "metadata": metadata or metadata_of_release()}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))


def test_a_version_of_this_release_has_its_code(today: Path) -> None:
    found = released_code.compare(today)
    assert found.passed, found.detail


def _more(folder: Path) -> None:
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "modeling.py").write_text("")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: (folder / "pyfunc.py").write_text("import os"), "pyfunc.py is another"),
        (
            lambda folder: (folder / "code/code_model/text.py").write_text("import os"),
            "code/code_model/text.py is another",
        ),
        (lambda folder: (folder / "code/code_model/text.py").unlink(), "code/code_model/text.py is gone"),
        (lambda folder: (folder / "code/torch.py").write_text(""), "code/torch.py is no file of that release"),
        (lambda folder: (folder / "code/data.txt").write_text(""), "code/data.txt is no file of that release"),
        (_more, "artifacts/modeling.py is no file of that release"),
        (lambda folder: _describe(folder, loader_module="os"), "has MLflow load ['os'"),
        (lambda folder: _describe(folder, model_code_path="code/code_model/text.py"), "text.py"),
        (lambda folder: _describe(folder, {"ratchet_release": "0.1.0"}), "has MLflow load"),
        (lambda folder: _describe(folder, {"ratchet_release": "9.9"}), "Ratchet 9.9 made it, whose code"),
        (lambda folder: (folder / "MLmodel").write_text("x"), "its MLmodel file cannot be read"),
    ],
)
def test_any_other_code_is_found_and_named(today: Path, harm: Callable[[Path], object], why: str) -> None:
    harm(today)
    found = released_code.compare(today)
    assert (found.passed, why in found.detail) == (False, True), found.detail


def test_code_that_has_changed_since_training_asks_for_a_new_training(today: Path) -> None:
    (today / "code/code_model/text.py").write_text("")
    assert "train anew" in released_code.compare(today).detail


@pytest.mark.parametrize("archive", sorted(FIXTURES.glob("protocol-*.tar.gz")), ids=lambda path: path.name)
def test_the_code_of_earlier_releases_is_known(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    found = released_code.compare(tmp_path / "version")
    assert found.passed, found.detail
    assert RELEASE not in json.loads(released_code.DIGESTS.read_text())  # the installed package itself tells
