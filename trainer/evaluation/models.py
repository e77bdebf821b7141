"""The models that are judged: one in this process (base model, candidate), or a registered version in its own."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from code_model.params import GenerationParams
from code_model.whole_batch import generate, positions
from trainer.training.collator import EncodedExample, collate

# What a batch of completions has so far, token ids by row; whether each has ended.
Ended = Callable[[Sequence[Sequence[int]]], Sequence[bool]]
LOOK_EVERY = 8  # generated tokens: whether a completion has ended


class JudgedModel(Protocol):
    """What an evaluation needs of a model."""

    tokenizer: Any
    dtype: str  # of its weights, as torch names it
    positions: int | None  # most tokens of prompt and completion together
    embeddings: int  # rows: token ids are below

    def likelihoods(self, batch: Sequence[EncodedExample]) -> list[float]:
        """Negative log-likelihood of each completion in nats, summed over its tokens."""

    def complete(self, prompts: Sequence[str], params: GenerationParams, ended: Ended) -> list[str]:
        """The completions of some prompts, as one batch; each stops soon after it has `ended`."""


class LoadedModel:
    """A model in this process."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.dtype = str(model.dtype)
        self.positions = positions(model.config)
        self.embeddings = int(model.get_input_embeddings().weight.shape[0])

    def likelihoods(self, batch: Sequence[EncodedExample]) -> list[float]:
        """As JudgedModel says."""
        import torch
        from torch.nn.functional import cross_entropy

        inputs = collate(batch, self.tokenizer.pad_token_id)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        targets = inputs.pop("shift_labels")  # (B, kept places), -100 on prompt and padding
        del inputs["labels"]
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()  # (B, kept places, vocab)
            losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
        return [float(value) for value in losses.sum(dim=1)]  # (B,)

    def complete(self, prompts: Sequence[str], params: GenerationParams, ended: Ended) -> list[str]:
        """As JudgedModel says."""
        return generate(self.model, self.tokenizer, prompts, params, stopping(ended))


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
