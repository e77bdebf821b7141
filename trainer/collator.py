"""From examples to batches: prompt and completion tokenised apart, loss on the completion only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from serving.model import encode_prompt
from trainer.data import fim
from trainer.data.example import Example


class EncodedExample(NamedTuple):
    """Token ids of prompt, completion and end of text; the first `prompt_length` bear no loss."""

    input_ids: list[int]
    prompt_length: int


def prompt_of(tokenizer: Any, example: Example) -> str:
    """The prompt as the model gets it: a gap in the markers that the model knows."""
    return fim.render(example.prompt, tokenizer) if example.kind == "fim" else example.prompt


def encode(tokenizer: Any, example: Example) -> EncodedExample:
    """Tokenise as serving does: the prompt by itself, then the completion, then the end-of-text token."""
    prompt_ids = encode_prompt(tokenizer, prompt_of(tokenizer, example))
    completion_ids = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    return EncodedExample([*prompt_ids, *completion_ids, tokenizer.eos_token_id], len(prompt_ids))


def token_counts(tokenizer: Any, examples: Sequence[Example]) -> list[int]:
    """The length of each, as `encode` makes it; all at once, which is faster."""
    prompts = tokenizer([prompt_of(tokenizer, item) for item in examples], add_special_tokens=False)["input_ids"]
    completions = tokenizer([item.completion for item in examples], add_special_tokens=False)["input_ids"]
    return [max(1, len(prompt)) + len(completion) + 1 for prompt, completion in zip(prompts, completions, strict=True)]


def collate(batch: Sequence[EncodedExample], pad_token_id: int) -> dict[str, Any]:
    """Tensors input_ids, attention_mask, labels: each (B, T), padded on the right; labels -100 without loss."""
    import torch

    longest = max(len(item.input_ids) for item in batch)
    input_ids = torch.full((len(batch), longest), pad_token_id)
    attention_mask = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), -100)
    for row, (ids, prompt_length) in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
