"""Two processes over gloo: the same losses as one, and what happens when one of them dies."""

import signal
import time

import psutil
import pytest

from services.tracking.readiness import wait_until
from tests.support.doses import DYING, STEPS, STRATEGIES
from tests.support.tracking import Stack
from tests.support.training import candidate, finish, losses, settings, wait_for_line, weights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_unfinished_jobs")]
TWO = ("distributed.processes=2", "trainer.batch_size=4")
# float32: the processes' sums come in another order, and nothing else differs.
TOLERANCE = 1e-5
EXACT = ("model.dtype=float32", "trainer.max_steps=12", "trainer.gradient_accumulation_steps=2")


@pytest.fixture(scope="module")
def alone(stack: Stack, tiny) -> list[float]:
    finish(stack, *settings(tiny, "one_process", *EXACT, "trainer.batch_size=8"))
    return [loss for _, loss in losses(stack, candidate(stack, "one_process"))]


def test_all_weights_are_trained_by_two_as_by_one(stack: Stack, tiny) -> None:
    found = {}
    for name, more in {"one": ("trainer.batch_size=8",), "two": (*TWO, "distributed.strategy=fsdp")}.items():
        full = ("trainer.method=full", "trainer.lr=1e-3", "trainer.validation_fraction=0.2", "trainer.eval_steps=4")
        finish(stack, *settings(tiny, f"full_{name}", *EXACT, *more, *full))
        run = candidate(stack, f"full_{name}")
        found[name] = [loss for key in ("train/loss", "validation/loss") for _, loss in losses(stack, run, key)]
        assert len(found[name]) == 12 + 3
    assert found["two"] == pytest.approx(found["one"], rel=TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_have_the_losses_of_one(stack: Stack, tiny, alone, strategy: str) -> None:
    experiment = f"two_processes_{strategy}"
    finish(stack, *settings(tiny, experiment, *EXACT, *TWO, f"distributed.strategy={strategy}"))
    run = candidate(stack, experiment)
    assert [loss for _, loss in losses(stack, run)] == pytest.approx(alone, rel=TOLERANCE)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["run/tokens"] == candidate(stack, "one_process").data.metrics["run/tokens"]


def test_it_goes_on_with_as_many_processes_only(stack: Stack, tiny) -> None:
    job = stack.popen("trainer", *settings(tiny, "fewer", "trainer.max_steps=100000"))
    wait_for_line(job, "  step ")
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=60)
    both = stack.popen("trainer", *settings(tiny, "fewer", "trainer.max_steps=100000", "distributed.processes=2"))
    output, _ = both.communicate(timeout=120)
    assert both.returncode == 2, output
    assert "was trained by 1 processes (ddp); now there are 2 (ddp)" in output


def workers(pid: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if "trainer.training.worker" in process.cmdline()  # and not what they start themselves
    ]


@pytest.mark.parametrize("strategy", DYING)
def test_one_process_dies_and_the_same_command_goes_on(stack: Stack, tiny, tmp_path, strategy: str) -> None:
    both = (*TWO, f"distributed.strategy={strategy}", f"trainer.max_steps={STEPS // 2}")
    finish(stack, *settings(tiny, f"undisturbed_{strategy}", *both))
    command = settings(tiny, f"one_dies_{strategy}", *both)
    job = stack.popen("trainer", *command)
    wait_for_line(job, "Fine-tuning")
    saved = stack.home / "checkpoints" / "jobs"
    assert wait_until(lambda: any(saved.glob("*/checkpoints/*/complete.json")), 60, lambda: job.poll() is None)
    running = workers(job.pid)
    assert len(running) == 2
    running[1].kill()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1, output
    assert "was killed by SIGKILL (by the kernel, where memory ran out)" in output
    assert "The same command goes on from the last checkpoint" in output
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)
    assert candidate(stack, f"one_dies_{strategy}").info.status == "FAILED"

    assert "Going on from step" in finish(stack, *command)
    run, undisturbed = candidate(stack, f"one_dies_{strategy}"), candidate(stack, f"undisturbed_{strategy}")
    assert losses(stack, run) == losses(stack, undisturbed)
    assert weights(stack, run, tmp_path / "a") == weights(stack, undisturbed, tmp_path / "b")


def test_ctrl_c_saves_in_all_processes_and_kill_ends_them(stack: Stack, tiny) -> None:
    command = settings(tiny, "stopped_together", *TWO, "trainer.max_steps=100000")
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        job = stack.popen("trainer", *command)
        seen = wait_for_line(job, "  step ")
        running = workers(job.pid)
        assert len(running) == 2
        job.send_signal(number)
        output, _ = job.communicate(timeout=60)
        assert job.returncode == code, output
        _, left = psutil.wait_procs(running, timeout=30)
        assert not left
    assert "Going on from step" in seen
    run = candidate(stack, "stopped_together")
    assert run.info.status == "RUNNING"  # by the second signal nobody could say so


def test_a_machine_that_does_not_come_is_an_error(stack: Stack, tiny) -> None:
    from contract.files import free_port

    meeting = f"distributed.rendezvous=127.0.0.1:{free_port()}"
    job = stack.popen(
        "trainer", *settings(tiny, "lonely", "distributed.machines=2", meeting, "distributed.timeout_s=10")
    )
    began = time.monotonic()
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 1, output
    assert "Error: Process 0 on machine 0" in output
    assert time.monotonic() - began < 110
