"""A challenger beside the live version: what clients get, what is counted, and that nothing of theirs is lost."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import mlflow
import psutil
import pytest
import requests

from contract.names import CHALLENGER_ALIAS, PRODUCTION, TRACES, TRIAL, TRIAL_SHARE, TRIAL_STOPPED
from contract.trials import Limits, Trial
from services.tracking.readiness import wait_until
from tests.support import doses
from tests.support.serving import PROMPT, Load, Serving, register, register_variants, serving_process, variant
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.integration
MODEL = "tried"


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny) -> Iterator[Stack]:
    """A tracking server of its own, with three versions, the first in production."""
    folder = tmp_path_factory.mktemp("versions")
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    with server(stack):
        register_variants(stack, MODEL, tiny.folder, folder, 3)
        yield stack


@pytest.fixture(scope="module")
def service(own: Stack, tmp_path_factory) -> Iterator[Serving]:
    with serving_process(own, MODEL, tmp_path_factory.mktemp("serving")) as service:
        service.wait_for_version("1")
        yield service


def try_out(stack: Stack, number: str, id: str, share: float, lease_s: float = 600, **changed: Any) -> None:
    """What the promoter writes."""
    trial = Trial(id=id, until=time.time() + lease_s, limits=Limits(**changed.pop("limits", {})), **changed)
    stack.client.set_model_version_tag(MODEL, number, TRIAL, trial.model_dump_json())
    stack.client.set_model_version_tag(MODEL, number, TRIAL_SHARE, str(share))
    stack.client.set_registered_model_alias(MODEL, CHALLENGER_ALIAS, number)


def end(stack: Stack, service: Serving) -> None:
    stack.client.delete_registered_model_alias(MODEL, CHALLENGER_ALIAS)
    service.wait_for(lambda: service.status()["challenger"] is None, "the trial has ended")


def answers(service: Serving, id: str, share: float) -> bool:
    challenger = service.status()["challenger"] or {}
    return (challenger.get("trial"), challenger.get("share"), bool(challenger.get("live"))) == (id, share, True)


def ask(service: Serving, number: int, **headers: str) -> requests.Response:
    if number % 2:
        return requests.post(
            f"{service.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 4}, timeout=60, headers=headers
        )
    asked = {"inputs": [PROMPT], "params": {"max_new_tokens": 4}}
    return requests.post(f"{service.url}/invocations", json=asked, timeout=60, headers=headers)


def traces(stack: Stack, trial: str) -> list[Any]:
    mlflow.set_tracking_uri(stack.url)
    experiment = stack.client.get_experiment_by_name(TRACES)
    if experiment is None:
        return []
    return mlflow.search_traces(
        locations=[experiment.experiment_id],
        filter_string=f"tags.trial = '{trial}'",
        return_type="list",
        max_results=10_000,
    )


def test_the_share_on_the_wire_is_the_one_asked_for_and_counts_where_it_was_assigned(
    own: Stack, service: Serving
) -> None:
    try_out(own, "2", "wire", 0.25)
    service.wait_for(lambda: answers(service, "wire", 0.25), "the challenger answers")
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: ask(service, number), range(300)))
    assert {reply.status_code for reply in replies} == {200}
    by_version = Counter(reply.headers["X-Model-Version"] for reply in replies)
    assert by_version.keys() == {"1", "2"}
    assert by_version["2"] / 300 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 300) ** 0.5)
    texts = {reply.headers["X-Model-Version"]: reply.json()["choices"][0]["text"] for reply in replies[1::2]}
    assert texts["1"] != texts["2"]
    service.wait_for(lambda: len(traces(own, "wire")) == 300, "all traces are in MLflow")
    found = Counter(
        (trace.info.tags["arm"], trace.info.tags["model_version"], trace.info.tags["trial_outcome"])
        for trace in traces(own, "wire")
    )
    assert found == {("challenger", "2", "answered"): by_version["2"], ("incumbent", "1", "answered"): by_version["1"]}
    sessions = [{ask(service, 1, **{"X-Session-ID": "s"}).headers["X-Model-Version"] for _ in range(30)}]
    assert sessions == [{"1", "2"}]  # by request: a session gets both
    assert service.metric('ratchet_trial_share{version="2"}') == 0.25
    end(own, service)
    assert {ask(service, number).headers["X-Model-Version"] for number in range(20)} == {"1"}


def test_in_the_shadow_it_answers_nobody_and_is_judged_by_what_users_kept(own: Stack, service: Serving) -> None:
    try_out(own, "2", "shadow", 0.5, shadow=True)
    service.wait_for(lambda: answers(service, "shadow", 0.5), "the challenger runs")
    replies = []
    for number in range(40):
        replies.append(ask(service, 1))
        time.sleep(0.1)  # else most copies are left out
        kept = {"type": "kept", "completion_id": replies[-1].json()["id"], "after_s": 30, "characters": 3}
        told = kept | {"text": "    return a + b\n"}
        taken = {"type": "select", "completion_id": kept["completion_id"], "elapsed": 900}
        assert requests.post(f"{service.url}/v1/events", json={"events": [taken, told]}, timeout=30).ok, number
    assert {reply.headers["X-Model-Version"] for reply in replies} == {"1"}

    def found() -> list[dict[str, Any]]:
        return [{item.name: item.value for item in trace.info.assessments} for trace in traces(own, "shadow")]

    service.wait_for(lambda: sum("shadow_gain" in said for said in found()) >= 5, "what was kept is compared")
    copies = [said for said in found() if "shadow_failed" in said]
    assert 10 <= len(copies) <= 30
    assert not any(said["shadow_failed"] for said in copies)
    assert all(abs(said["shadow_gain"]) < 5 for said in copies if "shadow_gain" in said)
    assert {trace.info.tags["arm"] for trace in traces(own, "shadow")} == {"shadow"}
    end(own, service)


def test_a_session_stays_with_its_arm(own: Stack, service: Serving) -> None:
    try_out(own, "2", "sessions", 0.5, unit="session")
    service.wait_for(lambda: answers(service, "sessions", 0.5), "the challenger answers")
    arms = {
        session: {ask(service, 1, **{"X-Session-ID": session}).headers["X-Model-Version"] for _ in range(6)}
        for session in map(str, range(12))
    }
    assert all(len(found) == 1 for found in arms.values())
    assert set.union(*arms.values()) == {"1", "2"}
    end(own, service)


def test_a_challenger_that_is_killed_loses_no_request_and_comes_back(own: Stack, service: Serving) -> None:
    try_out(own, "2", "killed", 0.5)
    service.wait_for(lambda: answers(service, "killed", 0.5), "the challenger answers")
    with Load(service, 6) as load:
        time.sleep(2)
        os.killpg(service.status()["challenger"]["live"]["pid"], signal.SIGKILL)
        service.wait_for(lambda: not answers(service, "killed", 0.5), "it is seen", 10)
        service.wait_for(lambda: answers(service, "killed", 0.5), "it is back")
        time.sleep(2)
    assert load.failed() == []
    assert {answer[3] for answer in load.answers} == {"1", "2"}
    assert service.version() == "1"
    end(own, service)


def test_streams_that_a_killed_challenger_had_begun_are_brought_to_their_end(own: Stack, service: Serving) -> None:
    try_out(own, "2", "streams", 0.9)
    service.wait_for(lambda: answers(service, "streams", 0.9), "the challenger answers")
    begun = threading.Barrier(9)

    def stream(number: int) -> tuple[str, list[Any]]:
        asked = {"prompt": PROMPT, "max_tokens": 200, "temperature": 1.0, "seed": number, "stream": True}
        with requests.post(f"{service.url}/v1/completions", json=asked, stream=True, timeout=60) as answer:
            lines = (line.removeprefix(b"data: ") for line in answer.iter_lines() if line)
            found = [json.loads(next(lines))]
            begun.wait(30)
            found += [json.loads(line) for line in lines if line != b"[DONE]"]
        return answer.headers["X-Model-Version"], found

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, number) for number in range(8)]
        pid = service.status()["challenger"]["live"]["pid"]
        begun.wait(30)
        os.killpg(pid, signal.SIGKILL)
        ended = [one.result() for one in streams]
    assert "2" in {version for version, _ in ended}
    for _, found in ended:
        assert "error" not in found[-1], found[-1]
        assert found[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    service.wait_for(lambda: answers(service, "streams", 0.9), "it is back")
    end(own, service)


def test_a_challenger_that_fails_gets_nothing_within_two_seconds(own: Stack, service: Serving, tiny, tmp_path) -> None:
    """It is silent once it is to answer: its process is stopped as by a debugger, so that requests hang."""
    try_out(own, "3", "hangs", 0.5, limits={"slow_s": 0.5})
    service.wait_for(lambda: answers(service, "hangs", 0.5), "the challenger answers")
    pid = service.status()["challenger"]["live"]["pid"]
    with Load(service, 6) as load:
        time.sleep(1)
        os.killpg(pid, signal.SIGSTOP)
        hung = time.monotonic()
        service.wait_for(lambda: service.status()["challenger"]["stopped"], "it is stopped", 20)
        assert time.monotonic() - hung < 20
        os.killpg(pid, signal.SIGCONT)
        time.sleep(1)
    assert load.failed() == []
    after = [answer for answer in load.answers if answer[0] > time.monotonic() - 0.5]
    assert {answer[3] for answer in after} <= {"1"}

    def told() -> bool:
        return own.client.get_model_version(MODEL, "3").tags.get(TRIAL_STOPPED, "").startswith("hangs: its last 3")

    service.wait_for(told, "the version says why")
    failed = [trace for trace in traces(own, "hangs") if trace.info.tags["trial_outcome"] == "failed"]
    assert {trace.info.tags["arm"] for trace in failed} <= {"challenger"}
    end(own, service)


@doses.full
def test_three_replicas_agree_without_talking_to_each_other(own: Stack, tmp_path_factory) -> None:
    """Counted by the client, who asks one after another, as a balancer lets them."""
    with ExitStack() as stack:
        homes = (tmp_path_factory.mktemp("replica") for _ in range(3))
        replicas = [stack.enter_context(serving_process(own, MODEL, home)) for home in homes]
        for replica in replicas:
            replica.wait_for_version("1")
        try_out(own, "2", "replicas", 0.1)
        for replica in replicas:
            replica.wait_for(lambda replica=replica: answers(replica, "replicas", 0.1), "the challenger answers")
        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(lambda number: ask(replicas[number % 3], 1), range(1500)))
        theirs = [reply.headers["X-Model-Version"] == "2" for reply in replies]
        assert {reply.status_code for reply in replies} == {200}
        assert sum(theirs) / 1500 == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 1500) ** 0.5)
        for number in range(3):
            assert sum(theirs[number::3]) / 500 == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 500) ** 0.5)
        try_out(own, "2", "together", 0.5, unit="session")
        for replica in replicas:
            replica.wait_for(lambda replica=replica: answers(replica, "together", 0.5), "the challenger answers")
        for session in map(str, range(20)):
            found = {ask(replica, 1, **{"X-Session-ID": session}).headers["X-Model-Version"] for replica in replicas}
            assert len(found) == 1
        for replica in replicas:
            end(own, replica) if replica is replicas[0] else replica.wait_for(
                lambda replica=replica: replica.status()["challenger"] is None, "the trial has ended"
            )


@doses.full
def test_killed_workers_and_a_killed_serving_take_the_trial_up_again(own: Stack, tmp_path) -> None:
    with serving_process(own, MODEL, tmp_path) as service:
        service.wait_for_version("1")
        try_out(own, "2", "workers", 0.5)
        service.wait_for(lambda: answers(service, "workers", 0.5), "the challenger answers")
        [gateway] = [
            child for child in psutil.Process(service.process.pid).children() if "gunicorn" in " ".join(child.cmdline())
        ]
        for worker in gateway.children():
            worker.kill()
        assert {ask_again(service).headers["X-Model-Version"] for _ in range(40)} == {"1", "2"}
        children = psutil.Process(service.process.pid).children(recursive=True)
        service.process.kill()
        service.process.wait()
        _, left = psutil.wait_procs(children, 30)
        assert left == []  # neither model outlives it
    with serving_process(own, MODEL, tmp_path) as service:
        service.wait_for(lambda: answers(service, "workers", 0.5), "the challenger answers again")
        assert {ask(service, 1).headers["X-Model-Version"] for _ in range(40)} == {"1", "2"}
        end(own, service)


def ask_again(service: Serving) -> requests.Response:
    """As a client asks whose connection was cut."""
    until = time.monotonic() + 30
    while True:
        try:
            return ask(service, 1)
        except requests.ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)  # the pace of asking


def test_without_its_promoter_a_trial_ends(own: Stack, service: Serving) -> None:
    try_out(own, "2", "leased", 0.5, lease_s=12)
    service.wait_for(lambda: answers(service, "leased", 0.5), "the challenger answers", 11)
    service.wait_for(lambda: "lease" in service.status()["challenger"]["stopped"], "the lease runs out", 30)
    assert {ask(service, number).headers["X-Model-Version"] for number in range(20)} == {"1"}
    end(own, service)


def test_one_that_does_not_load_leaves_the_live_version_alone(own: Stack, service: Serving, tiny, tmp_path) -> None:
    folder = variant(tiny.folder, tmp_path / "broken", 9)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"no weights")
    number = register(own, MODEL, folder)
    try_out(own, number, "broken", 0.5)
    service.wait_for(lambda: (service.status()["challenger"] or {}).get("stopped"), "it is stopped")
    assert "does not" in service.status()["challenger"]["stopped"]
    assert {ask(service, asked).headers["X-Model-Version"] for asked in range(10)} == {"1"}
    end(own, service)


def test_too_little_memory_for_two_is_refused_with_the_figures(own: Stack, tmp_path) -> None:
    with serving_process(own, MODEL, tmp_path, SERVING_MEMORY_RESERVE_MB=str(1 << 30)) as service:
        service.wait_for_version("1")
        try_out(own, "2", "memory", 0.5)
        service.wait_for(lambda: (service.status()["challenger"] or {}).get("stopped"), "it is stopped")
        stopped = service.status()["challenger"]["stopped"]
        assert "too little memory for two" in stopped
        assert "MiB" in stopped
        assert service.version() == "1"
        end(own, service)


def test_a_challenger_that_goes_into_production_is_live_at_once(own: Stack, service: Serving) -> None:
    """Last: it moves production. Its process serves on, and no request is lost."""
    own.client.delete_model_version_tag(MODEL, "2", TRIAL_STOPPED)
    try_out(own, "2", "promoted", 0.5)
    service.wait_for(lambda: answers(service, "promoted", 0.5), "the challenger answers")
    pid = service.status()["challenger"]["live"]["pid"]
    with Load(service, 4) as load:
        own.client.set_registered_model_alias(MODEL, PRODUCTION, "2")
        service.wait_for_version("2")
        own.client.delete_registered_model_alias(MODEL, CHALLENGER_ALIAS)
        time.sleep(2)
    assert load.failed() == []
    assert service.status()["live"]["pid"] == pid
    assert service.status()["challenger"] is None
    assert json.dumps(service.status())
    assert wait_until(lambda: service.status()["draining"] == [], 30, lambda: True)
