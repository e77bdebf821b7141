"""Interrupted, failed, and wrongly called: the run says so, nothing is half-registered, the message is clear."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from contract.errors import InputError
from contract.files import free_port
from contract.lease import lease
from services.tracking.__main__ import main as tracking
from serving.__main__ import main as serving
from tests.support.tracking import Stack
from tests.support.training import wait_for_line
from trainer.cli import main as trainer

pytestmark = pytest.mark.integration


def settings(tiny, experiment: str) -> list[str]:
    return [
        *(f"model.name={tiny.folder}", "data.source=package:asyncio", "data.max_eval_examples=2"),
        *("trainer.max_length=400", "eval.max_new_tokens=2", f"tracking.experiment_name={experiment}"),
    ]


@pytest.mark.parametrize(
    ("signal_number", "code", "reason"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_interrupted_training_leaves_a_killed_run_and_no_version(
    stack: Stack, tiny, signal_number: int, code: int, reason: str
) -> None:
    experiment = f"interrupted_by_{signal_number}"
    job = stack.popen("trainer", *settings(tiny, experiment), "trainer.epochs=100000")
    wait_for_line(job, "  step ")
    job.send_signal(signal_number)
    output, _ = job.communicate(timeout=30)
    assert job.returncode == code
    assert "the same command goes on with it" in output
    assert "Traceback" not in output
    client = stack.client
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = {run.data.tags["role"]: run for run in client.search_runs([found.experiment_id])}
    assert runs["candidate"].info.status == "KILLED"
    assert runs["candidate"].data.tags["ended_because"] == reason
    assert runs["base"].info.status == "FINISHED"
    for name in (f"{experiment}_model", f"{experiment}_pytorch_model"):
        versions = client.search_model_versions(f"name = '{name}'")
        assert [version.tags["role"] for version in versions] == ["base"]


def test_failed_registration_marks_the_run_and_takes_back_what_was_made(stack: Stack, tiny, monkeypatch) -> None:
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def fail_for_the_pyfunc(self, name, *args, **kwargs):
        if name != "failing_model":
            return create(self, name, *args, **kwargs)
        raise MlflowException("the registry broke")

    monkeypatch.setattr(MlflowClient, "create_model_version", fail_for_the_pyfunc)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.url)
    result = CliRunner().invoke(trainer, [*settings(tiny, "failing"), "trainer.max_steps=1"])
    assert result.exit_code == 3
    assert "did not do its work: the registry broke. A run that had not finished" in result.output
    client = stack.client
    experiment = client.get_experiment_by_name("failing")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
    assert run.info.status == "FAILED"
    assert "the registry broke" in run.data.tags["ended_because"]
    for name in ("failing_model", "failing_pytorch_model"):
        assert not client.search_model_versions(f"name = '{name}'")


def test_signal_between_the_two_registrations_waits_for_both(stack: Stack, tiny, monkeypatch) -> None:
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def interrupted(self, name, *args, **kwargs):
        version = create(self, name, *args, **kwargs)
        signal.raise_signal(signal.SIGTERM)
        return version

    monkeypatch.setattr(MlflowClient, "create_model_version", interrupted)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.url)
    result = CliRunner().invoke(trainer, settings(tiny, "between"))
    assert result.exit_code == 143
    client = stack.client
    for name in ("between_model", "between_pytorch_model"):
        [version] = client.search_model_versions(f"name = '{name}'")
        assert client.get_run(str(version.run_id)).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.lrr=1", "Did you mean 'trainer.lr'?"),
        ("data.source=/no/such/file.jsonl", "data.source is '/no/such/file.jsonl', which does not exist"),
        ("data.source={empty}", "where no example was found"),
        ("model.name=./nowhere", "model.name is './nowhere', which is no folder"),
        ("tracking.uri=http://127.0.0.1:9", "No tracking server at http://127.0.0.1:9"),
        ("tracking.uri=localhost:5000", "tracking.uri is 'localhost:5000'. Expected a URL"),
        ("lora.target_modules=q_proj,nope", "lora.target_modules names 'nope'"),
        ("eval.max_new_tokens=4000", "Expected at most 4096"),
        ("lora.load_in_4bit=true model.device=cpu", "the model is on the cpu. Expected an NVIDIA GPU"),
        ("checkpoint.folder=/dev/null/x", "checkpoint.folder is '/dev/null/x', where nothing can be written"),
        ("trainer.validation_fraction=0.0001", "examples to train on and 0 to validate by"),
        ("model.cache_dir=/dev/null/x model.name=bundled:tiny-random", "model.cache_dir is '/dev/null/x'"),
    ],
)
def test_bad_training_input_is_one_message_and_its_exit_code(
    stack: Stack, tiny, tmp_path, monkeypatch, override: str, expected: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.url)
    before = len(stack.client.search_runs([e.experiment_id for e in stack.client.search_experiments()]))
    result = CliRunner().invoke(trainer, [*settings(tiny, "unused"), *override.format(empty=tmp_path).split()])
    assert result.exit_code == (3 if expected.startswith("No tracking server") else 2)
    assert expected in result.output
    assert result.output.count("Error:") == 1
    assert "Traceback" not in result.output
    assert stack.client.get_experiment_by_name("unused") is None
    assert len(stack.client.search_runs([e.experiment_id for e in stack.client.search_experiments()])) == before


def test_a_deleted_experiment_is_found_before_the_work_begins(stack: Stack, tiny, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.url)
    gone = stack.client.create_experiment("gone")
    stack.client.delete_experiment(gone)
    result = CliRunner().invoke(trainer, settings(tiny, "gone"))
    assert result.exit_code == 2
    assert f"mlflow experiments restore --experiment-id {gone}" in result.output
    assert "Data" not in result.output


def test_dry_run_checks_everything_and_leaves_no_trace(stack: Stack, tiny, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.url)
    result = CliRunner().invoke(trainer, ["train", *settings(tiny, "dry"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "experiment_name: dry" in result.output
    assert stack.client.get_experiment_by_name("dry") is None


def test_taken_port_is_named(stack: Stack, monkeypatch) -> None:
    port = stack.url.rpartition(":")[2]
    for command, variable in ((tracking, "TRACKING_PORT"), (serving, "SERVING_PORT")):
        result = CliRunner().invoke(command, ["--port", port])
        assert result.exit_code == 2
        assert f"Cannot listen on 127.0.0.1:{port}" in result.output
        assert variable in result.output


def test_serving_without_production_or_server_says_what_to_do(stack: Stack, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = str(free_port())
    for uri, code, expected in ((stack.url, 2, "promoter promote"), ("http://127.0.0.1:9", 3, "make start-mlflow")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        result = CliRunner().invoke(serving, ["--port", port, "--model-name", "nothing_here"])
        assert result.exit_code == code
        assert expected in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("compare", "--experiment-name", "nope"), "There is no experiment 'nope'"),
        (("compare-versions", "--model-name", "nope"), "There is no registered model 'nope'"),
        (("history", "--model-name", "nope"), "There is no registered model 'nope'"),
        (("best", "--policy", "nope"), "No policy 'nope'"),
        (("promote", "--stage", "Production", "--force"), "--force needs --reason"),
        (("promote", "--stage", "Prod"), "'Prod' is not one of"),
    ],
)
def test_bad_promoter_input_exits_with_2(stack: Stack, arguments: tuple[str, ...], expected: str) -> None:
    result = stack.promoter(*arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_promoter_without_a_server_exits_with_3() -> None:
    from promoter.cli import main

    result = CliRunner().invoke(main, ["--tracking-uri", "http://127.0.0.1:9", "compare"])
    assert result.exit_code == 3
    assert "make start-mlflow" in result.output


def test_second_promoter_is_told_and_changes_nothing(stack: Stack) -> None:
    stack.client.create_registered_model("locked_model")
    with lease(stack.client, "locked_model", "ada"):
        result = stack.promoter("rollback", "--model-name", "locked_model")
    assert result.exit_code == 4
    assert "Somebody else is promoting locked_model: ada@" in result.output
    nothing_left = stack.promoter("rollback", "--model-name", "locked_model")
    assert nothing_left.exit_code == 2  # the lock is free again, and there is nothing to roll back


def test_setup_only_makes_folders_env_file_and_database_and_keeps_what_is_there(tmp_path, root) -> None:
    env = os.environ | {"RATCHET_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "services.tracking", "--setup-only"]
    for _ in range(2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        home = tmp_path / "home"
        assert {"mlflow.db", "artifacts", "dev.env"} <= {path.name for path in home.iterdir()}
        (home / "dev.env").write_text("# mine\n")
    assert (home / "dev.env").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TRACKING_PORT", "99999", "TRACKING_PORT is '99999'"),
        ("TRACKING_PORT", "five", "TRACKING_PORT is 'five'"),
        ("MLFLOW_BACKEND_STORE_URI", "postgresql+psycopg2://u:p@127.0.0.1:9/db", "MLFLOW_BACKEND_STORE_URI"),
        ("MLFLOW_BACKEND_STORE_URI", "nonsense", "MLFLOW_BACKEND_STORE_URI"),
        ("RATCHET_HOME", "/dev/null/x", "RATCHET_HOME is /dev/null/x"),
        ("RATCHET_HOME", "/nowhere/q?m", "Expected a path without ?,"),
        ("RATCHET_HOME", "/nowhere/50%25x?", "Expected a path without ? and %,"),
    ],
)
def test_bad_tracking_setting_is_named(tmp_path, monkeypatch, variable: str, value: str, expected: str) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(tracking, ["--setup-only"])
    assert result.exit_code == 2
    assert expected in result.output


def test_port_that_was_just_freed_is_free() -> None:
    """SO_REUSEADDR: connections in TIME_WAIT do not keep a restarted server out."""
    from services.tracking.__main__ import check_port_is_free

    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
        server.bind(("127.0.0.1", 0))
        server.listen()
        host, port = server.getsockname()
        with socket.create_connection((host, port)) as client:
            connection, _ = server.accept()
            connection.close()
            client.recv(1)
    check_port_is_free(host, port)


@pytest.mark.parametrize("was_there", [False, True])
def test_of_a_new_database_nothing_half_made_is_left(tmp_path, monkeypatch, was_there: bool) -> None:
    """As where the disk is full: the next try would stumble over what is there. One that was there is kept."""
    home = tmp_path / "home"
    home.mkdir()
    if was_there:
        (home / "mlflow.db").write_text("everything")

    def fill(uri: str, with_users: bool, database: str) -> None:
        with (home / "mlflow.db").open("a") as file:
            file.write(" and more")
        raise InputError(f"{database} cannot be used: database or disk is full")

    monkeypatch.setattr("services.tracking.__main__.migrate", fill)
    result = CliRunner().invoke(tracking, ["--setup-only"], env={"RATCHET_HOME": str(home)})
    assert result.exit_code == 2
    assert f"The database {home / 'mlflow.db'} cannot be used" in result.output
    assert (home / "mlflow.db").exists() == was_there


@pytest.mark.parametrize("arguments", [[], ["--setup-only"]])
def test_a_short_password_is_named_by_its_own_variable(tmp_path, arguments: list[str]) -> None:
    env = {"RATCHET_HOME": str(tmp_path), "TRACKING_AUTH": "true", "MLFLOW_ADMIN_PASSWORD": "short"}
    result = CliRunner().invoke(tracking, arguments, env=env | {"MLFLOW_SECRET_KEY": "any"})
    assert (result.exit_code, "MLFLOW_ADMIN_PASSWORD has 5 characters. Expected 12" in result.output) == (2, True)


def test_setup_only_refuses_what_the_server_would_refuse(tmp_path) -> None:
    env = {"RATCHET_HOME": str(tmp_path), "TRACKING_AUTH": "true"}
    result = CliRunner().invoke(tracking, ["--setup-only"], env=env)
    assert (result.exit_code, "MLFLOW_ADMIN_PASSWORD is not set" in result.output) == (2, True)
    assert not list(tmp_path.iterdir())
