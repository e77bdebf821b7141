"""From examples to batches: tokens at the prompt's end taken back as in serving, loss on what comes behind.

A batch names the targets as `shift_labels`: at each place where the model is asked for its logits (`logits_to_keep`),
the token that comes next, or -100 where it bears no loss. So no logits are computed for prompts without loss.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from code_model import fim
from code_model.healing import Start, continuations, starts
from code_model.text import gives_back
from contract.errors import InputError
from trainer.data.example import KINDS, Example


class EncodedExample(NamedTuple):
    """Token ids of prompt, completion and end of text; the first `prompt_length` bear no loss."""

    input_ids: list[int]
    prompt_length: int
    held: str = ""  # the prompt's last characters, which stand behind `prompt_length`: a completion begins with them


def prompt_of(tokenizer: Any, example: Example) -> str:
    """The prompt as the model gets it: source code in the markers that the model knows."""
    return fim.render(example.prompt, tokenizer) if example.kind in KINDS else example.prompt


def encode(tokenizer: Any, example: Example) -> EncodedExample:
    """Tokenise as serving does: the prompt but for its end, that and the completion, then the end-of-text token."""
    return encode_all(tokenizer, [example])[0]


def encode_all(tokenizer: Any, examples: Sequence[Example]) -> list[EncodedExample]:
    """The same for many at once, which is faster."""
    begun, completions = _parts(tokenizer, examples)
    return [
        EncodedExample([*start.ids, *completion, tokenizer.eos_token_id], len(start.ids), start.held)
        for start, completion in zip(begun, completions, strict=True)
    ]


def token_counts(tokenizer: Any, examples: Sequence[Example], embeddings: int | None = None) -> list[int]:
    """The length of each, as `encode` makes it; 0 where its tokens are not decoded to its completion again.

    Raises InputError for a token that is no row of the model's `embeddings`, where their number is given.
    """
    begun, completions = _parts(tokenizer, examples)
    prompts = [start.ids for start in begun]
    if embeddings is not None:
        check_vocabulary(embeddings, [*prompts, *completions])
    texts = [start.held + item.completion for start, item in zip(begun, examples, strict=True)]
    kept = gives_back(tokenizer, prompts, completions, texts)
    return [
        len(prompt) + len(completion) + 1 if keep else 0
        for prompt, completion, keep in zip(prompts, completions, kept, strict=True)
    ]


def check_vocabulary(embeddings: int, ids: Iterable[Sequence[int]]) -> None:
    """Raise InputError where the tokenizer makes tokens that the model has no embedding for."""
    highest = max((max(item) for item in ids if item), default=0)
    if highest >= embeddings:
        raise InputError(
            f"The tokenizer makes token {highest}, and the model's embedding has {embeddings} rows. Expected a row for "
            "each: were tokens added to the tokenizer without resize_token_embeddings?"
        )


def _parts(tokenizer: Any, examples: Sequence[Example]) -> tuple[list[Start], list[list[int]]]:
    """What the completions begin behind, and their token ids."""
    begun = starts(tokenizer, [prompt_of(tokenizer, item) for item in examples])
    return begun, continuations(tokenizer, begun, [item.completion for item in examples])


def collate(batch: Sequence[EncodedExample], pad_token_id: int) -> dict[str, Any]:
    """One example a row: input_ids and attention_mask (B, T), padded on the right; targets (B, kept places)."""
    import torch

    longest = max(len(item.input_ids) for item in batch)
    input_ids = torch.full((len(batch), longest), pad_token_id)
    attention_mask = torch.zeros((len(batch), longest), dtype=torch.long)
    targets = torch.full((len(batch), longest), -100)
    for row, (ids, prompt_length, _) in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        targets[row, prompt_length - 1 : len(ids) - 1] = torch.tensor(ids[prompt_length:])
    kept = (targets != -100).any(dim=0).nonzero()[:, 0]
    return {"input_ids": input_ids, "attention_mask": attention_mask} | _with_targets(kept, targets[:, kept])


def collate_flat(batch: Sequence[EncodedExample]) -> dict[str, Any]:
    """All in one row, one after another: input_ids and position_ids (1, total), targets (1, completion tokens).

    `sequence_lengths` tells `padding_free.attention` where each ends; without it one example would see the others.
    """
    import torch

    ids = [token for item in batch for token in item.input_ids]
    lengths = [len(item.input_ids) for item in batch]
    kept: list[int] = []
    start = 0
    for item, length in zip(batch, lengths, strict=True):
        kept += range(start + item.prompt_length - 1, start + length - 1)
        start += length
    input_ids = torch.tensor([ids])
    places = torch.tensor(kept, dtype=torch.long)
    return {
        "input_ids": input_ids,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "sequence_lengths": lengths,
    } | _with_targets(places, input_ids[:, places + 1])


def _with_targets(kept: Any, targets: Any) -> dict[str, Any]:
    # transformers counts the tokens that bear loss in `shift_labels`, but only where there are `labels` too.
    return {"logits_to_keep": kept, "shift_labels": targets, "labels": targets}
