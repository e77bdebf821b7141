"""Migration on a real PostgreSQL, the bucket on real S3 servers, each in a container or process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import boto3
import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine, inspect, text
from testcontainers.community.postgres import PostgresContainer

from contract.errors import InputError
from services.bucket.__main__ import main as bucket
from services.tracking.migrate import LOCK, migrate
from services.tracking.readiness import wait_until
from tests.support.fuzz_tracking import fuzz
from tests.support.images import base_image
from tests.support.tracking import make_stack, server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def postgres(engine) -> Iterator[PostgresContainer]:
    with PostgresContainer(image=base_image("POSTGRES_IMAGE"), username="ratchet", password="pass word%/") as container:
        yield container


@pytest.fixture
def database(postgres: PostgresContainer, request) -> str:
    """The URI of a new, empty database."""
    admin = create_engine(postgres.get_connection_url(), isolation_level="AUTOCOMMIT")
    name = f"db_{abs(hash(request.node.name))}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return admin.url.set(database=name).render_as_string(hide_password=False)


def start_migration(uri: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "services.tracking", "--setup-only"],
        env=os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_ARTIFACTS_DESTINATION": "s3://unused"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tables(uri: str) -> set[str]:
    engine = create_engine(uri)
    found = set(inspect(engine).get_table_names())
    engine.dispose()
    return found


def revision(uri: str) -> str:
    engine = create_engine(uri)
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    engine.dispose()
    return str(found)


def test_several_migrations_at_once_all_succeed(database: str) -> None:
    engine = create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        children = [start_migration(database) for _ in range(3)]
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        assert wait_until(lambda: holder.scalar(waiting) == 3, 60, lambda: True)
    engine.dispose()  # frees the lock, for all three at once
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], "\n".join(outputs)
    assert all("Another migration is running" in output for output in outputs)
    assert {"runs", "model_versions", "alembic_version"} <= tables(database)
    migrate(database)  # once more changes nothing


# Makes a migration wait where it creates a table with this name, inside its transaction, until the lock 42 is free.
HOLD = """
CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'public.{table}') THEN
    PERFORM pg_advisory_lock(42);
  END IF;
