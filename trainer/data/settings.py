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
        "Your code, or rows: a folder, a file or archive of code, a .jsonl, .json or .parquet file, package:NAME (an "
        "installed package), git:PATH[@REVISION], s3://BUCKET/KEY or hub:ORG/NAME[:SPLIT]; or a list of them, [a,b].",
        optional=True,
    )
    eval_source: Any = option(None, "As `source`: what to judge by. Default: hold out a part of `source`.")
    eval_since: str | None = option(
        None,
        "Judge by code alone that data.eval_source has, and had not at this commit, tag or branch of git: by places "
        "with a line that no file had then.",
        optional=True,
    )
    include: Any = option(
        None,
        "Take only these files: a git pathspec, or a list of them, such as ['src',':(glob)**/*.go',':!tests']. Paths "
        "begin at the source.",
        optional=True,
    )
    exclude: Any = option(None, "Leave these files out: as `include`.", optional=True)
    function_weight: float = option(
        1.0, "Share of the examples that are whole functions, written from what stands before their body.", at_least=0
    )
    fim_weight: float = option(
        2.0, "Share that are gaps to fill, from any character on, with the code after them known.", at_least=0
    )
    next_block_weight: float = option(1.0, "Share that are the statements that come next.", at_least=0)
    exact_weights: bool = option(
        False,
        "Drop training examples until the kinds stand exactly as their weights do. false: of a kind that is rare all "
        "are taken, and at least half of the others.",
    )
    require_docstring: bool = option(
        False, "Complete whole functions only where they have a docstring, or a comment right above."
    )
    max_test_share: float = option(
        0.25,
        "Share of the training examples that are from tests, at most; 1: as many as there are.",
        above=0,
        at_most=1,
    )
    max_file_share: float = option(
        0.1, "Share of the training examples that are from one file, at most (some in any case).", above=0, at_most=1
    )
    redact_secrets: bool = option(True, "Overwrite keys, tokens and passwords in the data with REDACTED.")
    language: str = option(
        "auto",
        "Language of rows that name none; decides whether their syntax is checked. auto: text.",
        choices=("auto", *LANGUAGE_NAMES, "text"),
    )
    eval_fraction: float = option(0.15, "Share of the examples to hold out, by file.", above=0, at_most=0.5)
    min_eval_files: int = option(
        10,
        "Hold out at least this many files, where that is a third of them or less (6 of 12 to 18): the gate counts "
        "files, and not examples.",
        at_least=1,
    )
    max_eval_examples: int | None = option(
        256,
        "Judge by at most this many held-out examples (some of each file, chosen by hash); null: all.",
        at_least=1,
        optional=True,
    )
    max_eval_examples_per_file: int = option(16, "Judge by at most this many examples of one file.", at_least=1)
    split: str = option(
        "hash",
        "Which files are held out. hash: by a hash of their paths. newest: those that git saw change last, so that the "
        "code judged by is newer than the code trained on.",
        choices=("hash", "newest"),
    )
    max_train_examples: int | None = option(
        None, "Train on at most this many examples (a fixed choice by hash).", at_least=1
    )
    near_duplicate_threshold: float = option(
        0.8,
        "From this similarity on two files, functions or rows count as duplicates: Jaccard's of their token 5-grams; "
        "for code on both sides of the split also what their tokens have in common in the same order.",
        above=0,
        at_most=1,
    )
