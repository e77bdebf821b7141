"""OpenAI's forms: completions, with `suffix` to fill in the middle, and chat, each whole or streamed."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from contract.messages import CompletionEnd, CompletionPiece, CompletionRequest, Piece
from serving.gateway.body import MOST_LOGPROBS, MOST_STOPS, SHOWN, body_of, shown
from serving.gateway.errors import Refusal
from serving.gateway.feedback import new_id
from serving.gateway.routes import logprobs
from serving.gateway.routes.parameters import PENALTIES, changes_nothing
from serving.gateway.worker import Answered, Gateway, gateway_of, until_gone

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1")
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


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served here."""
    gateway = gateway_of(request)
    return {"object": "list", "data": [_model(gateway)]}


@router.get("/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The one model that is served here, by its name."""
    gateway = gateway_of(request)
    _check_model(gateway, name)
    return _model(gateway)


@router.post("/completions")
async def completions(
    request: Request, body: Annotated[CompletionsRequest, Depends(body_of(CompletionsRequest))]
) -> Response:
    """Continue a prompt, or fill what stands between it and `suffix`."""
    return await _answer(request, body, body.inputs(), "text_completion")


@router.post("/chat/completions")
async def chat(request: Request, body: Annotated[ChatRequest, Depends(body_of(ChatRequest))]) -> Response:
    """Answer the last message, in the model's own chat template."""
    inputs = [CompletionRequest(messages=[message.plain() for message in body.messages])]
    return await _answer(request, body, inputs, "chat.completion")


Kind = Literal["text_completion", "chat.completion"]


async def _answer(request: Request, body: OpenAIRequest, inputs: list[CompletionRequest], kind: Kind) -> Response:
    gateway = gateway_of(request)
    _check_model(gateway, body.model)
    body.refuse_what_is_not_there()
    if len(inputs) * body.n > MOST_COMPLETIONS:
        raise Refusal(
            422, f"{len(inputs)} prompts, {body.n} times each. Expected {MOST_COMPLETIONS} completions at most."
        )
    work = Answer(request, gateway, body, inputs, kind)
    try:
        if body.stream:
            await until_gone(request, work.begin())
            return StreamingResponse(
                work.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        return Response(json.dumps(await until_gone(request, work.whole())), media_type="application/json")
    except BaseException:
        await work.close()
        raise


@dataclass(frozen=True)
class Where:
    """What a client says of where its cursor is, besides the file's path."""

    language: str = ""
    repository: str = ""


class Answer:
    """One request: each of its completions comes from the engine by itself."""

    def __init__(
        self,
        request: Request,
        gateway: Gateway,
        body: OpenAIRequest,
        inputs: list[CompletionRequest],
        kind: Kind,
        where: Where | None = None,
    ) -> None:
        self.where = where or Where()
        self.request, self.gateway, self.body, self.inputs = request, gateway, body, inputs
        self.params = body.params()
        self.kind: Kind = kind
        self.id = new_id("cmpl" if kind == "text_completion" else "chatcmpl")
        self.created, self.began_ns = int(time.time()), time.time_ns()
        self.until = gateway.until()
        self.open = AsyncExitStack()
        self.streams: list[AsyncIterator[CompletionPiece | CompletionEnd]] = []
        self.ends: dict[int, CompletionEnd] = {}

    async def begin(self) -> None:
        """Ask for all completions, and wait for the first piece of each. Raises Refusal."""
        tasks = [
            asyncio.ensure_future(self._ask(given, number)) for given in self.inputs for number in range(self.body.n)
        ]
        try:
            self.streams = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def _ask(self, given: CompletionRequest, number: int) -> AsyncIterator[CompletionPiece | CompletionEnd]:
        params = dict(self.params)
        if (wanted := self.body.wanted_logprobs) >= 0:
            given = {**given, "logprobs": wanted, "echo": bool(getattr(self.body, "echo", False))}
        if number and params.get("seed", -1) >= 0:
            params["seed"] = (params["seed"] + number) % SEEDS  # or all n would be the same
        try:
            return await self.open.enter_async_context(
                self.gateway.engine.complete(
                    {**given, "params": params, "stream": self.body.stream},
                    self.until,
                    lambda live: setattr(self.request.state, "live", live),
                )
            )
        except Refusal as refusal:
            self._name_what_was_sent(refusal)
            raise

    def _name_what_was_sent(self, refusal: Refusal) -> None:
        """Say by the client's own names, and OpenAI's code, what the engine has refused."""
        message = refusal.message
        if refusal.status != 422:
            return
        if message.startswith("A prompt "):
            refusal.code = "context_length_exceeded"
            refusal.param = "prompt" if self.kind == "text_completion" else "messages"
        for name in self.params:
            if message.startswith(f"{name} is "):
                refusal.param = self.body.as_sent(name)
                refusal.message = refusal.param + message.removeprefix(name)

    async def whole(self) -> dict[str, Any]:
        """All completions, as one object."""
        await self.begin()
        for index, stream in enumerate(self.streams):
            async for item in stream:
                if "finish_reason" in item:
                    self.ends[index] = cast(CompletionEnd, item)
        await self.close()
        await self._record()
        choices = [
            self._choice(
                index, self._text(index, end), end["finish_reason"], False, logprobs=self._logprobs(index, end)
            )
            for index, end in sorted(self.ends.items())
        ]
        return {**self._head(False), "choices": choices, "usage": self._usage()}

    def _text(self, index: int, end: CompletionEnd) -> str:
        if not isinstance(self.body, CompletionsRequest) or not self.body.echo:
            return end["text"]
        return self._prompt(index) + ("" if self.body.only_echo else end["text"])

    def _prompt(self, index: int) -> str:
        return str(self.inputs[index // self.body.n].get("prompt", ""))

    def _logprobs(self, index: int, end: CompletionEnd) -> dict[str, Any] | None:
        """In the form of the request. Raises Refusal where the version has none."""
        if self.body.wanted_logprobs < 0:
            return None
        found = end.get("logprobs")
        if found is None:
            raise Refusal(422, "The version that is served tells no logprobs: leave them out.", param="logprobs")
        if not isinstance(self.body, CompletionsRequest):
            return logprobs.of_chat(found)
        return logprobs.of_completion(
            found[:-1] if self.body.only_echo else found, 0 if self.body.echo else len(self._prompt(index))
        )

    async def events(self) -> AsyncIterator[bytes]:
        """The pieces of all completions as they come, as server-sent events."""
        pieces: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        async def read(index: int, stream: AsyncIterator[CompletionPiece | CompletionEnd]) -> None:
            try:
                async for item in stream:
                    await pieces.put((index, item))
            except Refusal as refusal:
                await pieces.put((index, refusal))
            except Exception as error:
                log.error("%s: %s: %s", self.id, type(error).__name__, error)
                await pieces.put((index, Refusal(503, "The completion broke off. Ask again.")))

        tasks = [asyncio.ensure_future(read(index, stream)) for index, stream in enumerate(self.streams)]
        try:
            if self.kind == "chat.completion":
                for index in range(len(self.streams)):
                    yield self._event([self._choice(index, "", None, True, role=True)])
            while len(self.ends) < len(self.streams):
                index, item = await pieces.get()
                if isinstance(item, Refusal):
                    self.request.state.failed = item.status
                    yield _sse(item.openai())
                    return
                if "finish_reason" in item:
                    self.ends[index] = item
                    yield self._event([self._choice(index, "", item["finish_reason"], True)])
                else:
                    yield self._event([self._choice(index, item["text"], None, True)])
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield _sse({**self._head(True), "choices": [], "usage": self._usage()})
            await self._record()  # now: a client may close before the last line
            yield b"data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()
            await self.close()

    async def close(self) -> None:
        """Let the engine go; what is not done is stopped."""
        await self.open.aclose()

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind
        live = self.request.state.live
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": live.model,
            "system_fingerprint": f"version-{live.version}",
        }

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        return _sse({**self._head(True), "choices": choices})

    def _choice(
        self,
        index: int,
        text: str,
        reason: str | None,
        chunk: bool,
        role: bool = False,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        end = {"index": index, "finish_reason": reason, "logprobs": logprobs}
        if self.kind == "text_completion":
            return {"text": text, **end}
        if not chunk:
            return {"message": {"role": "assistant", "content": text, "refusal": None}, **end}
        said = {"content": text} if text or role else {}
        return {"delta": {"role": "assistant", **said} if role else said, **end}

    def _usage(self) -> dict[str, int]:
        usages = [end["usage"] for _, end in sorted(self.ends.items())]
        prompt = sum(usage["prompt_tokens"] for usage in usages[:: self.body.n])
        completion = sum(usage["completion_tokens"] for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def _record(self) -> None:
        ends = [end for _, end in sorted(self.ends.items())]
        completions = [end["text"] for end in ends]
        await self.gateway.record(
            self.request,
            Answered(
                id=self.id,
                began_ns=self.began_ns,
                inputs={"inputs": self.inputs, "params": self.params},
                outputs={"completions": completions},
                prompt=_prompt_of(self.inputs[0]),
                completions=completions,
                usages=[end["usage"] for end in ends],
                cut_off=any(end["finish_reason"] == "length" for end in ends),
                file=self.inputs[0].get("path", ""),
                language=self.where.language,
                repository=self.where.repository,
            ),
        )


def _prompt_of(given: CompletionRequest) -> str:
    """What stands before the completion, as one text."""
    return given["prompt"] if "prompt" in given else "\n".join(item["content"] for item in given.get("messages", []))


def _sse(item: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(item).encode() + b"\n\n"


def _model(gateway: Gateway) -> dict[str, Any]:
    live = gateway.engine.state.live
    return {
        "id": gateway.settings.serving_model,
        "object": "model",
        "created": int(live.since) if live else 0,
        "owned_by": "ratchet",
    }


def _check_model(gateway: Gateway, name: str | None) -> None:
    served = gateway.settings.serving_model
    if name not in (None, "", served):
        raise Refusal(
            404,
            f"The model {shown(name)} is not served here. Expected '{served}'.",
            code="model_not_found",
            param="model",
        )
