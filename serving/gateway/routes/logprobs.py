"""How likely tokens were, in OpenAI's two forms: of completions, and of chat."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from contract.messages import TokenLogprob


def of_completion(found: Sequence[TokenLogprob], start: int) -> dict[str, Any]:
    """Lists of one length; `start`: characters of the text before the first token."""
    tokens = [item["token"] for item in found]
    return {
        "tokens": tokens,
        "token_logprobs": [item["logprob"] for item in found],
        # The one that was taken is always there. What stands behind nothing has no others in its place.
        "top_logprobs": [
            None if item["logprob"] is None else {**item["top"], item["token"]: item["logprob"]} for item in found
        ],
        "text_offset": list(accumulate(map(len, tokens), initial=start))[:-1],
    }


def of_chat(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """A list of tokens, each with those in its place, likeliest first."""
    return {
        "content": [
            _token(item["token"], item["logprob"])
            | {"top_logprobs": [_token(*pair) for pair in sorted(item["top"].items(), key=lambda pair: -pair[1])]}
            for item in found
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
