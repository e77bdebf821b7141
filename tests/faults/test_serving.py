"""Serving under load while versions come and go, and while what it stands on is killed, full, broken or away."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from tests.support.doses import SERVING_OUTAGE_S, SWAPS
from tests.support.serving import PROMPT, Load, Serving, register, serving_process, variant
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.faults

RAISES = """
import os
import mlflow
from code_model.pyfunc import *
from code_model.pyfunc import CodeGenerationModel

class Raising(CodeGenerationModel):
    def predict(self, context, model_input, params=None):
        raise RuntimeError("this model raises")

mlflow.models.set_model(Raising())
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    """A tracking server of this module's own."""
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    with server(stack):
        yield stack


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory) -> list[Path]:
    """Two models that answer otherwise."""
    return [tiny.folder, variant(tiny.folder, tmp_path_factory.mktemp("variant") / "model", seed=1)]


def put(stack: Stack, model: str, number: str) -> None:
    stack.client.set_registered_model_alias(model, "production", number)


def registered(stack: Stack, model: str, folders: list[Path]) -> list[str]:
    """Both models as versions, the first one in production."""
    numbers = [register(stack, model, folder) for folder in folders]
    put(stack, model, numbers[0])
    return numbers


def test_swaps_under_load_lose_no_request(stack: Stack, folders, tmp_path) -> None:
    numbers = registered(stack, "swapped", folders)
    moved: list[tuple[float, str]] = []
    with serving_process(stack, "swapped", tmp_path / "serving") as service:
        service.wait_for_version(numbers[0])
        expected = {numbers[0]: service.ask().json()["predictions"][0]}
        put(stack, "swapped", numbers[1])
        service.wait_for_version(numbers[1])
        expected[numbers[1]] = service.ask().json()["predictions"][0]
        assert expected[numbers[0]] != expected[numbers[1]]
        with Load(service, 16) as load:
            for swap in range(SWAPS):
                number = numbers[swap % 2]
                put(stack, "swapped", number)
                moved.append((time.monotonic(), number))
                service.wait_for_version(number)
                answered = len(load.answers)
                service.wait_for(lambda answered=answered: len(load.answers) > answered + 32, "it answers")
        assert load.failed() == []
        assert len(load.answers) > 16 * SWAPS
        for _, _, _, version, text in load.answers:
            assert text == expected[version]  # the version that the header names has answered
        assert service.metric('ratchet_swaps_total{outcome="live"}') == SWAPS + 1
        assert service.metric('ratchet_swaps_total{outcome="refused"}') == 0
    seconds = [answer[1] for answer in load.answers]
    first = [min(a[0] + a[1] for a in load.answers if a[3] == number and a[0] > when) - when for when, number in moved]
    print(
        f"\n{len(seconds)} requests of 16 clients, {SWAPS} swaps: none failed; p50 {np.median(seconds):.2f} s, "
        f"p99 {np.percentile(seconds, 99):.2f} s; alias to answer {np.median(first):.1f} s, {max(first):.1f} s at most"
    )


@pytest.fixture(scope="module")
def service(stack: Stack, folders, tmp_path_factory):
    """Version 1 in production, with load-bearing defaults."""
    numbers = registered(stack, "faulty", folders)
    with serving_process(stack, "faulty", tmp_path_factory.mktemp("serving") / "home") as service:
        service.wait_for_version(numbers[0])
        yield service


def test_a_killed_child_is_started_again_and_its_requests_are_answered(service: Serving) -> None:
    with Load(service, 8) as load:
        service.wait_for(lambda: len(load.answers) > 20, "there is load")
        before = service.status()["live"]
        for process in psutil.Process(before["pid"]).children(recursive=True):
            process.kill()
        service.wait_for(
            lambda: (live := service.status()["live"]) is not None and live["pid"] != before["pid"], "it is back"
        )
        answered = len(load.answers)
        service.wait_for(lambda: len(load.answers) > answered + 20, "it answers")
    assert load.failed() == []
    assert service.status()["restarts"] == 1
    assert service.metric("ratchet_child_restarts_total") == 1


