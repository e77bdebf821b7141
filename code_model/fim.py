"""Fill in the middle: the text before a gap and after it as one prompt, in the markers that the model knows.

Models that were trained to fill gaps have three tokens of their own for it, in one of the spellings below
(prefix, suffix, middle: the order that StarCoder made common). Any other model gets the neutral spelling as plain text,
which fine-tuning teaches it.
"""

from functools import lru_cache
from typing import Any

NEUTRAL = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
KNOWN = (
    NEUTRAL,  # StarCoder, StarCoder2, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def prompt(prefix: str, suffix: str) -> str:
    """The prompt of a gap, in neutral markers."""
    return fill(prefix, suffix, NEUTRAL)


def fill(prefix: str, suffix: str, own: tuple[str, str, str]) -> str:
    """The prompt of a gap, in a model's own markers."""
    return f"{own[0]}{prefix}{own[1]}{suffix}{own[2]}"


def parts(text: str, own: tuple[str, str, str]) -> tuple[str, str] | None:
    """(prefix, suffix) of a gap's prompt in a model's own markers; None for any other text."""
    before, after, middle = own
    if not (text.startswith(before) and text.endswith(middle)):
        return None
    prefix, found, suffix = text[len(before) : len(text) - len(middle)].partition(after)
    return (prefix, suffix) if found else None


def is_prompt(text: str) -> bool:
    """Whether `prompt` may have made this text."""
    return parts(text, NEUTRAL) is not None


@lru_cache(maxsize=8)  # a vocabulary is made anew each time that it is asked for
def tokens(tokenizer: Any) -> tuple[str, str, str] | None:
    """The tokenizer's own three tokens, or None where it has none."""
    vocabulary = tokenizer.get_vocab()
    return next((known for known in KNOWN if all(token in vocabulary for token in known)), None)


def may_hold_gaps(text: str) -> bool:
    """Whether no marker of any model stands in the text: a prompt would then have one marker twice."""
    return not any(marker in text for markers in KNOWN for marker in markers)


def render(text: str, tokenizer: Any) -> str:
    """A prompt in neutral markers as this tokenizer's model expects it; no other text than `prompt` makes."""
    own, found = tokens(tokenizer), parts(text, NEUTRAL)
    return text if own is None or found is None else fill(*found, own)
