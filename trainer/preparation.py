"""The data set for a model, as every command makes it."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from contract.errors import InputError
from trainer import base_model, tracking
from trainer.config import Config
from trainer.data.prepare import Dataset, Limits, prepare, source_names
from trainer.tracking import say
from trainer.training.collator import token_counts


def prepare_data(
    config: Config, tokenizer: Any, folder: Path, positions: int | None, embeddings: int | None = None
) -> Dataset:
    """The data set for a model with this tokenizer and so many positions, written to `folder`.

    Raises InputError for a token that the model has no row of its `embeddings` for, where their number is known.
    """
    most = positions - config.eval.max_new_tokens if positions is not None else config.trainer.max_length
    if most < 1:
        raise InputError(
            f"eval.max_new_tokens is {config.eval.max_new_tokens}. Expected less than {positions} positions."
        )
    limits = Limits(
        chat_template=lambda messages: base_model.chat_template(tokenizer, messages),
        token_counts=lambda examples: token_counts(tokenizer, examples, embeddings),
        max_length=config.trainer.max_length,
        max_eval_length=most,
    )
    for source in source_names(config.data.eval_source) + source_names(config.data.source):
        say(f"Data: {source}")
        if source.startswith("runs:/"):
            tracking.connect(config.tracking.uri)
    with tqdm(desc="reading", unit="example", leave=False, disable=not sys.stderr.isatty()) as bar:
        data = prepare(config.data, limits, folder, bar.update)
    say("  " + data.report.in_words())
    return data
