"""Logins on a real tracking server: each part does its work under its own, and nothing else."""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from contract import manifest, names
from contract.lease import lease
from infra import accounts, gate_demo
from services.loop.jobs import Here
from services.loop.worker import Elsewhere
from services.monitor import production
from services.monitor.look import Look, Verdict, earlier, to_json, write
from services.tracking.readiness import trouble, wait_until
from serving.gateway.events.sender import Sender
from serving.gateway.events.store import Event, Store
from serving.settings import ServingSettings
from serving.supervisor import versions
from tests.support.events import completion
from tests.support.tracking import Stack, make_stack

EXPERIMENT, MODEL = "mine", "mine_model"
ADMIN, PASSWORD = "admin-password", "password-of-a-user"
USERS = (*accounts.PARTS, "ada", "bob")  # ada is a person, to whom MLflow lets everything; bob has the promoter's role


@dataclass(frozen=True)
class Logins:
    """A tracking server that asks for logins, and its users."""

    stack: Stack
    admin: accounts.Admin

    @contextmanager
    def by(self, user: str) -> Iterator[MlflowClient]:
        """MLflow's client, and all that uses it in this process, as a user."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.stack.url)
            patch.setenv("MLFLOW_TRACKING_USERNAME", user)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN if user == "admin" else PASSWORD)
            mlflow.set_tracking_uri(self.stack.url)
            yield MlflowClient(self.stack.url)

    def ask(self, user: str, method: str, path: str, **options: Any) -> requests.Response:
        """The server's answer to a plain request; `path` without its prefix, or from / on."""
        where = path if path.startswith("/") else f"/api/2.0/mlflow/{path}"
        auth = (user, ADMIN if user == "admin" else PASSWORD)
        return requests.request(
            method, f"{self.stack.url}{where}", auth=auth, timeout=30, allow_redirects=False, **options
        )


@pytest.fixture(scope="module")
def logins(tmp_path_factory) -> Iterator[Logins]:
    stack = make_stack(tmp_path_factory.mktemp("logins"))
    settings = {"TRACKING_AUTH": "true", "MLFLOW_ADMIN_PASSWORD": ADMIN, "MLFLOW_SECRET_KEY": "any"}
    env = stack.env | settings | {"TRACKING_ROLES": "bob=promoter"}
    log_path = stack.home / "tracking.log"
    with log_path.open("a") as log, pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, "")  # which Admin sets, to be as it was afterwards
        process = subprocess.Popen([sys.executable, "-m", "services.tracking"], env=env, stdout=log, stderr=log)
        try:
            ready = wait_until(lambda: trouble(stack.url, 5, ADMIN) is None, 60, lambda: process.poll() is None)
            assert ready, log_path.read_text()
            admin = accounts.Admin(stack.url, ADMIN)
            everything = {
                *(
                    accounts.Grant("experiment", name, "MANAGE")
                    for name in (EXPERIMENT, names.PROMOTIONS, names.TRACES)
                ),
                accounts.Grant("registered_model", MODEL, "MANAGE"),
            }
            for user in USERS:
                admin.ensure_user(user, PASSWORD)
                part = {"bob": "promoter"}.get(user, user)
                admin.ensure_grants(user, everything if user == "ada" else accounts.grants(part, [EXPERIMENT]))
            yield Logins(stack, admin)
        finally:
            process.terminate()
            process.wait(20)


def train(client: MlflowClient, role: str = names.CANDIDATE, gain: float = 0.0) -> ModelVersion:
    """What the trainer does to a tracking server, without the training: a run, its evaluation, a model, a version."""
    tags = {names.ROLE: role, names.BASE_MODEL: "tiny@1", names.DATASET_DIGEST: "the-same", "evaluation_key": "k"}
    flavor = gate_demo.PyfuncWithManifest()
    mlflow.set_experiment(EXPERIMENT)
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(tags=tags) as run:
        table = Path(folder, names.EVALUATION_TABLE)
        table.parent.mkdir()
        table.write_bytes(b"a table")
        mlflow.log_artifact(str(table), "eval")
        mlflow.log_params({"trainer.lr": 1e-3})
        mlflow.log_metrics({"eval/nll_per_token": 2.0 - gain})
        code = Path(folder, "echo.py")
        code.write_text(gate_demo.ECHO)
        with warnings.catch_warnings(action="ignore"):
            info = Model.log(
                artifact_path=None, name="model", flavor=flavor, python_model=str(code), pip_requirements=[]
            )
        own = {key: tags[key] for key in (names.ROLE, names.BASE_MODEL, names.DATASET_DIGEST, "evaluation_key")}
        own |= {names.MANIFEST_SHA256: flavor.sha256, names.IDEMPOTENCY_KEY: run.info.run_id}
        with pytest.raises(MlflowException, match="already exists"):  # the trainer makes sure
            client.create_registered_model(MODEL)
        return client.create_model_version(
            MODEL, info.model_uri, run.info.run_id, tags=own, description="trained", model_id=info.model_id
        )


