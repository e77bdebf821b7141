"""The configuration's section `data`."""

from dataclasses import dataclass
from typing import Any

from trainer.data.languages import NAMES as LANGUAGE_NAMES
from trainer.options import option


@dataclass
class DataConfig:
    """Parameters that choose the data."""

    source: Any = option(
        "${oc.env:DATA_SOURCE,null}",
        "Your code, or rows: a folder, a .jsonl file, package:NAME (an installed package), git:PATH[@REVISION], "
        "s3://BUCKET/KEY or hub:ORG/NAME[:SPLIT]; or a list of them, [a,b].",
        optional=True,
    )
    eval_source: Any = option(None, "As `source`: what to judge by. Default: hold out a part of `source`.")
    function_weight: float = option(
        2.0,
        "Share of the examples that are functions, completed from signature and docstring. The weights count where "
        "a function can be of several kinds.",
        at_least=0,
    )
    fim_weight: float = option(1.0, "Share that are gaps to fill in the middle of code.", at_least=0)
    next_block_weight: float = option(1.0, "Share that are the block that comes next.", at_least=0)
    exact_weights: bool = option(
        False, "Drop training examples of the commoner kinds until the kinds stand exactly as their weights do."
    )
    require_docstring: bool = option(
        True, "Complete a function from its head only where it has a docstring, or a comment right above."
    )
    redact_secrets: bool = option(True, "Overwrite keys, tokens and passwords in the data with REDACTED.")
    language: str = option(
        "auto",
        "Language of rows that name none; decides whether their syntax is checked. auto: text.",
        choices=("auto", *LANGUAGE_NAMES, "text"),
    )
    eval_fraction: float = option(0.15, "Share of the examples to hold out, by file.", above=0, at_most=0.5)
    max_eval_examples: int | None = option(
        64, "Hold out at most this many examples (a fixed choice by hash); null: all.", at_least=1, optional=True
    )
    max_train_examples: int | None = option(
        None, "Train on at most this many examples (a fixed choice by hash).", at_least=1
    )
    near_duplicate_threshold: float = option(
        0.8,
        "Jaccard similarity of token 5-grams from which two files or two examples count as duplicates.",
        above=0,
        at_most=1,
    )
