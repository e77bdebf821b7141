"""The stack in production as its owner runs it: up, in by TLS and login alone, trained, served; rotation, failover."""

import json
import re
import subprocess
import threading
import time
from typing import Any

import pytest
import requests

from contract.names import EVIDENCE, VALIDATED, VALIDATION
from services.tracking import connections
from tests.support.doses import LARGE_FILE_MB
from tests.support.production import EXPERIMENT, MODEL, ONE, TRAINING, Production, ask, load
from tests.support.stack import TAG

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def served(production: Production) -> Production:
    """Version 2 was trained, has passed the gate and is served."""
    assert f"{MODEL} version 2" in production.run("trainer", *TRAINING)
    for number in ("1", "2"):  # random weights may not answer
        version = production.api("admin", "GET", "model-versions/get", params={"name": MODEL, "version": number}).json()
        sha256 = {tag["key"]: tag["value"] for tag in version["model_version"]["tags"]}[EVIDENCE]
        for key, value in ((VALIDATION, "passed"), (VALIDATED, sha256[:16])):
            tag = {"name": MODEL, "version": number, "key": key, "value": value}
            assert production.api("admin", "POST", "model-versions/set-tag", json=tag).ok
    assert "Version 2 of" in production.run("promoter", "auto-promote", "--stage", "Production")
    production.wait_for(lambda: ask(production).status_code == 200, "serving answers")
    return production


def test_the_merged_file_has_no_local_service_no_key_and_one_port(merged: dict[str, Any]) -> None:
    services = merged["services"]
    assert not {"postgres", "minio", "bucket"} & set(services)
    assert [name for name, service in services.items() if service.get("ports")] == ["edge"]
    assert [port["target"] for port in services["edge"]["ports"]] == [443]
    for name, service in services.items():
        _, _, tag = service["image"].rpartition("/")[2].partition(":")
        assert tag, name
        assert tag != "latest", name
        environment = service.get("environment", {})
        assert not [key for key in environment if re.search("ACCESS_KEY|SECRET$|PASSWORD", key)], name
    for name in ("tracking", "migrate"):
        uri = services[name]["environment"]["MLFLOW_BACKEND_STORE_URI"]
        assert "sslmode=verify-full" in uri
        assert "ratchet@rds.test:5432" in uri  # no password
        assert services[name]["environment"]["TRACKING_AUTH"] == "true"
        assert services[name]["environment"]["AWS_ENDPOINT_URL_S3"] == "https://s3.eu-central-1.amazonaws.com"
    text = json.dumps(merged)
    assert "minio:9000" not in text