@pytest.fixture(scope="module")
def trained(logins: Logins) -> ModelVersion:
    with logins.by("trainer") as client:
        return train(client)


@pytest.fixture(scope="module")
def live(logins: Logins, trained: ModelVersion) -> ModelVersion:
    """A version that the promoter has put into production, by force."""
    done = promote(logins, "promoter", "promote", "--stage", "Production", "--version", trained.version, "--force")
    assert "promoted. The gate says no" in done.output, done.output
    return trained


def promote(logins: Logins, user: str, command: str, *more: str) -> Result:
    from promoter.cli import main

    arguments = ["--tracking-uri", logins.stack.url, command, "--model-name", MODEL, *more, "--reason", "as tested"]
    with logins.by(user):
        return CliRunner().invoke(main, arguments)


def refusal(answer: requests.Response) -> str:
    assert answer.status_code == 403, answer.text
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    return str(answer.json()["message"])


def place(version: ModelVersion, logins: Logins, what: str = "eval/examples.parquet") -> str:
    run = logins.admin.client.get_run(str(version.run_id))
    return f"/api/2.0/mlflow-artifacts/artifacts/{run.info.experiment_id}/{run.info.run_id}/artifacts/{what}"


def logged(version: ModelVersion) -> str:
    """The id of the model that a version is made of."""
    return str(version.source).removeprefix("models:/")


def test_promoter_and_serving_do_their_work_on_what_the_trainer_made(logins: Logins, live: ModelVersion) -> None:
    with logins.by("trainer") as client:
        second = train(client, gain=0.5)
    done = promote(logins, "promoter", "promote", "--stage", "Production", "--version", second.version, "--force")
    assert "promoted. The gate says no" in done.output, done.output
    assert promote(logins, "bob", "rollback").exit_code == 0
    assert promote(logins, "promoter", "archive", "--version", second.version).exit_code == 0
    with logins.by("promoter") as client:
        assert client.get_model_version_by_alias(MODEL, "production").version == live.version
        assert client.get_model_version(MODEL, second.version).tags["stage"] == "Archived"
        client.set_registered_model_tag(MODEL, f"{names.LEDGER}1", "0.5")
        client.set_model_version_tag(MODEL, second.version, names.VALIDATION, "passed")
        with pytest.raises(MlflowException, match="the monitor's or serving's"):
            client.set_model_version_tag(MODEL, second.version, names.MANIFEST_SHA256, "0")
    with logins.by("serving") as client:
        settings = ServingSettings(mlflow_tracking_uri=logins.stack.url, ratchet_home=logins.stack.home / "serving")
        version = client.get_model_version_by_alias(MODEL, "production")
        assert (versions.fetch(settings, version) / manifest.NAME).is_file()
        versions.tell(settings, version, "it does not load")
        assert client.get_model_version(MODEL, version.version).tags[names.REFUSED] == "it does not load"
        versions.tell(settings, client.get_model_version(MODEL, version.version), None)
        assert names.REFUSED not in client.get_model_version(MODEL, version.version).tags
        for key in (names.STAGE, names.VALIDATION, names.MANIFEST_SHA256, "note"):
            with pytest.raises(MlflowException, match="the tags serving_refused and trial_stopped"):
                client.set_model_version_tag(MODEL, version.version, key, "x")


