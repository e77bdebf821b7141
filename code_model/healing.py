"""Token healing: the end of a prompt is taken back, and the completion's tokens begin with its text.

A prompt ends where the cursor stands: in the middle of a word, or behind an indentation. Tokenised by itself it ends
in a token that a model has hardly ever seen there ("ret" before "urn"; a whole indentation, whose last space belongs to
the word behind it). So the tokens at the cut are taken back. What comes behind is tokenised together with their text,
as in pretraining, and when a completion is drawn, its first tokens are chosen among those that spell that text out.
Training, evaluation and serving do this by the functions here.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from code_model import fim
from code_model.text import decode, encode_completions, encode_prompts

MOST_TAKEN = 4  # tokens that are taken back
TRIED = 16  # tokens, by which it is tried how a text may go on
LOOKED_AT = 8  # tokens at the beginning, of which one has a text
REMEMBERED = 100_000  # texts, for which the tokens that are shorter are known
BROKEN = "�"
LAST = "\U0010ffff"  # sorts behind every other character


class Start(NamedTuple):
    """What a completion begins behind."""

    ids: list[int]  # the prompt's tokens, without those taken back
    held: str  # the text taken back
    taken: list[int]  # its tokens in the prompt


class Vocabulary:
    """A tokenizer's tokens by their texts, as they read behind other text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        ids = sorted(tokenizer.get_vocab().values())
        never = {*tokenizer.all_special_ids, tokenizer.eos_token_id}
        never.update(tokenizer.convert_tokens_to_ids(list(fim.tokens(tokenizer) or ())))
        [self._before] = encode_prompts(tokenizer, ["def"])
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        head, *wholes = tokenizer.batch_decode([self._before, *([*self._before, token] for token in ids)], **options)
        self.texts = [""] * (ids[-1] + 1)  # by token; "" for those that are never allowed
        for token, whole in zip(ids, wholes, strict=True):
            if token not in never and whole.startswith(head):
                self.texts[token] = whole[len(head) :]
        order = sorted((text, token) for token, text in enumerate(self.texts) if text)
        self._sorted = [text for text, _ in order]
        self._ids = np.array([token for _, token in order], dtype=np.int64)
        self._shorter: dict[str, list[int]] = {}

    def allowed(self, rest: str) -> np.ndarray:
        """The tokens that may come where a text is to be spelt out, (n,): `longer` and `shorter` ones.

        A completion's first tokens are chosen among these. Each has a text, so none of them ends it.
        """
        return np.concatenate([self.longer(rest), np.array(self.shorter(rest), dtype=np.int64)])

    def steps(self, held: str, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """The tokens allowed at each step in which some tokens spell out a text, (n,) each."""
        rest: str | None = held
        for token in tokens:
            if not rest:
                return
            yield self.allowed(rest)
            rest = self.after(rest, token)

    def longer(self, rest: str) -> np.ndarray:
        """The tokens whose text begins with a text, (n,)."""
        return self._ids[bisect_left(self._sorted, rest) : bisect_left(self._sorted, rest + LAST)]

    def shorter(self, rest: str) -> list[int]:
        """The tokens that are a beginning of a text and may be followed by the rest of it.

        Not all that it begins with: behind "re" no tokenizer goes on with "turn", and a model asked to would be lost.
        So texts that begin with this one are tokenised: each has a token across the text's end, one of the first in
        the vocabulary, which are the most common.
        """
        found = self._shorter.get(rest)  # another thread may clear what is known
        if found is None:
            tried = [rest]
            for end in range(1, len(rest)):
                across = self.longer(rest[end:])
                if len(across) > TRIED:
                    across = np.partition(across, TRIED)[:TRIED]
                tried += [rest[:end] + self.texts[token] for token in across]
            tried = [text for text in dict.fromkeys(tried) if BROKEN not in text]
            encoded = encode_completions(self.tokenizer, [self._before] * len(tried), tried)
            texts = {ids[0]: self.texts[ids[0]] for ids in encoded if ids}
            if len(self._shorter) >= REMEMBERED:
                self._shorter.clear()
            found = sorted(token for token, text in texts.items() if text and text != rest and rest.startswith(text))
            self._shorter[rest] = found
        return found

    def after(self, rest: str, token: int) -> str | None:
        """What remains of a text to be spelt out behind a token; None where the token is not allowed."""
        text = self.texts[token] if token < len(self.texts) else ""
        if text and text.startswith(rest):
            return ""
        return rest[len(text) :] if token in self.shorter(rest) else None


@lru_cache(maxsize=8)
def vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary, made once: 150,000 tokens take about two seconds."""
    return Vocabulary(tokenizer)


@dataclass(frozen=True)
class Rest:
    """What a completion's next tokens have to spell out."""

    words: Vocabulary
    text: str  # not empty

    @classmethod
    def of(cls, tokenizer: Any, held: str) -> "Rest | None":
        """At the beginning of a completion; None where nothing was taken back."""
        return cls(vocabulary(tokenizer), held) if held else None

    def mask(self, logits: Any) -> Any:
        """Logits, (vocabulary,), with -inf for each token that is not allowed now."""
        import torch

        allowed = self.words.allowed(self.text)
        ids = torch.as_tensor(allowed[allowed < len(logits)], device=logits.device)  # a model may have fewer
        return torch.full_like(logits, -torch.inf).index_copy(0, ids, logits[ids])

    def after(self, token: int) -> "Rest | None":
        """What remains behind a token that is allowed; None where that is nothing."""
        text = self.words.after(self.text, token)
        return Rest(self.words, text) if text else None


def starts(tokenizer: Any, prompts: Sequence[str]) -> list[Start]:
    """What the completions of some prompts begin behind."""
    ids = encode_prompts(tokenizer, prompts)
    return [take_back(tokenizer, item, prompt) for item, prompt in zip(ids, prompts, strict=True)]


def take_back(tokenizer: Any, ids: Sequence[int], prompt: str) -> Start:
    """Take back the last token of a prompt, where another could stand there, and those with which it may make one.

    Special tokens, half a character and the first token of a text stay. Of a gap in a model's own tokens it is the
    first part that is cut, and the completion, behind the last of them, begins with the text taken back all the same.
    """
    words = vocabulary(tokenizer)
    end, before = _cut(tokenizer, ids, prompt)
    count, text = 0, ""
    for number, token in enumerate(reversed(ids[:end][-MOST_TAKEN:]), 1):
        piece = words.texts[token] if token < len(words.texts) else ""
        text = piece + text
        if not piece or BROKEN in piece or not before.endswith(text):
            break
        longer = len(words.longer(text))
        if longer > 1 or (longer and number > 1) or (number == 1 and words.shorter(text)):
            count = number
    while count and not decode(tokenizer, ids[: end - count][:LOOKED_AT]):  # what begins a text reads otherwise
        count -= 1
    taken = list(ids[end - count : end])
    held = "".join(words.texts[token] for token in taken)
    return Start([*ids[: end - count], *ids[end:]], held, taken)


def continuations(tokenizer: Any, begun: Sequence[Start], completions: Sequence[str]) -> list[list[int]]:
    """Token ids of completions behind their starts, the text taken back included, as they may be drawn."""
    texts = [start.held + text for start, text in zip(begun, completions, strict=True)]
    found = encode_completions(tokenizer, [start.ids for start in begun], texts)
    for number, (start, ids) in enumerate(zip(begun, found, strict=True)):
        if not _may_be_drawn(tokenizer, start.held, ids):  # seldom: its first token is no likely beginning
            [apart] = encode_completions(tokenizer, [[*start.ids, *start.taken]], [completions[number]])
            found[number] = [*start.taken, *apart]
    return found


def losses(tokenizer: Any, logits: Any, targets: Any, held: Sequence[str]) -> Any:
    """Negative log-likelihoods in nats, (B, T), by which completions are drawn: the first tokens of those allowed.

    `logits` (B, T, vocabulary); `targets` (B, T), the completion's tokens and -100 elsewhere, which has 0; `held`: the
    text that each row begins with.
    """
    from torch.nn.functional import cross_entropy

    found = cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    for row, text in enumerate(held):
        rest = Rest.of(tokenizer, text)
        for place in (targets[row] != -100).nonzero()[:, 0]:
            if rest is None:
                break
            token = int(targets[row, place])
            found[row, place] = -rest.mask(logits[row, place]).log_softmax(-1)[token]
            rest = rest.after(token)
    return found


def _cut(tokenizer: Any, ids: Sequence[int], prompt: str) -> tuple[int, str]:
    """Where the text ends that a completion goes on with: (the number of tokens, the text up to there)."""
    own = fim.tokens(tokenizer)
    if own is not None:
        _, after, middle = tokenizer.convert_tokens_to_ids(list(own))
        if ids and ids[-1] == middle and after in ids and own[1] in prompt:
            return list(ids).index(after), prompt[: prompt.index(own[1])]
    return len(ids), prompt


def _may_be_drawn(tokenizer: Any, held: str, ids: Sequence[int]) -> bool:
    """Whether some tokens spell out a text, each being allowed where it stands."""
    words, rest = vocabulary(tokenizer), held
    for token in ids:
        if not rest:
            break
        remains = words.after(rest, token)
        if remains is None:
            return False
        rest = remains
    return not rest
