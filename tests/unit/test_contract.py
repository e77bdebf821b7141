"""What the contract promises: copies that are equal, one code for one mistake, versions that are refused by name."""

import ast
import inspect
import json
import logging
import typing
from pathlib import Path

import pytest

import code_model.messages
import code_model.pyfunc
import code_model.threads
import contract.messages
from code_model import engine_server
from contract import logs, names, versions
from contract.errors import Busy, InputError, RatchetError, Unreachable
from contract.files import free_port, try_lock, why_not_free, write_whole
from contract.versions import UnknownVersion, code_of
from evaluator import logs as evaluator_logs
from evaluator.program import Limits, Verdict


def source_without_docstring(module) -> str:
    tree = ast.parse(inspect.getsource(module))
    return ast.unparse(ast.Module(tree.body[1:], []))


def test_the_model_speaks_the_contract() -> None:
    ours, theirs = vars(contract.messages), vars(code_model.messages)
    copied = [name for name, value in theirs.items() if isinstance(value, type) and name != "Any"]
    assert len(copied) == 9
    for name in copied:
        assert inspect.getsource(ours[name]) == inspect.getsource(theirs[name]), name
    assert contract.messages.PROTOCOL == code_model.messages.PROTOCOL
    assert contract.messages.PROTOCOL in versions.KNOWN
    assert code_model.pyfunc.SOCKET == names.SERVING_CHANNEL
    assert engine_server.SUPERVISOR == names.SERVING_SUPERVISOR
    assert code_model.threads.SPIN == names.SPIN


def test_the_evaluator_speaks_the_contract() -> None:
    assert set(typing.get_type_hints(contract.messages.EvaluatorVerdict)) == set(Verdict._fields)
    assert set(typing.get_type_hints(contract.messages.EvaluatorLimits)) == set(Limits._fields)
    assert source_without_docstring(logs) == source_without_docstring(evaluator_logs)


def test_each_protocol_has_a_version_that_an_earlier_release_logged(root: Path) -> None:
    fixtures = root / "tests" / "fixtures"
    for protocol in versions.KNOWN:
        tags = json.loads((fixtures / f"protocol-{protocol}.json").read_text())
        assert (fixtures / f"protocol-{protocol}.tar.gz").is_file()
        assert names.MANIFEST_SHA256 in tags


@pytest.mark.parametrize(("kind", "code"), [(RatchetError, 1), (InputError, 2), (Unreachable, 3), (Busy, 4)])
def test_one_mistake_has_one_exit_code(kind: type[RatchetError], code: int) -> None:
    assert kind("why").exit_code == code


def test_no_other_class_gives_an_exit_code(root: Path) -> None:
    found = {
        path.relative_to(root).as_posix()
        for path in root.glob("*/**/*.py")
        if ".venv" not in path.parts and "tests" not in path.parts and "exit_code = " in path.read_text()
    }
    assert found == {"contract/errors.py"}


def version(folder: Path, metadata: str = "", package: str = "code_model") -> Path:
    (folder / "code" / package).mkdir(parents=True)
    (folder / "code" / package / "__init__.py").touch()
    (folder / "MLmodel").write_text(f"flavors: {{}}\n{metadata}")
    return folder


def test_the_code_of_a_version(tmp_path: Path) -> None:
    ours = code_of(
        version(tmp_path / "new", "metadata: {ratchet_protocol: '1', ratchet_release: 0.2.0}\n"), {"protocol": "1"}
    )
    assert (ours.protocol, ours.event_loop) == (1, "code_model.event_loop:create")
    older = code_of(version(tmp_path / "old", package="serving"), {})  # 0.1 wrote no metadata
    assert (older.protocol, older.generate, older.event_loop) == (1, "serving.model", "serving.loop:create")
    assert older.environment()["PYTHONPATH"].startswith(str(tmp_path / "old" / "code"))


@pytest.mark.parametrize(
    ("metadata", "package", "why"),
    [
        ("metadata: {ratchet_protocol: '99', ratchet_release: 7.1.0}\n", "code_model", "Serve it with Ratchet 7.1.0"),
        ("metadata: {ratchet_protocol: '99'}\n", "code_model", "speaks protocol 99, and Ratchet .* knows 1"),
        ("metadata: {ratchet_protocol: new}\n", "code_model", "MLmodel's metadata ratchet_protocol is 'new'"),
        ("metadata: {ratchet_protocol: .inf}\n", "code_model", "MLmodel's metadata ratchet_protocol is 'inf'"),
        ("metadata: {ratchet_protocol: 1.9}\n", "code_model", "MLmodel's metadata ratchet_protocol is '1.9'"),
        ("metadata: " + "[" * 3000, "code_model", "MLmodel file cannot be read"),
        ("metadata: 7\n", "code_model", "MLmodel file cannot be read"),
        ("[", "code_model", "MLmodel file cannot be read"),
        ("", "somebody", "holds no code of Ratchet's"),
    ],
)
def test_a_version_that_this_release_cannot_run(tmp_path: Path, metadata: str, package: str, why: str) -> None:
    with pytest.raises(UnknownVersion, match=why):
        code_of(version(tmp_path / "version", metadata, package), {})


@pytest.mark.parametrize(("tag", "why"), [("99", "speaks protocol 99"), ("abc", "tag protocol is 'abc'")])
def test_the_tag_counts_as_well(tmp_path: Path, tag: str, why: str) -> None:
    with pytest.raises(UnknownVersion, match=why):
        code_of(version(tmp_path / "version"), {"protocol": tag})


def test_evaluations_are_compared_by_one_key() -> None:
    tags = {"dataset_digest": "d", "prompt_template": "as they are", "eval_settings": "greedy"}
    key = names.evaluation_key(tags)
    assert key
    assert names.evaluation_key({"dataset_digest": "d", "evaluation_key": key}) == key  # as the trainer writes it now
    assert names.evaluation_key(tags | {"eval_settings": "drawn"}) != key
    assert names.evaluation_key({}) is None


def test_logs_for_people_and_for_programs() -> None:
    record = logging.makeLogRecord(
        {"msg": "ready in %s", "args": ("2 s",), "levelname": "INFO", "created": 0, "version": "3", "request_id": "r1"}
    )
    assert logs.Formatter("serving", "plain").format(record) == (
        "1970-01-01 00:00:00 INFO serving, version 3: ready in 2 s (request r1)"
    )
    assert json.loads(logs.Formatter("serving", "json").format(record)) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "INFO",
        "part": "serving",
        "version": "3",
        "request_id": "r1",
        "message": "ready in 2 s",
    }


def test_files_are_replaced_whole_and_locked_by_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "state", "one")
    write_whole(tmp_path / "state", "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("state", "two")]
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert (try_lock(first), try_lock(second)) == (True, False)
    assert why_not_free("127.0.0.1", free_port()) == ""