def test_serving_writes_traces_and_feedback(logins: Logins, live: ModelVersion, tmp_path) -> None:
    with logins.by("serving") as client:
        settings = ServingSettings(mlflow_tracking_uri=logins.stack.url)
        store = Store(tmp_path / "events", "here", 1 << 20)
        sender = Sender(settings, store, tmp_path / "lock")
        made = completion(version=live.version, model=MODEL, run_id=str(live.run_id), user="ada")
        store.completed(made)
        store.told(Event(made.id, accepted=True, comment="good"))
        with sender:
            while sender.send():
                pass
            assert sender.look_up(made.id)[0] == "ada"
        assert client.get_trace(made.trace_id).info.assessments[0].value is True


def test_promoter_tries_a_version_and_reads_what_serving_wrote(logins: Logins, live: ModelVersion, tmp_path) -> None:
    with logins.by("trainer") as client:
        second = train(client, gain=0.5)
    with logins.by("promoter") as client:  # what a test above has written
        client.delete_registered_model_tag(MODEL, f"{names.LEDGER}1")
    staged = promote(logins, "promoter", "promote", "--version", second.version, "--force")
    assert staged.exit_code == 0, staged.output
    policy = tmp_path / "trial.yaml"
    policy.write_text("{look_s: 0.5, steps: [{share: 0.5, requests: 1}], budget: {days: 1.0e-9}}")  # spent at once
    done = promote(logins, "promoter", "trial", "--version", second.version, "--policy", str(policy))
    assert (done.exit_code, "inconclusive" in done.output) == (1, True), done.output
    with logins.by("serving") as client:
        versions.stopped(ServingSettings(mlflow_tracking_uri=logins.stack.url), second, "t1: it is slow")
        assert client.get_model_version(MODEL, second.version).tags[names.TRIAL_STOPPED] == "t1: it is slow"
        for tag in (names.TRIAL, names.TRIAL_SHARE):
            with pytest.raises(MlflowException, match="the tags serving_refused and trial_stopped"):
                client.set_model_version_tag(MODEL, second.version, tag, "0.9")
    with logins.by("promoter") as client:
        experiment = client.get_experiment_by_name(names.TRACES)
        assert client.search_traces(locations=[experiment.experiment_id], include_spans=False)
        with pytest.raises(MlflowException, match="the monitor's or serving's"):
            client.set_model_version_tag(MODEL, second.version, names.TRIAL_STOPPED, "")


