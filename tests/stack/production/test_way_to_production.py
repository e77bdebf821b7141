"""`make migrate-artifacts`: a local stack's runs and models to production, which then serves them; by password."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from tests.support.images import ROOT
from tests.support.production import MODEL, ONE, TRAINING, Production, ask, load
from tests.support.stack import Platform

pytestmark = pytest.mark.stack

FIRST, SECOND = "the-first-password", "and-the:second\\one"  # with what libpq's file has to escape
NETWORK = "migration"


class Way:
    """A local stack with a model in production, a database and a folder in the bucket for it, and the command."""

    def __init__(self, platform: Platform, production: Production, environ: dict[str, str]) -> None:
        self.platform, self.production, self.environ = platform, production, environ
        self.password = production.home / ".secrets" / "postgres_password"
        self.over = {
            "DATABASE_AUTH": "password",
            "DATABASE_NAME": "migrated",
            "DATABASE_USER": "migrator",
            "S3_PREFIX": "migrated",
        }
        self.env_file = production.home / "migrated.env"
        settings = (production.home / ".env").read_text() + "".join(f"{k}={v}\n" for k, v in self.over.items())
        self.env_file.write_text(settings)

    def migrate(self, expected: int = 0) -> str:
        """Run the command as `make migrate-artifacts` does; returns what it printed."""
        aws = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://aws:5000", "AWS_ENDPOINT_URL": "http://aws:5000"}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "infra.migrate_artifacts"),
                *("--to", str(self.env_file), "--env-file", self.environ["ENV_FILE"]),
            ],
            cwd=ROOT,
            env=os.environ | aws,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == expected, f"{done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def psql(self, query: str) -> str:
        """What production's database says of what came."""
        command = (
            "psql",
            "--username=postgres",
            "--dbname=migrated",
            "--tuples-only",
            "--no-align",
            "--command",
            query,
        )
        return self.production.docker_compose("exec", "--no-TTY", "rds", *command).strip()

    def local(self) -> tuple[str, str]:
        """The local database as text, and the local bucket's objects: to see that neither changes."""
        dump = ("exec", "--no-TTY", "postgres", "pg_dump", "--username=ratchet", "--data-only", "--inserts", "ratchet")
        text = self.platform.docker_compose(*dump)
        rows = "\n".join(line for line in text.splitlines() if not line.startswith("\\"))  # a random word each time
        listing = (
            "from services.bucket.__main__ import connect; from services.bucket.settings import BucketSettings\n"
            "pages = connect(BucketSettings()).get_paginator('list_objects_v2').paginate(Bucket='ratchet')\n"
            "print(sorted((item['Key'], item['ETag']) for page in pages for item in page['Contents']))"
        )
        return rows, self.platform.python("tracking", listing)


@pytest.fixture(scope="module")
def way(platform: Platform, production: Production, environ: dict[str, str]) -> Iterator[Way]:
    client = platform.client
    if not client.search_registered_models():
        platform.run("trainer", *TRAINING)
    client.set_registered_model_alias(MODEL, "production", "2")
    found = Way(platform, production, environ)
    found.password.chmod(0o644)
    found.password.write_text(FIRST)
    production.sql("CREATE DATABASE migrated")
    assert "User migrator: made, by password" in production.run("database-role", **found.over)
    # The two stacks are on one machine here: production's stand-ins come to where the copy looks for them.
    files = ("--file", "docker-compose.yml", "--file", "infra/compose/migrate.yml", "--env-file", environ["ENV_FILE"])
    compose = ["docker", "compose", *files, "--profile", "migrate"]
    subprocess.run([*compose, "create", "target-password"], cwd=ROOT, check=True, capture_output=True)
    network = f"{environ['COMPOSE_PROJECT_NAME']}_{NETWORK}"
    for service, name in (("rds", "rds.test"), ("aws", "aws")):
        container = production.docker_compose("ps", "--quiet", service).strip()
        subprocess.run(["docker", "network", "connect", "--alias", name, network, container], check=True)
    yield found
    for service in ("rds", "aws"):
        container = production.docker_compose("ps", "--quiet", service).strip()
        subprocess.run(["docker", "network", "disconnect", network, container], check=False)
    subprocess.run([*compose, "rm", "--stop", "--force", "--volumes", "target-password"], cwd=ROOT, check=False)
    subprocess.run(["docker", "network", "rm", network], check=False)
    subprocess.run(["docker", "volume", "rm", f"{environ['COMPOSE_PROJECT_NAME']}_target-password"], check=False)


