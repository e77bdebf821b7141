"""Commands on a disk that fills up: one message, exit code 1, nothing half-made, and the same command goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import disk_full
from tests.integration.test_when_things_go_wrong import settings
from tests.support.tracking import Stack

pytestmark = pytest.mark.integration
SMALL = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && "$@"; code=$?; find "$0" -type f; exit $code'


def on_a_small_disk(folder: Path, size: str, env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a part's command where `folder` is a disk of its own; stdout ends with the files that it has left there."""
    folder.mkdir()
    prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", SMALL, str(folder), size, str(folder))
    return subprocess.run(
        [*prefix, sys.executable, "-m", *command], env=os.environ | env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("size", "variable", "left"),
    [
        ("1m", "output", []),
        ("300k", "TMPDIR", []),
        ("300k", "CHECKPOINTS_DIR", ["volume-id", "metrics.jsonl"]),
    ],
)
def test_a_full_disk_is_one_message(stack: Stack, tiny, tmp_path, size: str, variable: str, left: list[str]) -> None:
    disk = tmp_path / "disk"
    arguments = [*settings(tiny, f"full_{variable}"), "trainer.max_steps=1"]
    env = {**stack.env, variable: str(disk)}
    if variable == "output":
        arguments = ["prepare", "--output", str(disk / "made"), *arguments]
    done = on_a_small_disk(disk, size, env, "trainer", *arguments)
    assert done.returncode == 1, done.stderr
    assert "Error: The disk is full." in done.stderr
    assert f" MB in {disk}" in done.stderr
    assert "Traceback" not in done.stderr
    files = [line for line in done.stdout.splitlines() if line.startswith(str(disk))]
    whole = [name for name in files if "/checkpoint-" not in name]  # those half-written go at the next start
    assert [name for name in left if not any(file.endswith(name) for file in whole)] == []
    assert left or not whole
    if experiment := stack.client.get_experiment_by_name(f"full_{variable}"):
        runs = stack.client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
        assert not runs


def test_the_promoter_says_so_too(stack: Stack, tiny, tmp_path) -> None:
    trained = stack.popen("trainer", *settings(tiny, "full_gate"), "trainer.max_steps=1")
    output, _ = trained.communicate(timeout=300)
    assert trained.returncode == 0, output
    disk = tmp_path / "disk"
    command = ("promoter", "gate", "--experiment-name", "full_gate", "--version", "2")
    done = on_a_small_disk(disk, "100k", stack.env | {"TMPDIR": str(disk)}, *command)
    assert done.returncode == 1, done.stderr
    assert "Error: The disk is full. What was begun is finished by the same command." in done.stderr
    assert "Traceback" not in done.stderr


def test_what_libraries_say_of_a_full_disk_is_recognised(tmp_path) -> None:
    """torch and SQLite pass no errno on; a library may wrap the system's own error."""
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(28, "No space left on device")
    for error in (
        wrapped,
        RuntimeError("inline_container.cc:672] unexpected pos"),
        OSError(122, "Disk quota exceeded"),
    ):
        found = disk_full(error, "Nothing was written.", [tmp_path / "not" / "there"])
        assert found is not None
        assert found.exit_code == 1
        assert found.message.startswith("The disk is full. Nothing was written. Free by now: ")
    assert disk_full(OSError(13, "Permission denied"), "") is None
