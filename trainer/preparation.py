"""The data set for a model, as every command makes it."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from code_model.context import counter, sizer
from contract.errors import InputError
from trainer import base_model, tracking
from trainer.config import Config
from trainer.data.limits import Limits
from trainer.data.prepare import Dataset, prepare, source_names
from trainer.tracking import say
from trainer.training.collator import token_counts


def check_length(config: Config, positions: int | None) -> None:
    """Raise InputError where examples may be longer than what a model of so many positions takes."""
    wanted = config.trainer.max_length + config.eval.max_new_tokens
    if positions is not None and wanted > positions:
        raise InputError(
            f"trainer.max_length and eval.max_new_tokens come to {wanted} tokens. "
            f"Expected at most {positions}: the positions that {config.model.name} has."
        )


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
        chat_template=lambda messages: base_model.chat_template(tokenizer, messages, config.model.name),
        token_counts=lambda examples: token_counts(tokenizer, examples, embeddings),
        count=counter(tokenizer),
        size=sizer(tokenizer),
        max_length=config.trainer.max_length,
        max_eval_length=most,
    )
    for source in source_names(config.data.eval_source) + source_names(config.data.source):
        say(f"Data: {source}")
        if source.startswith("runs:/"):
            tracking.connect(config.tracking.uri)
    hidden = not sys.stderr.isatty()
    with ExitStack() as bars:
        reading = bars.enter_context(tqdm(desc="reading", unit="place", leave=False, disable=hidden))

        def writing(total: int) -> Callable[[int], object]:
            reading.close()
            bar = tqdm(desc="writing", unit="example", total=total, leave=False, disable=hidden)
            return bars.enter_context(bar).update

        data = prepare(config.data, limits, folder, reading.update, writing)
    say("  " + data.report.in_words())
    say("  " + data.report.held_out_in_words())
    return data
