"""Requests as MLflow traces, written by a thread of its own: they never slow or fail a request, and may be lost."""

import os
import queue
import random
import threading
from dataclasses import dataclass, field
from typing import Any

from contract.names import TRACES
from contract.tracking import RETRIES
from serving.gateway import metrics
from serving.settings import ServingSettings

COMPLETION_ID, USER = "completion_id", "user"  # tags of a trace
LONGEST_QUEUE = 200  # traces, each no larger than a request and its answer


@dataclass(frozen=True)
class Call:
    """One answered request."""

    id: str  # of the completion
    request_id: str
    path: str
    version: str
    model: str
    run_id: str
    models_id: str
    user: str
    began_ns: int  # since 1970
    ended_ns: int
    inputs: dict[str, Any] | None = None  # None: left out
    outputs: dict[str, Any] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


class UnknownCompletion(Exception):
    """No trace tells of a completion."""


class NotYours(Exception):
    """A completion was made for somebody else."""


class Tracer:
    """Writes traces and feedback to the tracking server."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self._calls: queue.Queue[Call] = queue.Queue(LONGEST_QUEUE)
        self._traces: dict[str, tuple[str, str]] = {}  # completion id → (trace id, user), of the last ones
        self._experiment: str | None = None
        # Its own requests wait for nothing long; what fails is lost, and counted.
        os.environ.setdefault(RETRIES, "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
        if settings.serving_trace_sample > 0:
            threading.Thread(target=self._run, name="tracer", daemon=True).start()

    def sampled(self) -> bool:
        return random.random() < self.settings.serving_trace_sample

    def record(self, call: Call) -> None:
        """Queue a trace; where the queue is full it is lost."""
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            metrics.traces_lost.labels("queue full").inc()

    def feedback(self, completion: str, accepted: bool, comment: str | None, user: str) -> str:
        """Store an assessment of a completion on its trace; returns the trace's id. Blocks.

        Raises UnknownCompletion, NotYours, or MlflowException where the tracking server does not take it.
        """
        import mlflow
        from mlflow.entities import AssessmentSource, AssessmentSourceType

        trace, owner = self._traces.get(completion) or self._search(completion)
        if owner != user:
            raise NotYours(completion)
        mlflow.log_feedback(
            trace_id=trace,
            name="accepted",
            value=accepted,
            rationale=comment,
            source=AssessmentSource(source_type=AssessmentSourceType.HUMAN, source_id=user or "anonymous"),
        )
        return trace

    def _search(self, completion: str) -> tuple[str, str]:
        import mlflow

        found = mlflow.search_traces(
            locations=[self._connect()],
            filter_string=f"tags.{COMPLETION_ID} = '{completion}'",
            max_results=1,
            include_spans=False,
            return_type="list",
        )
        if not found:
            raise UnknownCompletion(completion)
        return str(found[0].info.trace_id), str(found[0].info.tags.get(USER, ""))

    def _connect(self) -> str:
        """The id of the experiment for traces, made where there is none."""
        import mlflow

        if self._experiment is None:
            mlflow.set_tracking_uri(self.settings.mlflow_tracking_uri)
            self._experiment = str(mlflow.set_experiment(TRACES).experiment_id)
        return self._experiment

    def _run(self) -> None:
        import logging

        for name in ("mlflow.tracing", "mlflow.utils.rest_utils", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)  # an outage is told by the counter
        while True:
            call = self._calls.get()
            try:
                self._write(call)
            except Exception:
                metrics.traces_lost.labels("tracking server").inc()

    def _write(self, call: Call) -> None:
        import mlflow

        experiment = self._connect()
        span = mlflow.start_span_no_context(
            name=call.path,
            span_type="LLM",
            inputs=call.inputs,
            attributes={"request_id": call.request_id, **call.attributes},
            tags={
                COMPLETION_ID: call.id,
                "model": call.model,
                "model_version": call.version,
                "run_id": call.run_id,
                USER: call.user,
            },
            metadata={"mlflow.modelId": call.models_id} if call.models_id.startswith("m-") else None,
            experiment_id=experiment,
            start_time_ns=call.began_ns,
        )
        if call.outputs is not None:
            span.set_outputs(call.outputs)
        span.end(end_time_ns=call.ended_ns)
        self._traces[call.id] = span.trace_id, call.user
        for old in list(self._traces)[:-LONGEST_QUEUE]:
            del self._traces[old]
