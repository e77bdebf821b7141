"""The stack as a user runs it: up, train, compare, promote, serve, take down, up again."""

import json
import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests
import yaml

from contract.files import free_port
from contract.names import CHALLENGER_ALIAS, TRIAL, TRIAL_SHARE
from contract.trials import Trial
from tests.support.data import write_tree
from tests.support.images import ROOT
from tests.support.promoters import mark_validated
from tests.support.stack import Platform, docker_json

pytestmark = pytest.mark.stack

MODEL = "code_model_fine_tuning_model"
TINY = ("model.name=bundled:tiny-random", "trainer.max_length=600", "trainer.lr=1e-2", "data.max_train_examples=40")
# Random weights write no code, which the shipped policy wants; so nothing is written.
QUICK = ("data.max_eval_examples=24", "data.eval_fraction=0.4", "eval.max_new_tokens=8", "eval.max_generated=0")


@pytest.fixture(scope="module")
def trained(platform: Platform) -> Platform:
    """Version 1 is the base model, version 2 one fine-tuned in the trainer's container."""
    output = platform.run("trainer", *TINY, *QUICK)
    assert f"{MODEL} version 2" in output
    return platform


@pytest.fixture(scope="module")
def in_production(trained: Platform) -> Platform:
    """Version 2 has passed the gate and is served."""
    for number in ("1", "2"):  # random weights may not answer
        mark_validated(trained.client, trained.client.get_model_version(MODEL, number))
    assert "Version 2 of" in trained.run("promoter", "auto-promote", "--stage", "Production")
    trained.wait_for(trained.serves, "serving answers")
    return trained


