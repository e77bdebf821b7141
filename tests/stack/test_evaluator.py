"""The evaluator's container: nothing in it but Python, no way out, and every escape tried and stopped."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from evaluator.__main__ import health as evaluator_health
from tests.support.escapes import ESCAPES, LEGACIES, Escape
from tests.support.stack import Platform

pytestmark = pytest.mark.stack

RUN = """
import json, sys
from trainer.evaluation.sandbox import Sandbox
with Sandbox(timeout_s=5, memory_mb=1000) as sandbox:
    print("VERDICTS", json.dumps([sandbox.run(program)._asdict() for program in json.loads(sys.argv[1])]))
"""


def run_programs(platform: Platform, programs: list[str]) -> list[dict[str, Any]]:
    """The verdicts that a trainer's container gets from the evaluator's."""
    arguments = ("run", "--rm", "--no-TTY", "--entrypoint", "python", "trainer", "-c", RUN, json.dumps(programs))
    [line] = [line for line in platform.docker_compose(*arguments).splitlines() if line.startswith("VERDICTS ")]
    return list(json.loads(line.removeprefix("VERDICTS ")))


@pytest.fixture(scope="module")
def verdicts(platform: Platform) -> dict[str, dict[str, Any]]:
    """Of every escape, and behind each of them of a program that has nothing to hide."""
    well = "assert 1 + 1 == 2"
    programs = [program for escape in ESCAPES for program in (escape.program, well)]
    found = run_programs(platform, programs)
    assert all(verdict["passed"] for verdict in found[1::2])  # whatever was tried, the evaluator is well
    return dict(zip((escape.name for escape in ESCAPES), found[0::2], strict=True))


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: escape.name)
def test_escape_is_stopped(verdicts: dict[str, dict[str, Any]], escape: Escape) -> None:
    verdict = verdicts[escape.name]
    assert not verdict["passed"]
    assert verdict["outcome"] in escape.outcomes, verdict
    assert escape.detail in verdict["detail"] or verdict["outcome"] != "failed", verdict


def test_nothing_is_left_behind(platform: Platform) -> None:
    programs = [program for _, first, second in LEGACIES for program in (first, second)]
    verdicts = run_programs(platform, programs)
    assert [verdict["passed"] for verdict in verdicts] == [True] * len(programs), verdicts


def test_the_heartbeat_cannot_be_forged_and_tells_a_late_evaluator(platform: Platform) -> None:
    forged = "try:\n    open('/proc/1/comm', 'w').write('1')\nexcept OSError:\n    pass\nelse:\n    assert False"
    [verdict] = run_programs(platform, [forged])
    assert verdict["passed"], verdict
    health = ("exec", "-T", "evaluator", "python", "-m", "evaluator", "--health")
    assert platform.docker_compose(*health) == ""
    assert evaluator_health(str(int(time.monotonic()) - 30)) == 1
    assert [evaluator_health(name) for name in ("waiting", str(int(time.monotonic()) + 30))] == [0, 0]


def test_no_socket_is_left_for_a_program_to_find(platform: Platform) -> None:
    [verdict] = run_programs(
        platform, ["import os\nassert os.listdir('/run/evaluator') == ['lock'], os.listdir('/run/evaluator')"]
    )
    assert verdict["passed"], verdict


def test_two_trainers_take_turns_and_no_program_meets_the_other(platform: Platform) -> None:
    """A program that answers for the evaluator, could it reach a trainer that waits."""
    forger = """
import glob, json, socket, time
for _ in range(20):
    for path in glob.glob('/run/evaluator/*.sock'):
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            raise SystemExit('met the other')
    time.sleep(0.1)
raise SystemExit('met nobody')
"""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_programs, platform, [forger] * 6)
        second = pool.submit(run_programs, platform, ["assert False"] * 3)
        assert [verdict["detail"] for verdict in first.result()] == ["met nobody"] * 6
        assert [verdict["passed"] for verdict in second.result()] == [False] * 3


def test_program_that_breaks_the_evaluator_forges_nothing_and_does_no_lasting_harm(platform: Platform) -> None:
    breaker = "import resource\nresource.prlimit(1, resource.RLIMIT_FSIZE, (0, 0))"
    with pytest.raises(AssertionError, match="The evaluator ended in the middle"):
        run_programs(platform, [breaker, "assert True"])
    assert run_programs(platform, ["assert True"])[0]["passed"]  # Docker has started it anew


def test_container_has_no_network_no_credentials_and_nothing_to_write(platform: Platform) -> None:
    container = platform.inspect("evaluator")
    assert container["HostConfig"]["NetworkMode"] == "none"
    assert container["HostConfig"]["IpcMode"] in ("", "private")
    assert list(container["NetworkSettings"]["Networks"]) == ["none"]
    names = {entry.partition("=")[0] for entry in container["Config"]["Env"]}
    assert not {name for name in names if any(word in name for word in ("AWS", "URI", "TOKEN", "PASSWORD", "SECRET"))}
    assert [(mount["Destination"], mount["RW"]) for mount in container["Mounts"]] == [("/run/evaluator", False)]
    assert set(container["HostConfig"]["Tmpfs"]) == {"/dev/shm", "/tmp"}
    assert all("size=64m,nr_inodes=4096" in options for options in container["HostConfig"]["Tmpfs"].values())


def test_without_an_evaluator_the_trainer_says_what_to_do(platform: Platform) -> None:
    platform.docker_compose("stop", "evaluator")
    code = "import trainer.evaluation.sandbox as s; s.CONNECT_TIMEOUT_S = 1; s.Sandbox(1, 100).__enter__()"
    arguments = ("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python", "trainer", "-c", code)
    output = platform.docker_compose(*arguments, expected=1)
    assert "No evaluator came within 1 s" in output
    platform.docker_compose("start", "evaluator")
