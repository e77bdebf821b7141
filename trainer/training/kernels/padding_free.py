"""Batches without padding: examples one after another in a row, each attending to itself alone.

Works with every model of transformers that takes its attention from the library's interface and mixes tokens nowhere
else; whether one does is not guessed but tried (`is_exact`), before training.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from trainer.training.collator import EncodedExample, collate_flat

NAME = "ratchet_padding_free"
SHORT = 512  # tokens: up to here a sequence's square of scores is small
LONGEST_TRIED = 1024  # tokens of a window, beyond which `is_exact` tries no sequence
_WATCHERS: list[list[int | None]] = []  # get the window of each call


def attention(
    module: Any,
    query: torch.Tensor,  # (1, heads, total, head size)
    key: torch.Tensor,  # (1, key-value heads, total, head size)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sequence_lengths: list[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence; (1, total, heads, head size). No square of the whole row is computed."""
    unknown = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {unknown[0]}")
    for watcher in _WATCHERS:
        watcher.append(sliding_window)
    lengths = sequence_lengths or [query.shape[2]]
    outputs = []
    parts: list[Any] = [query, key, value]
    dropped = dropout if module.training else 0.0
    quick = query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropped
    for one_query, one_key, one_value in zip(*(part.split(lengths, dim=2) for part in parts), strict=True):
        length = one_query.shape[2]
        mask = _window(length, sliding_window, query.device)
        if quick and length <= SHORT and mask is None:
            outputs.append(_short(one_query, one_key, one_value, scaling))
            continue
        outputs.append(
            scaled_dot_product_attention(
                one_query,
                one_key,
                one_value,
                attn_mask=mask,
                dropout_p=dropped,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """(length, length), true where attention may go, if that is not simply all that came before."""
    if sliding_window is None or length <= sliding_window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None]
    return (distance >= 0) & (distance < sliding_window)


def _short(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """The same in three products: on a CPU in bfloat16, torch's own takes twice as long for a short sequence."""
    heads, length, size = query.shape[1:]
    groups = key.shape[1]  # each shared by heads // groups heads
    stacked = (query * (scaling or size**-0.5)).reshape(groups, heads // groups * length, size)
    mask = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1).repeat(heads // groups, 1)
    scores = torch.baddbmm(mask, stacked, key[0].transpose(1, 2))  # (groups, heads // groups * length, length)
    return (scores.softmax(dim=-1) @ value[0]).view(1, heads, length, size)


AttentionInterface.register(NAME, attention)


def is_exact(model: Any, longest: int) -> bool:
    """Whether two sequences in one row give the logits that each gives alone; leaves the model as it was.

    `longest`: tokens of the longest sequence to come. Where the model's window is shorter, sequences beyond it are
    tried; a window too long to be tried has to be one that the model hands to its attention, since a window that is in
    its mask alone is lost.
    """
    before = model.config._attn_implementation
    window = narrowest_window(model.config.get_text_config())
    lengths = (min(9, longest), min(6, longest))
    if window is not None and window < longest:
        if window > LONGEST_TRIED:
            return _hands_on(model, window, before)
        lengths = (window + 9, window + 6)
    return _same(model, lengths, before)


def narrowest_window(config: Any) -> int | None:
    """How many tokens back the most short-sighted layer looks, by the configuration; None for all."""
    found = []
    if getattr(config, "use_sliding_window", None) is not False:
        found += [
            getattr(config, name, None)
            for name in ("sliding_window", "sliding_window_size", "window_size", "keep_window_size")
        ]
    found += [getattr(config, name, None) for name in ("attention_chunk_size", "attention_window_size")]
    return min((value for value in found if isinstance(value, int) and value > 0), default=None)


def _hands_on(model: Any, window: int, before: str) -> bool:
    """Whether the model tells its attention of the window, and is exact within it."""
    seen: list[int | None] = []
    _WATCHERS.append(seen)
    try:
        return _same(model, (9, 6), before) and window in seen
    finally:
        _WATCHERS.remove(seen)


def _same(model: Any, lengths: tuple[int, int], before: str) -> bool:
    size = model.get_input_embeddings().weight.shape[0]
    first, second = (
        [(start + 7 * place) % size for place in range(length)] for start, length in zip((3, 5), lengths, strict=True)
    )
    ends = [2, lengths[0] + 3, sum(lengths) - 1]  # some places whose logits alone are asked for
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = [
                model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
                for ids in (first, second)
            ]
            model.set_attn_implementation(NAME)
            batch = collate_flat([EncodedExample(first, 1), EncodedExample(second, 1)])
            row = model(
                input_ids=batch["input_ids"].to(model.device),
                position_ids=batch["position_ids"].to(model.device),
                sequence_lengths=batch["sequence_lengths"],
                use_cache=False,
            ).logits[0]
            some = model(
                input_ids=batch["input_ids"].to(model.device),
                position_ids=batch["position_ids"].to(model.device),
                sequence_lengths=batch["sequence_lengths"],
                logits_to_keep=torch.tensor(ends, device=model.device),
                use_cache=False,
            ).logits[0]
    except (NotImplementedError, TypeError, ValueError, KeyError, RuntimeError, AttributeError, IndexError):
        return False
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
    expected = torch.cat(alone).float()
    if row.shape != expected.shape or some.shape != expected[ends].shape:
        return False
    close = 0.02 if model.dtype == torch.bfloat16 else 1e-4
    spread = float(expected.std())
    return (
        float((row.float() - expected).abs().mean()) < close * spread
        and float((some.float() - expected[ends]).abs().mean()) < close * spread
    )
