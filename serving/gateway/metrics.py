"""Prometheus metrics of the gateway's workers together, and of what the supervisor and the engine say."""

import os
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from contract.messages import EngineStats
from contract.names import NO_DRIFT
from serving.supervisor.state import State

LABELS = ("version", "language", "user", "repository")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60)

requests = Counter("ratchet_requests", "Requests answered", ["path", "status", "version", "user"])
request_seconds = Histogram(
    "ratchet_request_seconds", "From a request to the end of its answer", ["path", "version"], buckets=SECONDS
)
completion_seconds = Histogram(
    "ratchet_completion_seconds", "From a request for completions to the end of its answer", LABELS, buckets=SECONDS
)
queue_seconds = Histogram("ratchet_queue_seconds", "A completion's wait until it is begun", LABELS, buckets=SECONDS)
first_token_seconds = Histogram(
    "ratchet_first_token_seconds", "From a completion's arrival to its first token", LABELS, buckets=SECONDS
)
batch_size = Histogram(
    "ratchet_batch_size",
    "Completions under way when one is begun, itself too",
    ["version"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
prompt_tokens = Counter("ratchet_prompt_tokens", "Tokens of prompts", ["version"])
completion_tokens = Counter("ratchet_completion_tokens", "Tokens of completions", ["version"])
events_lost = Counter("ratchet_events_lost", "Traces and events that are not kept", ["reason"])
shadows_dropped = Counter(
    "ratchet_shadow_dropped", "Requests whose copy for the challenger was left out, since there were others"
)
texts_dropped = Counter("ratchet_trace_texts_dropped", "Traces without texts, since too much waits to be sent")

# What is counted of completions and events (serving/gateway/events/store.py): its name there, here, and what it is.
COUNTED = {
    "completions": ("completions", "Requests for completions that were answered"),
    "empty": ("completions_empty", "Of them those without a text"),
    "cut_off": ("completions_cut_off", "Of them those that a limit cut off"),
    "viewed": ("completions_viewed", "Completions that an editor says it showed"),
    "shown": ("completions_shown", "Completions that were shown for at least 750 ms"),
    "accepted": ("completions_accepted", "Of those shown so long, how many were accepted"),
    "shown_characters": ("characters_shown", "Characters of completions that were shown for at least 750 ms"),
    "accepted_characters": ("characters_accepted", "Of those, characters of completions that were accepted"),
}


class Counts(Protocol):
    """Where completions and events are counted: serving/gateway/events/store.py."""

    def counts(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """(name, labels, value) of each count."""

    def length(self) -> int:
        """How many traces and events are on their way."""

    def free_bytes(self) -> int:
        """What is free where they are kept."""


class _Counted(Collector):
    """What this machine has counted of completions and events."""

    def __init__(self, store: Counts) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        families = {
            name: CounterMetricFamily(f"ratchet_{ours}", text, labels=LABELS) for name, (ours, text) in COUNTED.items()
        }
        for name, text in (("watched", "Characters of completions, asked after so many seconds what is left of them"),
                           ("kept", "Of those, characters that are left")):  # fmt: skip
            families[name] = CounterMetricFamily(f"ratchet_characters_{name}", text, labels=(*LABELS, "after_s"))
        for name, labels, value in self.store.counts():
            kind, _, seconds = name.partition("_characters_")
            if seconds:
                families[kind].add_metric([*labels, seconds], value)
            else:
                families[name].add_metric(labels, value)
        yield from families.values()
        yield GaugeMetricFamily("ratchet_disk_free_bytes", "Free for models and events", value=self.store.free_bytes())
        yield GaugeMetricFamily(
            "ratchet_events_waiting", "Traces and events on their way to the tracking server", value=self.store.length()
        )


class _Supervised(Collector):
    """What the state file and the live engine say now."""

    def __init__(self, state: State, engine: EngineStats | None) -> None:
        self.state, self.engine = state, engine

    def collect(self) -> Iterator[Metric]:
        state, live = self.state, self.state.live
        active, waiting = (self.engine["active"], self.engine["waiting"]) if self.engine else (0, 0)
        info = GaugeMetricFamily("ratchet_live_version", "The version that is live: 1", labels=["model", "version"])
        if live is not None:
            info.add_metric([live.model, live.version], 1)
        yield info
        trial = GaugeMetricFamily(
            "ratchet_trial_share", "The share of requests that a challenger gets; 0: it was stopped", labels=["version"]
        )
        if (challenger := state.challenger) is not None:
            trial.add_metric(
                [challenger.version], challenger.share if challenger.live and not challenger.stopped else 0
            )
        yield trial
        drift = GaugeMetricFamily("ratchet_drift", "Whether the version in production has drifted: 1", labels=["what"])
        if state.drift:
            drift.add_metric([state.drift[:100]], int(state.drift != NO_DRIFT))
        yield drift
        yield GaugeMetricFamily(
            "ratchet_last_backup_timestamp_seconds", "When the last backup was done; 0: never", value=state.backed_up_at
        )
        swaps = CounterMetricFamily("ratchet_swaps", "Changes of the live version", labels=["outcome"])
        swaps.add_metric(["live"], state.swaps)
        swaps.add_metric(["refused"], state.swaps_failed)
        yield swaps
        yield CounterMetricFamily("ratchet_child_restarts", "Ends of a live version's process", value=state.restarts)
        yield GaugeMetricFamily(
            "ratchet_last_swap_seconds", "From the alias to the readiness of the live version", value=state.last_swap_s
        )
        yield GaugeMetricFamily("ratchet_engine_active", "Completions under way", value=active)
        yield GaugeMetricFamily("ratchet_engine_waiting", "Completions in the queue", value=waiting)


def page(state: State, engine: EngineStats | None, store: Counts) -> bytes:
    """The metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(_Supervised(state, engine))
    registry.register(_Counted(store))
    return generate_latest(registry)
