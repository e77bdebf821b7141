"""Whose feedback is stored: on a completion of one's own, not too much at once, and unknown ids cost next to nothing.

A completion's id tells when it was made: an old one is looked up once, and an invented one, as a rule, not at all.
"""

import asyncio
import re
import time
import uuid

from cachetools import TTLCache
from starlette.requests import Request

from serving.gateway.errors import Refusal
from serving.gateway.tracing import NotYours, UnknownCompletion
from serving.gateway.worker import Gateway

ID = re.compile(r"(?:cmpl|chatcmpl|inv)-([0-9a-f]{8})[0-9a-f]{24}")
ON_ITS_WAY_S = 10.0  # a trace may be, for so long
PAUSES_S = (0.5, 1.0, 2.0, 0.0)
AT_ONCE = 4  # that are looked up, in each worker
EACH_S = 1.0  # one user's; after
BURST = 30


def new_id(kind: str) -> str:
    """An id of a completion: its kind, when it was made, and what nobody guesses."""
    return f"{kind}-{int(time.time()):08x}{uuid.uuid4().hex[:24]}"


class Feedbacks:
    """Takes feedback, for one worker."""

    def __init__(self) -> None:
        self._looking = 0
        self._full_at: TTLCache[str, float] = TTLCache(10_000, BURST * EACH_S)  # by user, on the monotonic clock
        self._unknown: TTLCache[str, bool] = TTLCache(10_000, 60.0)

    async def store(self, request: Request, gateway: Gateway, id: str, accepted: bool, comment: str | None) -> str:
        """Store an assessment on a completion's trace; returns the trace's id. Raises Refusal."""
        user = str(request.state.user)
        age_s = _age_s(id)
        share = gateway.settings.serving_trace_sample
        unknown = Refusal(
            404,
            f"No trace tells of the completion '{id}'. Expected the id of an answer; of {share:.0%} of them a trace is "
            "kept (SERVING_TRACE_SAMPLE).",
        )
        if age_s is None or age_s < -ON_ITS_WAY_S or id in self._unknown:
            raise unknown
        self._count(user)
        if self._looking >= AT_ONCE:
            raise Refusal(429, "Too much feedback at once. Send it again.", retry_after_s=2)
        self._looking += 1
        try:
            for pause in PAUSES_S if age_s < ON_ITS_WAY_S else (0.0,):
                try:
                    return await asyncio.to_thread(gateway.tracer.feedback, id, accepted, comment, user)
                except UnknownCompletion:
                    await asyncio.sleep(pause)
        except NotYours as error:
            raise Refusal(403, f"The completion '{id}' was made for somebody else. Expected one of yours.") from error
        except Exception as error:
            message = "The tracking server did not take the feedback. Send it again."
            raise Refusal(503, message, retry_after_s=5) from error
        finally:
            self._looking -= 1
        self._unknown[id] = True
        raise unknown

    def _count(self, user: str) -> None:
        """Raise Refusal for a user who sends too much."""
        now = time.monotonic()
        after = max(self._full_at.get(user, now), now) + EACH_S
        if (wait := after - now - BURST * EACH_S) > 0:
            raise Refusal(429, f"More feedback than one in {EACH_S:.0f} s. Wait a moment.", retry_after_s=wait)
        self._full_at[user] = after


def _age_s(id: str) -> float | None:
    """How long ago an id was made; None for what is no id of ours."""
    found = ID.fullmatch(id)
    return None if found is None else time.time() - int(found[1], 16)
