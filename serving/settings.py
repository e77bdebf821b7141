"""The serving container's settings, read from the environment once."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServingSettings(BaseSettings):
    """Environment variables (in any case) of serving; infra/env/dev.env explains each."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    ratchet_home: Path = Path("var")
    mlflow_tracking_uri: str = "http://127.0.0.1:5000"
    serving_model: str = "code_model_fine_tuning_model"
    serving_alias: str = "production"
    serving_host: str = "127.0.0.1"
    serving_port: int = Field(default=8000, ge=1, le=65535)
    serving_timeout_s: int = Field(default=60, ge=1)
    serving_wait: bool = False

    @property
    def models(self) -> Path:
        """Where the files of the served version are kept."""
        return self.ratchet_home.absolute() / "serving"
