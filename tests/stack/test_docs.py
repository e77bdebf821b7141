"""README's and docs' blocks for Docker as they stand: the stack on the data and the policy that are shipped with it."""

import dbm
import html
import json
import os
import shutil
import subprocess
import wsgiref
from pathlib import Path

import pytest

from contract.files import free_port
from infra import environment
from tests.support import docs
from tests.support.doses import FULL
from tests.support.images import ROOT
from tests.support.stack import BUILT_FROM, TAG

pytestmark = pytest.mark.stack

IN_CONTAINERS = [
    "README.md: With Docker",
    *(f"docs/serving.md: {heading}" for heading in ("Serving", "Editors")),
    "docs/monitoring.md: Events",
    "docs/monitoring.md: Backups",
    "docs/serving.md: Several replicas",
]
# Else this trains for a quarter of an hour.
QUICK = (
    " data.max_train_examples=96 data.max_eval_examples=96 eval.max_new_tokens=24 trainer.lr=1e-3 trainer.batch_size=4"
)
EVERYDAY = IN_CONTAINERS if FULL else IN_CONTAINERS[:5]  # test_platform.py has several replicas each time


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The working tree, committed or not, as a fresh clone has it: no .env, no secrets, nothing built."""
    folder = tmp_path / "ratchet"
    files = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    listed = subprocess.run(files, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).exists():  # not deleted
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@localhost")
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "as it is")):
        subprocess.run([*git, *command], cwd=folder, check=True)
    if (ROOT / environment.OFFLINE).exists():
        shutil.copy(ROOT / environment.OFFLINE, folder)
    return folder


def test_the_blocks_run_in_their_order(engine, environ, checkout: Path) -> None:
    """README's trainer on four packages of the standard library, as if they were one's own; at night without its
    SOURCE_DIR, as the comment behind it allows: on the stack's own default, which takes three times as long."""
    serving_port, balancer_port = free_port(), free_port()
    env = os.environ | {name: environ[name] for name in BUILT_FROM if name in environ}
    env |= {
        "COMPOSE_PROJECT_NAME": f"ratchet-docs-{os.getpid()}",
        "RATCHET_TAG": f"{TAG}-docs",  # of another commit than the images of the other tests
        "TRACKING_PORT": str(free_port()),
        "SERVING_PORT": str(serving_port),
        "BALANCER_PORT": str(balancer_port),
        "MINIO_CONSOLE_PORT": str(free_port()),
    }
    serving, balancer = f"http://127.0.0.1:{serving_port}", f"http://127.0.0.1:{balancer_port}"
    replicas = free_port()
    code = checkout.with_name("src")
    for package in (dbm, html, json, wsgiref):
        folder = Path(str(package.__file__)).parent
        shutil.copytree(folder, code / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    values = {
        "SOURCE_DIR=path/to/your/repo ": "" if FULL else f"SOURCE_DIR={code} ",
        "run --rm trainer": "run --rm trainer" + ("" if FULL else QUICK),
        "http://127.0.0.1:8000": serving,
        "SERVING_PORT=8000-8009": f"SERVING_PORT={replicas}-{replicas + 9}",
    }
    wait_for = {
        "--profile scale": lambda: docs.answers(balancer),
    }
    with docs.Shell(checkout, env, values, wait_for) as shell:
        try:
            for name in EVERYDAY:
                last = shell.run_all(docs.all_blocks("bash")[name])[-1]
                if "/v1/events" in docs.all_blocks("bash")[name].commands[-1].text:
                    assert json.loads(last) == {"accepted": 1}
                elif "curl" in docs.all_blocks("bash")[name].commands[-1].text:
                    assert json.loads(last)["choices"][0]["finish_reason"] in ("stop", "length")
        except AssertionError:
            print(shell.run(docs.Command("docker compose logs --no-color --tail 40", "")))
            raise
        finally:
            shell.run(docs.Command("docker compose --profile '*' down --volumes --timeout 5", ""))
