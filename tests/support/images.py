"""The images that containers of tests are made from."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def base_image(variable: str) -> str:
    """What an image variable names: in the environment, in .env.offline, or by the compose file's default."""
    offline = ROOT / ".env.offline"
    if named := os.environ.get(variable):
        return named
    if offline.exists() and (found := re.search(rf"^{variable}=(.+)$", offline.read_text(), re.MULTILINE)):
        return found[1]
    found = re.search(rf"\$\{{{variable}:-([^}}]+)\}}", (ROOT / "docker-compose.yml").read_text())
    assert found, f"docker-compose.yml has no {variable}"
    return found[1]
