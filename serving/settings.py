"""The serving container's settings, read from the environment once by each of its processes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.names import DEFAULT_EXPERIMENT, PRODUCTION, pyfunc_model

SECONDS_TO_SPARE = 5  # the engine gives a request up so long before `mlflow models serve` does


class ServingSettings(BaseSettings):
    """Environment variables (in any case) of serving; infra/env/dev.env explains each."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    ratchet_home: Path = Field(default=Path("var"), description="Where the files of served versions are kept.")
    mlflow_tracking_uri: str = Field(default="http://127.0.0.1:5000", description="The tracking server.")
    serving_model: str = Field(default=pyfunc_model(DEFAULT_EXPERIMENT), description="The registered model.")
    serving_promoter_url: str = Field(
        default="",
        description="The promoter's server (`promoter serve`), which does what administrators do on the page. Empty: "
        "the promoter that is installed here does, with this process's rights.",
    )
    tracking_public_url: str = Field(
        default="", description="Where people open the tracking server, for the page's links. Empty: the tracking URI."
    )
    serving_alias: str = Field(default=PRODUCTION, description="The alias that is followed.")
    serving_wait: bool = Field(
        default=False, description="Where no version has the alias yet, wait for one and answer 503 until then."
    )
    serving_poll_s: float = Field(default=2.0, ge=0.1, description="Seconds between two looks at the alias.")
    serving_webhook_url: str = Field(
        default="",
        description="This serving's `/webhook` as the tracking server reaches it: then the registry says when an alias "
        "moves. Empty: none.",
    )
    serving_start_timeout_s: float = Field(default=600.0, gt=0, description="Seconds that a model may take to load.")
    serving_memory_reserve_mb: int = Field(
        default=256,
        ge=0,
        description="MiB to be left where a second model is loaded beside the live one; else the live one is stopped "
        "first, and requests wait meanwhile.",
    )

    serving_host: str = Field(default="127.0.0.1", description="The interface to listen on.")
    serving_port: int = Field(default=8000, ge=1, le=65535, description="The port.")
    serving_workers: int = Field(default=2, ge=1, description="Processes of the gateway.")
    serving_timeout_s: int = Field(
        default=60,
        gt=SECONDS_TO_SPARE,
        description=f"`mlflow models serve`'s timeout. {SECONDS_TO_SPARE} s before it a request is given up: 503, and "
        "its place is free.",
    )
    serving_max_body_bytes: int = Field(default=1 << 20, ge=1, description="Largest body of a request; else 413.")
    serving_tokens_file: Path | None = Field(
        default=None, description="Hashes of the tokens that may ask; else 401. None: everybody may."
    )

    serving_max_batch: int = Field(default=32, ge=1, description="Completions that are under way at once.")
    serving_max_queue: int = Field(default=128, ge=1, description="Completions that may wait; else 429.")
    serving_max_prompt_tokens: int = Field(
        default=0, ge=0, description="Longest prompt; else 422. 0: as the model's positions and the memory allow."
    )
    serving_max_new_tokens: int = Field(default=2048, ge=1, description="Most tokens to ask for; else 422.")
    serving_max_batch_tokens: int = Field(
        default=65_536, ge=1, description="Tokens, asked for and read, under way at once: bounds the memory for them."
    )

    log_format: Literal["plain", "json"] = Field(
        default="plain", description="How it logs: lines for people, or a JSON object a line."
    )
    serving_trace_sample: float = Field(
        default=1.0, ge=0, le=1, description="Share of traces that hold prompt and completion; the small facts all do."
    )
    serving_trace_prompts: bool = Field(default=True, description="Whether any traces hold prompts and completions.")
    serving_trace_redact: bool = Field(
        default=True, description="Whether secrets in prompts and completions are overwritten before they are stored."
    )
    serving_trains: bool = Field(
        default=False,
        description="Where no tokens are needed: whether models may be trained on what is accepted (docs/loop.md).",
    )
    serving_events_max_bytes: int = Field(
        default=1 << 28, ge=1 << 20, description="What may wait for the tracking server; beyond it texts are left out."
    )

    @property
    def models(self) -> Path:
        """Where the files of served versions are kept."""
        return self.ratchet_home.absolute() / "serving"

    @property
    def events(self) -> Path:
        """Where what is told of completions waits for the tracking server."""
        return self.ratchet_home.absolute() / "events"

    @property
    def deadline_s(self) -> float:
        """When the engine gives a request up."""
        return self.serving_timeout_s - SECONDS_TO_SPARE

    @property
    def limits(self) -> dict[str, Any]:
        """The engine's limits, as a PyFunc's `model_config`."""
        limits: dict[str, Any] = {
            "max_batch": self.serving_max_batch,
            "max_queue": self.serving_max_queue,
            "max_new_tokens": self.serving_max_new_tokens,
            "max_batch_tokens": self.serving_max_batch_tokens,
            "deadline_s": self.deadline_s,
        }
        if self.serving_max_prompt_tokens:  # a version of 0.1.0 takes 0 for none at all: it keeps its 4096
            limits["max_prompt_tokens"] = self.serving_max_prompt_tokens
        return limits


class RunSettings(ServingSettings):
    """The settings of a container that runs."""

    serving_run_folder: Path  # made by the supervisor: its state, sockets, metrics
