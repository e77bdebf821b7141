"""From examples to batches: prompt and completion tokenised apart, loss on the completion only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from serving.model import encode_prompt


class EncodedExample(NamedTuple):
    """Token ids of prompt, completion and end of text; the first `prompt_length` bear no loss."""

    input_ids: list[int]
    prompt_length: int


def encode(tokenizer: Any, prompt: str, completion: str) -> EncodedExample:
    """Tokenise as serving does: the prompt by itself, then the completion, then the end-of-text token."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    completion_ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return EncodedExample([*prompt_ids, *completion_ids, tokenizer.eos_token_id], len(prompt_ids))


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
