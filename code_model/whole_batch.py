"""Completions by transformers' own `generate`: a batch in one go, to the end.

The trainer evaluates with it, and the engine serves with it the models whose sequences cannot join and leave a batch.
"""

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

from code_model.healing import Rest, Start, starts
from code_model.params import GenerationParams, invalid
from code_model.text import TextStream


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], params: GenerationParams, stopping: Any = None
) -> list[str]:
    """The completions of some prompts, without the prompts.

    As one batch, or in batches of one length where the model takes padding for text.

    `stopping`: a transformers.StoppingCriteria that ends some of them early, of one batch alone.
    """
    encoded = starts(tokenizer, prompts)
    lengths = sorted({len(start.ids) for start in encoded})
    if len(lengths) == 1 or masks_padding(model):
        return _generate(model, tokenizer, encoded, params, stopping)
    found = [""] * len(prompts)
    for length in lengths:
        places = [place for place, start in enumerate(encoded) if len(start.ids) == length]
        texts = _generate(model, tokenizer, [encoded[place] for place in places], params, None)
        for place, text in zip(places, texts, strict=True):
            found[place] = text
    return found


def masks_padding(model: Any) -> bool:
    """Whether a text is completed in the same way with padding before it: not so by RWKV, say. Tried once a model."""
    if model not in _MASKS_PADDING:
        _MASKS_PADDING[model] = _try_padding(model)
    return _MASKS_PADDING[model]


_MASKS_PADDING: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def reads_as_it_completes(model: Any, length: int = 6) -> bool:
    """Whether `generate` goes by the logits of a forward pass over the whole text, after prompts of a length."""
    import torch

    count = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[(3 + 7 * place) % count for place in range(length)]] * 2, device=model.device)
    tokens, found = _completed(model, ids, torch.ones_like(ids))
    with torch.inference_mode():
        expected = model(input_ids=tokens[:, :-1], use_cache=False).logits[:, ids.shape[1] - 1 :].float()
    return bool((found - expected).abs().mean() < 0.1 * expected.std())


def _completed(model: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """Four tokens more for each row: (all token ids, (B, T + 4); the logits of the new ones, (B, 4, vocabulary))."""
    import torch

    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return output.sequences, torch.stack(output.logits, dim=1).float()


def _try_padding(model: Any) -> bool:
    import torch

    count = model.get_input_embeddings().weight.shape[0]
    ids = [(3 + 7 * place) % count for place in range(6)]
    (_, alone), (_, padded) = (
        _completed(
            model,
            torch.tensor([[1 % count] * padding + ids], device=model.device),
            torch.tensor([[0] * padding + [1] * len(ids)], device=model.device),
        )
        for padding in (0, 5)
    )
    return bool((alone - padded).abs().mean() < 0.1 * alone.std())


def _generate(
    model: Any, tokenizer: Any, encoded: Sequence[Start], params: GenerationParams, stopping: Any
) -> list[str]:
    """The completions of some prompts, encoded, as one batch."""
    import torch

    longest = max(len(start.ids) for start in encoded)
    limit = positions(model.config)
    if limit is not None and longest + params.max_new_tokens > limit:
        raise invalid(
            f"A prompt of {longest} tokens and max_new_tokens={params.max_new_tokens} exceed the model's "
            f"{limit} positions. Expected a shorter prompt or fewer new tokens."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    padded = [[pad] * (longest - len(start.ids)) + start.ids for start in encoded]
    mask = [[0] * (longest - len(start.ids)) + [1] * len(start.ids) for start in encoded]
    sampling: dict[str, Any] = {"do_sample": False}
    if params.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
        }
        torch.manual_seed(params.seed) if params.seed >= 0 else torch.seed()
    criteria = [_Stopped(tokenizer, encoded, params.stop)] if params.stop else []
    if stopping is not None:
        criteria.append(stopping)
    if any(start.held for start in encoded):
        sampling["logits_processor"] = [_Healing(tokenizer, encoded)]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),  # (B, T)
            attention_mask=torch.tensor(mask, device=model.device),  # (B, T)
            max_new_tokens=params.max_new_tokens,
            repetition_penalty=params.repetition_penalty,
            pad_token_id=pad,
            stopping_criteria=criteria,
            **sampling,
        )  # (B, T + new)
    ends = end_tokens(model)
    new = [list(itertools.takewhile(lambda token: token not in ends, row[longest:].tolist())) for row in output]
    return [_text(tokenizer, start, tokens, params.stop) for start, tokens in zip(encoded, new, strict=True)]


class _Healing:
    """Has each row begin with the text taken back from its prompt; a transformers.LogitsProcessor by shape."""

    def __init__(self, tokenizer: Any, encoded: Sequence[Start]) -> None:
        self.rests = [Rest.of(tokenizer, start.held) for start in encoded]
        self.first = True

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # (B, T), (B, vocabulary) → (B, vocabulary)
        if not self.first and any(self.rests):
            rows = zip(self.rests, input_ids[:, -1].tolist(), strict=True)
            self.rests = [rest.after(token) if rest is not None else None for rest, token in rows]
        self.first = False
        if not any(self.rests):
            return scores
        scores = scores.clone()
        for row, rest in enumerate(self.rests):
            if rest is not None:
                scores[row] = rest.mask(scores[row])
        return scores


class _Stopped:
    """Ends each row at a stop text behind its prompt; a transformers.StoppingCriteria by shape."""

    def __init__(self, tokenizer: Any, encoded: Sequence[Start], stop: Sequence[str]) -> None:
        self.texts = [TextStream(tokenizer, start.ids, stop, start.held) for start in encoded]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # (B, T) → (B,)
        import torch

        for text, token in zip(self.texts, input_ids[:, -1].tolist(), strict=True):
            if not text.stopped:
                text.add(token)
        return torch.tensor([text.stopped for text in self.texts], device=input_ids.device)


def positions(config: Any) -> int | None:
    """How many tokens a model takes at most, where its configuration says so; XLNet's -1 says: as many as you like."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found is not None and found > 0 else None


def end_tokens(model: Any) -> frozenset[int]:
    """The tokens that end a completion."""
    ends = model.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or [])


def _text(tokenizer: Any, start: Start, new: Sequence[int], stop: Sequence[str]) -> str:
    """The text of new tokens, piece by piece as serving streams it: what is no character may come out otherwise."""
    stream = TextStream(tokenizer, start.ids, stop, start.held)
    for token in new:
        stream.add(token)
    stream.finish()
    return stream.all
