"""Copies of requests for a challenger in the shadow: it answers them, and nobody sees that.

A copy is asked for when its request has been answered, one at a time in each worker, and not at all while the live
version has others to answer. What the challenger writes is thrown away. How likely it had held what the user finally
kept is told later, where an editor sends that text: of both versions, since what the live one wrote is no yardstick.
"""

import asyncio
import logging
import time
from typing import Any

from contract.messages import CompletionRequest, TokenLogprob
from contract.trials import GAIN, SHADOW, SHADOW_EMPTY, SHADOW_FAILED, SHADOW_SECONDS, is_challengers
from serving.gateway import metrics
from serving.gateway.engine_client import EngineClient
from serving.gateway.errors import Refusal
from serving.gateway.events.store import Store
from serving.supervisor.state import Challenger, Live, State

log = logging.getLogger(__name__)
PATIENCE_S = 30.0  # with a copy, and with a text's likelihood
LONGEST_TEXT = 4000  # characters of what was kept that are looked at


def shadowed(state: State, id: str) -> Challenger | None:
    """The challenger that gets a copy of a request; None where it gets none."""
    challenger = state.challenger
    if challenger is None or not challenger.shadow or challenger.live is None or challenger.stopped:
        return None
    if time.time() >= challenger.until or not is_challengers(challenger.trial, f"{SHADOW} {id}", challenger.share):
        return None
    return challenger


class Shadows:
    """For one worker."""

    def __init__(self, engine: EngineClient, store: Store) -> None:
        self.engine, self.store = engine, store
        self._busy = False

    async def copy(self, challenger: Challenger, id: str, asked: CompletionRequest, params: dict[str, Any]) -> None:
        """Ask the challenger what the live version has answered, and keep how that went."""
        if challenger.live is None or self._busy or await self._live_is_busy():
            metrics.shadows_dropped.inc()
            return
        self._busy = True
        try:
            began = time.monotonic()
            told: dict[str, Any] = {SHADOW_FAILED: False, SHADOW_EMPTY: False}
            try:
                end = await self.engine.once(challenger.live, {**asked, "params": params, "stream": False}, PATIENCE_S)
                told[SHADOW_EMPTY] = not end["text"]
            except TimeoutError:  # others have the processors
                metrics.shadows_dropped.inc()
                return
            except Refusal:
                told[SHADOW_FAILED] = True
            told[SHADOW_SECONDS] = time.monotonic() - began
            await asyncio.to_thread(self.store.shadowed, id, told, asked)
        finally:
            self._busy = False

    async def score(self, id: str, kept: str) -> None:
        """Compare how likely both versions hold what the user has kept, and keep the difference."""
        state = self.engine.state
        challenger, live = state.challenger, state.live
        asked = await asyncio.to_thread(self.store.asked, id)
        if asked is None or challenger is None or challenger.live is None or live is None or "prompt" not in asked:
            return
        if not challenger.shadow or not kept.strip():
            return
        try:
            theirs = await self._likelihood(challenger.live, asked["prompt"], kept[:LONGEST_TEXT])
            ours = await self._likelihood(live, asked["prompt"], kept[:LONGEST_TEXT])
        except TimeoutError:
            return
        except Refusal as refusal:  # one of them knows no likelihoods, or the text is too long for it
            log.warning("What was kept of %s cannot be compared: %s", id, refusal.message)
            return
        await asyncio.to_thread(self.store.shadowed, id, {GAIN: theirs - ours}, None)

    async def _likelihood(self, live: Live, prompt: str, kept: str) -> float:
        """Of a text behind a prompt, in nats a character. Raises Refusal."""
        asked: CompletionRequest = {
            "prompt": prompt + kept, "params": {"max_new_tokens": 1}, "logprobs": 0, "echo": True, "stream": False,
        }  # fmt: skip
        end = await self.engine.once(live, asked, PATIENCE_S)
        found = end.get("logprobs")
        if found is None:
            raise Refusal(422, "The version tells no logprobs.")
        return nats_behind(found[:-1], len(prompt)) / len(kept)

    async def _live_is_busy(self) -> bool:
        stats = await self.engine.stats()
        return stats is None or bool(stats["active"] or stats["waiting"])


def nats_behind(tokens: list[TokenLogprob], start: int) -> float:
    """The sum of the likelihoods of the tokens that begin at a character, or behind it."""
    total, at = 0.0, 0
    for token in tokens:
        if at >= start and token["logprob"] is not None:
            total += token["logprob"]
        at += len(token["token"])
    return total
