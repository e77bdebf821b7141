"""Six code bases that others wrote, in pinned versions, as their authors publish them: what data are measured on.

    folder = fetch("networkx", Path("var/codebases"))     # var/codebases/networkx-3.6.1, downloaded once

`pip` and `npm` download them, from where they are configured to. Python's are source distributions, which hold the
tests too where the author packs them; npm's hold TypeScript beside what was compiled from it.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from contract.errors import InputError

PYTHON = {"rich": "15.0.0", "flask": "3.1.3", "networkx": "3.6.1", "httpx": "0.28.1"}
NPM = {"zod": "4.6.7", "preact": "11.2.0"}
NAMES = (*PYTHON, *NPM)
CACHE = Path("var/codebases")


def fetch(name: str, folder: Path = CACHE) -> Path:
    """The unpacked folder of a code base below a cache folder; downloaded where it is not there yet.

    Raises InputError for a name that is not in NAMES, and where the download fails.
    """
    if name not in NAMES:
        raise InputError(f"The code base is '{name}'. Expected one of {', '.join(NAMES)}.")
    version = PYTHON.get(name) or NPM[name]
    target = folder / f"{name}-{version}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        archive = _download(name, version, Path(temporary))
        with tarfile.open(archive) as packed:
            packed.extractall(Path(temporary, "unpacked"), filter="data")
        (top,) = Path(temporary, "unpacked").iterdir()  # flask-3.1.3 of a source distribution, package of npm's
        top.rename(target)  # whole or not at all
    return target


def _download(name: str, version: str, folder: Path) -> Path:
    if name in PYTHON:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
        command += ["--dest", str(folder), f"{name}=={version}"]
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = [*folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
    if result.returncode or len(archives) != 1:
        raise InputError(
            f"{' '.join(command)} failed: {result.stderr.strip() or 'no archive was written'}. "
            "Expected pip and npm to reach the registries that they are configured for."
        )
    return archives[0]
