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


def test_every_image_that_is_pulled_has_its_digest(root: Path) -> None:
    """And the same one wherever it stands: in the Compose files, the Dockerfile, and what explains the variables."""
    found: dict[str, set[str]] = {}
    paths = [*root.glob("docker-compose*.yml"), *root.glob("infra/compose/*.yml"), *root.glob("infra/env/*.env")]
    for path in (*paths, root / "Dockerfile"):
        for name, image in re.findall(r"\b(\w+_IMAGE)(?::-|=)([^\s}]+)", path.read_text()):
            found.setdefault(name, set()).add(image)
    assert found.pop("WHEELS_IMAGE") == {"scratch"}
    assert {"PYTHON_IMAGE", "POSTGRES_IMAGE", "MINIO_IMAGE", "BALANCER_IMAGE", "EDGE_IMAGE", "GRAFANA_IMAGE"} <= set(
        found
    )
    for name, images in found.items():
        [image] = images
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), name