def test_a_killed_worker_of_the_gateway_is_replaced(service: Serving) -> None:
    gateway = next(
        child for child in psutil.Process(service.process.pid).children() if "gunicorn" in " ".join(child.cmdline())
    )
    with Load(service, 8) as load:
        service.wait_for(lambda: len(load.answers) > 20, "there is load")
        worker = gateway.children()[0]
        worker.kill()
        answered = len(load.answers)
        service.wait_for(lambda: len(load.answers) > answered + 40, "the others answer")
    assert len(load.failed()) <= 8  # those whose connections it had
    assert all(answer[2] == 0 for answer in load.failed())
    service.wait_for(lambda: len(gateway.children()) == 2, "there are two workers again")
    service.wait_for(lambda: service.status()["engine"]["active"] == 0, "what it had begun is let go", 20)


def test_a_version_whose_model_raises_never_goes_live(stack: Stack, service: Serving, folders, tmp_path) -> None:
    code = tmp_path / "raising.py"
    code.write_text(RAISES)
    bad = register(stack, "faulty", folders[0], str(code))
    live = service.version()
    with Load(service, 4) as load:
        put(stack, "faulty", bad)
        service.wait_for(lambda: bad in service.status()["refused"], "it is refused")
    assert load.failed() == []
    assert {answer[3] for answer in load.answers} == {live}
    assert "this model raises" in service.status()["refused"][bad]
    service.wait_for(
        lambda: "this model raises" in stack.client.get_model_version("faulty", bad).tags.get("serving_refused", ""),
        "its page says why",
    )
    assert service.metric('ratchet_swaps_total{outcome="refused"}') >= 1
    put(stack, "faulty", str(live))


