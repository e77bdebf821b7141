"""The manifest of a version: the sha256 of each of its files, by which promoter and serving know it unchanged.

`manifest.json` in the version's folder: {"files": {path: {"sha256": …, "bytes": …}}}, of all files but itself. Its own
sha256 is the version's tag `manifest_sha256`: kept in the database, and not beside the files.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from contract.errors import InputError
from contract.files import sha256_of
from contract.names import MANIFEST_SHA256

NAME = "manifest.json"
ADDED_BY_MLFLOW = "registered_model_meta"  # when it fetches a version whole: its name and number; nothing reads it
LONGEST_PART, LONGEST_PATH = 255, 1024  # bytes of a file's name on disk, and of an object's in S3


class NotAsTrained(InputError):
    """A version's files are not those of its training; the message says which."""

    def __init__(self, wrong: Sequence[str]) -> None:
        self.wrong = list(wrong)
        super().__init__(f"its files are not those of its training: {'; '.join(self.wrong[:3])}")


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a file."""

    sha256: str
    bytes: int


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


def read(folder: Path, expected: str) -> dict[str, Entry]:
    """What the manifest in a folder lists, by path, where its sha256 is `expected`. Raises NotAsTrained.

    Every path stays below the folder, and none of them is also another's folder: to write the files there is safe.
    """
    path = folder / NAME
    if not path.is_file():
        raise NotAsTrained([f"{NAME} is gone"])
    if (found := sha256_of(path)) != expected:
        raise NotAsTrained(
            [
                f"{NAME} was changed: its sha256 is {found[:12]}…, and the version's tag {MANIFEST_SHA256} says "
                f"{expected[:12]}…"
            ]
        )
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        entries = {name: Entry(entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotAsTrained([f"{NAME} lists no files ({type(error).__name__}: {str(error)[:100]})"]) from error
    if wrong := [why for name, entry in entries.items() if (why := _why_impossible(name, entry, entries))]:
        raise NotAsTrained(wrong)
    return entries


def listed(folder: Path) -> dict[str, str]:
    """The sha256 of each file by its path, as the manifest in the folder lists them, whatever its own is."""
    return {name: entry.sha256 for name, entry in read(folder, sha256_of(folder / NAME)).items()}


def _why_impossible(name: str, entry: Entry, entries: Mapping[str, Entry]) -> str | None:
    """Why no version has such a file; None where one may."""
    if not _stays_inside(name):
        return f"{NAME} lists {name[:100]!r}, which is no path of a file below the version's folder"
    if not (isinstance(entry.sha256, str) and re.fullmatch("[0-9a-f]{64}", entry.sha256)):
        return f"{NAME} says of {name!r} the sha256 {str(entry.sha256)[:100]!r}"
    if not isinstance(entry.bytes, int):
        return f"{NAME} says of {name!r} the size {str(entry.bytes)[:100]!r}"
    folder = next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in entries), None)
    return f"{NAME} lists {folder!r} as a file, and {name!r} in it" if folder else None


def _stays_inside(name: str) -> bool:
    """Whether a path names a file below the folder that it is relative to, and names it in the one way there is."""
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return False
    return (
        name not in (NAME, ADDED_BY_MLFLOW)
        and sum(map(len, parts)) + len(parts) <= LONGEST_PATH
        and not any(part in (b"", b".", b"..") or b"\0" in part or len(part) > LONGEST_PART for part in parts)
    )


def differences(folder: Path, expected: str) -> list[str]:
    """How a version's folder differs from the manifest whose sha256 is `expected`, in words; empty where it does not.

    Links count as files; caches of Python's do too, since a version is fetched without any.
    """
    try:
        wanted = read(folder, expected)
    except NotAsTrained as error:
        return error.wrong
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    for name in (NAME, ADDED_BY_MLFLOW):
        there.pop(name, None)
    return [
        *(f"{name} is gone" for name in wanted if name not in there),
        *(f"{name} was not there at training" for name in there if name not in wanted),
        *(f"{name} was changed" for name in wanted if name in there and sha256_of(there[name]) != wanted[name].sha256),
    ]


def check(folder: Path, tags: Mapping[str, str]) -> None:
    """Raise NotAsTrained where the files in a folder are not those of the version with these tags.

    A version that was registered by other means has no tag `manifest_sha256`, and nothing to compare with.
    """
    expected = tags.get(MANIFEST_SHA256)
    if expected is not None and (wrong := differences(folder, expected)):
        raise NotAsTrained(wrong)
