"""Parameters of OpenAI, and of other servers of its form, that change no answer here. Whatever else is sent is refused.

A client that sends a parameter wants what it does; an answer as if it had not been sent would look as if it had worked.
"""

from typing import Any

WHATEVER_IT_IS = frozenset(
    {
        # Who asks, and what becomes of the answer afterwards.
        *("user", "store", "metadata", "service_tier", "safety_identifier", "request_id", "priority"),
        # What is kept of the prompt for the next one.
        *("prompt_cache_key", "prompt_cache_retention", "cache_prompt", "id_slot"),
        # Of tools, and of models that think or talk at length: there are none here.
        *("parallel_tool_calls", "reasoning_effort", "verbosity"),
    }
)
PENALTIES = ("presence_penalty", "frequency_penalty")
WITH_THESE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys((*PENALTIES, "min_p", "min_tokens", "mirostat"), (0,)),
    **dict.fromkeys(("length_penalty", "typical_p"), (1,)),
    **dict.fromkeys(("ignore_eos", "use_beam_search", "continue_final_message"), (False,)),
    **dict.fromkeys(("include_stop_str_in_output", "return_tokens", "return_token_ids"), (False,)),
    **dict.fromkeys(("skip_special_tokens", "add_special_tokens", "add_generation_prompt"), (True,)),
    **dict.fromkeys(("tools", "functions", "stop_token_ids", "bad_words"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "logit_bias": ({}, []),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}


def changes_nothing(name: str, value: Any) -> bool:
    """Whether the answer is the same with and without a parameter that we do not have."""
    return name in WHATEVER_IT_IS or any(_same(value, other) for other in WITH_THESE.get(name, ()))


def _same(value: Any, other: Any) -> bool:
    """Equal, and of one type: False is 0 to Python, but `logprobs: 0` asks for something."""
    return bool(value == other) and isinstance(value, bool) is isinstance(other, bool)
