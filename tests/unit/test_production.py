"""Production's parts one by one: the password file, connections, secrets, the copy's check, the settings' refusals."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

from contract.errors import InputError
from infra import accounts, copy_artifacts, migrate_artifacts, pull_secrets
from services.tracking import access, connections, database_password
from services.tracking.settings import TrackingSettings

REGION = "eu-central-1"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


def password_settings(tmp_path: Path, **given: Any) -> database_password.PasswordSettings:
    values = {"database_auth": "password", "database_host": "db", "database_user": "ratchet", "aws_region": REGION}
    return database_password.PasswordSettings(**(values | {"pgpassfile": tmp_path / "pgpass"} | given))


# --- the password file ---


def test_the_password_file_is_one_that_libpq_reads(tmp_path: Path) -> None:
    settings = password_settings(tmp_path, postgres_password="a:b\\c")
    database_password.write(settings, database_password.current(settings))
    assert settings.pgpassfile.read_text() == "db:5432:*:ratchet:a\\:b\\\\c\n"
    assert stat.S_IMODE(settings.pgpassfile.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["pgpass"]


def test_an_iam_token_is_for_this_host_port_and_user(tmp_path: Path, keys: None) -> None:
    token = database_password.current(password_settings(tmp_path, database_auth="iam", database_port=6543))
    place, _, query = token.partition("/?")
    asked = parse_qs(query)
    assert place == "db:6543"
    assert asked["Action"] == ["connect"]
    assert asked["DBUser"] == ["ratchet"]
    assert asked["X-Amz-Expires"] == ["900"]
    assert f"/{REGION}/rds-db/" in asked["X-Amz-Credential"][0]


def test_the_file_follows_a_password_that_changes_and_outlives_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_password, "LOOK_S", 0.01)
    monkeypatch.setattr(database_password, "RETRY_S", 0.01)
    for name, value in (("AUTH", "password"), ("HOST", "db"), ("USER", "ratchet")):
        monkeypatch.setenv(f"DATABASE_{name}", value)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    monkeypatch.setenv("POSTGRES_PASSWORD", "first")
    stop, changed = threading.Event(), threading.Condition()
    written: list[str] = []

    def note(settings: database_password.PasswordSettings, password: str) -> None:
        settings.pgpassfile.touch()
        os.utime(settings.pgpassfile, (0, 0))
        with changed:
            written.append(password)
            changed.notify()

    monkeypatch.setattr(database_password, "write", note)
    thread = threading.Thread(target=database_password.keep_fresh, args=(password_settings(tmp_path), stop))
    thread.start()
    try:
        for password in ("first", "second", "third"):
            monkeypatch.setenv("POSTGRES_PASSWORD", password)
            with changed:
                assert changed.wait_for(lambda password=password: written[-1:] == [password], timeout=10)
            monkeypatch.setenv("POSTGRES_PASSWORD", "")  # half-way through being written
    finally:
        stop.set()
        thread.join()
    assert written == ["first", "second", "third"]
    assert (tmp_path / "pgpass").stat().st_mtime > 0  # looked at since: what the health check asks


def test_without_a_region_or_a_password_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="AWS_REGION is not set"):
        database_password.current(password_settings(tmp_path, database_auth="iam", aws_region=""))
    with pytest.raises(InputError, match="POSTGRES_PASSWORD_FILE names"):
        database_password.current(password_settings(tmp_path))


# --- the tracking server ---


@pytest.mark.parametrize(("workers", "auth", "size"), [(4, True, 14), (4, False, 21), (1, True, 59), (6, True, 9)])
def test_all_pools_together_stay_within_the_connections(workers: int, auth: bool, size: int) -> None:
    found = connections.pool(
        TrackingSettings(tracking_connections=180, tracking_workers=workers, tracking_auth=auth, _env_file=None)
    )
    assert found["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] == str(size)
    assert (size + 1) * workers * (3 if auth else 2) <= 180


def test_too_few_connections_for_the_workers_are_refused() -> None:
    with pytest.raises(
        InputError, match="TRACKING_CONNECTIONS is 60: expected at least 120, 10 for each of the 12 pools"
    ):
        connections.pool(TrackingSettings(tracking_connections=60, tracking_workers=4, tracking_auth=True))
    assert connections.pool(TrackingSettings(tracking_workers=4)) == {}


def test_urls_for_uploads_carry_the_owner_and_want_no_header(keys: None) -> None:
    """The client is told a URL and no header: one that is signed and not sent, S3 refuses (moto does not)."""
    program = (
        "import services.tracking.authorization\n"
        "from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository\n"
        "repo = S3ArtifactRepository('s3://mine/artifacts')\n"
        "part = {'Bucket': 'mine', 'Key': 'artifacts/x', 'PartNumber': 1, 'UploadId': 'u'}\n"
        "part |= repo._bucket_owner_params\n"
        "print(repo._get_s3_client().generate_presigned_url('upload_part', Params=part))"
    )
    env = os.environ | {"MLFLOW_S3_EXPECTED_BUCKET_OWNER": "123456789012"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    asked = parse_qs(urlsplit(done.stdout.splitlines()[-1]).query)
    assert asked["X-Amz-SignedHeaders"] == ["host"]
    assert asked["x-amz-expected-bucket-owner"] == ["123456789012"]


def test_the_authentication_file_is_its_owners_alone(tmp_path: Path) -> None:
    settings = TrackingSettings(
        ratchet_home=tmp_path, mlflow_backend_store_uri="postgresql+psycopg2://u:p%40ss@db/ratchet", tracking_auth=True
    )
    access.environment(settings)
    found = access.environment(settings)  # after a restart
    path = Path(found["MLFLOW_AUTH_CONFIG_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    program = (
        "from mlflow.server.auth.config import read_auth_config; c = read_auth_config(); "
        "print(c.database_uri, c.default_permission)"
    )
    env = os.environ | {"MLFLOW_AUTH_CONFIG_PATH": str(path), "MLFLOW_AUTH_ADMIN_PASSWORD": "x" * 12}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stdout.split()[-2:] == ["postgresql+psycopg2://u:p%40ss@db/ratchet", "NO_PERMISSIONS"]


# --- accounts ---


def test_no_part_but_the_promoter_gets_more_than_it_needs() -> None:
    assert accounts.grants("serving", ["mine"]) == {
        ("experiment", "mine", "READ"),
        ("registered_model", "mine_model", "MANAGE"),  # its role may write one tag, and nothing else
        ("registered_model", "mine_pytorch_model", "MANAGE"),
        ("experiment", "serving", "EDIT"),
        ("experiment", "promotions", "READ"),
    }
    assert ("experiment", "promotions", "MANAGE") not in accounts.grants("trainer", ["mine"])
    assert ("experiment", "serving", "READ") in accounts.grants("trainer", ["mine"])  # to watch production
    assert ("experiment", "mine", "READ") in accounts.grants("promoter", ["mine"])


@pytest.mark.parametrize("text", ["", "user = trainer", "[mlflow]\nmlflow_tracking_username = trainer\n"])
def test_a_file_that_is_no_credentials_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_credentials").write_text(text)
    with pytest.raises(InputError, match="is no credentials file of MLflow's"):
        accounts.credentials(tmp_path / "trainer_credentials")
    with pytest.raises(InputError, match="cannot be read"):
        accounts.credentials(tmp_path / "nowhere")


# --- secrets ---


@mock_aws
def test_secrets_become_files_and_a_change_keeps_the_file(tmp_path: Path, keys: None) -> None:
    client = boto3.client("secretsmanager")
    client.create_secret(Name="mine/mlflow_admin_password", SecretString="one")
    client.create_secret(Name="mine/serving_token", SecretString="rt-x")
    client.create_secret(Name="other/mlflow_admin_password", SecretString="not ours")
    folder = tmp_path / "secrets"
    arguments = ["--prefix", "mine/", "--folder", str(folder)]
    first = CliRunner().invoke(pull_secrets.main, arguments)
    assert first.exit_code == 0, first.output
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "mlflow_admin_password": "one",
        "serving_token": "rt-x",
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "serving_token").stat().st_mode) == 0o400
    inode = (folder / "mlflow_admin_password").stat().st_ino
    client.put_secret_value(SecretId="mine/mlflow_admin_password", SecretString="two")
    second = CliRunner().invoke(pull_secrets.main, arguments)
    assert "mlflow_admin_password: changed" in second.output
    assert "serving_token: as it is" in second.output
    assert (folder / "mlflow_admin_password").read_text() == "two"
    assert (folder / "mlflow_admin_password").stat().st_ino == inode  # which a running container has mounted
    assert "one" not in second.output + first.output


@mock_aws
def test_no_secret_of_that_name_or_one_that_is_no_file_is_an_error(tmp_path: Path, keys: None) -> None:
    arguments = ["--prefix", "mine/", "--folder", str(tmp_path / "secrets")]
    empty = CliRunner().invoke(pull_secrets.main, arguments)
    assert empty.exit_code == 2
    assert "no secret's name begins so" in empty.output
    boto3.client("secretsmanager").create_secret(Name="mine/../../etc/passwd", SecretString="x")
    odd = CliRunner().invoke(pull_secrets.main, arguments)
    assert odd.exit_code == 2
    assert "cannot be a file" in odd.output
    assert not (tmp_path / "secrets").exists()


# --- the way to production ---


class Version(NamedTuple):
    """A row of copy_artifacts.VERSIONS."""

    name: str
    version: int
    location: str
    sha256: str | None


@pytest.fixture
def two_stores(keys: None):
    """A local bucket with one model's files, and an empty one."""
    with mock_aws():
        client = boto3.client("s3")
        for bucket in ("here", "there"):
            client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        source = copy_artifacts.Store(client, "here", "artifacts", {}, {})
        target = copy_artifacts.Store(client, "there", "far/artifacts", {}, {})
        files = {"model.safetensors": b"weights" * 1000, "MLmodel": b"flavors:"}
        listed = {name: {"sha256": copy_artifacts.hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        for name, data in (files | {"manifest.json": json.dumps({"files": listed}).encode()}).items():
            client.put_object(Bucket="here", Key=f"artifacts/1/models/m-1/artifacts/{name}", Body=data)
        yield source, target


def version_of(source: copy_artifacts.Store) -> Version:
    folder = "1/models/m-1/artifacts"
    return Version("mine", 1, f"mlflow-artifacts:/{folder}", source.sha256(f"{folder}/manifest.json"))


def test_a_copy_is_whole_and_a_second_run_copies_what_is_new(two_stores) -> None:
    source, target = two_stores
    assert copy_artifacts.copy(source, target)[0] == 3
    assert copy_artifacts.check(version_of(source), source, target) == []
    assert copy_artifacts.copy(source, target) == (0, 0)
    key = "artifacts/1/models/m-1/artifacts/MLmodel"
    source.client.put_object(Bucket="here", Key=key, Body=b"changed!")  # as long as before
    assert copy_artifacts.copy(source, target) == (1, 8)
    assert target.objects().keys() == source.objects().keys()


@pytest.mark.parametrize("sha256", [True, False])
def test_what_is_not_as_trained_at_the_far_end_is_named(two_stores, sha256: bool) -> None:
    source, target = two_stores
    copy_artifacts.copy(source, target)
    version = version_of(source) if sha256 else version_of(source)._replace(sha256=None)
    folder = "far/artifacts/1/models/m-1/artifacts"
    target.client.put_object(Bucket="there", Key=f"{folder}/model.safetensors", Body=b"other weights")
    target.client.put_object(Bucket="there", Key=f"{folder}/more.py", Body=b"x")
    target.client.delete_object(Bucket="there", Key=f"{folder}/MLmodel")
    assert copy_artifacts.check(version, source, target) == [
        "mine version 1: MLmodel is missing",
        "mine version 1: more.py is not of it",
        "mine version 1: model.safetensors has another sha256",
    ]
    if sha256:
        wrong = copy_artifacts.check(version._replace(sha256="0" * 64), source, target)
        assert wrong == ["mine version 1: manifest.json is not the one of its training (" + "0" * 64 + ")"]


def test_where_to_is_read_from_productions_env_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "AWS_REGION=eu-central-1\nDATABASE_HOST=db\nS3_BUCKET=b\nS3_BUCKET_OWNER=1\nDATABASE_CA_FILE=./ca.pem\n"
    )
    assert migrate_artifacts.target(file) == {
        "TARGET_AWS_REGION": "eu-central-1",
        "TARGET_DATABASE_HOST": "db",
        "TARGET_S3_BUCKET": "b",
        "TARGET_S3_BUCKET_OWNER": "1",
        "TARGET_DATABASE_CA_FILE": str(tmp_path / "ca.pem"),
    }
    file.write_text("DATABASE_HOST=db\n")
    refused = CliRunner().invoke(migrate_artifacts.main, ["--to", str(file)])
    assert refused.exit_code == 2
    assert "does not set AWS_REGION, S3_BUCKET, S3_BUCKET_OWNER" in refused.output
