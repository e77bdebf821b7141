"""`monitor drift` on a version that was trained, served and asked: nothing moves, and then everything does."""

import asyncio
import email
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from contract.names import DRIFT, MONITORING, PRODUCTION
from tests.support.git import git, repository_of
from tests.support.serving import Serving, serving_process
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.integration
MODEL = "code_model_fine_tuning_model"
CODE, FOREIGN = Path(asyncio.__file__).parent, Path(email.__file__).parent


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository_of(tmp_path_factory.mktemp("repository"), CODE)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny: Any, repository: Path) -> Iterator[Stack]:
    """A tracking server of its own; version 2 was trained on the repository, and is in production."""
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    with server(stack):
        job = stack.popen(
            *("trainer", f"model.name={tiny.folder}", f"data.source=git:{repository}", "trainer.max_steps=3"),
            *("trainer.max_length=600", "eval.max_new_tokens=4", "eval.max_generated=0", "data.max_eval_examples=64"),
        )
        output, _ = job.communicate(timeout=180)
        assert job.returncode == 0, output
        stack.client.set_registered_model_alias(MODEL, PRODUCTION, "2")
        yield stack


@pytest.fixture(scope="module")
def service(own: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_process(own, MODEL, tmp_path_factory.mktemp("serving")) as service:
        service.wait_for_version("2")
        yield service


def monitor(stack: Stack, *arguments: str, expected: int = 0) -> Any:
    command = [sys.executable, "-m", "services.monitor", "drift", "--format", "json", *arguments]
    done = subprocess.run(command, env=stack.env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if expected == 0 else done.stderr


def people_ask(service: Serving, folder: Path, number: int, seed: int) -> None:
    """Completions at cursors in the files of a folder."""
    dice, files = random.Random(seed), sorted(folder.glob("*.py"))
    with requests.Session() as session:
        for _ in range(number):
            file = dice.choice(files)
            text = file.read_text()
            at = dice.randrange(len(text) // 3, len(text))
            asked = {"prompt": text[max(0, at - 1500) : at], "max_tokens": 1, "path": f"app/{file.name}"}
            assert session.post(f"{service.url}/v1/completions", json=asked, timeout=60).ok


def verdicts(found: Any) -> dict[str, bool | None]:
    return {one["question"]: one["drifted"] for one in found["verdicts"]}


def traces(stack: Stack) -> int:
    experiment = stack.client.get_experiment_by_name("serving")
    return len(stack.client.search_traces(locations=[experiment.experiment_id], max_results=500)) if experiment else 0


def test_what_is_not_known_is_said(own: Stack) -> None:
    assert "Nothing can be said of version 2" in monitor(own, "--only", "inputs", expected=1)
    message = monitor(own, "--model-name", "nowhere", expected=2)
    assert "No version of 'nowhere' is in production" in message
    assert DRIFT not in own.client.get_model_version(MODEL, "2").tags


def test_a_code_base_that_does_not_move_has_not_drifted(own: Stack, service: Serving, repository: Path) -> None:
    people_ask(service, CODE, 120, 1)
    service.wait_for(lambda: traces(own) >= 120, "all traces are there")
    found = monitor(own, "--dry-run")  # which leaves all that may be spent to the next look
    assert verdicts(found) == {"inputs": False, "repository": False, "quality": None}, found["verdicts"]
    assert found["verdicts"][2]["why"] == "no file has changed since it was trained"
    assert own.client.get_experiment_by_name(MONITORING) is None
    assert DRIFT not in own.client.get_model_version(MODEL, "2").tags


def test_foreign_prompts_and_new_code_are_drift(own: Stack, service: Serving, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(FOREIGN, repository / "mail", ignore=shutil.ignore_patterns("__pycache__"))
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "mail", when=1_700_600_000)
    people_ask(service, FOREIGN, 60, 2)
    service.wait_for(lambda: traces(own) >= 180, "all traces are there")
    found = monitor(own)
    assert {name: drifted for name, drifted in verdicts(found).items() if name != "quality"} == {
        "inputs": True,
        "repository": True,
    }
    assert found["metrics"]["quality/files"] >= 5  # random weights know nothing, old or new
    assert found["weeks"][0][0] == "2023-11-20"
    assert found["changes"][0]["most"][0][0].startswith("mail/")
    assert found["words"]
    tag = own.client.get_model_version(MODEL, "2").tags[DRIFT]
    assert tag.startswith("inputs, repository")
    service.wait_for(lambda: service.status()["drift"] == tag, "serving says so")
    [run] = own.client.search_runs([own.client.get_experiment_by_name(MONITORING).experiment_id])
    assert (run.info.status, run.data.tags["version"], run.data.tags["outcome"]) == ("FINISHED", "2", tag)
    page = Path(own.client.download_artifacts(run.info.run_id, "drift.html", str(tmp_path))).read_text()
    assert page.count("<svg") == 4
    assert "Drifted: inputs, repository" in page


def test_what_was_found_stays_found(own: Stack, service: Serving) -> None:
    """A minute later there is nothing to spend, and still it has drifted."""
    found = monitor(own, "--only", "inputs", "--only", "repository")
    assert found["alpha_spent"]["inputs"] < 1e-5
    assert verdicts(found) == {"inputs": True, "repository": True}
    assert found["verdicts"][0]["why"].startswith("found on ")