def ask(platform: Platform) -> list[str]:
    reply = requests.post(
        f"{platform.serving_url}/invocations",
        json={"inputs": ["def add(a, b):\n"], "params": {"max_new_tokens": 8}},
        headers=platform.headers,
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return list(reply.json()["predictions"])


def test_one_shots_are_done_and_services_are_healthy(platform: Platform) -> None:
    for service in ("bucket", "migrate"):
        state = platform.inspect(service)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    for service in ("postgres", "minio", "tracking", "serving"):
        assert platform.health(service) == "healthy"


def test_before_the_first_promotion_serving_waits_and_says_so(platform: Platform) -> None:
    if platform.client.search_registered_models():
        pytest.fail("this test has to run before the first training")
    asked = {"json": {"inputs": ["x"]}, "timeout": 10}
    reply = requests.post(f"{platform.serving_url}/invocations", headers=platform.headers, **asked)
    assert reply.status_code == 503
    assert "waiting: No version of" in reply.json()["message"]
    assert "has the alias 'production'" in reply.json()["message"]
    assert requests.post(f"{platform.serving_url}/invocations", **asked).status_code == 401  # without the token
    assert "Waiting: No version of" in platform.docker_compose("logs", "serving")
    log = platform.inspect("serving")["State"]["Health"]["Log"]
    assert log[-1]["Output"].startswith("waiting: ")
    assert log[-1]["ExitCode"] == 0


def test_a_training_is_in_postgres_and_its_artifacts_in_the_bucket(trained: Platform, environ) -> None:
    run_id = str(trained.client.get_model_version(MODEL, "2").run_id)
    run = trained.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert str(run.info.artifact_uri).startswith("mlflow-artifacts:")  # so that the bucket can move
    assert run.data.tags["git_commit"] == environ["GIT_COMMIT"]
    query = f"SELECT status FROM runs WHERE run_uuid = '{run_id}'"
    psql = ("psql", "--username=ratchet", "--tuples-only", "--no-align", "--command", query)
    assert trained.docker_compose("exec", "--no-TTY", "postgres", *psql).strip() == "FINISHED"
    listing = trained.python(
        "tracking",
        "from services.bucket.__main__ import connect; from services.bucket.settings import BucketSettings\n"
        "client = connect(BucketSettings())\n"
        "pages = client.get_paginator('list_objects_v2').paginate(Bucket='ratchet')\n"
        "print(*[item['Key'] for page in pages for item in page.get('Contents', [])], sep='\\n')",
    )
    assert f"{run_id}/artifacts/eval/examples.parquet" in listing
    assert "model.safetensors" in listing
    assert all(key.startswith("artifacts/") for key in listing.split())


def test_the_ui_shows_an_artifact_from_the_bucket(trained: Platform) -> None:
    run_id = trained.client.get_model_version(MODEL, "2").run_id
    page = requests.get(f"{trained.tracking_url}/get-artifact?run_uuid={run_id}&path=config.yaml", timeout=10)
    assert page.status_code == 200
    assert "bundled:tiny-random" in page.text
    assert "<title>MLflow</title>" in requests.get(trained.tracking_url, timeout=10).text


def test_humaneval_is_run_in_the_evaluators_container(trained: Platform) -> None:
    data = ("--data", "benchmark:humaneval", "data.max_eval_examples=8", "eval.max_new_tokens=4")
    served = trained.docker_compose("logs", "evaluator").count("Serving a trainer")
    output = trained.run("trainer", "evaluate", "--model-uri", f"models:/{MODEL}/2", *data, "--format", "json")
    assert '"eval/examples": 8.0' in output
    assert '"eval/pass_at_1": 0.0' in output  # random weights
    assert trained.docker_compose("logs", "evaluator").count("Serving a trainer") > served


def test_data_are_prepared_in_the_container(platform: Platform, tmp_path: Path) -> None:
    write_tree(tmp_path, files=4)
    tmp_path.chmod(0o755)
    arguments = ("prepare", "-o", "/var/lib/ratchet/prepared", "model.name=bundled:tiny-random")
    output = platform.run("trainer", *arguments, "trainer.max_length=600", SOURCE_DIR=str(tmp_path))
    assert "# Data report" in output
    assert re.search(r"\| examples \| [1-9]\d* \| [1-9]\d* \|", output)


def test_compare_and_promote_and_ask(in_production: Platform) -> None:
    assert "candidate FINISHED" in in_production.run("promoter", "compare")
    assert in_production.client.get_model_version_by_alias(MODEL, "production").version == "2"
    history = in_production.run("promoter", "history")
    assert "ada" in history  # the host's user, not the container's
    assert len(ask(in_production)) == 1
    assert "version 2 (production)" in in_production.docker_compose("logs", "serving")


def test_an_administrator_freezes_on_the_page_and_serving_has_no_part_in_it(in_production: Platform) -> None:
    """Through serving to the promoter's server, which alone acts."""
    headers, url = in_production.headers, in_production.serving_url
    page = requests.get(url, headers=headers, timeout=30).text
    assert "In production since" in page
    assert "<td>promoter</td>" in page
    fields = {"form_token": page.partition('name="form_token" value="')[2].partition('"')[0], "reason": "a release"}
    for action, outcome in (("freeze", "frozen"), ("unfreeze", "unfrozen")):
        answer = requests.post(
            f"{url}/act", fields | {"action": action}, headers=headers, timeout=120, allow_redirects=False
        )
        assert answer.status_code == 303, answer.text
        assert outcome in in_production.run("promoter", "history", "--limit", "1")
    assert "freeze of code_model_fine_tuning_model by owner" in in_production.docker_compose("logs", "promoter-server")


def test_serving_follows_the_alias_without_a_restart(in_production: Platform) -> None:
    def live() -> str:
        reply = requests.get(f"{in_production.serving_url}/ping", timeout=10)
        return reply.headers["X-Model-Version"] if reply.ok else ""

    assert [hook.url for hook in in_production.client.list_webhooks()] == ["http://serving:8000/webhook"]
    started = in_production.inspect("serving")["State"]["StartedAt"]
    answer = ask(in_production)
    for number in ("1", "2"):
        in_production.client.set_registered_model_alias(MODEL, "production", number)
        in_production.wait_for(lambda number=number: live() == number, f"version {number} is live")
    assert ask(in_production) == answer
    assert in_production.inspect("serving")["State"]["StartedAt"] == started
    processes = in_production.docker_compose("top", "serving")
    assert processes.count("gunicorn") == 3  # the first and two workers
    in_production.docker_compose("stop", "serving")
    assert in_production.inspect("serving")["State"]["ExitCode"] == 0
    in_production.up()
    in_production.wait_for(in_production.serves, "serving answers again")


def test_replicas_behind_the_balancer_share_a_trial_and_one_is_killed(in_production: Platform, environ) -> None:
    ports = free_port()
    scaled = ("--profile", "scale", "up", "--detach", "--no-recreate", "--scale", "serving=3", "serving", "balancer")
    in_production.docker_compose(*scaled, SERVING_PORT=f"{ports}-{ports + 20}")
    url = f"http://127.0.0.1:{environ['BALANCER_PORT']}"
    answers: list[tuple[int, str]] = []
    versions: list[str] = []  # of the answers
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            try:
                reply = requests.post(
                    f"{url}/v1/completions",
                    json={"prompt": "def add(a, b):\n", "max_tokens": 8},
                    headers=in_production.headers,
                    timeout=90,
                )
                answers.append((reply.status_code, reply.text))
                versions.append(reply.headers.get("X-Model-Version", ""))
            except requests.RequestException as error:
                answers.append((0, repr(error)))

    def replicas() -> list[str]:
        found = in_production.docker_compose("ps", "--quiet", "serving").split()
        return [one for one in found if docker_json("inspect", one)["State"]["Health"]["Status"] == "healthy"]

    try:
        in_production.wait_for(lambda: len(replicas()) == 3, "three replicas are healthy")
        in_production.wait_for(lambda: requests.get(f"{url}/ping", timeout=10).ok, "the balancer knows one")
        clients = [threading.Thread(target=ask_on) for _ in range(8)]
        for client in clients:
            client.start()
        in_production.wait_for(lambda: len(answers) > 30, "there is load")
        share = 0.3
        trial = Trial(id="replicas", until=time.time() + 600)
        in_production.client.set_model_version_tag(MODEL, "1", TRIAL_SHARE, str(share))
        in_production.client.set_model_version_tag(MODEL, "1", TRIAL, trial.model_dump_json())
        in_production.client.set_registered_model_alias(MODEL, CHALLENGER_ALIAS, "1")
        started = "The challenger, version 1, answers 30% of the requests"
        in_production.wait_for(
            lambda: in_production.docker_compose("logs", "serving").count(started) == 3, "all three have the challenger"
        )
        begun = len(versions)
        in_production.wait_for(lambda: len(versions) >= begun + 600, "the trial has its requests", 180)
        theirs = versions[begun : begun + 600].count("1") / 600
        assert theirs == pytest.approx(share, abs=4 * (share * (1 - share) / 600) ** 0.5)
        subprocess.run(["docker", "kill", replicas()[0]], check=True, capture_output=True)
        seen = len(answers)
        in_production.wait_for(lambda: len(answers) > seen + 60, "the others answer")
        stop.set()
        for client in clients:
            client.join()
        assert [answer for answer in answers if answer[0] != 200] == []
        assert in_production.inspect("balancer")["HostConfig"]["ReadonlyRootfs"]
    finally:
        stop.set()
        in_production.client.delete_registered_model_alias(MODEL, CHALLENGER_ALIAS)
        in_production.docker_compose("--profile", "scale", "rm", "--stop", "--force", "balancer")
        in_production.docker_compose("up", "--detach", "--wait", "--scale", "serving=1")


def test_a_refused_promotion_exits_with_1_and_bad_input_with_2(in_production: Platform) -> None:
    assert f"Version 1 of {MODEL} → Staging: refused" in in_production.run(
        "promoter", "promote", "--stage", "Staging", "--version", "1", expected=1
    )
    assert "Did you mean 'trainer.lr'" in in_production.run("trainer", "trainer.lrr=1", expected=2)


def test_validation_says_where_torch_is_and_runs_there(in_production: Platform) -> None:
    refusal = in_production.run("promoter", "validate", "--version", "2", expected=2)
    assert "docker compose run --rm --entrypoint promoter serving validate" in refusal
    job = ("run", "--rm", "--no-TTY", "--entrypoint", "promoter", "serving", "validate", "--version", "2")
    # A model with random weights may fail the look at its completions, which is an answer too.
    output = in_production.docker_compose(*job, expected=None)
    assert "✓ loads" in output
    assert "✓ generates" in output


def test_your_source_tree_is_trained_on_and_watched(trained: Platform, tmp_path: Path) -> None:
    write_tree(tmp_path, files=5)
    git = ("git", "-C", str(tmp_path), "-c", "user.name=Ada", "-c", "user.email=ada@localhost")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "scales")):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    tmp_path.chmod(0o755)  # the container's user is not the owner, as on a user's machine
    output = trained.run(
        *("trainer", *TINY, *QUICK, "data.eval_fraction=0.5", "tracking.experiment_name=mine", "trainer.max_steps=1"),
        SOURCE_DIR=str(tmp_path),
    )
    assert "Data: /source" in output
    experiment = trained.client.get_experiment_by_name("mine")
    assert experiment is not None
    runs = trained.client.search_runs([experiment.experiment_id], "tags.role = 'candidate'")
    assert runs[0].data.tags["data_git_commit"] == commit
    trained.client.set_registered_model_alias("mine_model", "production", "2")
    for number in range(6):
        (tmp_path / f"new{number}.py").write_text(
            f"def added_{number}(values):\n    return values[{number}] - {number}\n"
        )
    for command in (("add", "."), ("commit", "--quiet", "--message", "more")):
        subprocess.run([*git, *command], check=True)
    look = ("drift", "--model-name", "mine_model")
    output = trained.run("monitor", *look, SOURCE_DIR=str(tmp_path))
    assert "Version 2 of mine_model: drifted: repository" in output
    assert trained.client.get_model_version("mine_model", "2").tags["drift"] == "repository"


