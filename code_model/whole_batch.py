"""Completions by transformers' own `generate`: a batch in one go, to the end.

The trainer evaluates with it, and the engine serves with it the models whose sequences cannot join and leave a batch.
"""

from collections.abc import Sequence
from typing import Any

from code_model.params import GenerationParams, invalid
from code_model.text import cut, decode_completion, encode_prompt


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], params: GenerationParams, stopping: Any = None
) -> list[str]:
    """The completions of some prompts as one batch, without the prompts.

    `stopping`: a transformers.StoppingCriteria that ends some of them early.
    """
    import torch

    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest = max(len(ids) for ids in encoded)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest + params.max_new_tokens > limit:
        raise invalid(
            f"A prompt of {longest} tokens and max_new_tokens={params.max_new_tokens} exceed the model's "
            f"{limit} positions. Expected a shorter prompt or fewer new tokens."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    padded = [[pad] * (longest - len(ids)) + ids for ids in encoded]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded]
    sampling: dict[str, Any] = {"do_sample": False}
    if params.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
        }
        torch.manual_seed(params.seed) if params.seed >= 0 else torch.seed()
    if params.stop:
        sampling |= {"stop_strings": list(params.stop), "tokenizer": tokenizer}
    if stopping is not None:
        sampling["stopping_criteria"] = [stopping]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),  # (B, T)
            attention_mask=torch.tensor(mask, device=model.device),  # (B, T)
            max_new_tokens=params.max_new_tokens,
            repetition_penalty=params.repetition_penalty,
            pad_token_id=pad,
            **sampling,
        )  # (B, T + new)
    return [
        cut(decode_completion(tokenizer, ids, row[longest:].tolist()), params.stop)
        for ids, row in zip(encoded, output, strict=True)
    ]
