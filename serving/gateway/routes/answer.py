"""One request for completions, from the engine to the client: whole or streamed, in OpenAI's forms."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Literal, cast

from fastapi import Request

from contract.messages import CompletionEnd, CompletionPiece, CompletionRequest
from contract.trials import ANSWERED, FAILED, LEFT
from serving.gateway.arms import Assigned
from serving.gateway.errors import Refusal
from serving.gateway.feedback import new_id
from serving.gateway.routes import logprobs
from serving.gateway.routes.forms import SEEDS, CompletionsRequest, OpenAIRequest, Where
from serving.gateway.worker import Answered, Gateway
from serving.supervisor.state import Live

log = logging.getLogger(__name__)
Kind = Literal["text_completion", "chat.completion"]


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
        self.sent: dict[int, str] = {}  # of a stream, by its completions
        self.recorded = False
        self.assigned: Assigned | None = None

    async def begin(self) -> None:
        """Ask for all completions, and wait for the first piece of each. Raises Refusal."""
        self.assigned = self.gateway.assign(self.request, self.id)
        tasks = [
            asyncio.ensure_future(self._ask(given, number)) for given in self.inputs for number in range(self.body.n)
        ]
        try:
            self.streams = await asyncio.gather(*tasks)
        except BaseException as error:
            for task in tasks:
                task.cancel()
            self._lost(error)
            raise

    def _lost(self, error: BaseException) -> None:
        """Keep what a trial has to know of a request without an answer."""
        failed, left = isinstance(error, Refusal), isinstance(error, asyncio.CancelledError)
        if self.assigned is None or self.recorded or not (failed or left):
            return
        self.recorded = True
        if isinstance(error, Refusal) and error.status != 429 and error.status < 500:
            self.assigned.gone = True  # the client's own mistake, as a rule: no reason to end the trial at once
        self.gateway.later(self._record(FAILED if failed else LEFT))

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
                    self._chosen,
                    self.assigned,
                )
            )
        except Refusal as refusal:
            self._name_what_was_sent(refusal)
            raise

    def _chosen(self, live: Live) -> None:
        if self.assigned is None:  # else it counts where it was assigned
            self.request.state.live = live

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
        try:
            for index, stream in enumerate(self.streams):
                async for item in stream:
                    if "finish_reason" in item:
                        self.ends[index] = cast(CompletionEnd, item)
        except BaseException as error:
            self._lost(error)
            raise
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
                async for item in self._to_its_end(index, stream):
                    await pieces.put((index, item))
            except Refusal as refusal:
                await pieces.put((index, refusal))
            except Exception as error:
                log.error("%s: %s: %s", self.id, type(error).__name__, error)
                await pieces.put((index, Refusal(503, "The completion broke off. Ask again.")))

        tasks = [asyncio.ensure_future(read(index, stream)) for index, stream in enumerate(self.streams)]
        file = self.inputs[0].get("path", "")
        # Beside the stream: events may come before its end.
        self.gateway.later(self.gateway.begin(self.request, self.id, file, self.where.language, self.where.repository))
        try:
            if self.kind == "chat.completion":
                for index in range(len(self.streams)):
                    yield self._event([self._choice(index, "", None, True, role=True)])
            while len(self.ends) < len(self.streams):
                index, item = await pieces.get()
                if isinstance(item, Refusal):
                    self.request.state.failed = item.status
                    self._lost(item)
                    yield _sse(item.openai())
                    return
                if "finish_reason" in item:
                    self.ends[index] = item
                    yield self._event([self._choice(index, "", item["finish_reason"], True)])
                else:
                    self.sent[index] = self.sent.get(index, "") + item["text"]
                    yield self._event([self._choice(index, item["text"], None, True)])
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield _sse({**self._head(True), "choices": [], "usage": self._usage()})
            await self._record()  # now: a client may close before the last line
            yield b"data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()
            if not self.recorded and self.sent:  # the client has what it wanted, or has gone
                self.gateway.later(self._record())
            await self.close()

    async def _to_its_end(
        self, index: int, stream: AsyncIterator[CompletionPiece | CompletionEnd]
    ) -> AsyncIterator[CompletionPiece | CompletionEnd]:
        """A completion's pieces; the live version goes on with what a challenger has begun that went away.

        Raises Refusal where it cannot: a chat's template has no place for half an answer.
        """
        sent: list[str] = []
        try:
            async for item in stream:
                if "finish_reason" not in item:
                    sent.append(item["text"])
                yield item
            return
        except Refusal:
            given = self.inputs[index // self.body.n]
            if self.assigned is None or not self.assigned.gone or not self.assigned.patience_s or "prompt" not in given:
                raise
            self.assigned.failed = "its process went away"
        params = dict(self.params)
        if "max_new_tokens" in params:  # a piece is a token or more
            params["max_new_tokens"] = max(1, params["max_new_tokens"] - len(sent))
        rest: CompletionRequest = {**given, "prompt": given["prompt"] + "".join(sent), "params": params, "stream": True}
        async with self.gateway.engine.complete(rest, self.until, lambda live: None) as going_on:
            async for item in going_on:
                if "finish_reason" in item:
                    end = cast(CompletionEnd, item)
                    usage = {**end["usage"], "completion_tokens": end["usage"]["completion_tokens"] + len(sent)}
                    item = cast(CompletionEnd, {**end, "text": "".join(sent) + end["text"], "usage": usage})
                yield item

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

    async def _record(self, outcome: str = ANSWERED) -> None:
        self.recorded = True
        ends = [end for _, end in sorted(self.ends.items())]
        completions = [end["text"] for end in ends] or [text for _, text in sorted(self.sent.items())]
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
                asked=self.inputs[0],
                outcome=outcome,
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
