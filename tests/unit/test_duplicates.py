"""Near duplicates among texts: those above the threshold are found, those below are kept."""

import random

import numpy as np
import pytest

from trainer.data.duplicates import Fingerprints


def found(tmp_path, texts: list[str], threshold: float, live=None) -> tuple[list[int], list[int]]:
    prints = Fingerprints(tmp_path / "prints", threshold)
    for text in texts:
        prints.add(text)
    exact, near = prints.duplicates(np.ones(len(texts), dtype=bool) if live is None else np.array(live))
    prints.close()
    return np.flatnonzero(exact).tolist(), np.flatnonzero(near).tolist()


def words(seed: int, count: int = 200) -> list[str]:
    return [f"w{random.Random(seed * 1000 + n).randrange(10**6)}" for n in range(count)]


def changed(text: list[str], every: int) -> str:
    return " ".join(f"{word}x" if number % every == 0 else word for number, word in enumerate(text))


def test_exact_whatever_the_layout(tmp_path) -> None:
    assert found(tmp_path, ["a  b(c)", "x", "a b (c)\n"], 0.8) == ([2], [])


@pytest.mark.parametrize(("every", "is_near"), [(100, True), (8, False)])
def test_threshold_decides(tmp_path, every: int, is_near: bool) -> None:
    """One word in 100 changed: 95% of the 5-grams are common, of their union 91%; one in 8: 38%, 23%."""
    pairs = [text for seed in range(30) for text in (" ".join(words(seed)), changed(words(seed), every))]
    _, near = found(tmp_path, pairs, 0.7)
    assert near == (list(range(1, 60, 2)) if is_near else [])


def test_chain_of_likenesses_is_one_cluster_and_its_first_is_kept(tmp_path) -> None:
    text = words(1)
    chain = [text, [*text[:180], *words(2, 20)], [*text[:160], *words(3, 20), *words(2, 20)]]
    exact, near = found(tmp_path, [" ".join(words(9)), *map(" ".join, chain)], 0.6)
    assert (exact, near) == ([], [2, 3])


def test_what_is_left_out_hides_nothing(tmp_path) -> None:
    assert found(tmp_path, ["a b c", "a b c", "a b c"], 0.8, live=[False, True, True]) == ([2], [])


def test_nothing_at_all(tmp_path) -> None:
    assert found(tmp_path, [], 0.8) == ([], [])
    assert found(tmp_path / "..", ["", "("], 0.8) == ([], [])


@pytest.mark.parametrize(("every", "twins"), [(20, 2), (8, 0)])
def test_texts_that_share_half_of_their_sequences_are_twins(tmp_path, every: int, twins: int) -> None:
    """One word in 20 changed: 60% of all 5-grams are common to both; one in 8: 23%."""
    texts = [changed(words(0), every), changed(words(1), every), " ".join(words(9))]
    others = [" ".join(words(seed)) for seed in range(5)]
    prints = Fingerprints(tmp_path / "prints", 0.8)
    for text in (*texts, *others):
        prints.add(text)
    side = np.arange(8) < 3
    assert prints.with_twin(side, ~side) == twins
    prints.close()
