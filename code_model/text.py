"""Between texts and tokens: a prompt's tokens, and a completion's text while it grows."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from code_model import fim

NEUTRAL = ("\n", "☺", ":", "a")  # what a text may be tokenised behind: the first that makes no token with it
TRIED = ("x", " x", "    return a", "\n\n    b", "(b)", "\tc")
CONTEXT = 8  # tokens before a piece that are decoded with it: a token's text may depend on the one before
MOST_CONTEXT = 128  # where those begin in the middle of a character


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, after what the tokenizer itself puts before a text (a BOS token, where it does).

    A prompt that begins with that token already, as many chat templates make it, gets no second one. Behind which of
    these a completion begins: healing.py.
    """
    return encode_prompts(tokenizer, [prompt])[0]


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The same for many at once, which is faster."""
    own, before = fim.tokens(tokenizer), start(tokenizer)
    found = []
    for prompt, ids in zip(prompts, _ids(tokenizer, prompts), strict=True):
        if prompt.startswith(" ") and _neutral(tokenizer) is not None:
            ids = _beginning(tokenizer, prompt)
        if own is not None:
            others, marker, rest = prompt.partition(own[0])  # pieces of other files stand before the gap
            if (parts := fim.parts(marker + rest, own)) is not None:
                ids = _ids(tokenizer, [others])[0] + _gap(tokenizer, own, *parts)
        if ids[: len(before)] != before:
            ids = before + ids
        if not ids:
            ids = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
        found.append(ids)
    return found


def encode_completions(tokenizer: Any, prompts: Sequence[Sequence[int]], completions: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that go on with some prompts, so that decoding both together gives both texts.

    SentencePiece's tokenizers put a space before every text, which decoding drops at the beginning alone. So where a
    text goes on with another, it is tokenised behind a neutral character, whose tokens are cut off again.
    """
    neutral = _neutral(tokenizer)
    if neutral is None:
        return _ids(tokenizer, completions)
    found = []
    for prompt, text in zip(prompts, completions, strict=True):
        # Behind a prompt that is empty, or special tokens alone, the text begins.
        found.append(_behind(tokenizer, neutral, text) if decode(tokenizer, prompt) else _beginning(tokenizer, text))
    return found


@lru_cache(maxsize=8)
def start(tokenizer: Any) -> list[int]:
    """Token ids that the tokenizer itself puts before a text."""
    plain, whole = _ids(tokenizer, ["a"])[0], list(tokenizer("a")["input_ids"])
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain:
            return whole[:place]
    return []


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by itself, without special ones."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def _beginning(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text at the beginning: some tokenizers take its first space for the one that they would put."""
    plain, spaced = _ids(tokenizer, [text, f" {text}"])
    return spaced if decode(tokenizer, plain) != text == decode(tokenizer, spaced) else plain


def _gap(tokenizer: Any, own: tuple[str, str, str], prefix: str, suffix: str) -> list[int]:
    """A prompt to fill a gap, part by part: the suffix is no beginning of a text."""
    before, after, middle = tokenizer.convert_tokens_to_ids(list(own))
    neutral = _neutral(tokenizer)
    if neutral is None:
        of_prefix, of_suffix = _ids(tokenizer, [prefix, suffix])
    else:
        of_prefix, of_suffix = _beginning(tokenizer, prefix), _behind(tokenizer, neutral, suffix)
    return [before, *of_prefix, after, *of_suffix, middle]


@lru_cache(maxsize=8)
def _neutral(tokenizer: Any) -> str | None:
    """The character behind which texts are to be tokenised; None where they may be tokenised by themselves."""
    prompt = _ids(tokenizer, ["def"])[0]
    for neutral in (None, *NEUTRAL):
        parts = [_ids(tokenizer, [text])[0] if neutral is None else _behind(tokenizer, neutral, text) for text in TRIED]
        if all(decode_completion(tokenizer, prompt, ids) == text for ids, text in zip(parts, TRIED, strict=True)):
            return neutral
    return None  # such a tokenizer gives no text back (`gives_back`)


def _behind(tokenizer: Any, neutral: str, text: str) -> list[int]:
    """Token ids of a text behind a neutral character; behind another one where the two make a token together."""
    for character in (neutral, *NEUTRAL):
        before, whole = _ids(tokenizer, [character, character + text])
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return _ids(tokenizer, [text])[0]


def gives_back(
    tokenizer: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], texts: Sequence[str]
) -> list[bool]:
    """Whether the tokens of each completion, after those of its prompt, are decoded to its text."""
    before = [list(ids[-CONTEXT:]) for ids in prompts]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    heads = tokenizer.batch_decode(before, **options)
    wholes = tokenizer.batch_decode([[*a, *b] for a, b in zip(before, completions, strict=True)], **options)
    return [
        whole[len(head) :] == text or decode_completion(tokenizer, list(prompt), list(completion)) == text
        for prompt, completion, head, whole, text in zip(prompts, completions, heads, wholes, texts, strict=True)
    ]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens, without special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def decode_completion(tokenizer: Any, prompt_ids: list[int], new_ids: list[int]) -> str:
    """The text that the new tokens add; decoded with the prompt, since some tokenizers drop a first space."""
    return decode(tokenizer, prompt_ids + new_ids)[len(decode(tokenizer, prompt_ids)) :]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts in it."""
    return text[: min((text.find(item) for item in stop if item in text), default=len(text))]


class TextStream:
    """The text of a completion, token by token, up to the first of some stop texts.

    Where tokens were taken back from the prompt (healing.py), the first ones spell out their text, `held`, which is no
    part of it. What may turn out to be the beginning of a stop text, or of a character, is held back until it is known.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str], held: str = "") -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids = list(prompt_ids[-MOST_CONTEXT:])
        self.known = len(self.ids)  # tokens whose text is in `all`
        self.all = ""
        self.stopped = False
        self._taken = 0
        self._repeated = len(held)  # characters to come that stand in the prompt already
        self._unsure = max((len(item) for item in stop), default=1) - 1
        self._done = False

    def add(self, token: int) -> None:
        self.ids.append(token)
        self._read(last=False)

    def finish(self) -> None:
        """No token comes any more: all text is known."""
        self._done = True
        self._read(last=True)

    def take(self) -> str:
        """The text that is certain and has not been taken before."""
        end = len(self.all) if self._done or self.stopped else len(self.all) - self._unsure
        piece = self.all[self._taken : max(end, self._taken)]
        self._taken += len(piece)
        return piece

    def _read(self, last: bool) -> None:
        if self.stopped or self.known == len(self.ids):
            return
        context = CONTEXT
        while True:
            start = max(0, self.known - context)
            before = decode(self.tokenizer, self.ids[start : self.known])
            if "�" not in before or start == 0 or context >= MOST_CONTEXT:
                break
            context *= 2
        after = decode(self.tokenizer, self.ids[start:])
        if after.endswith("�") and not last and len(self.ids) - self.known < CONTEXT:
            return  # in the middle of a character
        seen = max(0, len(self.all) - self._unsure)
        piece = after[len(before) :]
        self.all += piece[self._repeated :]
        self._repeated = max(0, self._repeated - len(piece))
        self.known = len(self.ids)
        tail = self.all[seen:]
        if any(item in tail for item in self.stop):
            self.all = self.all[:seen] + cut(tail, self.stop)
            self.stopped = True
