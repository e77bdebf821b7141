"""How likely a model finds the references: batches of like length, and their negative log-likelihoods."""

from collections.abc import Callable, Iterator, Sequence

from trainer.evaluation.models import JudgedModel, Likelihood
from trainer.training.collator import EncodedExample

MAX_BATCH_TOKENS = 8192  # of a forward pass, padding included: long examples go in smaller batches


def likelihoods(
    model: JudgedModel, encoded: Sequence[EncodedExample], batch_size: int, progress: Callable[[int], object]
) -> list[Likelihood]:
    """How likely the model finds each example's completion."""
    found: dict[int, Likelihood] = {}
    for batch in batches(encoded, batch_size):
        for number, value in zip(batch, model.likelihoods([encoded[n] for n in batch]), strict=True):
            found[number] = value
        progress(len(batch))
    return [found[number] for number in range(len(encoded))]


def batches(encoded: Sequence[EncodedExample], size: int, room: int = 0) -> Iterator[list[int]]:
    """Numbers of examples of similar length, which waste no time on padding, shortest first; `room`: tokens to come."""
    batch: list[int] = []
    for number in sorted(range(len(encoded)), key=lambda number: len(encoded[number].input_ids)):
        longest = len(encoded[number].input_ids) + room
        if batch and (len(batch) >= size or longest * (len(batch) + 1) > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
