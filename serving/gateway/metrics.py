"""Prometheus metrics of the gateway's workers together, and of what the supervisor and the engine say."""

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from contract.messages import EngineStats
from serving.supervisor.state import State

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60)

requests = Counter("ratchet_requests", "Requests answered", ["path", "status", "version"])
request_seconds = Histogram(
    "ratchet_request_seconds", "From a request to the end of its answer", ["path", "version"], buckets=SECONDS
)
queue_seconds = Histogram(
    "ratchet_queue_seconds", "A completion's wait until it is begun", ["version"], buckets=SECONDS
)
first_token_seconds = Histogram(
    "ratchet_first_token_seconds", "From a completion's arrival to its first token", ["version"], buckets=SECONDS
)
batch_size = Histogram(
    "ratchet_batch_size",
    "Completions under way when one is begun, itself too",
    ["version"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
prompt_tokens = Counter("ratchet_prompt_tokens", "Tokens of prompts", ["version"])
completion_tokens = Counter("ratchet_completion_tokens", "Tokens of completions", ["version"])
traces_lost = Counter("ratchet_traces_lost", "Traces that did not reach the tracking server", ["reason"])


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


def page(state: State, engine: EngineStats | None) -> bytes:
    """The metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(_Supervised(state, engine))
    return generate_latest(registry)
