"""The env files: every variable known, explained once, and complete."""

import re
from pathlib import Path

import pytest

from services.tracking.settings import TrackingSettings
from serving.settings import ServingSettings

FOLDER = Path(__file__).parents[2] / "infra" / "env"
KNOWN = {name.upper() for name in (*TrackingSettings.model_fields, *ServingSettings.model_fields)}


def variables(path: Path) -> list[str]:
    return re.findall(r"^(\w+)=", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["dev.env", "prod.env", "stack.env"])
def test_every_variable_is_set_once(name: str) -> None:
    found = variables(FOLDER / name)
    assert found
    assert len(found) == len(set(found))


def test_dev_env_has_every_variable_with_an_explanation_above() -> None:
    text = (FOLDER / "dev.env").read_text()
    assert set(variables(FOLDER / "dev.env")) == KNOWN
    for block in text.strip().split("\n\n"):
        assert block.startswith("#"), f"no explanation above: {block}"


def test_dev_env_says_the_defaults() -> None:
    lines = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / "dev.env").read_text(), re.MULTILINE))
    for settings in (TrackingSettings(_env_file=None), ServingSettings(_env_file=None)):
        for name, value in settings.model_dump().items():
            if name != "mlflow_tracking_uri":  # written with the other variables
                assert lines[name.upper()].casefold() == ("" if value is None else str(value)).casefold()