def test_a_corrupt_artifact_never_goes_live(stack: Stack, service: Serving, folders) -> None:
    bad = register(stack, "faulty", folders[1])
    source = stack.client.get_model_version("faulty", bad).source.rpartition("/")[2]
    [weights] = (stack.home / "artifacts").rglob(f"{source}/**/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    live = service.version()
    put(stack, "faulty", bad)
    service.wait_for(lambda: bad in service.status()["refused"], "it is refused")
    assert "model.safetensors was changed" in service.status()["refused"][bad]
    assert service.version() == live
    # Mended, it goes live once the alias comes to it again.
    content[-1] ^= 1
    weights.write_bytes(content)
    put(stack, "faulty", str(live))
    service.wait_for(lambda: service.status()["pending"] is None, "the alias is seen")
    time.sleep(1.5)  # longer than the pause between two looks at the alias
    put(stack, "faulty", bad)
    service.wait_for_version(bad)
    assert bad not in service.status()["refused"]
    service.wait_for(
        lambda: "serving_refused" not in stack.client.get_model_version("faulty", bad).tags, "its page says so no more"
    )


def test_broken_production_is_served_by_the_version_before_until_it_is_mended(stack: Stack, folders, tmp_path) -> None:
    numbers = registered(stack, "mended", folders)
    put(stack, "mended", numbers[1])
    source = stack.client.get_model_version("mended", numbers[1]).source.rpartition("/")[2]
    [weights] = (stack.home / "artifacts").rglob(f"{source}/**/model.safetensors")
    added = requests.put(
        f"{stack.url}/api/2.0/mlflow-artifacts/artifacts/"
        + weights.with_name("added.py").relative_to(stack.home / "artifacts").as_posix(),
        data=b"raise SystemExit",
        timeout=10,
    )
    assert added.ok, added.text
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with serving_process(stack, "mended", tmp_path / "serving") as service:
        service.wait_for(lambda: "No other version has the alias" in service.status()["message"], "it says so")
        assert service.ask().status_code == 503
        stack.client.set_registered_model_alias("mended", "previous", numbers[0])
        service.wait_for_version(numbers[0])
        status = service.status()
        assert (status["status"], status["live"]["instead_of"]) == ("serving", numbers[1])
        assert "model.safetensors was changed" in status["message"]
        assert f"Version {numbers[0]} serves instead" in service.log.read_text()
        with Load(service, 2) as load:
            content[-1] ^= 1
            weights.write_bytes(content)
            service.wait_for_version(numbers[1])  # the added file does not matter
        assert load.failed() == []
        assert not list((tmp_path / "serving").rglob("added.py"))
        assert (service.status()["message"], service.status()["refused"]) == ("", {})


def test_without_the_tracking_server_it_serves_on(tiny, folders, tmp_path) -> None:
    own = make_stack(tmp_path)
    with server(own) as tracking:
        numbers = registered(own, "alone", folders)
        with serving_process(own, "alone", tmp_path / "serving") as service:
            service.wait_for_version(numbers[0])
            with Load(service, 4) as load:
                service.wait_for(lambda: len(load.answers) > 10, "there is load")
                tracking.terminate()
                tracking.wait(20)
                time.sleep(SERVING_OUTAGE_S)
                with server(own):
                    put(own, "alone", numbers[1])
                    service.wait_for_version(numbers[1])
            assert load.failed() == []
            assert service.process.poll() is None
        # And it starts without one, with what was live last.
        with serving_process(own, "alone", tmp_path / "serving") as service:
            service.wait_for_version(numbers[1])
            assert service.ask().status_code == 200


def test_a_full_disk_keeps_the_live_version(stack: Stack, folders, tmp_path) -> None:
    numbers = registered(stack, "full", folders)
    size = sum(path.stat().st_size for path in folders[0].rglob("*"))
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
    small = (
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        script,
        "sh",
        str(int(size * 1.6) + 250_000),
    )  # room for one
    home = tmp_path / "serving"
    (home / "disk").mkdir(parents=True)
    prefix = (*small, str(home / "disk"))
    with serving_process(stack, "full", home, prefix, RATCHET_HOME=str(home / "disk")) as service:
        service.wait_for_version(numbers[0])
        with Load(service, 4) as load:
            put(stack, "full", numbers[1])
            service.wait_for(lambda: "No space left on device" in service.status()["message"], "it is said")
            assert service.version() == numbers[0]
        assert load.failed() == []
        assert numbers[1] not in service.status()["refused"]  # not the version's fault: it is tried again


def test_without_memory_for_two_the_requests_wait_and_none_is_lost(stack: Stack, folders, tmp_path) -> None:
    numbers = registered(stack, "tight", folders)
    with serving_process(stack, "tight", tmp_path / "serving", SERVING_MEMORY_RESERVE_MB="1000000000") as service:
        service.wait_for_version(numbers[0])
        with Load(service, 4) as load:
            put(stack, "tight", numbers[1])
            service.wait_for_version(numbers[1])
            assert "Both do not fit" in service.log.read_text()
            # One that fails, without the live one beside it: the live one comes back.
            code = tmp_path / "raising.py"
            code.write_text(RAISES)
            bad = register(stack, "tight", folders[0], str(code))
            put(stack, "tight", bad)
            service.wait_for(lambda: bad in service.status()["refused"], "it is refused")
            service.wait_for_version(numbers[1])
        assert load.failed() == []
        assert {answer[3] for answer in load.answers} == set(numbers)


def test_sigterm_answers_what_was_begun(stack: Stack, folders, tmp_path) -> None:
    numbers = registered(stack, "ended", folders)
    with serving_process(stack, "ended", tmp_path / "serving") as service:
        service.wait_for_version(numbers[0])
        request = subprocess.Popen(
            [
                *("curl", "-s", f"{service.url}/v1/completions", "-H", "Content-Type: application/json"),
                *("-d", json.dumps({"prompt": PROMPT, "max_tokens": 400})),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        service.wait_for(lambda: service.status()["engine"]["active"] > 0, "it is begun")
        children = psutil.Process(service.process.pid).children(recursive=True)
        service.process.send_signal(signal.SIGTERM)
        output, _ = request.communicate(timeout=60)
        assert '"finish_reason": "' in output
        assert service.process.wait(60) == 0
        assert not [child for child in children if child.is_running()]
        with pytest.raises(requests.ConnectionError):
            service.ask()


def test_killed_itself_nothing_of_it_stays(stack: Stack, folders, tmp_path) -> None:
    numbers = registered(stack, "killed", folders)
    with serving_process(stack, "killed", tmp_path / "serving") as service:
        service.wait_for_version(numbers[0])
        children = psutil.Process(service.process.pid).children(recursive=True)
        service.process.kill()
        service.process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
