"""A small package and a file of chats of one's own, with the default policy: a real gain gets into production.

The bundled model, as shipped; the demo's data and the stack's are in test_demo.py and tests/stack/test_docs.py.
"""

import inspect
import json
import logging.handlers
import shutil
import sqlite3
import unittest.mock
import wsgiref
from pathlib import Path

import pytest

from tests.support.tracking import Stack
from tests.support.training import finish

pytestmark = pytest.mark.integration

# What makes it quick; nothing that decides.
QUICK = (
    *("trainer.max_steps=12", "trainer.lr=1e-3", "eval.max_new_tokens=12"),
    *("data.max_eval_examples=60", "trainer.logging_steps=6"),
)


def own_package(folder: Path) -> Path:
    """Some twenty files of people who do not know of Ratchet."""
    for package in (unittest, wsgiref, json, logging, sqlite3):
        source = Path(inspect.getfile(package)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "test*"))
    return folder


def chats(path: Path) -> Path:
    """Questions about functions, and their code as the answer; each conversation stands for itself."""
    rows = []
    for module in (inspect, shutil, unittest.case, unittest.loader, unittest.mock, logging.handlers):
        for name, found in inspect.getmembers(module, inspect.isfunction):
            if found.__doc__ and len(inspect.getsource(found)) < 600:
                first_line = found.__doc__.strip().splitlines()[0]
                asked = {"role": "user", "content": f"Write the function {name}: {first_line}"}
                rows.append({"messages": [asked, {"role": "assistant", "content": inspect.getsource(found)}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:110]), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["package", "chat"])
def test_a_real_gain_on_ones_own_data_gets_into_production(stack: Stack, tmp_path: Path, kind: str) -> None:
    source = own_package(tmp_path / "code") if kind == "package" else chats(tmp_path / "chats.jsonl")
    experiment = f"own_{kind}"
    name = ("--experiment-name", experiment)
    finish(stack, "train", f"data.source={source}", f"tracking.experiment_name={experiment}", *QUICK)
    for command in (("auto-promote",), ("validate",), ("promote", "--stage", "Production")):
        result = stack.promoter(command[0], *name, *command[1:])
        assert result.exit_code == 0, f"{command} {result.exception}\n{result.output}"
    assert stack.client.get_registered_model(f"{experiment}_model").aliases == {"production": "2"}
    [decision, *_] = json.loads(stack.promoter("history", *name, "--format", "json").output)
    assert (decision["outcome"], decision["version"]) == ("promoted", "2")
