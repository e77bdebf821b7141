"""Between texts and tokens: a prompt's tokens, and a completion's text while it grows."""

from collections.abc import Sequence
from typing import Any

CONTEXT = 8  # tokens before a piece that are decoded with it: a token's text may depend on the one before


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, by itself: completions are tokenised apart, here as in training."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if ids:
        return ids
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [start]


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

    What may turn out to be the beginning of a stop text, or of a character, is held back until it is known.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids = list(prompt_ids[-CONTEXT:])
        self.known = len(self.ids)  # tokens whose text is in `all`
        self.all = ""
        self.stopped = False
        self._taken = 0
        self._held = max((len(item) for item in stop), default=1) - 1
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
        end = len(self.all) if self._done or self.stopped else len(self.all) - self._held
        piece = self.all[self._taken : max(end, self._taken)]
        self._taken += len(piece)
        return piece

    def _read(self, last: bool) -> None:
        if self.stopped or self.known == len(self.ids):
            return
        start = max(0, self.known - CONTEXT)
        before = decode(self.tokenizer, self.ids[start : self.known])
        after = decode(self.tokenizer, self.ids[start:])
        if after.endswith("�") and not last and len(self.ids) - self.known < CONTEXT:
            return  # in the middle of a character
        seen = max(0, len(self.all) - self._held)
        self.all += after[len(before) :]
        self.known = len(self.ids)
        tail = self.all[seen:]
        if any(item in tail for item in self.stop):
            self.all = self.all[:seen] + cut(tail, self.stop)
            self.stopped = True
