"""What is logged has no credentials in it."""

from typing import Any

import mlflow
import pytest

from contract.redaction import redact
from trainer.config import load_config
from trainer.tracking import log_config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ada:hunter22@host:5000/x", "http://ada:REDACTED@host:5000/x"),
        ("uri: https://:p%40ss@host", "uri: https://:REDACTED@host"),
        ("postgresql+psycopg2://u:p@ss@db/x", "postgresql+psycopg2://u:REDACTED@db/x"),
        (
            "s3://b/k?X-Amz-Credential=AK&X-Amz-Signature=12ab",
            "s3://b/k?X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED",
        ),
        ("git@github.com:a/b.git and http://host:5000/x@y", "git@github.com:a/b.git and http://host:5000/x@y"),
        ("email me: a@b.example, see https://host/a:b@c", "email me: a@b.example, see https://host/a:b@c"),
        ("models:/name@production", "models:/name@production"),
    ],
)
def test_credentials_in_urls_are_overwritten(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_values_of_secret_variables_are_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        *(("HF_TOKEN", "hf_abcdefgh"), ("MY_API_KEY", "hf_abcdefgh-and-more"), ("DB_PASSWORD", "short")),
        *(("AWS_SECRET_ACCESS_KEY_FILE", "/run/secrets/x"), ("MAX_TOKENS", "100000000"), ("EDITOR", "editor-of-mine")),
    ):
        monkeypatch.setenv(name, value)
    text = "hf_abcdefgh hf_abcdefgh-and-more short /run/secrets/x 100000000 editor-of-mine"
    assert redact(text) == "REDACTED REDACTED short /run/secrets/x 100000000 editor-of-mine"


def test_a_runs_params_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "a-run-of-the-mill")
    logged: dict[str, Any] = {}
    monkeypatch.setattr(mlflow, "log_params", logged.update)
    log_config(load_config(None, ["tracking.uri=http://ada:hunter22@host", "tracking.run_name=${oc.env:MY_SECRET}"]))
    assert logged["tracking.uri"] == "http://ada:REDACTED@host"
    assert logged["tracking.run_name"] == "REDACTED"
