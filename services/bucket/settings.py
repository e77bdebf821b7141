"""The bucket one-shot's settings, read from the environment once; the key also from a file."""

import re
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from services.settings import FROM_ENVIRONMENT_AND_SECRETS


class BucketSettings(BaseSettings):
    """Environment variables (in any case), or files of these names in /run/secrets."""

    model_config = FROM_ENVIRONMENT_AND_SECRETS

    mlflow_artifacts_destination: str
    aws_endpoint_url_s3: str | None = None  # None: AWS
    aws_access_key_id: str | None = None  # None: wherever boto3 finds one
    aws_secret_access_key: SecretStr | None = None
    bucket_timeout_s: int = Field(default=60, ge=1)

    @field_validator("mlflow_artifacts_destination")
    @classmethod
    def _names_a_bucket(cls, value: str) -> str:
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", value):
            raise ValueError(
                "expected s3://BUCKET or s3://BUCKET/PREFIX, BUCKET (the stack's S3_BUCKET) being 3 to 63 lower-case "
                "letters, digits, hyphens and dots"
            )
        return value

    @property
    def bucket(self) -> str:
        return urlsplit(self.mlflow_artifacts_destination).netloc
