"""Who may tell what of which completion: one's own, not too much at once, and unknown ids cost next to nothing.

A completion's id tells when it was made: an invented one is, as a rule, not looked up at all.
"""

import asyncio
import re
import sqlite3
import time
import uuid
from dataclasses import replace

from cachetools import TTLCache
from starlette.requests import Request

from serving.gateway import metrics
from serving.gateway.errors import Refusal
from serving.gateway.events.facts import digest
from serving.gateway.events.sender import UnknownCompletion
from serving.gateway.events.store import Event, Known
from serving.gateway.worker import Gateway

ID = re.compile(r"(?:cmpl|chatcmpl|inv)-([0-9a-f]{8})[0-9a-f]{24}")
AHEAD_S = 10.0  # by which another machine's clock may be
AT_ONCE = 4  # that are looked up in the tracking server, in each worker
EVENTS_A_S, FEEDBACK_A_S = 100.0, 1.0  # of one user, in each worker
EVENTS_BURST, FEEDBACK_BURST = 2000, 30


def new_id(kind: str) -> str:
    """An id of a completion: its kind, when it was made, and what nobody guesses."""
    return f"{kind}-{int(time.time()):08x}{uuid.uuid4().hex[:24]}"


class Feedbacks:
    """Takes what is told of completions, for one worker."""

    def __init__(self) -> None:
        self._looking = 0
        self._full_at: TTLCache[str, float] = TTLCache(10_000, 60.0)  # by user, on the monotonic clock
        self._unknown: TTLCache[str, bool] = TTLCache(10_000, 60.0)

    async def store(self, request: Request, gateway: Gateway, id: str, accepted: bool, comment: str | None) -> None:
        """Keep a person's verdict on a completion. Raises Refusal."""
        self._count(request, f"feedback {request.state.user}", FEEDBACK_A_S, FEEDBACK_BURST, id)
        known = await self._own(request, gateway, id)
        await self._tell(gateway, Event(known.id, accepted=accepted, comment=comment))

    async def tell(self, request: Request, gateway: Gateway, event: Event) -> None:
        """Keep what an editor tells of a completion. Raises Refusal."""
        self._count(request, f"events {request.state.user}", EVENTS_A_S, EVENTS_BURST, event.completion)
        await self._own(request, gateway, event.completion)
        await self._tell(gateway, replace(event, trains=request.state.trains))
        if event.text is not None:
            gateway.later(gateway.shadows.score(event.completion, event.text))

    async def find(self, request: Request, gateway: Gateway, prompts: list[str], completion: str) -> Known | None:
        """The user's own completion of the last hours with such texts: the prompt is one of several."""
        self._count(request, f"events {request.state.user}", EVENTS_A_S, EVENTS_BURST, "")
        for prompt in prompts:
            found = await asyncio.to_thread(
                gateway.store.by_texts, digest(prompt), digest(completion), str(request.state.user)
            )
            if found is not None:
                return found
        return None

    async def _tell(self, gateway: Gateway, event: Event) -> None:
        await asyncio.to_thread(gateway.store.told, event)

    async def _own(self, request: Request, gateway: Gateway, id: str) -> Known:
        """A completion of the user's. Raises Refusal for one that is not known, or was made for somebody else."""
        unknown = Refusal(404, f"No completion '{id}' is known. Expected the id of an answer.")
        age_s = _age_s(id)
        if age_s is None or age_s < -AHEAD_S:
            raise unknown
        later = Refusal(503, "It cannot be told just now whose completion this is. Send it again.", retry_after_s=5)
        try:
            known = await asyncio.to_thread(gateway.store.known, id)
        except sqlite3.Error as error:
            raise later from error
        if known is None and not gateway.store.readable:
            raise later
        if known is None and id not in self._unknown:
            known = await self._look_up(gateway, id, later)
        if known is None:
            self._unknown[id] = True
            raise unknown
        if known.user != request.state.user:
            raise Refusal(403, f"The completion '{id}' was made for somebody else. Expected one of yours.")
        return known

    async def _look_up(self, gateway: Gateway, id: str, later: Refusal) -> Known | None:
        """A completion that another serving, or an earlier one, has answered. Raises `later` without an answer."""
        if self._looking >= AT_ONCE:
            raise Refusal(429, "Too many unknown completions at once. Send it again.", retry_after_s=2)
        self._looking += 1
        try:
            user, facts = await asyncio.to_thread(gateway.sender.look_up, id)
        except UnknownCompletion:
            return None
        except Exception as error:
            raise later from error
        finally:
            self._looking -= 1
        await asyncio.to_thread(gateway.store.adopt, id, user, facts)
        return Known(id, user)

    def _count(self, request: Request, whose: str, a_second: float, burst: int, id: str) -> None:
        """Raise Refusal for a user who sends too much; what names no completion at all does not count."""
        if id and _age_s(id) is None:
            return
        now = time.monotonic()
        after = max(self._full_at.get(whose, now), now) + 1 / a_second
        if (wait := after - now - burst / a_second) > 0:
            metrics.events_lost.labels("flood").inc()
            raise Refusal(429, f"More than {a_second:g} a second. Wait a moment.", retry_after_s=wait)
        self._full_at[whose] = after


def _age_s(id: str) -> float | None:
    """How long ago an id was made; None for what is no id of ours."""
    found = ID.fullmatch(id)
    return None if found is None else time.time() - int(found[1], 16)