def test_the_loop_trains_where_its_worker_waits(trained: Platform, tmp_path: Path) -> None:
    """Without the engine's socket: the worker has the trainer's account and code, the loop the promoter's."""
    source, config = tmp_path / "source", tmp_path / "loop.yaml"
    source.mkdir()
    write_tree(source)
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "scales")):
        git = ("git", "-C", str(source), "-c", "user.name=Ada", "-c", "user.email=ada@localhost")
        subprocess.run([*git, *command], check=True)
    training = {"overrides": [*TINY, *QUICK, "trainer.max_steps=1"], "budget": {"disk_gb": 0.5}}
    config.write_text(yaml.safe_dump({"model": "looped_model", "data": {"sources": ["/source"]}, "training": training}))
    for path in (tmp_path, source):
        path.chmod(0o755)
    places = {"SOURCE_DIR": str(source), "LOOP_CONFIG": str(config)}
    trained.docker_compose("--profile", "loop", "up", "--detach", "loop-trainer", **places)
    try:
        look = ("--config", "/etc/ratchet/loop.yaml", "--elsewhere", "--once")
        output = trained.docker_compose("--profile", "loop", "run", "--rm", "--no-TTY", "loop", *look, **places)
    finally:
        trained.docker_compose("--profile", "loop", "rm", "--stop", "--force", "loop-trainer", **places)
    assert "A round begins: no version is in production" in output
    experiment = trained.client.get_experiment_by_name("rounds")
    assert experiment is not None
    (made,) = trained.client.search_runs([experiment.experiment_id], "tags.round = 'true'")
    assert made.data.tags["candidate"] == "2", output
    assert made.data.tags["end"] in ("waits for approval", "refused"), output  # after a single step