def test_a_loop_and_its_worker_have_the_accounts_of_promoter_and_trainer(logins: Logins, live: ModelVersion) -> None:
    account = {"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    worker = subprocess.Popen([sys.executable, "-m", "services.loop.worker"], env=logins.stack.env | account)
    try:
        with logins.by("promoter") as client, lease(client, MODEL, "loop", 0.0, names.ROUNDS, "training") as claim:
            jobs = Elsewhere(client, Here(), claim.run_id)
            assert jobs.free_gb() > 0
            refused = jobs.run("trainer", ["export"], 60.0, lambda _: None)
            assert (refused.exit_code, refused.why) == (2, "`trainer export` is not done for a loop")
            client.set_registered_model_tag(MODEL, names.LOOP_LOOKED, "1")
            rounds, done = (client.get_experiment_by_name(name) for name in (names.ROUNDS, names.JOBS))
            with pytest.raises(MlflowException, match="Permission denied"):
                client.create_run(done.experiment_id)
        with logins.by("trainer") as client:
            assert client.search_runs([done.experiment_id])
            with pytest.raises(MlflowException, match="Permission denied"):
                client.create_run(rounds.experiment_id)
        for user in ("trainer", "ada"):
            with logins.by(user) as client, pytest.raises(MlflowException):
                client.set_registered_model_tag(MODEL, names.LOOP_RUN_NOW, "{}")
    finally:
        worker.terminate()
        assert worker.wait(60) == 143


def test_the_monitor_looks_with_the_trainers_account(logins: Logins, live: ModelVersion) -> None:
    with logins.by("trainer") as client:
        assert isinstance(production.prompts(client, MODEL, 0.0, 200), list)
        found = Look(MODEL, live.version, 1e9, {}, {}, [Verdict("repository", True, "it has moved")])
        run = write(client, found, {"drift.json": to_json(found)})
        assert client.get_model_version(MODEL, live.version).tags[names.DRIFT] == "repository"
        assert [one.info.run_id for one in earlier(client, MODEL)] == [run]
        with pytest.raises(MlflowException, match="Expected the tag drift"):
            client.set_model_version_tag(MODEL, live.version, names.STAGE, "Production")
    with logins.by("serving") as client, pytest.raises(MlflowException, match="serving_refused and trial_stopped"):
        client.set_model_version_tag(MODEL, live.version, names.DRIFT, names.NO_DRIFT)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "runs/log-metric", {"run_id": "RUN", "key": "eval/nll_per_token", "value": 0, "timestamp": 1}),
        ("POST", "runs/log-metric", {"run_uuid": "RUN", "key": "eval/nll_per_token", "value": 0, "timestamp": 1}),
        ("POST", "runs/log-metric", {"runId": "RUN", "key": "eval/nll_per_token", "value": 0, "timestamp": 1}),
        ("POST", "runs/log-batch", {"run_id": "RUN", "tags": [{"key": "dataset_digest", "value": "x"}]}),
        ("POST", "runs/log-parameter", {"run_id": "RUN", "key": "x", "value": "y"}),
        ("POST", "runs/set-tag", {"run_id": "RUN", "key": "role", "value": "base"}),
        ("POST", "runs/set-tag", {"run_id": "RUN", "key": "evaluates", "value": f"{MODEL}/1"}),
        ("POST", "runs/delete-tag", {"run_id": "RUN", "key": "dataset_digest"}),
        ("POST", "runs/update", {"run_id": "RUN", "status": "RUNNING"}),
        ("POST", "runs/delete", {"run_id": "RUN"}),
        (
            "POST",
            "model-versions/set-tag",
            {"name": MODEL, "version": "1", "key": "validation_status", "value": "passed"},
        ),
        ("POST", "model-versions/set-tag", {"name": MODEL, "version": "1", "key": "dataset_digest", "value": "x"}),
        ("POST", "model-versions/set-tag", {"name": MODEL, "version": "1", "key": "stage", "value": "Production"}),
        ("POST", "model-versions/set-tag", {"name": MODEL, "version": "1", "key": "serving_refused", "value": "x"}),
        ("DELETE", "model-versions/delete-tag", {"name": MODEL, "version": "1", "key": "manifest_sha256"}),
        ("POST", "model-versions/transition-stage", {"name": MODEL, "version": "1", "stage": "Production"}),
        ("PATCH", "model-versions/update", {"name": MODEL, "version": "1", "description": "x"}),
        ("DELETE", "model-versions/delete", {"name": MODEL, "version": "1"}),
        ("POST", "registered-models/set-tag", {"name": MODEL, "key": f"{names.LEDGER}1", "value": "0"}),
        ("POST", "registered-models/alias", {"name": MODEL, "alias": "production", "version": "1"}),
        ("DELETE", "registered-models/alias", {"name": MODEL, "alias": "production"}),
        ("DELETE", "registered-models/delete", {"name": MODEL}),
        ("POST", "registered-models/rename", {"name": MODEL, "new_name": "x"}),
        (
            "POST",
            "registered-models/create",
            {"name": "other_model", "tags": [{"key": "last_production", "value": "1"}]},
        ),
        ("POST", "experiments/create", {"name": "elsewhere", "artifact_location": "s3://bucket/others"}),
        ("POST", "experiments/create", {"name": "elsewhere", "artifactLocation": "s3://bucket/others"}),
        ("POST", "model-versions/create", {"name": MODEL, "source": "s3://bucket/others", "run_id": "RUN"}),
        ("POST", "users/create", {"username": "x", "password": PASSWORD}),
        ("PATCH", "users/update-admin", {"username": "trainer", "is_admin": True}),
        (
            "POST",
            "/api/3.0/mlflow/users/permissions/grant",
            {
                "username": "trainer",
                "resource_type": "registered_model",
                "resource_pattern": MODEL,
                "permission": "MANAGE",
            },
        ),
        (
            "POST",
            "/ajax-api/3.0/mlflow/users/permissions/revoke",
            {"username": "promoter", "resource_type": "registered_model", "resource_pattern": MODEL},
        ),
        ("POST", "/api/3.0/mlflow/roles/create", {"name": "x", "workspace": "default"}),
        ("POST", "webhooks", {"name": "x", "url": "https://x", "events": []}),
    ],
)
@pytest.mark.parametrize("prefix", ["/api", "/ajax-api"])
def test_neither_the_trainer_nor_a_person_changes_what_decides(
    logins: Logins, live: ModelVersion, method: str, path: str, body: dict[str, Any], prefix: str
) -> None:
    """Though MLflow gives the trainer MANAGE on its models, and this person on everything."""
    sent = {key: live.run_id if value == "RUN" else value for key, value in body.items()}
    where = path if path.startswith("/") else f"/api/2.0/mlflow/{path}"
    where = where.replace("/api", prefix, 1) if not where.startswith("/ajax-api") else where
    assert "User 'trainer' (role trainer) may not" in refusal(logins.ask("trainer", method, where, json=sent))
    if path != "model-versions/update":  # a description decides nothing
        assert "(role person)" in refusal(logins.ask("ada", method, where, json=sent))


