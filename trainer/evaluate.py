"""Evaluation on held-out examples: the table that the promoter compares models by, and its summary.

One row per example: example_id, prompt, reference, completion, nll (nats, summed over the reference's
tokens and the end-of-text token), tokens (that count), syntax_ok, exact_match, edit_similarity (0..1).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rapidfuzz.distance import Levenshtein

from serving.model import GenerationParams, generate
from trainer.collator import EncodedExample, collate, encode
from trainer.config import EvalConfig
from trainer.data import Example
from trainer.source_tree import parses

Progress = Callable[[int], object]  # called with the number of examples just done


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    language: str,
    config: EvalConfig,
    progress: Progress = lambda done: None,
) -> pd.DataFrame:
    """The evaluation table of a model, greedily decoded. `progress` is told each example twice: nll, text."""
    model.eval()
    encoded = [encode(tokenizer, example.prompt, example.completion) for example in examples]
    # Batches of similar length waste no time on padding.
    order = sorted(range(len(examples)), key=lambda number: len(encoded[number].input_ids))
    nll = [0.0] * len(examples)
    completions = [""] * len(examples)
    params = GenerationParams(max_new_tokens=config.max_new_tokens)
    for start in range(0, len(order), config.batch_size):
        batch = order[start : start + config.batch_size]
        for number, value in zip(batch, _nll(model, tokenizer, [encoded[n] for n in batch]), strict=True):
            nll[number] = value
        progress(len(batch))
    for start in range(0, len(order), config.batch_size):
        batch = order[start : start + config.batch_size]
        prompts = [examples[number].prompt for number in batch]
        for number, text in zip(batch, generate(model, tokenizer, prompts, params), strict=True):
            completions[number] = text
        progress(len(batch))
    rows = [
        _row(example, item, value, completion, language)
        for example, item, value, completion in zip(examples, encoded, nll, completions, strict=True)
    ]
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """Metrics of an evaluation table; syntax only where it was checked."""
    nll_per_token = float(table["nll"].sum() / table["tokens"].sum())
    metrics = {
        "eval/nll_per_token": nll_per_token,
        "eval/perplexity": math.exp(min(nll_per_token, 700)),
        "eval/exact_match": float(table["exact_match"].mean()),
        "eval/edit_similarity": float(table["edit_similarity"].mean()),
        "eval/examples": float(len(table)),
    }
    if table["syntax_ok"].notna().any():
        metrics["eval/syntax_ok"] = float(table["syntax_ok"].astype(float).mean())
    return metrics


def first_function(completion: str) -> str:
    """A function body up to the first line that is back at the left margin, where the function has ended."""
    lines = completion.splitlines(keepends=True)
    end = next((n for n, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "".join(lines[:end])


def parses_cut(prompt: str, completion: str) -> bool:
    """Whether prompt and completion are valid Python, but for a last line that max_new_tokens cut off."""
    return parses(prompt + completion) or (
        "\n" in completion.rstrip("\n") and parses(prompt + completion.rpartition("\n")[0])
    )


def _nll(model: Any, tokenizer: Any, batch: Sequence[EncodedExample]) -> list[float]:
    """Negative log-likelihood of each completion in nats, summed over its tokens."""
    import torch
    from torch.nn.functional import cross_entropy

    inputs = {name: tensor.to(model.device) for name, tensor in collate(batch, tokenizer.pad_token_id).items()}
    labels = inputs.pop("labels")  # (B, T), -100 on prompt and padding
    first = min(item.prompt_length for item in batch)
    kept = labels.shape[1] - first + 1  # positions whose next token is part of some completion
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=kept).logits[:, :-1].float()  # (B, kept - 1, vocab)
        losses = cross_entropy(logits.transpose(1, 2), labels[:, first:], ignore_index=-100, reduction="none")
    return [float(value) for value in losses.sum(dim=1)]  # (B,)


def _row(example: Example, encoded: EncodedExample, nll: float, completion: str, language: str) -> dict[str, Any]:
    prompt, reference = example.prompt, example.completion
    syntax_ok = None
    if language == "python":
        if reference[0].isspace():
            completion = first_function(completion)
        syntax_ok = bool(completion.strip()) and parses_cut(prompt, completion)
    return {
        "example_id": example.example_id,
        "prompt": prompt,
        "reference": reference,
        "completion": completion,
        "nll": nll,
        "tokens": len(encoded.input_ids) - encoded.prompt_length,
        "syntax_ok": syntax_ok,
        "exact_match": completion.strip() == reference.strip(),
        "edit_similarity": Levenshtein.normalized_similarity(completion.strip(), reference.strip()),
    }