def test_every_container_is_as_locked_down_as_in_the_local_stack(merged: dict[str, Any]) -> None:
    for name, service in merged["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "edge" else []), name
        assert service["read_only"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pids_limit"] > 0, name
        assert service["logging"]["options"]["max-size"], name


def test_it_is_up_and_the_one_shots_change_nothing_when_run_again(production: Production) -> None:
    for service in ("database-password", "tracking", "serving", "edge"):
        assert production.health(service) == "healthy"
    for service in ("migrate", "accounts"):
        assert production.inspect(service)["State"]["ExitCode"] == 0
    again = production.run("accounts")
    for user in ("trainer", "promoter", "serving"):
        assert f"User {user}: there already" in again
    assert " on experiment" not in again  # no right given or taken
    assert "User ratchet: there already, by iam" in production.run("database-role")


def test_no_secret_in_inspect_logs_and_arguments(production: Production) -> None:
    seen = production.docker_compose(
        "logs", "--no-color", "tracking", "serving", "edge", "accounts", "database-password"
    )
    for service in ("tracking", "serving", "edge", "accounts", "database-password"):
        seen += json.dumps(production.inspect(service))
    for service in ("tracking", "serving", "edge", "database-password"):
        seen += production.docker_compose("top", service)
    for name, value in production.secrets.items():
        for word in value.split():
            assert len(word) < 20 or word not in seen, name


def test_without_a_login_nothing_is_told(production: Production) -> None:
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts"):
        assert production.request("GET", path).status_code == 401, path
        assert production.request("GET", path, ("admin", "password1234")).status_code == 401, path
    assert ask(production, {}).status_code == 401
    assert ask(production, {"Authorization": "Bearer rt-wrong"}).status_code == 401
    assert (
        production.request("GET", "/metrics", headers=production.headers).status_code == 401
    )  # serving's stays inside
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(production.tracking_url, timeout=10)  # whose authority nobody here trusts
    plain = requests.get(production.tracking_url.replace("https", "http"), timeout=10)
    assert plain.status_code == 400  # HTTP on the TLS port


def test_foreign_hosts_and_origins_are_refused(production: Production) -> None:
    program = (
        "import urllib.request, urllib.error\n"
        "request = urllib.request.Request('http://tracking:5000/', headers={'Host': 'evil.example'})\n"
        "try: urllib.request.urlopen(request, timeout=10)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    assert "403" in production.python("serving", program)
    create = ("admin", "POST", "experiments/create")
    foreign = production.api(*create, json={"name": "by-a-page"}, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    own = production.api(*create, json={"name": "by-a-page"}, headers={"Origin": production.tracking_url})
    assert own.ok, own.text
    assert own.headers["Strict-Transport-Security"]


def test_trained_promoted_and_served_over_tls_with_a_token(served: Production) -> None:
    answer = ask(served)
    assert answer.json()["choices"][0]["finish_reason"]
    assert answer.headers["X-Model-Version"] == "2"
    run_id = served.api("admin", "GET", f"model-versions/get?name={MODEL}&version=2").json()["model_version"]["run_id"]
    assert served.sql(f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == "FINISHED"
    page = served.request("GET", f"/get-artifact?run_uuid={run_id}&path=config.yaml", served.account("admin"))
    assert "bundled:tiny-random" in page.text


def test_the_page_is_below_production_and_acts_under_the_promoters_account(served: Production) -> None:
    page = served.request("GET", "/production/", headers=served.headers)
    assert page.status_code == 200
    assert "In production since" in page.text
    assert "Your token" in served.request("GET", "/production", allow_redirects=True).text
    field = page.text.partition('name="form_token" value="')[2].partition('"')[0]
    for action in ("freeze", "unfreeze"):
        fields = {"action": action, "reason": "a release", "form_token": field}
        answer = served.request("POST", "/production/act", headers=served.headers, data=fields, allow_redirects=False)
        assert answer.status_code == 303, answer.text
        assert "Path=/production/" in answer.headers["Set-Cookie"]
        assert "Secure" in answer.headers["Set-Cookie"]
    assert "unfrozen" in served.run("promoter", "history", "--limit", "1")
    event = {"type": "view", "completion_id": ask(served).json()["id"]}
    assert served.request("POST", "/v1/events", headers=served.headers, json=event).ok


def test_what_tracking_puts_into_the_bucket_is_encrypted_with_the_key(served: Production) -> None:
    program = (
        "import boto3, json\n"
        "client = boto3.client('s3', endpoint_url='http://127.0.0.1:5000', region_name='eu-central-1',"
        " aws_access_key_id='x', aws_secret_access_key='x')\n"
        "pages = client.get_paginator('list_objects_v2').paginate(Bucket='ratchet-artifacts')\n"
        "keys = [item['Key'] for page in pages for item in page['Contents']]\n"
        "(key,) = [key for key in keys if key.endswith('eval/examples.parquet')][:1]\n"
        "head = client.head_object(Bucket='ratchet-artifacts', Key=key)\n"
        "print(json.dumps([keys, head['ServerSideEncryption'], head['SSEKMSKeyId']]))"
    )
    output = served.docker_compose("exec", "--no-TTY", "aws", "/venv/bin/python", "-c", program)
    keys, encryption, key = json.loads(output.splitlines()[-1])
    assert all(name.startswith("artifacts/") for name in keys)
    assert encryption == "aws:kms"
    assert key.startswith("arn:aws:kms:eu-central-1")


def test_each_account_may_do_its_part_and_no_more(served: Production) -> None:
    alias = {"name": MODEL, "alias": "production", "version": "1"}
    for user in ("trainer", "serving"):
        refused = served.api(user, "POST", "registered-models/alias", json=alias)
        assert refused.status_code == 403, user
        taken = served.api(user, "DELETE", "registered-models/alias", json={"name": MODEL, "alias": "production"})
        assert taken.status_code == 403, user
        assert "TRACKING_ROLES" in refused.text
    assert served.api("promoter", "POST", "registered-models/alias", json=alias | {"version": "2"}).ok

    for method, path, body in (
        ("DELETE", "model-versions/delete", {"name": MODEL, "version": "2"}),  # which serves
        ("DELETE", "registered-models/delete", {"name": MODEL}),
        ("POST", "registered-models/rename", {"name": MODEL, "new_name": "mine"}),
        ("POST", "model-versions/set-tag", {"name": MODEL, "version": "2", "key": "manifest_sha256", "value": "0"}),
        ("POST", "model-versions/create", {"name": MODEL, "source": "s3://ratchet-artifacts/artifacts/0"}),
        ("POST", "experiments/create", {"name": "mine", "artifact_location": "s3://ratchet-artifacts/artifacts/0"}),
    ):
        refused = served.api("trainer", method, path, json=body)
        assert refused.status_code == 403, path
        assert "User 'trainer' (role trainer) may not" in refused.text, path
    tag = {"name": MODEL, "version": "2", "key": "serving_refused", "value": "by a test"}
    assert served.api("trainer", "POST", "model-versions/set-tag", json=tag).status_code == 403
    assert served.api("serving", "POST", "model-versions/set-tag", json=tag).ok
    assert served.api("serving", "DELETE", "model-versions/delete-tag", json=tag).ok
    assert served.api("serving", "POST", "model-versions/set-tag", json=tag | {"key": "stage"}).status_code == 403

    experiment = served.api("admin", "GET", f"experiments/get-by-name?experiment_name={EXPERIMENT}")
    number = experiment.json()["experiment"]["experiment_id"]
    for user, expected in (("trainer", 200), ("promoter", 403), ("serving", 403)):
        made = served.api(user, "POST", "runs/create", json={"experiment_id": number, "run_name": f"by {user}"})
        assert made.status_code == expected, user
    private = served.api("admin", "POST", "experiments/create", json={"name": "private"}).json()["experiment_id"]
    for user in ("trainer", "promoter", "serving"):
        assert served.api(user, "GET", f"experiments/get?experiment_id={private}").status_code == 403, user
        listed = served.api(user, "GET", "experiments/search?max_results=100").json()["experiments"]
        assert "private" not in [experiment["name"] for experiment in listed]
        assert served.api(user, "POST", "users/create", json={"username": "x", "password": "y" * 20}).status_code == 403
        assert served.api(user, "DELETE", "registered-models/delete", json={"name": "nobody's"}).status_code == 403
    assert (
        served.api("serving", "DELETE", "model-versions/delete", json={"name": MODEL, "version": "1"}).status_code
        == 403
    )


def test_a_password_is_changed_by_writing_the_file(production: Production) -> None:
    file = production.home / ".secrets" / "serving_credentials"
    before = file.read_text()
    _, old = production.account("serving")
    file.chmod(0o644)
    file.write_text(before.replace(old, "another-password-of-servings"))
    try:
        assert "User serving: has a new password" in production.run("accounts")
        assert production.api("serving", "GET", ONE).ok
    finally:
        file.write_text(before)
        production.run("accounts")
    broken = production.docker_compose(
        *(
            "run",
            "--rm",
            "--no-TTY",
            "--no-deps",
            "--volume",
            "/dev/null:/run/secrets/trainer_credentials:ro",
            "accounts",
        ),
        expected=2,
    )
    assert "no credentials file of MLflow's" in broken


def test_metadata_is_out_of_reach_for_those_who_run_models(served: Production) -> None:
    """To them 169.254.169.254 lies on a network where nobody has it: no gateway takes the packets further."""
    program = (
        "import socket, urllib.request\n"
        "print(*[line.split()[1:3] for line in open('/proc/net/route')], sep='\\n')\n"
        "try: socket.create_connection(('169.254.169.254', 80), timeout=8)\n"
        "except OSError as error: print('unreachable:', error)"
    )
    start = ("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python")
    for output in (
        served.python("serving", program),
        served.docker_compose(*start, "trainer", "-c", program),
        served.docker_compose(*start, "promoter", "-c", program),
    ):
        assert "['C0A9FEA9', '00000000']" in output  # 169.254.169.192/26, by no gateway
        assert "unreachable: [Errno 113]" in output  # no route to host: asked for on that network, and nobody there
    assert "C0A9FEA9" in served.docker_compose("exec", "--no-TTY", "edge", "cat", "/proc/net/route")
    assert "C0A9FEA9" not in served.python("tracking", program)
    # As it takes no address there, the host's own way to the metadata stays as it was.
    look = ["docker", "run", "--rm", "--network=host", "--entrypoint=cat", f"ratchet-tracking:{TAG}", "/proc/net/route"]
    routes = subprocess.run(look, capture_output=True, text=True, check=True).stdout
    assert "00000000" in routes  # the host's own
    assert "C0A9FEA9" not in routes


def test_a_database_that_is_not_who_it_says_is_refused(production: Production, production_environ) -> None:
    job = ("run", "--rm", "--no-TTY", "--no-deps", "migrate")
    # A password file for that name too, so that it is the certificate that decides.
    alias = production.docker_compose(*job, expected=2, DATABASE_HOST="alias-of-rds.test")
    assert 'does not match host name "alias-of-rds.test"' in alias
    assert "RDS's endpoint, and no alias" in alias
    stranger = production.docker_compose(
        *job, expected=2, DATABASE_CA_FILE=str(production.home / "certificates" / "stranger.crt")
    )
    assert "certificate verify failed" in stranger
    assert "infra/aws/rds-ca.pem" in stranger
    program = (
        "import psycopg2\n"
        "try: psycopg2.connect('host=rds.test user=ratchet dbname=ratchet sslmode=disable')\n"
        "except psycopg2.OperationalError as error: print(error)"
    )
    assert "no encryption" in production.python("tracking", program)


def test_iam_tokens_are_rotated_and_no_request_fails(production: Production) -> None:
    """Raw requests without a retry, while tokens that live for 20 s are made every 5, and connections every second."""
    token = production.docker_compose("exec", "--no-TTY", "database-password", "cat", "/run/database/pgpass")
    password = token.strip().rpartition("ratchet:")[2].replace("\\:", ":")
    connect = (
        f"import psycopg2; psycopg2.connect(host='rds.test', user='ratchet', dbname='ratchet', password={password!r})"
    )
    last = time.monotonic()
    while "Error" not in production.docker_compose(
        "exec", "--no-TTY", "tracking", "python", "-c", connect, expected=None
    ):
        assert time.monotonic() - last < 60, "the stand-in takes a token for ever"
    with load(lambda: production.api("admin", "GET", ONE).status_code) as answers:
        written = production.docker_compose("logs", "database-password").count("Wrote")
        production.wait_for(
            lambda: production.docker_compose("logs", "database-password").count("Wrote") >= written + 5, "five tokens"
        )
        fresh = "usename = 'ratchet' AND backend_start > now() - interval '10 s'"
        assert int(production.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {fresh}")) > 0
    assert len(answers) > 100
    assert set(answers) == {200}


def test_all_workers_together_stay_within_their_connections(production: Production) -> None:
    held = []
    with load(lambda: production.api("admin", "GET", ONE).status_code, clients=24) as answers:
        production.wait_for(lambda: len(answers) > 100, "there is load")
        for _ in range(10):
            held.append(int(production.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'ratchet'")))
    assert set(answers) == {200}
    assert 2 < max(held) <= 60 + connections.ELSEWHERE
    environ = production.docker_compose("exec", "--no-TTY", "tracking", "sh", "-c", "cat /proc/[0-9]*/environ")
    assert "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=9" in environ
    assert "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=1" in environ
    refused = production.docker_compose("run", "--rm", "--no-TTY", "migrate", expected=2, TRACKING_CONNECTIONS="5000")
    assert "TRACKING_CONNECTIONS is 5000: expected" in refused


def test_a_failover_loses_nothing_that_was_acknowledged(production: Production) -> None:
    """The database ends without a word and comes back: clients retry, and every metric that was taken is there."""
    experiment = production.api("admin", "POST", "experiments/create", json={"name": "failover"}).json()[
        "experiment_id"
    ]
    made = production.api("admin", "POST", "runs/create", json={"experiment_id": experiment})
    run_id = made.json()["run"]["info"]["run_id"]
    steps = iter(range(10**6))
    took: list[int] = []
    session = requests.Session()
    retries = requests.adapters.Retry(  # as MLflow's own client does
        total=7, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None
    )
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=retries))
    lock = threading.Lock()

    def log() -> int:
        with lock:
            step = next(steps)
        body = {"run_id": run_id, "key": "loss", "value": float(step), "timestamp": step, "step": step}
        url = f"{production.tracking_url}/api/2.0/mlflow/runs/log-metric"
        reply = session.post(
            url, json=body, auth=production.account("admin"), verify=str(production.authority), timeout=60
        )
        if reply.ok:
            took.append(step)
        return reply.status_code

    with load(log) as answers:
        production.wait_for(lambda: len(answers) > 50, "there is load")
        production.docker_compose("kill", "rds")
        production.docker_compose("up", "--detach", "--wait", "rds")
        seen = len(answers)
        production.wait_for(lambda: len(answers) > seen + 50, "it goes on")
    assert set(answers) == {200}
    there = production.sql(f"SELECT DISTINCT step FROM metrics WHERE run_uuid = '{run_id}'")
    assert set(took) <= {int(step) for step in there.split()}
    assert len(took) > 100


def test_a_large_file_passes_tracking_by(production: Production) -> None:
    """More than the 48 MB of room in tracking: parts go straight to S3, by URLs that tracking signs, and come so."""
    program = (
        "import hashlib, mlflow, os, pathlib\n"
        "folder = pathlib.Path('/tmp/large'); folder.mkdir()\n"
        f"data = os.urandom(1 << 20) * {LARGE_FILE_MB}\n"
        "(folder / 'weights.bin').write_bytes(data)\n"
        f"mlflow.set_experiment('{EXPERIMENT}')\n"
        "with mlflow.start_run() as run: mlflow.log_artifact('/tmp/large/weights.bin')\n"
        "fetch = mlflow.artifacts.download_artifacts\n"
        "back = fetch(run_id=run.info.run_id, artifact_path='weights.bin', dst_path='/tmp/back')\n"
        "same = hashlib.sha256(pathlib.Path(back).read_bytes()).digest() == hashlib.sha256(data).digest()\n"
        "print('whole' if same else 'broken')"
    )
    job = ("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python", "trainer", "-c", program)
    assert "whole" in production.docker_compose(*job)
