"""Make the bucket for artifacts: `python -m services.bucket`.

Waits for the S3 API, creates the bucket, and turns on versioning and the clean-up of unfinished uploads where the
server knows them. Run again, it changes nothing.
"""

import time
from typing import Any

import boto3
import click
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError, NoCredentialsError

from contract.errors import InputError, RatchetError
from services.bucket.settings import BucketSettings
from services.settings import read

RULE = {
    "ID": "ratchet-abort-incomplete-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
}
# How servers say that they do not know versioning or lifecycle. MinIO cleans unfinished uploads up by itself, and
# calls a rule that does nothing else malformed; rclone takes the request for one that makes a bucket.
UNSUPPORTED = {"NotImplemented", "MethodNotAllowed", "MalformedXML", "InvalidArgument", "BucketAlreadyExists"}


@click.command(context_settings={"max_content_width": 110})
def main() -> None:
    """Create the bucket that MLFLOW_ARTIFACTS_DESTINATION names, at AWS_ENDPOINT_URL_S3."""
    settings = read(BucketSettings)
    client = connect(settings)
    try:
        for line in make(client, settings.bucket, settings.bucket_timeout_s):
            click.echo(line)
    except ClientError as error:
        raise InputError(_explanation(error, settings)) from error
    except NoCredentialsError as error:
        raise InputError(
            "There is no key for S3. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the secret file of that name)."
        ) from error
    except (EndpointConnectionError, HTTPClientError) as error:  # nobody there, which is no fault of the input
        raise RatchetError(
            f"No S3 server answered within {settings.bucket_timeout_s} s at AWS_ENDPOINT_URL_S3 "
            f"({settings.aws_endpoint_url_s3}): {error}"
        ) from error


def connect(settings: BucketSettings) -> Any:
    """boto3's client. Short time-outs and no retries of its own, since `make` waits anyway."""
    key = settings.aws_secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=settings.aws_endpoint_url_s3,
        aws_access_key_id=settings.aws_access_key_id,
        aws_secret_access_key=key.get_secret_value() if key else None,
        config=Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",  # some S3 servers refuse the newer checksums
        ),
    )


def make(client: Any, bucket: str, timeout_s: float) -> list[str]:
    """Bring the bucket to its wanted state. Returns one line for each part, saying what was found or done.

    Raises ClientError where the server refuses, EndpointConnectionError or HTTPClientError where none answers within
    `timeout_s`.
    """
    return [
        f"Bucket {bucket}: {_create(client, bucket, timeout_s)}",
        f"Versioning: {_enable_versioning(client, bucket)}",
        f"Clean-up of unfinished uploads: {_add_rule(client, bucket)}",
    ]


def _create(client: Any, bucket: str, timeout_s: float) -> str:
    end = time.monotonic() + timeout_s
    while True:
        try:
            # Listing and not HeadBucket, whose refusals carry no reason.
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
            return "there already"
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("NoSuchBucket", "404"):
                return _create_missing(client, bucket)
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 or time.monotonic() > end:
                raise
        except (EndpointConnectionError, HTTPClientError):
            if time.monotonic() > end:
                raise
        time.sleep(0.5)  # the pace of asking


def _create_missing(client: Any, bucket: str) -> str:
    region = client.meta.region_name
    where = {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=bucket, **where)
    except client.exceptions.BucketAlreadyOwnedByYou:
        return "there already"  # another one-shot was quicker
    return "created"


def _enable_versioning(client: Any, bucket: str) -> str:
    try:
        if client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled":
            return "on already"
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        # Asked again, since there are servers that accept everything.
        on = client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled"
    except ClientError as error:
        return _unsupported(error)
    return "turned on" if on else "not known to this server"


def _add_rule(client: Any, bucket: str) -> str:
    try:
        rules = _rules(client, bucket)
        if any(_same(rule) for rule in rules):
            return "on already"
        others = [rule for rule in rules if rule.get("ID") != RULE["ID"]]
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [*others, RULE]})
        on = any(_same(rule) for rule in _rules(client, bucket))
    except ClientError as error:
        return _unsupported(error)
    return "turned on" if on else "not known to this server"


def _rules(client: Any, bucket: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = client.get_bucket_lifecycle_configuration(Bucket=bucket).get("Rules", [])
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchLifecycleConfiguration":
            return []
        raise
    return found


def _same(rule: dict[str, Any]) -> bool:
    return all(rule.get(key) == RULE[key] for key in ("ID", "Status", "AbortIncompleteMultipartUpload"))


def _unsupported(error: ClientError) -> str:
    code = error.response["Error"]["Code"]
    if code not in UNSUPPORTED:
        raise error
    return f"not known to this server ({code})"


def _explanation(error: ClientError, settings: BucketSettings) -> str:
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "").rstrip(".")
    remedy = {
        "InvalidAccessKeyId": "No such access key there: correct AWS_ACCESS_KEY_ID (MINIO_ROOT_USER).",
        "SignatureDoesNotMatch": "The secret key is wrong: it has to be the one that the server was started with.",
        "AccessDenied": "This key may not use the bucket: give it the right to, or take another name.",
        "BucketAlreadyExists": "Somebody else owns this name: take another.",
    }.get(code, "Expected a server that speaks S3.")
    return f"{settings.aws_endpoint_url_s3 or 'AWS'} refuses the bucket '{settings.bucket}': {code} {message}. {remedy}"


if __name__ == "__main__":
    main()
