"""`trainer try` on versions of a real tracking server, and the page of the table that a run logs."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner, Result

from tests.support.tracking import Stack
from tests.support.training import candidate, finish, settings, wait_for_line
from trainer.cli import main
from trainer.playground import models

pytestmark = pytest.mark.integration

EXPERIMENT = "tried"
MODEL = f"{EXPERIMENT}_model"
CODE = "def add(a, b):\n    return \n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def trained(stack: Stack, tiny) -> Stack:
    """Version 1 is the base model; version 2 a fine-tuned one, and in production."""
    finish(stack, *settings(tiny, EXPERIMENT))
    stack.client.set_registered_model_alias(MODEL, "production", "2")
    return stack


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "add.py").write_text(CODE)
    return f"{tmp_path / 'add.py'}:2:12"


def run(stack: Stack, *arguments: str, given: str = "") -> Result:
    env = {"MLFLOW_TRACKING_URI": stack.url, "COLUMNS": "100"}
    return CliRunner().invoke(main, ["try", "--max-new-tokens", "4", *arguments], input=given, env=env)


def test_at_a_place_in_a_file_beside_the_base_model(trained: Stack, place: str) -> None:
    found = run(trained, place, f"tracking.experiment_name={EXPERIMENT}")
    assert found.exit_code == 0, (found.output, found.exception)
    heads, facts, _, texts = found.stdout.splitlines()[:4]
    assert re.fullmatch(rf"{MODEL} version 1, the base model +│ {MODEL} version 2", heads)
    assert facts.count("tokens, ") == 2
    assert texts.count("    return") == 2
    assert re.search(rf"Loading {MODEL} version 2 took \d+ s\n", found.stderr)


def test_a_text_and_the_version_alone(trained: Stack) -> None:
    uri = f"models:/{MODEL}/2"
    found = run(trained, "--model-uri", uri, "--no-base", "-", given=CODE.replace("return ", "return <|cursor|>"))
    assert found.exit_code == 0, (found.output, found.exception)
    assert "version 1" not in found.output
    assert "    return " in found.stdout


def test_a_base_model_has_none_beside_it(trained: Stack) -> None:
    found = run(trained, "--model-uri", f"models:/{MODEL}/1", given="def f():\n")
    assert found.exit_code == 0, (found.output, found.exception)
    assert f"Without a base model beside it: {MODEL} version 1 is one itself (sha256:" in found.stderr
    assert "│" not in found.stdout


def test_a_base_model_that_is_not_to_be_had(trained: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the base model's version was deleted, which was made of a folder."""
    monkeypatch.setattr(models.names, "BASE", "a role that no version has")
    found = run(trained, "--model-uri", f"models:/{MODEL}/2", given="def f():\n")
    assert found.exit_code == 0, (found.output, found.exception)
    assert re.search(r"tuned from \(sha256:\w+\) is registered no more\.", found.stderr)
    assert f"{MODEL} version 2" in found.stdout


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (f"models:/{MODEL}/99", f"one of the versions 2, 1 of {MODEL}"),
        (f"models:/{MODEL}@nobody", "which does not exist"),
        ("models:/nothing/1", "a registered model ("),
        ("nowhere", "Expected models:/NAME/NUMBER or models:/NAME@ALIAS"),
    ],
)
def test_no_such_version(trained: Stack, uri: str, expected: str) -> None:
    found = run(trained, "--model-uri", uri, given="x")
    assert (found.exit_code, expected in found.output) == (2, True), found.output


def test_the_page_serves_whoever_has_its_address_until_ctrl_c(trained: Stack) -> None:
    job = trained.popen("trainer", "try", "--page", f"tracking.experiment_name={EXPERIMENT}")
    said = wait_for_line(job, "Open http://127.0.0.1:")
    url = re.search(r"Open (http://127\.0\.0\.1:\d+/\?token=(\S+))", said)
    assert url is not None
    with urlopen(url[1], timeout=30) as page:
        assert f"{MODEL} version 2" in page.read().decode()
    body = json.dumps({"prefix": "def f():\n", "suffix": "\nf()", "max_new_tokens": 3}).encode()
    with urlopen(Request(f"{url[1].partition('?')[0]}complete", body, {"X-Token": url[2]}), timeout=60) as reply:
        answers = json.load(reply)["answers"]
    assert [item["name"] for item in answers] == [f"{MODEL} version 1, the base model", f"{MODEL} version 2"]
    assert all(0 < item["probability"] < 1 and item["tokens"] <= 3 for item in answers)
    job.send_signal(signal.SIGINT)
    rest, _ = job.communicate(timeout=60)
    assert job.returncode == 0, rest
    assert "Traceback" not in rest


def test_a_conversation_at_a_terminal_ends_with_ctrl_c(tiny) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "trainer", "try", "--model-uri", str(tiny.folder), "--max-new-tokens", "3"]
    env = os.environ | {"TERM": "dumb"}  # no colours, no marks around what is pasted
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which what a script starts behind itself does not
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    job = subprocess.Popen(command, env=env, **ends, start_new_session=True, preexec_fn=heeds)
    os.close(theirs)
    try:
        _until(ours, r"Ctrl-C leaves\.\r\n> ")
        os.write(ours, b"def f():\n    <|cursor|>\nf()\n.\n")
        _until(ours, r"(?s)3 tokens, .*\n> $")
        job.send_signal(signal.SIGINT)
        said = _until_it_ends(ours, job)
        assert job.returncode == 0, said
        assert "Traceback" not in said
    finally:
        job.kill()
        job.wait()
        os.close(ours)


def _until_it_ends(terminal: int, job: subprocess.Popen[bytes]) -> str:
    """What else is said. A signal just before readline waits is seen after the next key."""
    said = ""
    with contextlib.suppress(OSError):  # once the other end is closed
        for _ in range(60):
            if select.select([terminal], [], [], 1)[0]:
                said += os.read(terminal, 4096).decode(errors="replace")
            else:
                os.write(terminal, b"\n")
    job.wait(60)
    return said


def _until(terminal: int, pattern: str) -> str:
    """What is said up to something; fails where nothing is said for minutes."""
    said, quiet = "", 0
    while not re.search(pattern, said):
        ready, _, _ = select.select([terminal], [], [], 5)
        if ready:
            said += os.read(terminal, 4096).decode(errors="replace")
        else:
            quiet += 1
            assert quiet < 40, said
    return said


def test_a_run_has_its_table_as_a_page(trained: Stack, tmp_path: Path) -> None:
    found = candidate(trained, EXPERIMENT)
    rows, of_base = (
        _rows(trained, run_id, tmp_path / run_id) for run_id in (found.info.run_id, found.data.tags["base_run_id"])
    )
    metrics = found.data.metrics
    loss = sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    assert loss == pytest.approx(metrics["eval/nll_per_token"])
    assert {row["id"]: row["completion"] for row in of_base} == {row["id"]: row["base"] for row in rows}
    before = {row["id"]: row["loss"] for row in of_base}
    assert all(row["gain"] == pytest.approx(before[row["id"]] - row["loss"]) for row in rows)
    assert {row["gain"] for row in of_base} == {None}


def _rows(stack: Stack, run_id: str, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    html = Path(stack.client.download_artifacts(run_id, "eval/examples.html", str(folder))).read_text(encoding="utf-8")
    return list(json.loads(html.partition('id="data">')[2].partition("</script>")[0])["rows"])
