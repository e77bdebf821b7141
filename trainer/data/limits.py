"""What a model says about the data: how it counts tokens, and how many it takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from code_model.context import Count, Size
from trainer.data.example import Example
from trainer.data.rows import ChatTemplate


@dataclass(frozen=True)
class Limits:
    """A model's, or a test's stand-in."""

    chat_template: ChatTemplate
    # Of prompt, completion and end of text together; 0 where the tokenizer does not give the completion back.
    token_counts: Callable[[Sequence[Example]], list[int]]
    count: Count  # tokens of texts by themselves
    size: Size  # of a prompt as the model reads it
    max_length: int  # tokens, of an example to train on
    max_eval_length: int  # tokens, of a row from data.eval_source
