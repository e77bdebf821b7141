"""From the store to MLflow: traces and assessments, each once, in order, by one thread of one worker."""

import fcntl
import json
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from cachetools import LRUCache

from contract.errors import shortened
from contract.names import KEPT_TEXT, TRACES, TRAINS
from contract.secrets import Redactor, overwrite
from contract.tracking import RETRIES
from contract.trials import (
    ARM_TAG,
    CHANCE_TAG,
    GAIN,
    OUTCOME_TAG,
    SHADOW_EMPTY,
    SHADOW_FAILED,
    SHADOW_SECONDS,
    TRIAL_TAG,
    UNIT_TAG,
)
from serving.gateway import metrics
from serving.gateway.events.facts import digest, trace_id
from serving.gateway.events.store import Store
from serving.settings import ServingSettings

log = logging.getLogger(__name__)
AT_ONCE = 20  # of the outbox, in one round
IDLE_S, LONGEST_PAUSE_S = 0.2, 10.0
SHADOWS = (SHADOW_FAILED, SHADOW_EMPTY, SHADOW_SECONDS, GAIN)
PREVIEW = 1000  # characters of a text in MLflow's list
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


class UnknownCompletion(Exception):
    """No trace tells of a completion."""


class Sender:
    """Takes what is in the store to the tracking server."""

    def __init__(self, settings: ServingSettings, store: Store, lock: Path) -> None:
        self.settings, self.store, self.lock = settings, store, lock
        self._experiment: str | None = None
        self._client: Any = None
        self._assessments: LRUCache[str, dict[str, str]] = LRUCache(10_000)  # of a trace: name → assessment's id
        self._redactor = Redactor()

    def __enter__(self) -> Self:
        self._redactor.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._redactor.__exit__(*error)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        # Its own requests wait for nothing long: what fails is tried again here.
        os.environ.setdefault(RETRIES, "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        threading.Thread(target=self._run, name="sender", daemon=True).start()

    def _run(self) -> None:
        for name in ("mlflow.tracing", "mlflow.utils.rest_utils", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)  # an outage is told by the length of the outbox
        while True:
            with suppress(OSError):  # a full disk may keep the lock's file from being made
                self._take_turns()
            self.store.write_held()
            time.sleep(1)

    def _take_turns(self) -> None:
        """Wait until no other worker sends, and send for ever."""
        with self.lock.open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:  # another worker is at it
                    self.store.write_held()
                    time.sleep(1)
            with self:
                pause, said = IDLE_S, ""
                while True:
                    self.store.write_held()
                    try:
                        pause = 0.0 if self.send() else IDLE_S
                    except Exception as error:
                        if (why := shortened(str(error), 300)) != said:
                            log.warning("The tracking server does not take events, which wait: %s", why)
                        said = why
                        pause = min(max(pause, IDLE_S) * 2, LONGEST_PAUSE_S)
                    time.sleep(pause)

    def send(self) -> int:
        """Send the first of what waits; returns how many. Raises what the tracking server, or the way to it, raises."""
        rows = self.store.waiting(AT_ONCE)
        if not rows:
            return 0
        traces = []
        for number, kind, completion, body in rows:  # as many traces as come first are one request
            if kind != "trace":
                break
            traces.append((number, completion, body))
        if traces:
            self._traces([body for _, _, body in traces])
            self.store.sent([number for number, _, _ in traces])
            return len(traces)
        number, _, completion, body = rows[0]
        try:
            self._assess(completion, body)
        except Exception as error:
            if getattr(error, "error_code", "") not in REFUSED:
                raise
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":  # its trace was deleted
                metrics.events_lost.labels("refused").inc()  # it would be refused for ever, and hold up all others
                log.warning("MLflow refuses what is told of %s: %s", completion, error)
        self.store.sent([number])
        return 1

    def look_up(self, completion: str) -> tuple[str, dict[str, Any]]:
        """(the user, the facts) of a completion that only MLflow knows. Raises UnknownCompletion."""
        from mlflow.exceptions import MlflowException

        try:
            info = self._connected().get_trace_info(trace_id(completion))
        except MlflowException as error:
            if error.error_code in REFUSED:
                raise UnknownCompletion(completion) from error
            raise
        if info.tags.get("completion_id") != completion:
            raise UnknownCompletion(completion)
        facts: dict[str, Any] = {name: info.tags.get(name, "") for name in ("language", "repository")}
        facts |= {"version": info.tags.get("model_version", ""), "characters": int(info.tags.get("characters", 0))}
        for assessment in info.assessments:
            value = getattr(assessment, "value", None)
            if assessment.name == "accepted":
                facts["accepted"] = int(bool(value))
            elif assessment.name in ("shown_ms", "viewed") and value is not None:
                facts[assessment.name] = int(value)
            elif assessment.name.startswith("kept_"):
                facts.setdefault("kept", {})[assessment.name.removeprefix("kept_").removesuffix("s")] = 0
        return info.tags.get("user", ""), facts

    def _traces(self, found: list[dict[str, Any]]) -> None:
        client, experiment = self._connected(), self._experiment
        made = [self._trace(facts) for facts in found]
        client.log_spans(experiment, [span for span, _ in made])
        for _, info in made:
            client.start_trace(info)

    def _trace(self, facts: dict[str, Any]) -> tuple[Any, Any]:
        """MLflow's span and trace of a completion: with the same id whenever it is sent."""
        from mlflow.entities import Span, TraceInfo, TraceLocation, TraceState
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        trace, model = trace_id(facts["id"]), f"{facts['model']}/{facts['version']}"
        usage = {"input_tokens": facts["prompt_tokens"], "output_tokens": facts["completion_tokens"]}
        usage["total_tokens"] = sum(usage.values())
        inputs, outputs = (self._redacted(facts["texts"].get(name)) for name in ("inputs", "outputs"))
        attributes = {
            "mlflow.traceRequestId": trace,
            "mlflow.spanType": "LLM",
            "mlflow.chat.tokenUsage": usage,
            "mlflow.llm.model": model,
            "request_id": self._redacted(facts["request_id"]),
            **{name: facts[name] for name in ("queue_s", "first_token_s")},
            **({"mlflow.spanInputs": inputs, "mlflow.spanOutputs": outputs} if facts["texts"] else {}),
        }
        number = int(trace.removeprefix("tr-"), 16)
        span = ReadableSpan(
            name=facts["path"],
            context=SpanContext(number, number & (2**64 - 1) or 1, False, TraceFlags(TraceFlags.SAMPLED)),
            attributes={name: json.dumps(value) for name, value in attributes.items()},
            start_time=facts["began_ns"],
            end_time=facts["ended_ns"],
            status=Status(StatusCode.OK),
        )
        size = sum(len(json.dumps(value)) for value in attributes.values())
        metadata = {
            "mlflow.trace.tokenUsage": json.dumps(usage),
            "mlflow.trace.sizeStats": json.dumps({"total_size_bytes": size, "num_spans": 1}),
        }
        if facts["user"]:
            metadata["mlflow.trace.user"] = facts["user"]
        if facts["models_id"].startswith("m-"):
            metadata["mlflow.modelId"] = facts["models_id"]
        tags = {
            "mlflow.traceName": facts["path"],
            "completion_id": facts["id"],
            "model_version": facts["version"],
            "characters": str(sum(facts["choices"])),
            "finish_reason": "length" if facts["cut_off"] else "stop",
            **{name: facts[name] for name in ("model", "run_id", "user", "language", "repository")},
            **{name: facts[name] for name in ("prompt_hash", "completion_hash")},
        }
        if facts.get("trains"):
            tags[TRAINS] = "true"
        if facts.get("trial"):
            tags |= {TRIAL_TAG: facts["trial"], ARM_TAG: facts["arm"], CHANCE_TAG: repr(facts["share"])}
            tags |= {OUTCOME_TAG: facts["outcome"], UNIT_TAG: digest(facts["unit"])}
        info = TraceInfo(
            trace_id=trace,
            trace_location=TraceLocation.from_experiment_id(str(self._experiment)),
            request_time=facts["began_ns"] // 1_000_000,
            execution_duration=(facts["ended_ns"] - facts["began_ns"]) // 1_000_000,
            state=TraceState.OK,
            client_request_id=facts["id"],
            request_preview=json.dumps(inputs, ensure_ascii=False)[:PREVIEW] if facts["texts"] else None,
            response_preview=json.dumps(outputs, ensure_ascii=False)[:PREVIEW] if facts["texts"] else None,
            trace_metadata=metadata,
            tags={name: value for name, value in tags.items() if value},
        )
        return Span(span), info

    def _assess(self, completion: str, told: dict[str, Any]) -> None:
        """Write what was told as assessments: one for each name, made anew or changed."""
        from mlflow.entities import AssessmentSource, AssessmentSourceType, Feedback

        client, trace = self._connected(), trace_id(completion)
        ids = self._assessments.get(trace)
        if ids is None:
            ids = {item.name: item.assessment_id for item in client.get_trace_info(trace).assessments}
            self._assessments[trace] = ids
        by_code = any(name in told for name in SHADOWS)
        kind = AssessmentSourceType.CODE if by_code else AssessmentSourceType.HUMAN
        source = AssessmentSource(kind, "challenger" if by_code else told["user"] or "anonymous")
        values: dict[str, Any] = {}
        if "accepted" in told:
            values["accepted"] = bool(told["accepted"])
        if "viewed" in told:
            values["viewed"] = True
        if "shown_ms" in told:
            values["shown_ms"] = told["shown_ms"]
        if "acceptance" in told:
            values["acceptance"] = float(told["acceptance"])
        if "kept" in told:
            seconds, share = told["kept"]
            values[f"kept_{seconds}s"] = share
        if "kept_text" in told:
            values[KEPT_TEXT] = self._redacted(told["kept_text"])
        values |= {name: told[name] for name in SHADOWS if name in told}
        for name, value in values.items():
            comment = self._redacted(told.get("comment")) if name == "accepted" else None
            feedback = Feedback(name=name, value=value, source=source, trace_id=trace, rationale=comment)
            if name in ids:
                client.update_assessment(trace, ids[name], feedback)
            else:
                ids[name] = client.log_assessment(trace, feedback).assessment_id

    def _redacted(self, value: Any) -> Any:
        """The texts of inputs or outputs without secrets, as training data are."""
        if isinstance(value, str):
            if not self.settings.serving_trace_redact:
                return value
            return overwrite(value, self._redactor.find(value))
        if isinstance(value, list):
            return [self._redacted(item) for item in value]
        if isinstance(value, dict):
            return {name: self._redacted(item) for name, item in value.items()}
        return value

    def _connected(self) -> Any:
        """MLflow's client for traces, whose experiment is created on first use."""
        if self._client is None:
            import mlflow
            from mlflow.tracing.client import TracingClient

            mlflow.set_tracking_uri(self.settings.mlflow_tracking_uri)
            self._experiment = str(mlflow.set_experiment(TRACES).experiment_id)
            self._client = TracingClient(self.settings.mlflow_tracking_uri)
        return self._client
