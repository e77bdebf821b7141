"""Gaps in the markers that a model knows."""

import pytest

from code_model import fim


class Vocabulary:
    """A tokenizer, as far as it is asked."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


@pytest.mark.parametrize("own", fim.KNOWN)
def test_own_tokens_are_used(own) -> None:
    text = fim.render(fim.prompt("before\n", "after\n"), Vocabulary("a", *own))
    assert text == f"{own[0]}before\n{own[1]}after\n{own[2]}"


def test_text_with_any_model_s_marker_may_hold_no_gap() -> None:
    assert fim.may_hold_gaps("def f(): ...")
    assert not fim.may_hold_gaps("x = '<|fim_middle|>'")


def test_without_own_tokens_the_markers_are_plain_text(tiny) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    assert fim.tokens(tokenizer) is None
    prompt = fim.render(fim.prompt("a", "b\n"), tokenizer)
    assert prompt == "<fim_suffix>b\n<fim_middle>a"  # the prefix last: the model goes on with it
    assert tokenizer.decode(tokenizer(prompt).input_ids) == prompt
