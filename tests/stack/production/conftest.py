"""The stack in production for real, on stand-ins for AWS: PostgreSQL that takes TLS and IAM tokens alone, and moto."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from testcontainers.compose import DockerCompose

from contract.files import free_port
from infra import environment
from tests.support.images import ROOT
from tests.support.production import Production, certificate
from tests.support.stack import BUILT_FROM, TAG

FILES = ["docker-compose.yml", "docker-compose.prod.yml"]
STAND_INS = "tests/stack/production/stand-ins/docker-compose.yml"
DOMAIN = "localhost"  # a name that every machine knows
MASTER_PASSWORD = "the-masters-own-password"
ACCOUNT = "123456789012"  # moto's
SETTINGS = {
    "RATCHET_TAG": TAG,
    "RATCHET_DOMAIN": DOMAIN,
    "EDGE_BIND": "127.0.0.1",
    "AWS_REGION": "eu-central-1",
    "DATABASE_HOST": "rds.test",
    "DATABASE_TOKEN_REFRESH_S": "5",  # a token lives for 20 s in the stand-in
    "S3_BUCKET": "ratchet-artifacts",
    "S3_BUCKET_OWNER": ACCOUNT,
    "TRACKING_WORKERS": "2",
    "TRACKING_CONNECTIONS": "60",  # ten for each of the two workers' three pools
    "TEST_MASTER_PASSWORD": MASTER_PASSWORD,
}
# Makes what Terraform makes: the bucket, the key, the master's secret. Prints the key's and the secret's ARNs.
MAKE = f"""
import boto3, json
def client(name):
    return boto3.client(name, region_name="eu-central-1", endpoint_url="http://127.0.0.1:5000",
                        aws_access_key_id="setup", aws_secret_access_key="setup")
key = client("kms").create_key()["KeyMetadata"]["Arn"]
there = {{"LocationConstraint": "eu-central-1"}}
client("s3").create_bucket(Bucket="ratchet-artifacts", CreateBucketConfiguration=there)
secret = client("secretsmanager").create_secret(
    Name="rds", SecretString=json.dumps({{"username": "postgres", "password": "{MASTER_PASSWORD}"}}))["ARN"]
print(json.dumps([key, secret]))
"""


@pytest.fixture(scope="package")
def production_environ(tmp_path_factory) -> Iterator[dict[str, str]]:
    """`make env-prod` in a folder of its own, with the values that Terraform would give."""
    home = tmp_path_factory.mktemp("production")
    if (offline := ROOT / environment.OFFLINE).exists():
        shutil.copy(offline, home)
    environment.write(home, production=True)
    certificates = home / "certificates"
    certificates.mkdir(mode=0o755)
    users = environment.values((ROOT / ".env").read_text()) if (ROOT / ".env").exists() else {}
    images = {name: os.environ.get(name) or users.get(name) for name in BUILT_FROM}
    secrets = environment.values((home / ".env").read_text())
    given = (
        SETTINGS
        | {name: value for name, value in images.items() if value}
        | {name: str(home / path) for name, path in secrets.items() if name.endswith("_FILE")}
        | {
            "COMPOSE_PROJECT_NAME": f"ratchet-production-{os.getpid()}",
            "EDGE_PORT": str(free_port()),
            "DATABASE_CA_FILE": str(certificates / "ca.crt"),
            "TEST_CERTIFICATES": str(certificates),
        }
    )
    authority = certificate(certificates, "ca")
    certificate(certificates, "rds", ("rds.test",), authority)
    certificate(certificates, "stranger")  # an authority that has signed nothing here
    (certificates / "rds.key").chmod(0o644)
    with (home / ".env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in given.items())
    mlflow.set_tracking_uri("")  # see tests/stack/conftest.py
    with pytest.MonkeyPatch.context() as patch:
        for name in {*environment.values(environment.PRODUCTION.read_text().replace("#", "")), *given}:
            patch.delenv(name, raising=False)
        yield given | {"ENV_FILE": str(home / ".env"), "HOME_OF_STACK": str(home)}


@pytest.fixture(scope="package")
def production(engine, production_environ) -> Iterator[Production]:
    """The stack in production, up from nothing as infra/aws/start.sh does it."""
    home = Path(production_environ["HOME_OF_STACK"])
    compose = DockerCompose(ROOT, compose_file_name=[*FILES, STAND_INS], env_file=production_environ["ENV_FILE"])
    url = f"https://{DOMAIN}:{production_environ['EDGE_PORT']}"
    stack = Production(
        compose,
        url,
        url,
        {path.name: path.read_text() for path in (home / ".secrets").iterdir() if path.stat().st_size},
        {"Authorization": f"Bearer {(home / '.secrets' / 'serving_token').read_text()}"},
        home,
        home / "edge.crt",
    )
    try:
        stack.docker_compose("--profile", "*", "build", "--quiet", timeout_s=1800)
        try:
            stack.docker_compose("up", "--detach", "--wait", "rds", "aws")
        except AssertionError:
            print(stack.evidence())
            raise
        stack.sql("CREATE ROLE rds_iam")  # which RDS has
        python = ("exec", "--no-TTY", "aws", "/venv/bin/python", "-c", MAKE)
        key, secret = json.loads(stack.docker_compose(*python).splitlines()[-1])
        with (home / ".env").open("a") as file:
            file.write(f"S3_KMS_KEY_ARN={key}\nDATABASE_MASTER_SECRET_ARN={secret}\n")
        assert "User ratchet: made, by iam" in stack.run("database-role")
        try:
            stack.up()
        except AssertionError:
            print(stack.evidence())
            raise
        root = ("exec", "--no-TTY", "edge", "cat", "/data/caddy/pki/authorities/local/root.crt")
        (home / "edge.crt").write_text(stack.docker_compose(*root))
        yield stack
    finally:
        stack.docker_compose("--profile", "*", "down", "--volumes", "--timeout", "5")


@pytest.fixture
def merged(engine, production_environ) -> dict[str, Any]:
    """The two compose files as Compose merges them, without the stand-ins."""
    files = [part for name in FILES for part in ("--file", name)]
    command = ["docker", "compose", *files, "--env-file", production_environ["ENV_FILE"], "--profile", "*"]
    done = subprocess.run([*command, "config", "--format", "json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