def test_a_source_dir_that_the_container_may_not_read_is_an_error(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text('def f():\n    """Return one."""\n    return 1\n')
    tmp_path.chmod(0o700)
    output = platform.run("trainer", *TINY, expected=2, SOURCE_DIR=str(tmp_path))
    assert "'/source', which user 10001 may not read" in output


def test_a_secret_file_that_the_container_may_not_read_is_an_error(platform: Platform, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("unreadable")
    secret.chmod(0o600)
    for service, name in (("migrate", "postgres_password"), ("bucket", "aws_secret_access_key")):
        mount = ("--volume", f"{secret}:/run/secrets/{name}:ro")
        output = platform.docker_compose("run", "--rm", "--no-TTY", "--no-deps", *mount, service, expected=2)
        assert f"The secret file /run/secrets/{name} cannot be read by user 10001" in output
        assert "Traceback" not in output


def test_a_source_dir_that_is_not_there_is_an_error_and_makes_no_folder(platform: Platform, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-folder"
    job = ("run", "--rm", "--no-TTY", "--no-deps", "trainer")
    output = platform.docker_compose(*job, expected=1, SOURCE_DIR=str(missing))
    assert str(missing) in output
    assert not missing.exists()


def test_down_keeps_the_data_and_up_serves_the_same_model(in_production: Platform) -> None:
    def runs() -> list[str]:
        client = in_production.client
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return sorted(run.info.run_id for run in client.search_runs(experiments))

    before, answer = runs(), ask(in_production)
    assert before
    in_production.docker_compose("--profile", "jobs", "down")
    assert in_production.docker_compose("ps", "--all", "--quiet").strip() == ""
    in_production.up()
    in_production.wait_for(in_production.serves, "serving answers again")
    assert runs() == before
    assert ask(in_production) == answer
    assert "Fetching" not in in_production.docker_compose("logs", "serving")  # its files were still there


def test_postgres_unreachable_turns_readiness_red_and_back(platform: Platform) -> None:
    assert requests.get(f"{platform.tracking_url}/health", timeout=10).status_code == 200
    platform.docker_compose("stop", "postgres")
    try:
        platform.wait_for(lambda: platform.health("tracking") == "unhealthy", "tracking is unhealthy")
        last = platform.inspect("tracking")["State"]["Health"]["Log"][-1]["Output"]
        assert "database" in last
    finally:
        platform.docker_compose("start", "postgres")
    platform.wait_for(lambda: platform.health("tracking") == "healthy", "tracking is healthy again")


def test_the_bucket_unreachable_turns_readiness_red_and_back(platform: Platform) -> None:
    def trouble() -> str:
        probe = ("sh", "-c", "python -m services.tracking.readiness; true")
        return platform.docker_compose("exec", "--no-TTY", "tracking", *probe)

    assert trouble() == ""
    platform.docker_compose("stop", "minio")
    try:
        platform.wait_for(lambda: "artifact store" in trouble(), "readiness names the artifact store")
    finally:
        platform.docker_compose("start", "minio")
    platform.wait_for(lambda: trouble() == "", "readiness is back")
    platform.wait_for(lambda: platform.health("tracking") == "healthy", "tracking is healthy again")


def config(environ: dict[str, str], **variables: str | None) -> "subprocess.CompletedProcess[str]":
    env = {key: value for key, value in (os.environ | environ | variables).items() if value is not None}
    command = ("docker", "compose", "--env-file", "/dev/null", "--profile", "jobs", "config", "--format", "json")
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("variable", ["POSTGRES_PASSWORD_FILE", "MINIO_ROOT_PASSWORD_FILE"])
def test_without_secrets_config_fails_and_names_the_variable(engine, environ, variable: str) -> None:
    result = config(environ, **{variable: None})
    assert result.returncode != 0
    assert variable in result.stderr
    assert "make env" in result.stderr


@pytest.mark.parametrize(("value", "runtime"), [(None, "runc"), ("nvidia", "nvidia")])
def test_one_variable_puts_the_trainer_on_the_nvidia_runtime(engine, environ, value: str | None, runtime: str) -> None:
    result = config(environ, TRAINER_RUNTIME=value)
    assert result.returncode == 0, result.stderr
    services = json.loads(result.stdout)["services"]
    assert services["trainer"]["runtime"] == runtime
    assert services["trainer"]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert services["serving"]["runtime"] == "runc"  # which has a variable of its own
    assert all(
        "runtime" not in service
        for name, service in services.items()
        if name not in ("trainer", "monitor", "serving", "loop-trainer")
    )


def make_up(environ: dict[str, str], expected: int, **env: str) -> str:
    """`make up`, with this stack's env file in place of .env."""
    result = subprocess.run(
        ["make", "--silent", "up"],
        cwd=ROOT,
        env=os.environ | {"COMPOSE_ENV_FILES": environ["ENV_FILE"]} | env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == expected, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_make_up_says_who_holds_a_port_and_starts_nothing(platform: Platform, environ) -> None:
    """Another stack on this machine, and a server without Docker: named before anything has started."""
    output = make_up(environ, 2, COMPOSE_PROJECT_NAME="ratchet-second")
    project, port = environ["COMPOSE_PROJECT_NAME"], environ["TRACKING_PORT"]
    assert f"port {port} (tracking) is held by the container {project}-tracking-1 of the Compose project" in output
    assert f"docker compose --project-name {project} down" in output
    assert f"port {environ['SERVING_PORT']} (serving)" in output  # all of them at once
    assert "Traceback" not in output
    made = ("docker", "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=ratchet-second")
    assert subprocess.run(made, capture_output=True, text=True, check=True).stdout == ""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        output = make_up(environ, 2, COMPOSE_PROJECT_NAME="ratchet-second", TRACKING_PORT=taken)
    assert f"port {taken} (tracking) is held by process {os.getpid()} (" in output


def test_make_up_on_a_running_stack_changes_nothing(platform: Platform, environ) -> None:
    before = platform.inspect("tracking")["Id"]
    output = make_up(environ, 0)
    assert f"MLflow UI:   http://127.0.0.1:{environ['TRACKING_PORT']}" in output
    assert platform.inspect("tracking")["Id"] == before


def test_make_up_names_images_that_were_not_built(platform: Platform, environ) -> None:
    output = make_up(environ, 2, RATCHET_TAG="never-built")
    assert "not built yet: ratchet-evaluator:never-built, " in output
    assert "Build them: make images" in output


def test_printed_links_open_on_this_machine(in_production: Platform, environ) -> None:
    address = f"http://127.0.0.1:{environ['TRACKING_PORT']}/#/experiments/"
    gate = ("promoter", "gate", "--version", "1")
    output = in_production.run(*gate, expected=1)
    assert f"Report: {address}" in output
    assert "http://tracking:5000" not in output
    elsewhere = in_production.run(*gate, expected=1, TRACKING_PUBLIC_URL="https://ratchet.example.com/")
    assert "Report: https://ratchet.example.com/#/experiments/" in elsewhere


def test_serving_comes_before_the_trainer_where_both_want_a_core(platform: Platform) -> None:
    assert platform.inspect("serving")["HostConfig"]["CpuShares"] == 2048
    found = platform.docker_compose("--profile", "jobs", "config", "--format", "json")
    services = json.loads(found)["services"]
    assert int(services["trainer"]["cpu_shares"]) == 256
    priority = "import os; from trainer.cli import _step_back; _step_back(); print('nice', os.nice(0))"
    assert "nice 10" in platform.docker_compose(
        "run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python", "trainer", "-c", priority
    )
