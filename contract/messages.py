"""What goes over our two sockets, and the number of the engine's protocol.

The engine's: HTTP on a Unix socket, opened by the PyFunc in the model's process (code_model/engine_server.py), asked by
gateway and supervisor. `code_model` is logged with each version and so may be older or newer than who asks; it carries
a copy of these types, which tests/unit/test_contract.py holds equal. The evaluator's: JSON lines, in its own container.

A change that an older reader would misread takes a new PROTOCOL, and a pair of files in tests/fixtures.
"""

from typing import Any, Literal, NotRequired, TypedDict

PROTOCOL = 1

FinishReason = Literal["stop", "length"]


class Piece(TypedDict):
    """A piece of another file, for the prompt."""

    path: str
    text: str


class CompletionRequest(TypedDict, total=False):
    """POST /completions: one completion, by `prompt` or by chat `messages`.

    Of a prompt in a file: `suffix` is the text after the gap, `path` that of the file, `extra` are pieces of others.
    """

    id: str
    prompt: str
    suffix: str
    path: str
    extra: list[Piece]
    messages: list[dict[str, str]]
    params: dict[str, Any]  # generation parameters; the others are the model's defaults
    stream: bool
    deadline_s: float  # from now
    logprobs: int  # with the answer's end the likelihood of each token, and of so many others in its place
    echo: bool  # with `logprobs`: of the prompt's tokens too


class CompletionPiece(TypedDict):
    """A line of the answer while the completion grows."""

    text: str


class CompletionUsage(TypedDict):
    """What one completion took."""

    prompt_tokens: int
    completion_tokens: int
    queue_s: float  # from submission to the start of its generation
    first_token_s: float  # from submission
    batch: int  # completions that were under way when it began, itself too


class TokenLogprob(TypedDict):
    """How likely a token was."""

    token: str
    logprob: float | None  # in nats; None: of the prompt's first token, which stands behind nothing
    top: dict[str, float]  # the likeliest in its place


class CompletionEnd(TypedDict):
    """The last line of the answer: all of the text."""

    text: str
    finish_reason: FinishReason
    usage: CompletionUsage
    logprobs: NotRequired[list[TokenLogprob]]  # where they were asked for; of the prompt's tokens first


class EngineError(TypedDict):
    """The body of a refusal, or the last line of an answer that failed on its way."""

    error: str
    error_code: str | int  # MLflow's


class RequestUsage(TypedDict):
    """GET /requests/ID: what a request's completions took. DELETE stops them."""

    usage: list[CompletionUsage]


class EngineStats(TypedDict):
    """GET /stats. `protocol` is missing in what Ratchet 0.1 logged, which speaks 1."""

    protocol: int
    active: int
    waiting: int
    steps: int
    tokens: int


class EvaluatorLimits(TypedDict):
    """The first line to the evaluator."""

    timeout_s: float
    memory_mb: int


class EvaluatorProgram(TypedDict):
    """Every other line to the evaluator."""

    program: str


class EvaluatorVerdict(TypedDict):
    """The evaluator's answer to a program."""

    passed: bool
    outcome: str  # passed, failed, timeout, memory or output
    detail: str
    seconds: float
