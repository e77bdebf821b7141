"""The models that are judged: one in this process (base model, candidate), or a registered version in its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from code_model import healing
from code_model.context import WINDOW
from code_model.params import GenerationParams
from code_model.text import TextStream
from code_model.whole_batch import generate, positions
from trainer.training.collator import EncodedExample, collate

# What a batch of completions has so far, token ids by row; whether each has ended.
Ended = Callable[[Sequence[Sequence[int]]], Sequence[bool]]
LOOK_EVERY = 8  # generated tokens: whether a completion has ended


class Likelihood(NamedTuple):
    """How likely a model finds a reference, in nats: negative log-likelihoods by which it would be drawn."""

    nll: float  # of all its tokens and the end of text
    first_token: float  # of the tokens up to the first one that adds text to the prompt
    first_line: float  # of the tokens up to the first line break; without one, of all but the end of text
    first_line_tokens: int
    ends: bool  # whether the end of text is what the model finds likeliest behind it


class JudgedModel(Protocol):
    """What an evaluation needs of a model."""

    tokenizer: Any
    dtype: str  # of its weights, as torch names it
    positions: int | None  # most tokens of prompt and completion together
    window: int | None  # tokens of the examples that it was tuned on
    embeddings: int  # rows: token ids are below

    def likelihoods(self, batch: Sequence[EncodedExample]) -> list[Likelihood]:
        """How likely it finds each completion."""

    def complete(self, prompts: Sequence[str], params: GenerationParams, ended: Ended) -> list[str]:
        """The completions of some prompts, as one batch; each stops soon after it has `ended`."""


class LoadedModel:
    """A model in this process."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.dtype = str(model.dtype)
        self.positions = positions(model.config)
        self.window = getattr(model.config, WINDOW, None)
        self.embeddings = int(model.get_input_embeddings().weight.shape[0])

    def likelihoods(self, batch: Sequence[EncodedExample]) -> list[Likelihood]:
        """As JudgedModel says."""
        import torch

        inputs = collate(batch, self.tokenizer.pad_token_id)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        targets = inputs.pop("shift_labels")  # (B, kept places), -100 on prompt and padding
        del inputs["labels"]
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()  # (B, kept places, vocab)
            losses = healing.losses(self.tokenizer, logits, targets, [item.held for item in batch])
            likeliest = logits.argmax(-1)
        found = []
        for row, item in enumerate(batch):
            places = (targets[row] != -100).nonzero()[:, 0]
            ends = bool(likeliest[row, places[-1]] == targets[row, places[-1]])
            found.append(summed(self.tokenizer, item, losses[row, places].tolist(), ends))
        return found

    def complete(self, prompts: Sequence[str], params: GenerationParams, ended: Ended) -> list[str]:
        """As JudgedModel says."""
        return generate(self.model, self.tokenizer, prompts, params, stopping(ended))


def summed(tokenizer: Any, item: EncodedExample, losses: Sequence[float], ends: bool) -> Likelihood:
    """What the losses of an example's tokens, (tokens behind the prompt,), come to."""
    prompt, tokens = item.input_ids[: item.prompt_length], item.input_ids[item.prompt_length : -1]
    text = TextStream(tokenizer, prompt, (), item.held)
    first = line = len(tokens)
    for number, token in enumerate(tokens, 1):
        text.add(token)
        first = min(first, number) if text.all else first
        if "\n" in text.all:
            line = number
            break
    return Likelihood(math.fsum(losses), math.fsum(losses[:first]), math.fsum(losses[:line]), line, ends)


def stopping(ended: Ended) -> Any:
    """A transformers.StoppingCriteria that asks `ended` every few tokens."""
    import torch
    from transformers import StoppingCriteria

    class Asking(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps = 0
            self.ended: Sequence[bool] = ()

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # (B, T) → (B,)
            self.steps += 1
            if self.steps % LOOK_EVERY == 0:
                self.ended = ended(input_ids[:, -self.steps :].tolist())
            return torch.tensor(list(self.ended) or [False] * len(input_ids), device=input_ids.device)

    return Asking()