@pytest.mark.parametrize("user", ["trainer", "ada"])
def test_the_files_of_evidence_and_of_a_version_stay_as_they_are(logins: Logins, live: ModelVersion, user: str) -> None:
    table = place(live, logins)
    before = logins.ask(user, "GET", table).content
    assert before == b"a table"
    model = f"{table.partition(str(live.run_id))[0]}models/{logged(live)}/artifacts"
    for path in (
        table,
        table.replace("/api", "/ajax-api", 1),
        place(live, logins, "more.txt"),
        f"{model}/MLmodel",
        f"{model}/added.py",
        table.replace("/artifacts/eval", "/%61rtifacts/eval"),
        table.replace(str(live.run_id), f"./{live.run_id}"),
        table.replace(f"/{live.run_id}", f"%2F{live.run_id}"),
        table.replace(f"/{live.run_id}", f"/%252e/{live.run_id}"),
        table.replace("examples", "examples%3Fx"),
        f"{table.partition(str(live.run_id))[0]}anywhere.txt",
    ):
        assert logins.ask(user, "PUT", path, data=b"forged").status_code in (400, 403), path
        upload = path.replace("mlflow-artifacts/artifacts", "mlflow-artifacts/mpu/create")
        answer = logins.ask(user, "POST", upload, json={"path": "x", "num_parts": 1})
        assert answer.status_code in (400, 403), upload
    refusal(logins.ask(user, "DELETE", table))
    by_page = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={live.run_id}&path=x"
    refusal(logins.ask(user, "POST", by_page, data=b"x"))
    pending = {"model_id": logged(live), "status": "LOGGED_MODEL_PENDING"}
    assert "is READY" in refusal(logins.ask(user, "PATCH", f"logged-models/{logged(live)}", json=pending))
    assert logins.ask(user, "GET", table).content == before


def test_a_run_is_open_until_it_ends_well(logins: Logins, live: ModelVersion) -> None:
    with logins.by("trainer") as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        run_id = client.create_run(experiment.experiment_id, tags={names.ROLE: names.CANDIDATE}).info.run_id
        for status in ("KILLED", "FAILED"):
            client.set_tag(run_id, "ended_because", "a trainer that died")
            client.set_terminated(run_id, status)
            client.delete_tag(run_id, "ended_because")
            client.update_run(run_id, "RUNNING")
            client.log_metric(run_id, "train/loss", 1.0)
            client.log_text(run_id, "x", "config.yaml")
        client.set_terminated(run_id, "FINISHED")
        with pytest.raises(MlflowException, match=f"run {run_id} is FINISHED, and evidence"):
            client.log_metric(run_id, "train/loss", 2.0)
        with pytest.raises(MlflowException, match="and evidence"):
            client.update_run(run_id, "RUNNING")


