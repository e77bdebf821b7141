"""Between texts and tokens, for each family of tokenizers: what is learnt and served is what stands in the data."""

import asyncio.events
import inspect

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from code_model import fim
from code_model.text import TextStream, decode, encode_completions, encode_prompt, encode_prompts, gives_back
from contract.errors import InputError
from tests import models
from tests.models import tokenizers
from trainer import base_model
from trainer.config import ModelConfig
from trainer.data.example import Example
from trainer.training.collator import encode_all, token_counts

LINES = inspect.getsource(asyncio.events).splitlines(keepends=True)[:200]
PAIRS = [
    ("def f(a):\n", "    return a\n"),
    ("def f(a):", "\n    return a"),
    ("x = ", "foo"),
    ("x =", " foo"),
    ("f", "oo"),
    ("  ", "  x"),
    ("", "    x"),
    ("", "x"),
    ("a\n\n", "\n\n\tb"),
    ("# é漢🙂", "é漢🙂 ok"),
    *(("".join(LINES[i - 5 : i]), "".join(LINES[i : i + 3])) for i in range(5, 200, 5)),
    *(("".join(LINES[i - 5 : i])[:-3], "".join(LINES[i - 1 : i + 3])[-20:]) for i in range(5, 200, 5)),
]


@pytest.fixture(scope="module", params=list(tokenizers.FAMILIES))
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.wrap(tokenizers.FAMILIES[request.param]()).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_prompt_and_completion_together_are_the_text(tokenizer) -> None:
    prompts, texts = [prompt for prompt, _ in PAIRS], [completion for _, completion in PAIRS]
    before = encode_prompts(tokenizer, prompts)
    after = encode_completions(tokenizer, before, texts)
    assert all(gives_back(tokenizer, before, after, texts))
    for prompt, text, first, second in zip(prompts, texts, before, after, strict=True):
        assert decode(tokenizer, first + second) == prompt + text
        stream = TextStream(tokenizer, first, ())
        for token in second:
            stream.add(token)
        stream.finish()
        assert stream.all == text
        [encoded] = encode_all(tokenizer, [Example(prompt, text)])
        whole = encoded.input_ids[:-1]
        assert encoded.input_ids[-1] == tokenizer.eos_token_id
        assert decode(tokenizer, whole) == prompt + text
        assert decode(tokenizer, whole[: encoded.prompt_length]) + encoded.held == prompt


def test_what_the_tokenizer_puts_before_a_text_is_put_there_once(tokenizer) -> None:
    whole = tokenizer("def f(a):\n")["input_ids"]
    assert encode_prompt(tokenizer, "def f(a):\n") == whole
    first = [tokenizer.bos_token_id] if whole[0] == tokenizer.bos_token_id else []
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]
    rendered = encode_prompt(tokenizer, "<s>[INST] hi [/INST]")  # as a chat template makes it
    assert rendered.count(tokenizer.bos_token_id) == 1
    assert rendered[: len(first)] == first


def test_a_completion_that_is_not_given_back_is_counted_as_none(tokenizer) -> None:
    examples = [Example("a", " b"), Example("a", " b c")]
    assert all(length > 2 for length in token_counts(tokenizer, examples))
    assert token_counts(_Lossy(tokenizer), examples) == [0, 0]


class _Lossy:
    """A tokenizer whose decoding drops spaces."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **options):
        return self.tokenizer(*args, **options)

    def decode(self, *args, **options) -> str:
        return self.tokenizer.decode(*args, **options).replace(" ", "")

    def batch_decode(self, *args, **options) -> list[str]:
        return [text.replace(" ", "") for text in self.tokenizer.batch_decode(*args, **options)]


@pytest.mark.parametrize("others", ["", "# a.py\nx = 1\n"])  # pieces of other files
def test_the_suffix_of_a_gap_is_no_beginning_of_a_text(others: str) -> None:
    own = ("▁<PRE>", "▁<SUF>", "▁<MID>")
    tokenizer = tokenizers.wrap(tokenizers.llama(own))
    ids = encode_prompt(tokenizer, others + fim.fill("def f(a):\n", "    return a\n", own))
    before, after, middle = tokenizer.convert_tokens_to_ids(list(own))
    assert ids[: ids.index(before)] == [tokenizer.bos_token_id, *tokenizer(others, add_special_tokens=False).input_ids]
    assert ids[-1] == middle
    suffix = ids[ids.index(after) + 1 : -1]
    assert decode(tokenizer, encode_prompt(tokenizer, "x") + suffix) == "x    return a\n"


@pytest.mark.parametrize("loses", ["white space", "capitals"])
def test_a_tokenizer_that_loses_something_is_refused(tmp_path, loses: str) -> None:
    tokenizer = tokenizers.wordpiece()
    if loses == "capitals":
        tokenizer = tokenizers.byte_level()
        tokenizer.normalizer = normalizers.Lowercase()
    folder = models.make(tmp_path / "m", tokenizers.wrap(tokenizer), "LlamaForCausalLM")
    base = base_model.resolve(ModelConfig(name=str(folder)))
    with pytest.raises(InputError, match=r"reads 'def add.*Expected one that keeps every space"):
        base_model.load_tokenizer(base)