@pytest.fixture(scope="module")
def migrated(way: Way) -> Way:
    before = way.local()
    output = way.migrate()
    assert "runs: " in output
    assert "rows at both ends" in output
    assert f"{MODEL} version 2: " in output
    assert "files have the sha256 of its manifest" in output
    assert way.local() == before
    return way


def test_a_second_run_copies_nothing_and_brings_back_what_was_lost(migrated: Way) -> None:
    assert "Copied 0 objects" in migrated.migrate()
    program = (
        "import boto3\n"
        "client = boto3.client('s3', endpoint_url='http://127.0.0.1:5000', region_name='eu-central-1',"
        " aws_access_key_id='x', aws_secret_access_key='x')\n"
        "pages = client.get_paginator('list_objects_v2').paginate(Bucket='ratchet-artifacts', Prefix='migrated/')\n"
        "key = [item['Key'] for page in pages for item in page['Contents'] if 'safetensors' in item['Key']][0]\n"
        "client.delete_object(Bucket='ratchet-artifacts', Key=key)"
    )
    migrated.production.docker_compose("exec", "--no-TTY", "aws", "/venv/bin/python", "-c", program)
    assert "Copied 1 objects" in migrated.migrate()


def test_runs_that_production_has_of_its_own_are_not_lost(migrated: Way) -> None:
    migrated.psql("INSERT INTO runs (run_uuid, experiment_id) VALUES ('of-production', 0)")
    try:
        assert "production has 1 runs that are not here (one: of-production)" in migrated.migrate(expected=2)
        assert migrated.psql("SELECT count(*) FROM runs WHERE run_uuid = 'of-production'") == "1"
    finally:
        migrated.psql("DELETE FROM runs WHERE run_uuid = 'of-production'")


def test_traces_and_people_that_production_has_of_its_own_are_not_lost(migrated: Way) -> None:
    migrated.psql(
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-1', 0, 0, 'OK')"
    )
    try:
        assert "production has 1 traces that are not here (one: tr-1)" in migrated.migrate(expected=2)
    finally:
        migrated.psql("DELETE FROM trace_info WHERE request_id = 'tr-1'")
    migrated.psql("CREATE TABLE users (username text); INSERT INTO users VALUES ('admin'), ('ada')")
    migrated.psql("GRANT SELECT ON users TO migrator")
    try:
        assert "production has 1 users besides its own" in migrated.migrate(expected=2)
    finally:
        migrated.psql("DROP TABLE users")


def test_a_database_that_does_not_let_it_in_is_an_error(migrated: Way) -> None:
    migrated.password.write_text("wrong")
    try:
        assert "does not let migrator in (above is why)" in migrated.migrate(expected=2)
    finally:
        migrated.password.write_text(FIRST)


def test_production_serves_what_came_and_a_password_is_changed_under_load(migrated: Way) -> None:
    production = migrated.production
    production.docker_compose("up", "--detach", "--wait", **migrated.over)
    production.wait_for(lambda: ask(production).status_code == 200, "serving answers")
    assert ask(production).headers["X-Model-Version"] == "2"
    session = requests.Session()
    retries = requests.adapters.Retry(total=7, backoff_factor=0.2, status_forcelist=[500, 503], allowed_methods=None)
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=retries))  # as MLflow's own client retries

    def list_experiments() -> int:
        url = f"{production.tracking_url}/api/2.0/mlflow/{ONE}"
        auth = production.account("promoter")
        return session.get(url, auth=auth, verify=str(production.authority), timeout=60).status_code

    with load(list_experiments) as answers:
        production.wait_for(lambda: len(answers) > 50, "there is load")
        migrated.password.write_text(SECOND)
        production.sql(f"ALTER ROLE migrator PASSWORD '{SECOND}'; CREATE TABLE changed AS SELECT now() AS modified")
        seen = len(answers)
        production.wait_for(lambda: len(answers) > seen + 100, "it goes on")
        since = "usename = 'migrator' AND backend_start > (SELECT modified FROM changed)"
        assert int(production.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {since}")) > 0
    assert set(answers) == {200}