def test_what_a_base_run_evaluates_is_noted_once(logins: Logins, live: ModelVersion) -> None:
    with logins.by("trainer") as client:
        base, other = train(client, names.BASE), train(client, names.BASE)
        with pytest.raises(MlflowException, match="no version of its base model"):
            client.set_tag(str(base.run_id), names.EVALUATES, f"{MODEL}/{live.version}")
        for _ in range(2):
            client.set_tag(str(base.run_id), names.EVALUATES, f"{MODEL}/{base.version}")
        for key, value in ((names.EVALUATES, f"{MODEL}/{other.version}"), ("note", "x")):
            with pytest.raises(MlflowException, match="and evidence"):
                client.set_tag(str(base.run_id), key, value)


def test_a_version_is_made_of_what_the_trainer_has_just_logged_and_taken_back_by_it(
    logins: Logins, live: ModelVersion
) -> None:
    with logins.by("trainer") as client:
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        run_id = client.create_run(experiment).info.run_id
        pending = client.create_logged_model(experiment, "model", source_run_id=run_id).model_id
        for source, run, tags, why in (
            (f"models:/{pending}", run_id, {}, "is no finished logged model"),
            (f"models:/{MODEL}/1", run_id, {}, "is no finished logged model"),
            (f"runs:/{run_id}/model", run_id, {}, "is no finished logged model"),
            (live.source, live.run_id, {}, "was judged by run"),
            (live.source, run_id, {names.VALIDATION: "passed"}, "others write validation_status"),
            (live.source, run_id, {"anything": "x"}, "others write anything"),
            (live.source, None, {}, "names no run"),
        ):
            with pytest.raises(MlflowException, match=why):
                client.create_model_version(MODEL, source, run, tags=tags)
        made = client.create_model_version(
            MODEL, live.source, run_id, {names.ROLE: names.CANDIDATE}, model_id=logged(live)
        )
        client.delete_model_version(MODEL, made.version)
        again = client.create_model_version(
            MODEL, live.source, run_id, {names.ROLE: names.CANDIDATE}, model_id=logged(live)
        )
        client.set_terminated(run_id, "FINISHED")
        with pytest.raises(MlflowException, match="and evidence"):
            client.delete_model_version(MODEL, again.version)


def test_a_version_that_was_judged_closes_its_run_though_that_still_runs(logins: Logins, live: ModelVersion) -> None:
    with logins.by("trainer") as client:
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        run_id = client.create_run(experiment).info.run_id
        made = client.create_model_version(MODEL, live.source, run_id, model_id=logged(live))
        client.log_metric(run_id, "eval/nll_per_token", 1.0)
    with logins.by("promoter") as client:
        client.set_model_version_tag(MODEL, made.version, names.GATE, "refused")
    with logins.by("trainer") as client, pytest.raises(MlflowException, match="was judged"):
        client.log_metric(run_id, "eval/nll_per_token", 0.1)


def test_paths_that_are_not_quite_a_route_are_refused(logins: Logins, live: ModelVersion) -> None:
    body = {"name": MODEL, "alias": "production", "version": live.version}
    for path in (
        "/api/2.0/mlflow/registered-models/alias/",
        "//api/2.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow//registered-models/alias",
        "/api/2.0/mlflow/Registered-Models/alias",
        "/api/3.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow/registered-models/%61lias",
        "/api/2.0/mlflow/x/../registered-models/alias",
    ):
        for method in ("POST", "PUT", "PATCH", "HEAD", "OPTIONS"):
            answer = logins.ask("trainer", method, path, json=body, headers={"X-HTTP-Method-Override": "POST"})
            assert answer.status_code == 403, (method, path)
    query = {"name": MODEL, "alias": "production", "version": live.version}
    refusal(logins.ask("trainer", "POST", "registered-models/alias", params=query))
    # What MLflow reads from the body is what is looked at, whatever stands in the query.
    metric = {"run_id": live.run_id, "key": "eval/nll_per_token", "value": 0, "timestamp": 1}
    refusal(logins.ask("trainer", "POST", "runs/log-metric", params={"run_id": "0" * 32}, json=metric))
    for path in ("/gateway/mlflow/v1/models", "/ajax-api/3.0/jobs/search"):
        assert logins.ask("trainer", "GET", path).status_code == 403, path
        assert logins.ask("ada", "GET", path).status_code == 403, path
    assert logins.ask("trainer", "POST", "/v1/traces", headers={"X-Mlflow-Experiment-Id": "1"}).status_code == 403
    assert logins.ask("trainer", "POST", "/graphql", json={"query": "{__typename}"}).status_code == 403


