"""The tracking server's settings, read from the environment once; the secret ones also from files."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from services.settings import FROM_ENVIRONMENT_AND_SECRETS


class TrackingSettings(BaseSettings):
    """Environment variables (in any case) of the tracking server; infra/env/dev.env explains each.

    A variable that is not set is read from the file of its name (in lower case) in /run/secrets.
    """

    model_config = FROM_ENVIRONMENT_AND_SECRETS

    ratchet_home: Path = Path("var")
    mlflow_backend_store_uri: str = ""
    postgres_password: SecretStr = SecretStr("")
    mlflow_artifacts_destination: str = ""
    aws_secret_access_key: SecretStr = SecretStr("")
    log_format: Literal["plain", "json"] = "plain"
    tracking_host: str = "127.0.0.1"
    tracking_port: int = Field(default=5000, ge=1, le=65535)
    tracking_workers: int = Field(default=1, ge=1)
    tracking_allowed_hosts: str = ""
    tracking_cors_origins: str = ""
    tracking_auth: bool = False
    tracking_roles: str = ""
    tracking_connections: int = Field(default=0, ge=0)
    mlflow_admin_password: SecretStr = SecretStr("")
    mlflow_secret_key: SecretStr = SecretStr("")
    s3_kms_key_arn: str = ""

    @property
    def home(self) -> Path:
        return self.ratchet_home.absolute()

    @property
    def backend_store_uri(self) -> str:
        """SQLAlchemy URI of the database, with its password; by default SQLite below RATCHET_HOME.

        Raises ValueError for a text that is no such URI.
        """
        uri = self.mlflow_backend_store_uri or f"sqlite:///{self.home / 'mlflow.db'}"
        password = self.postgres_password.get_secret_value()
        if not password or not uri.startswith("postgresql"):
            return uri
        try:
            url = make_url(uri)
        except ArgumentError as error:
            raise ValueError(f"MLFLOW_BACKEND_STORE_URI is no SQLAlchemy URI: {error}") from error
        return (url if url.password else url.set(password=password)).render_as_string(hide_password=False)

    @property
    def artifacts_destination(self) -> str:
        """Where the server puts the artifacts that clients send it; by default a folder."""
        return self.mlflow_artifacts_destination or (self.home / "artifacts").as_uri()

    @property
    def allowed_hosts(self) -> str:
        """Host headers that are answered; MLflow answers 403 to any other."""
        port = self.tracking_port
        return self.tracking_allowed_hosts or f"localhost:{port},127.0.0.1:{port}"
