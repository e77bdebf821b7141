"""What the routes of one worker share: settings, the way to the model, tokens, events."""

import asyncio
import random
import socket
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from contract.messages import CompletionRequest, CompletionUsage
from contract.tokens import Tokens
from contract.trials import ANSWERED, FAILED, LEFT, SHADOW
from serving.gateway import metrics
from serving.gateway.arms import Arms, Assigned
from serving.gateway.engine_client import EngineClient
from serving.gateway.events.facts import Completion, digest, language_of, repository_of
from serving.gateway.events.sender import Sender
from serving.gateway.events.store import Store
from serving.gateway.shadow import Shadows, shadowed
from serving.settings import RunSettings
from serving.supervisor.state import Live

T = TypeVar("T")
LONGEST_TEXT = 50_000  # characters of one in a trace
LONGEST_REPOSITORY = 200
LONGEST_SESSION = 200


class Gateway:
    """What the routes of one worker share."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.engine = EngineClient(settings)
        self.tokens = Tokens(settings.serving_tokens_file)
        self.store = Store(settings.events, socket.gethostname(), settings.serving_events_max_bytes)
        self.sender = Sender(settings, self.store, settings.events / "sender.lock")
        self.sender.start()
        self.arms, self.shadows = Arms(settings.serving_run_folder), Shadows(self.engine, self.store)
        self.nudged = 0.0
        self._tasks: set[asyncio.Future[None]] = set()

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Do something that outlives its request."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def until(self) -> float:
        """When a request that comes now has to be answered, on the monotonic clock."""
        return time.monotonic() + self.settings.deadline_s

    def assign(self, request: Request, id: str) -> Assigned | None:
        """Give a request its arm, where a trial runs: from here on it counts as one of that arm's version."""
        session = request.headers.get("x-session-id", "")[:LONGEST_SESSION]
        assigned = self.arms.assign(self.engine.state, id, request.state.user, session)
        request.state.assigned = assigned
        if assigned is not None:
            request.state.live = assigned.live
        return assigned

    async def begin(self, request: Request, id: str, file: str, language: str, repository: str) -> None:
        """Know a completion whose answer is on its way."""
        live: Live = request.state.live
        facts = (live.version, language_of(file, language), repository_of(repository)[:LONGEST_REPOSITORY])
        await asyncio.to_thread(self.store.begun, id, request.state.user, *facts)

    async def record(self, request: Request, answered: "Answered") -> None:
        """Count what a request took, and keep its facts: from then on events may come in."""
        live: Live = request.state.live
        user: str = request.state.user
        language = language_of(answered.file, answered.language)
        repository = repository_of(answered.repository)[:LONGEST_REPOSITORY]
        ended_ns = time.time_ns()
        assigned: Assigned | None = request.state.assigned
        on_trial: dict[str, Any] = {}
        challenger = None
        if assigned is None and answered.outcome == ANSWERED:
            challenger = shadowed(self.engine.state, answered.id)
        if challenger is not None:
            on_trial = {"trial": challenger.trial, "arm": SHADOW, "share": challenger.share, "outcome": ANSWERED}
        elif assigned is not None:
            outcome = FAILED if assigned.failed else answered.outcome
            on_trial = {name: getattr(assigned, name) for name in ("trial", "arm", "share", "unit")}
            on_trial["outcome"] = outcome
            empty = not any(answered.completions)
            seconds = max(0, ended_ns - answered.began_ns) / 1e9
            if outcome != LEFT:
                self.arms.told(self.engine.state, assigned, outcome == FAILED, empty, seconds)
        labels = self.store.labels(live.version, language, user, repository)
        if answered.outcome == ANSWERED:
            metrics.completion_seconds.labels(*labels).observe(max(0, ended_ns - answered.began_ns) / 1e9)
        for usage in answered.usages:
            metrics.queue_seconds.labels(*labels).observe(usage["queue_s"])
            metrics.first_token_seconds.labels(*labels).observe(usage["first_token_s"])
            metrics.batch_size.labels(live.version).observe(usage["batch"])
            metrics.prompt_tokens.labels(live.version).inc(usage["prompt_tokens"])
            metrics.completion_tokens.labels(live.version).inc(usage["completion_tokens"])
        trains: bool = request.state.trains
        sampled = self.settings.serving_trace_prompts and (
            trains or random.random() < self.settings.serving_trace_sample
        )
        completion = Completion(
            id=answered.id,
            request_id=request.state.request_id,
            path=request.url.path,
            user=user,
            model=live.model,
            version=live.version,
            run_id=live.run_id,
            models_id=live.models_id,
            language=language,
            repository=repository,
            began_ns=answered.began_ns,
            ended_ns=ended_ns,
            prompt_tokens=sum(usage["prompt_tokens"] for usage in answered.usages),
            completion_tokens=sum(usage["completion_tokens"] for usage in answered.usages),
            queue_s=max((usage["queue_s"] for usage in answered.usages), default=0.0),
            first_token_s=max((usage["first_token_s"] for usage in answered.usages), default=0.0),
            choices=[len(text) for text in answered.completions],
            prompt_hash=digest(answered.prompt),
            completion_hash=digest(answered.completions[0] if answered.completions else ""),
            cut_off=answered.cut_off,
            trains=trains and sampled,
            **on_trial,
            texts={"inputs": _cut(answered.inputs), "outputs": _cut(answered.outputs)} if sampled else {},
        )
        # Shielded: a client that leaves now cancels its request, and not what is known of it.
        await asyncio.shield(self.later(asyncio.to_thread(self.store.completed, completion)))
        if challenger is not None and answered.asked is not None:
            self.later(self.shadows.copy(challenger, answered.id, answered.asked, answered.inputs.get("params") or {}))


@dataclass(frozen=True)
class Answered:
    """What a request asked for, and what it got."""

    id: str  # of the completion
    began_ns: int  # since 1970
    inputs: Any
    outputs: Any
    prompt: str  # of the first completion, by which a client's events may name it
    completions: Sequence[str]
    usages: Sequence[CompletionUsage]
    cut_off: bool = False
    asked: CompletionRequest | None = None  # of the engine, of the first completion
    outcome: str = ANSWERED  # in a trial (contract/trials.py)
    file: str = ""  # what the client says of where the cursor is
    language: str = ""
    repository: str = ""


def _cut(value: Any) -> Any:
    """The texts of a request or an answer, of each no more than goes into a trace: the end of what stands before."""
    if isinstance(value, str):
        # Whole lines: of half a secret nobody would see that it is one.
        return value if len(value) <= LONGEST_TEXT else value[-LONGEST_TEXT:].partition("\n")[2]
    if isinstance(value, dict):
        return {name: _cut(item) for name, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list | tuple) else value


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled where the client hangs up. Raises ClientGone then.

    For requests whose body has been read.
    """

    async def hangs_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hangs_up())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def gateway_of(request: Request) -> Gateway:
    """The worker's gateway."""
    found: Gateway = request.app.state.gateway
    return found
