"""What is asked in OpenAI's forms: completions, with `suffix` to fill in the middle, and chat."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.messages import CompletionRequest, Piece
from serving.gateway.body import MOST_LOGPROBS, MOST_STOPS, SHOWN, shown
from serving.gateway.errors import Refusal
from serving.gateway.routes.parameters import PENALTIES, changes_nothing

MOST_COMPLETIONS = 64  # of one request
MOST_SNIPPETS = 256
SEEDS = 2**63


class StreamOptions(BaseModel):
    """What a stream says besides."""

    include_usage: bool = False


# Our generation parameters that have several names, of OpenAI's, of MLflow's form and of llama.cpp's.
NAMES = {
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict"),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
}


class OpenAIRequest(BaseModel):
    """What completions and chat have in common."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_new_tokens: int | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = Field(default=1, ge=1, le=MOST_COMPLETIONS)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: int | None = None  # not OpenAI's, but of other servers of its form
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    best_of: int | None = None  # only what changes nothing

    @property
    def wanted_logprobs(self) -> int:
        """Of how many tokens in each place the likelihood is wanted, beside the one that is taken; -1: of none."""
        return -1

    def params(self) -> dict[str, Any]:
        """The generation parameters that are set; the others are the model's own defaults. Raises Refusal."""
        values = {
            "max_new_tokens": self._one_of("max_new_tokens"),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop,
            "seed": None if self.seed is None else abs(self.seed) % SEEDS,
            "top_k": self.top_k,
            "repetition_penalty": self._one_of("repetition_penalty"),
        }
        return {name: value for name, value in values.items() if value is not None}

    def as_sent(self, name: str) -> str:
        """By which field a generation parameter was sent."""
        return next((item for item in NAMES.get(name, ()) if getattr(self, item) is not None), name)

    def refuse_what_is_not_there(self) -> None:
        """Raise Refusal for what would change the answer and is not supported."""
        if self.stream and self.wanted_logprobs >= 0:
            message = "logprobs of a stream are not supported here. Leave one of them out: stream or logprobs."
            raise Refusal(422, message, param="logprobs")
        for name, value in (self.model_extra or {}).items():
            if not changes_nothing(name, value):
                field = name[:SHOWN]
                instead = ", or see repetition_penalty" if name in PENALTIES else ""
                message = f"{field} is {shown(value)}. It is not supported here: leave it out{instead}."
                raise Refusal(422, message, param=field)
        if (self.best_of or 1) > self.n:
            raise Refusal(422, f"best_of is {self.best_of}. Expected n, or nothing.", param="best_of")

    def _one_of(self, name: str) -> Any:
        """A parameter by whichever of its names. Raises Refusal where two say different things."""
        given = {item: value for item in NAMES[name] if (value := getattr(self, item)) is not None}
        if len(set(given.values())) > 1:
            said = " and ".join(f"{item} is {value}" for item, value in given.items())
            raise Refusal(422, f"{said}. Expected one of them.", param=next(iter(given)))
        return next(iter(given.values()), None)


class Snippet(BaseModel):
    """A piece of another file, as llama.cpp's `input_extra` has it."""

    filename: str = ""
    text: str


class CompletionsRequest(OpenAIRequest):
    """The body of /v1/completions. Besides OpenAI's fields what an editor knows around the cursor."""

    prompt: str | list[str]
    suffix: str | None = None
    path: str = ""
    input_extra: list[Snippet] = Field(default=[], max_length=MOST_SNIPPETS)
    logprobs: Annotated[int, Field(strict=True, ge=0, le=MOST_LOGPROBS)] | Literal[False] | None = None
    echo: bool = False

    @property
    def wanted_logprobs(self) -> int:
        return -1 if self.logprobs is None or self.logprobs is False else self.logprobs

    @property
    def only_echo(self) -> bool:
        """Whether the prompt alone is wanted, with its likelihoods."""
        return self.echo and self.max_tokens == 0

    def params(self) -> dict[str, Any]:
        return super().params() | ({"max_new_tokens": 1} if self.only_echo else {})

    def refuse_what_is_not_there(self) -> None:
        super().refuse_what_is_not_there()
        if self.echo and (self.stream or self.suffix or self.path or self.input_extra):
            message = "echo is true, with stream, suffix, path or input_extra. Expected a prompt alone, answered whole."
            raise Refusal(422, message, param="echo")

    def inputs(self) -> list[CompletionRequest]:
        """What is asked of the engine. Raises Refusal where that is nothing."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts:
            raise Refusal(422, "prompt is an empty list. Expected a text, or texts.", param="prompt")
        extra = [Piece(path=item.filename, text=item.text) for item in self.input_extra]
        return [
            CompletionRequest(prompt=prompt, suffix=self.suffix or "", path=self.path, extra=extra)
            for prompt in prompts
        ]


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None  # templates do not show it

    def plain(self) -> dict[str, str]:
        """With its parts joined. Raises Refusal for what no template here would show: no text, a tool's call."""
        for name, value in (self.model_extra or {}).items():
            if value not in ([], "", {}):
                raise Refusal(
                    422, f"A message has {name[:SHOWN]}. It is not supported here: leave it out.", param="messages"
                )
        parts = self.content if isinstance(self.content, list) else [{"type": "text", "text": self.content or ""}]
        for part in parts:
            if part.get("type") != "text":
                raise Refusal(
                    422, f"A message has a part of type {shown(part.get('type'))}. Expected text.", param="messages"
                )
        return {"role": self.role, "content": "".join(str(part.get("text", "")) for part in parts)}


class ChatRequest(OpenAIRequest):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    logprobs: bool = Field(default=False, strict=True)
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)

    @property
    def wanted_logprobs(self) -> int:
        return self.top_logprobs if self.logprobs else -1

    def refuse_what_is_not_there(self) -> None:
        super().refuse_what_is_not_there()
        if self.top_logprobs and not self.logprobs:
            raise Refusal(
                422, f"top_logprobs is {self.top_logprobs}. Expected logprobs: true with it.", param="top_logprobs"
            )


@dataclass(frozen=True)
class Where:
    """What a client says of where its cursor is, besides the file's path."""

    language: str = ""
    repository: str = ""
