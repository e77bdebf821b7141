"""Completions of examples: greedy, and drawn where there are tests."""

from collections.abc import Callable, Sequence
from typing import Any

from code_model.params import GenerationParams
from code_model.text import decode_completion
from trainer.config import EvalConfig
from trainer.data.example import Example
from trainer.evaluation.likelihood import batches
from trainer.evaluation.models import Ended, JudgedModel
from trainer.evaluation.truncation import cut
from trainer.training.collator import EncodedExample, prompt_of

Progress = Callable[[int], object]


def completions(
    model: JudgedModel,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
    params: GenerationParams,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """The completions, each cut where its function has ended."""
    found = [""] * len(examples)
    for batch in batches(encoded, batch_size, params.max_new_tokens):
        chosen = [examples[number] for number in batch]
        prompts = [prompt_of(model.tokenizer, example) for example in chosen]
        ended = _function_has_ended(model.tokenizer, chosen, [encoded[number] for number in batch])
        texts = model.complete(prompts, params, ended)
        for number, text in zip(batch, texts, strict=True):
            found[number] = cut(examples[number], text)
        progress(len(batch))
    return found


def _function_has_ended(tokenizer: Any, examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> Ended:
    """Stops a completion that writes on behind its function, which would be cut off; chat models do."""

    def ended(new: Sequence[Sequence[int]]) -> list[bool]:
        texts = [
            decode_completion(tokenizer, item.input_ids[: item.prompt_length], list(ids))[len(item.held) :]
            for item, ids in zip(encoded, new, strict=True)
        ]
        return [cut(example, text) != text for example, text in zip(examples, texts, strict=True)]

    return ended


def samples(
    model: JudgedModel,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
    config: EvalConfig,
    seed: int,
    progress: Progress,
) -> list[list[str]]:
    """The sampled completions of each example: (len(examples), config.samples)."""
    drawn: list[list[str]] = [[] for _ in examples]
    for sample in range(config.samples):
        params = GenerationParams(config.max_new_tokens, config.temperature, config.top_p, seed=(seed + sample) % 2**32)
        texts = completions(model, examples, encoded, params, config.batch_size, progress)
        for texts_of_one, text in zip(drawn, texts, strict=True):
            texts_of_one.append(text)
    return drawn