def test_a_person_reads_writes_runs_of_their_own_and_notes(logins: Logins, live: ModelVersion) -> None:
    for path in ("/", "/version", f"/get-artifact?run_uuid={live.run_id}&path=eval/examples.parquet"):
        assert logins.ask("ada", "GET", path).ok, path
    for path in (f"runs/get?run_id={live.run_id}", f"model-versions/get?name={MODEL}&version={live.version}"):
        assert logins.ask("ada", "GET", f"/ajax-api/2.0/mlflow/{path}").ok, path
    assert logins.ask("ada", "GET", "/ajax-api/2.0/mlflow/users/current").ok
    assert logins.ask("ada", "POST", "/graphql", json={"query": "{__typename}"}).ok
    with logins.by("ada") as client:
        run_id = client.create_run(client.create_experiment("ada's")).info.run_id
        client.log_text(run_id, "x", "note.txt")
        client.set_terminated(run_id, "FINISHED")
        client.set_tag(run_id, "note", "done")
        client.set_model_version_tag(MODEL, live.version, "note", "I like it")
        client.delete_experiment(client.get_run(run_id).info.experiment_id)
        for name in (EXPERIMENT, names.PROMOTIONS):
            with pytest.raises(MlflowException, match="no part's and holds no evidence"):
                client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
        with pytest.raises(MlflowException, match="others write manifest_sha256"):
            client.create_model_version(MODEL, live.source, run_id, tags={names.MANIFEST_SHA256: "0"})


def test_the_admin_may_all(logins: Logins, live: ModelVersion) -> None:
    with logins.by("admin") as client:
        client.set_model_version_tag(MODEL, live.version, names.VALIDATION, "passed")
        client.log_metric(str(live.run_id), "note", 1.0)


def test_wrong_passwords_are_slowed_down_and_tell_nothing(logins: Logins) -> None:
    """Of a user and of nobody they get the same answers; whoever was right goes on."""
    assert logins.ask("trainer", "GET", "experiments/search?max_results=1").status_code == 200

    def tries(user: str) -> list[tuple[int, str]]:
        url = f"{logins.stack.url}/api/2.0/mlflow/experiments/search?max_results=1"
        answers = [requests.get(url, auth=(user, f"wrong-{number}"), timeout=30) for number in range(7)]
        assert [answer.headers.get("Retry-After", "").isdecimal() for answer in answers] == [False] * 5 + [True] * 2
        return [(answer.status_code, answer.text.replace(user, "USER").partition("Try again")[0]) for answer in answers]

    assert [status for status, _ in tries("trainer")] == [401] * 5 + [429] * 2
    assert tries("promoter") == tries("nobody")
    for user in ("trainer", "admin"):
        assert logins.ask(user, "GET", "experiments/search?max_results=1").status_code == 200


@pytest.mark.parametrize("path", ["assistant/config", "assistant/providers", "assistant/skills/install", "assistant"])
def test_mlflows_assistant_is_off(logins: Logins, path: str) -> None:
    for user, method in (("trainer", "GET"), ("admin", "PUT"), ("admin", "POST")):
        answer = logins.ask(user, method, f"/ajax-api/3.0/mlflow/{path}", json={})
        assert (answer.status_code, answer.json()["message"]) == (404, "MLflow's assistant is off on this server.")


def test_database_and_artifacts_are_their_owners_alone(logins: Logins) -> None:
    found = [path for path in logins.stack.home.rglob("*") if path.name.endswith(".db") or path.name == "artifacts"]
    assert len(found) >= 2
    assert not [path for path in found if path.stat().st_mode & 0o077]


def test_the_ui_is_told_to_report_nothing(logins: Logins) -> None:
    told = logins.ask("admin", "GET", "/ajax-api/3.0/mlflow/ui-telemetry").json()
    assert told == {"disable_ui_events": [], "disable_ui_telemetry": True, "ui_rollout_percentage": 0}
    sent = logins.ask("admin", "POST", "/ajax-api/3.0/mlflow/ui-telemetry", json={"records": []})
    assert sent.json() == {"status": "disabled"}
