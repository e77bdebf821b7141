"""Copy a local stack's artifacts to production's bucket, and check every model version's sha256 at the far end.

infra/compose/migrate.yml runs this (`make migrate-artifacts`), after the database was copied. Run again, it copies
what is new or has changed. From the local bucket it only reads.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
import click
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr
from pydantic_settings import BaseSettings
from sqlalchemy import URL, create_engine, text

from contract import manifest
from contract.errors import RatchetError
from contract.names import MANIFEST_SHA256
from services.settings import FROM_ENVIRONMENT_AND_SECRETS, read

ETAG = "source-etag"  # of an object, in the metadata of its copy: by it a second run knows what it has copied
AT_ONCE = 8
VERSIONS = text(
    f"""
    SELECT v.name, v.version, coalesce(m.artifact_location, v.source) AS location, t.value AS sha256
    FROM model_versions v
    LEFT JOIN logged_models m ON v.source = 'models:/' || m.model_id
    LEFT JOIN model_version_tags t ON (t.name, t.version, t.key) = (v.name, v.version, '{MANIFEST_SHA256}')
    WHERE v.current_stage <> 'Deleted_Internal' ORDER BY 1, 2
    """
)


class CopySettings(BaseSettings):
    """Environment variables (in any case), or files of these names in /run/secrets: see infra/compose/migrate.yml."""

    model_config = FROM_ENVIRONMENT_AND_SECRETS

    source_endpoint: str
    source_access_key_id: str
    source_secret_access_key: SecretStr
    source_uri: str
    target_uri: str
    target_kms_key_arn: str = ""
    target_bucket_owner: str
    database_host: str
    database_port: int
    database_name: str
    database_user: str


@dataclass(frozen=True)
class Store:
    """A bucket, from a folder on."""

    client: Any
    bucket: str
    prefix: str
    put: dict[str, str]  # further arguments of a request that writes
    get: dict[str, str]  # and of one that reads

    def key(self, path: str) -> str:
        return f"{self.prefix}/{path}"

    def objects(self, folder: str = "") -> dict[str, tuple[int, str]]:
        """Size and ETag of each object below a folder, by its path in the store."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.key(folder), **self.get
        )
        return {
            item["Key"].removeprefix(f"{self.prefix}/"): (item["Size"], item["ETag"])
            for page in pages
            for item in page.get("Contents", [])
        }

    def body(self, path: str) -> Any:
        return self.client.get_object(Bucket=self.bucket, Key=self.key(path), **self.get)["Body"]

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.body(path).iter_chunks(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


@click.command(context_settings={"max_content_width": 110})
def main() -> None:
    """Copy the artifacts, then check each model version at the far end. Settings come from the environment."""
    settings = read(CopySettings)
    source, target = stores(settings)
    try:
        copied, size = copy(source, target)
        click.echo(f"Copied {copied} objects, {size / 1e6:.1f} MB; the others were there already")
        wrong = [problem for version in versions(settings) for problem in check(version, source, target)]
    except (ClientError, BotoCoreError) as error:
        raise RatchetError(f"S3 refuses: {error}. Run this again when it does not.") from error
    if wrong:
        raise RatchetError("\n".join(["At the far end is not what was trained:", *wrong]))


def stores(settings: CopySettings) -> tuple[Store, Store]:
    """The local bucket and production's."""
    old = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    local = boto3.client(
        "s3",
        endpoint_url=settings.source_endpoint,
        aws_access_key_id=settings.source_access_key_id,
        aws_secret_access_key=settings.source_secret_access_key.get_secret_value(),
        region_name="us-east-1",
        config=old,  # some S3 servers refuse the newer checksums
    )
    owner = {"ExpectedBucketOwner": settings.target_bucket_owner}
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": settings.target_kms_key_arn}
    return (
        Store(local, *_place(settings.source_uri), {}, {}),
        Store(
            boto3.client("s3"),
            *_place(settings.target_uri),
            owner | (encryption if settings.target_kms_key_arn else {}),
            owner,
        ),
    )


def _place(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.strip("/")


def copy(source: Store, target: Store) -> tuple[int, int]:
    """Copy what is not there yet, several at once, streamed. Returns how many objects and bytes."""
    objects = source.objects()
    count = size = 0
    with (
        ThreadPoolExecutor(AT_ONCE) as pool,
        click.progressbar(length=sum(size for size, _ in objects.values()), label="Copying") as bar,
    ):
        waiting = {pool.submit(_copy_one, source, target, path, *found): found[0] for path, found in objects.items()}
        try:
            for done in as_completed(waiting):
                if done.result():
                    count, size = count + 1, size + waiting[done]
                bar.update(waiting[done])
        finally:
            pool.shutdown(cancel_futures=True)  # after a refusal the others need not be tried
    return count, size


def _copy_one(source: Store, target: Store, path: str, size: int, etag: str) -> bool:
    """Copy an object, but where its copy is there. Returns whether it did."""
    try:
        head = target.client.head_object(Bucket=target.bucket, Key=target.key(path), **target.get)
        if head["ContentLength"] == size and head["Metadata"].get(ETAG) == etag.strip('"'):
            return False
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
            raise
    target.client.upload_fileobj(
        source.body(path),
        target.bucket,
        target.key(path),
        ExtraArgs={**target.put, "Metadata": {ETAG: etag.strip('"')}},
    )
    return True


def versions(settings: CopySettings) -> Iterable[Any]:
    """Every model version in the database at the far end: name, version, location, sha256 of its manifest or None."""
    engine = create_engine(
        URL.create(
            "postgresql+psycopg2",
            username=settings.database_user,
            host=settings.database_host,
            port=settings.database_port,
            database=settings.database_name,
            query={"sslmode": "verify-full", "sslrootcert": "/run/database-ca.pem"},
        )
    )
    with engine.connect() as connection:
        found = connection.execute(VERSIONS).all()
    engine.dispose()
    return found


def check(version: Any, source: Store, target: Store) -> list[str]:
    """What of a version's files at the far end is not as trained: by its manifest, or by the files at this end."""
    name = f"{version.name} version {version.version}"
    if not version.location.startswith("mlflow-artifacts:"):
        click.echo(f"{name}: its files are not in the bucket, but at {version.location}: left where they are")
        return []
    folder = urlsplit(version.location).path.strip("/") + "/"
    there = {path.removeprefix(folder) for path in target.objects(folder)}
    if version.sha256 and target.sha256(folder + manifest.NAME) != version.sha256:
        return [f"{name}: {manifest.NAME} is not the one of its training ({version.sha256})"]
    if version.sha256:
        listed = json.loads(target.body(folder + manifest.NAME).read())["files"]
        expected = {path: entry["sha256"] for path, entry in listed.items()} | {manifest.NAME: version.sha256}
    else:  # of another's making
        expected = {path.removeprefix(folder): source.sha256(path) for path in source.objects(folder)}
    wrong = [f"{name}: {path} is missing" for path in sorted(expected.keys() - there)]
    wrong += [f"{name}: {path} is not of it" for path in sorted(there - expected.keys())]
    wrong += [
        f"{name}: {path} has another sha256"
        for path in sorted(expected.keys() & there)
        if target.sha256(folder + path) != expected[path]
    ]
    if not wrong:
        by = "its manifest" if version.sha256 else "the files here"
        click.echo(f"{name}: {len(expected)} files have the sha256 of {by}")
    return wrong


if __name__ == "__main__":
    main(prog_name="python -m infra.copy_artifacts")