END $$;
CREATE EVENT TRIGGER hold ON ddl_command_end EXECUTE FUNCTION hold();
"""


@pytest.mark.parametrize(
    "table",
    [
        "runs",  # among the tables of MLflow's first release
        "alembic_version",  # those are committed, no revision has run
        "registered_models",  # among the revisions
    ],
)
def test_a_migration_killed_half_way_is_completed_by_the_next(database: str, table: str) -> None:
    engine = create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(42)"))
        holder.execute(text(HOLD.format(table=table)))
        child = start_migration(database)
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted")
        try:
            assert wait_until(lambda: bool(holder.scalar(waiting)), 60, lambda: child.poll() is None)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        holder.execute(text("DROP EVENT TRIGGER hold"))
    engine.dispose()  # frees the lock
    after = start_migration(database)
    output, _ = after.communicate(timeout=120)
    assert after.returncode == 0, output
    assert {"runs", "registered_models", "model_versions"} <= tables(database)


def test_a_migration_waits_for_the_lock_and_lets_it_go_when_killed(database: str) -> None:
    engine = create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        child = start_migration(database)
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        try:
            assert wait_until(lambda: bool(holder.scalar(waiting)), 60, lambda: child.poll() is None)
            assert tables(database) == set()
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    engine.dispose()
    migrate(database)
    assert "runs" in tables(database)


def test_the_password_is_taken_from_its_own_variable(database: str, monkeypatch) -> None:
    from sqlalchemy.engine import make_url

    url = make_url(database)
    bare = f"postgresql+psycopg2://{url.username}@{url.host}:{url.port}/{url.database}"
    child = subprocess.run(
        [sys.executable, "-m", "services.tracking", "--setup-only"],
        env=os.environ
        | {
            "MLFLOW_BACKEND_STORE_URI": bare,
            "POSTGRES_PASSWORD": str(url.password),
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://unused",
        },
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert f"Ready: the tables of database {url.database}" in child.stdout
    assert "pass word" not in child.stdout + child.stderr


def test_a_refused_migration_says_why_and_what_to_do(postgres: PostgresContainer, database: str) -> None:
    wrong = create_engine(database).url.set(password="wrong").render_as_string(hide_password=False)
    with pytest.raises(InputError, match=r"password authentication failed[\s\S]*Likely: POSTGRES_PASSWORD"):
        migrate(wrong)
    migrate(database)
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from the future'"))
    engine.dispose()
    with pytest.raises(InputError, match=r"Likely: a newer MLflow has migrated this database"):
        migrate(database)
    assert revision(database) == "from the future"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Speaks versioning and lifecycle, which rclone's server does not; checks no keys."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def run_bucket(endpoint: str, **env: str):
    values = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://artifacts-here/prefix",
        "AWS_ACCESS_KEY_ID": "ratchet",
        "AWS_SECRET_ACCESS_KEY": "right-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return CliRunner().invoke(bucket, env=values | env)


def client_of(endpoint: str):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="ratchet",
        aws_secret_access_key="right-secret",
        region_name="us-east-1",
    )


def test_the_bucket_is_made_once_and_kept(s3: str) -> None:
    first = run_bucket(s3)
    assert first.exit_code == 0, first.output
    assert "Bucket artifacts-here: created" in first.output
    client_of(s3).put_object(Bucket="artifacts-here", Key="prefix/file", Body=b"content")
    second = run_bucket(s3)
    assert second.exit_code == 0, second.output
    assert "Bucket artifacts-here: there already" in second.output
    assert client_of(s3).get_object(Bucket="artifacts-here", Key="prefix/file")["Body"].read() == b"content"


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
        ({"MLFLOW_ARTIFACTS_DESTINATION": "/a/folder"}, "expected s3://BUCKET"),
        ({"MLFLOW_ARTIFACTS_DESTINATION": "s3://My Bucket/x"}, "S3_BUCKET"),
    ],
)
def test_wrong_keys_and_names_fail_with_the_reason(s3: str, env: dict[str, str], reason: str) -> None:
    result = run_bucket(s3, **env)
    assert result.exit_code == 2
    assert reason in result.output
    assert "right-secret" not in result.output


def test_a_server_that_never_answers_is_an_error_with_its_address() -> None:
    result = run_bucket("http://127.0.0.1:9", BUCKET_TIMEOUT_S="1")
    assert result.exit_code == 1  # nobody there: the work failed
    assert "http://127.0.0.1:9" in result.output


def test_versioning_and_lifecycle_are_turned_on_where_the_server_knows_them(moto: str) -> None:
    client = client_of(moto)
    other = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    client.create_bucket(Bucket="artifacts-here")
    client.put_bucket_lifecycle_configuration(Bucket="artifacts-here", LifecycleConfiguration={"Rules": [other]})
    first = run_bucket(moto)
    assert first.exit_code == 0, first.output
    assert "Versioning: turned on" in first.output
    assert "Clean-up of unfinished uploads: turned on" in first.output
    assert client.get_bucket_versioning(Bucket="artifacts-here")["Status"] == "Enabled"
    rules = client.get_bucket_lifecycle_configuration(Bucket="artifacts-here")["Rules"]
    assert [rule["ID"] for rule in rules] == ["theirs", "ratchet-abort-incomplete-uploads"]
    assert rules[1]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    second = run_bucket(moto)
    assert second.output.count("already") == 3
    assert client.get_bucket_lifecycle_configuration(Bucket="artifacts-here")["Rules"] == rules


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_odd_requests_are_refused_and_not_failed(tmp_path, request, store: str) -> None:
    stack = make_stack(tmp_path / "home")
    if store == "postgres":
        stack.env["MLFLOW_BACKEND_STORE_URI"] = request.getfixturevalue("database")
        stack.env["MLFLOW_ARTIFACTS_DESTINATION"] = (tmp_path / "artifacts").as_uri()
    stack.home.mkdir()
    with server(stack):
        answers, wrong = fuzz(stack.url, 700)
    assert wrong == []
    assert answers[400] > 200
