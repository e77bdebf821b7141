"""The serving container's settings, read from the environment once by each of its processes."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SECONDS_TO_SPARE = 5  # the engine gives a request up so long before `mlflow models serve` does


class ServingSettings(BaseSettings):
    """Environment variables (in any case) of serving; infra/env/dev.env explains each."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    ratchet_home: Path = Path("var")
    mlflow_tracking_uri: str = "http://127.0.0.1:5000"
    serving_model: str = "code_model_fine_tuning_model"
    serving_alias: str = "production"
    serving_wait: bool = False
    serving_poll_s: float = Field(default=2.0, ge=0.1)
    serving_webhook_url: str = ""
    serving_run_folder: Path = Path()  # set by the supervisor: where the processes of this container meet
    serving_start_timeout_s: float = Field(default=600.0, gt=0)
    serving_memory_reserve_mb: int = Field(default=256, ge=0)

    serving_host: str = "127.0.0.1"
    serving_port: int = Field(default=8000, ge=1, le=65535)
    serving_workers: int = Field(default=2, ge=1)
    serving_timeout_s: int = Field(default=60, gt=SECONDS_TO_SPARE)
    serving_max_body_bytes: int = Field(default=1 << 20, ge=1)
    serving_tokens_file: Path | None = None

    serving_max_batch: int = Field(default=32, ge=1)
    serving_max_queue: int = Field(default=128, ge=1)
    serving_max_prompt_tokens: int = Field(default=4096, ge=1)
    serving_max_new_tokens: int = Field(default=2048, ge=1)
    serving_max_batch_tokens: int = Field(default=65_536, ge=1)

    serving_trace_sample: float = Field(default=1.0, ge=0, le=1)
    serving_trace_prompts: bool = True

    @property
    def models(self) -> Path:
        """Where the files of served versions are kept."""
        return self.ratchet_home.absolute() / "serving"

    @property
    def deadline_s(self) -> float:
        """When the engine gives a request up."""
        return self.serving_timeout_s - SECONDS_TO_SPARE

    @property
    def limits(self) -> dict[str, float]:
        """The engine's limits, as a PyFunc's `model_config`."""
        return {
            "max_batch": self.serving_max_batch,
            "max_queue": self.serving_max_queue,
            "max_prompt_tokens": self.serving_max_prompt_tokens,
            "max_new_tokens": self.serving_max_new_tokens,
            "max_batch_tokens": self.serving_max_batch_tokens,
            "deadline_s": self.deadline_s,
        }
