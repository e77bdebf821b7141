"""The manifest of a version: the sha256 of each of its files, by which promoter and serving know it unchanged.

`manifest.json` in the version's folder: {"files": {path: {"sha256": …, "bytes": …}}}, of all files but itself. Its own
sha256 is the version's tag `manifest_sha256`: kept in the database, and not beside the files.
"""

import json
from pathlib import Path

from contract.files import sha256_of
from contract.names import MANIFEST_SHA256

NAME = "manifest.json"
ADDED_BY_MLFLOW = "registered_model_meta"  # when it fetches a version: its name and number


def write(folder: Path) -> str:
    """Write the manifest of a version's folder; returns its sha256."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts  # MLflow deletes those before it uploads
    }
    manifest = folder / NAME
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    return sha256_of(manifest)


def listed(folder: Path) -> dict[str, str]:
    """The sha256 of each file by its path, as the manifest in the folder lists them. Raises OSError, ValueError."""
    files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
    return {name: str(file["sha256"]) for name, file in files.items()}


def differences(folder: Path, expected: str) -> list[str]:
    """How a version's folder differs from the manifest whose sha256 is `expected`, in words; empty where it does not.

    Links count as files; caches of Python's do too, since a version is fetched without any.
    """
    if not (folder / NAME).is_file():
        return [f"{NAME} is gone"]
    if (found := sha256_of(folder / NAME)) != expected:
        return [
            f"{NAME} was changed: its sha256 is {found[:12]}…, and the version's tag {MANIFEST_SHA256} says "
            f"{expected[:12]}…"
        ]
    wanted = listed(folder)
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    for name in (NAME, ADDED_BY_MLFLOW):
        there.pop(name, None)
    return [
        *(f"{name} is gone" for name in wanted if name not in there),
        *(f"{name} was not there at training" for name in there if name not in wanted),
        *(f"{name} was changed" for name in wanted if name in there and sha256_of(there[name]) != wanted[name]),
    ]
