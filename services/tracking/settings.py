"""The tracking server's settings, read from the environment once."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrackingSettings(BaseSettings):
    """Environment variables (in any case) of the tracking server; infra/env/dev.env explains each."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    ratchet_home: Path = Path("var")
    mlflow_backend_store_uri: str = ""
    mlflow_artifacts_destination: str = ""
    tracking_host: str = "127.0.0.1"
    tracking_port: int = Field(default=5000, ge=1, le=65535)
    tracking_workers: int = Field(default=1, ge=1)
    tracking_allowed_hosts: str = ""

    @property
    def home(self) -> Path:
        return self.ratchet_home.absolute()

    @property
    def backend_store_uri(self) -> str:
        """SQLAlchemy URI of the database; by default SQLite below RATCHET_HOME."""
        return self.mlflow_backend_store_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts_destination(self) -> str:
        """Where the server puts the artifacts that clients send it; by default a folder."""
        return self.mlflow_artifacts_destination or (self.home / "artifacts").as_uri()

    @property
    def allowed_hosts(self) -> str:
        """Host headers that are answered; MLflow answers 403 to any other."""
        port = self.tracking_port
        return self.tracking_allowed_hosts or f"localhost:{port},127.0.0.1:{port}"
