"""Where in a file an editor may ask."""

import inspect
import json
from collections import Counter

import pytest

from contract.metrics import CURSORS
from trainer.data import languages
from trainer.data.example import cursor_of
from trainer.data.places import Place, places
from trainer.data.split import capped, in_shares, turns

CODE = inspect.getsource(json.decoder)


def found(text: str, language: str = "python", window: int = 400, require_docstring: bool = False) -> list[Place]:
    code = languages.read(text, language)
    assert code is not None
    sizes = [len(line) // 3 + 1 for line in text.split("\n")]
    return list(places(text, code, sizes, window, require_docstring))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "x", "line_start"),
        ("a\n", "    b", "line_start"),
        ("a\n    ", "b", "indented"),
        ("a\n\t", "", "indented"),
        ("x = ", "y", "midline"),
        ("f(", ")", "midline"),
        ("ret", "urn", "midtoken"),
        ("a1", "2", "midtoken"),
        ("word", "", "midline"),
        ("word", ".x", "midline"),
    ],
)
def test_which_cursor_it_is(before: str, after: str, expected: str) -> None:
    assert cursor_of(before + after, len(before)) == expected


def test_every_kind_of_place_and_cursor_comes_up() -> None:
    made = found(CODE)
    assert {place.kind for place in made} == {"function", "fim", "next_block"}
    gaps = Counter(cursor_of(CODE, place.start) for place in made if place.kind == "fim")
    assert set(gaps) == set(CURSORS)
    assert min(gaps.values()) >= 0.1 * gaps.total()


def test_places_lie_in_their_unit_and_are_no_longer_than_their_share() -> None:
    starts = [0]
    for line in CODE.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    for place in found(CODE):
        assert starts[place.unit[0]] <= place.start < place.end <= starts[place.unit[1]]
        assert CODE[place.start : place.end].strip()
        assert len(CODE[place.start : place.end]) // 3 <= 200  # half of the window
        if place.kind != "fim":
            assert CODE[place.end - 1] == "\n"
    gaps = [place for place in found(CODE) if place.kind == "fim"]
    assert any(CODE[place.end] == "\n" for place in gaps)
    assert any(CODE[place.end] != "\n" for place in gaps)


def test_a_function_s_places_stay_as_they_are_when_other_code_comes() -> None:
    first = {CODE[place.start : place.end] for place in found(CODE)}
    moved = "import os\n\n\ndef other():\n    return os.getpid()\n\n\n" + CODE
    assert first <= {moved[place.start : place.end] for place in found(moved)}


def test_code_outside_of_functions_is_wanted_too() -> None:
    text = "interface Shape {\n  kind: string;\n  size: number;\n  colour?: string;\n}\n\nconst LIMIT = 30;\n"
    wanted = "".join(text[place.start : place.end] for place in found(text, "typescript"))
    assert "size" in wanted or "colour" in wanted
    assert "LIMIT" in wanted or "30" in wanted


def test_whole_functions_only_where_documented_if_that_is_asked_for() -> None:
    text = 'def a(x):\n    """A."""\n    return x + 1\n\n\ndef b(x):\n    return x - 1\n'

    def whole(require: bool) -> list[str]:
        made = found(text, require_docstring=require)
        return [text[place.start : place.end].strip() for place in made if place.kind == "function"]

    assert whole(False) == ["return x + 1", "return x - 1"]
    assert whole(True) == ["return x + 1"]


def test_kinds_get_the_shares_of_their_weights() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], [100, 600, 300])
    numbers = rng.integers(0, 2**63, 1000, dtype=np.uint64)

    def counts(weights, exact: bool) -> list[int]:
        return np.bincount(kinds[in_shares(numbers, kinds, weights, exact)], minlength=3).tolist()

    assert counts((1.0, 2.0, 1.0), True) == [100, 200, 100]
    kept = counts((1.0, 2.0, 1.0), False)  # half of all stay
    assert kept[0] == 100
    assert sum(kept) >= 500
    assert kept[1] == pytest.approx(2 * kept[2], abs=2)
    assert counts((0.0, 1.0, 1.0), True)[1:] == [300, 300]


def test_no_file_has_more_than_its_share() -> None:
    import numpy as np

    numbers = np.arange(100, dtype=np.uint64)
    groups = np.repeat(np.array([7, 8, 9], dtype=np.uint64), [80, 15, 5])
    assert np.bincount(groups[capped(numbers, groups, 10)], minlength=10)[7:].tolist() == [10, 10, 5]
    assert turns(numbers, groups)[:3].tolist() == [0, 1, 2]
    assert turns(numbers, groups)[80] == 0


BRANCHES = (
    "def f(a, b):\n"
    + "".join(
        f"    {word} a == {number}:\n" + "".join(f"        call_{number}_{line}(a, b, {line})\n" for line in range(9))
        for number, word in enumerate(["if", "elif", "elif", "elif"])
    )
    + "    else:\n        call(b)\n    return a\n"
)


def test_what_comes_next_ends_with_its_branch() -> None:
    """Not behind the head of another branch, whose body does not belong to it."""
    made = [place for place in found(BRANCHES, window=120) if place.kind == "next_block"]
    assert len(made) > 3
    for place in made:
        lines = BRANCHES[place.start : place.end].rstrip("\n").split("\n")
        first = len(lines[0]) - len(lines[0].lstrip())
        assert not lines[-1].endswith(":")
        assert all(len(line) - len(line.lstrip()) >= first for line in lines)


DECORATED = "def outer(f):\n" + "".join(
    f"    @wraps({number})\n    def value_{number}(self):\n        return self.x * {number}\n" for number in range(40)
)


def test_no_completion_ends_between_a_decorator_and_its_target() -> None:
    made = [place for window in (60, 90, 150, 300) for place in found(DECORATED, window=window)]
    lines = [DECORATED[place.start : place.end] for place in made]
    whole = [text.rstrip("\n").split("\n")[-1] for text in lines if text.endswith("\n")]
    assert len(whole) > 20
    assert not [line for line in whole if line.lstrip().startswith("@")]
