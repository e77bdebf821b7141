"""What one step trains on: examples in an order that a resumed run finds again, shared out among the processes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from contract.errors import InputError
from trainer.data.example import KINDS, Example, hash64
from trainer.training.collator import EncodedExample, encode


class TrainingData(NamedTuple):
    """Examples with their lengths in tokens, (len(examples),)."""

    examples: Sequence[Example]
    lengths: Sequence[int]


class Examples(Dataset[EncodedExample]):
    """Some of the examples, read from disk and encoded when it is their turn.

    Those made from code bear loss on their prompts too, unless it is to be on completions only.
    """

    def __init__(
        self, data: TrainingData, tokenizer: Any, numbers: Sequence[int], completion_only_loss: bool = True
    ) -> None:
        self.examples, self.tokenizer, self.numbers = data.examples, tokenizer, numbers
        self.completion_only_loss = completion_only_loss
        self.lengths = [int(data.lengths[number]) for number in numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> EncodedExample:
        number = self.numbers[index if index >= 0 else -1 - index]
        example = self.examples[number]
        encoded = encode(self.tokenizer, example)
        if index < 0:
            return encoded._replace(prompt_length=len(encoded.input_ids))  # bears no loss
        if self.completion_only_loss or example.kind not in KINDS:
            return encoded
        return encoded._replace(prompt_length=1)


class Batches(Sampler[list[int]]):
    """The batches of one of several processes, in an order that only seed and epoch decide.

    So a resumed run finds its place, and each step has the same examples whatever the number of processes. Where there
    are too few for all, at the end of an epoch, a process gets one as -1 - index: to go through, and to learn nothing.
    """

    def __init__(self, lengths: Sequence[int], batch: int, steps: int, seed: int, rank: int, world: int) -> None:
        self.lengths, self.batch, self.seed, self.rank, self.world = lengths, batch * world, seed, rank, world
        self.group = self.batch * steps  # examples of like length that are put together; 0: in any order
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.group:
            order = get_length_grouped_indices(list(self.lengths), self.group, generator=generator)
        else:
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.batch):
            everyones = order[start : start + self.batch]
            mine = np.array_split(everyones, self.world)[self.rank].tolist()
            yield mine or [-1 - everyones[0]]


def split(data: TrainingData, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(numbers to train on, numbers to validate by): a share of the files, chosen by hash."""
    everything = list(range(len(data.examples)))
    if not fraction:
        return everything, []
    chosen = [hash64(f"{seed}\0{data.examples[number].group}") < fraction * 2**64 for number in everything]
    train = [number for number in everything if not chosen[number]]
    validation = [number for number in everything if chosen[number]]
    if not train or not validation:
        raise InputError(
            f"trainer.validation_fraction is {fraction}, which leaves {len(train)} examples to train on and "
            f"{len(validation)} to validate by. Expected some of each: give more files, or another fraction."
        )
    return train, validation
