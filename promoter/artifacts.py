"""What a version consists of: its files against the manifest written at training, pickled code, its signature.

The manifest is `manifest.json` in the model's folder, {"files": {path: {"sha256": …, "bytes": …}}}, of all files but
itself; its own sha256 is the version's tag `manifest_sha256`, kept in the database and not beside the files.
"""

import io
import json
import pickletools
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import requests
import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import manifest
from contract.names import MANIFEST_SHA256
from promoter.decision import Finding

# Suffixes of files that are refused whatever they hold.
REFUSED = {
    *(".pkl", ".pickle", ".pck", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill", ".cloudpickle"),
    *(".npy", ".npz", ".h5", ".keras"),  # may hold pickles or code
    *(".pyc", ".pyo", ".so", ".dll", ".dylib", ".whl", ".egg", ".jar"),  # code that nobody can read
    *(".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".7z"),  # hide what they hold
}
# What such a file begins with, under another name.
MAGIC = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x93NUMPY", b"\x89HDF", b"\x7fELF")
SCANNED = 64 << 20  # bytes of a file without a telling name that are looked through for a pickle
IMPORTS, CALLS = {"GLOBAL", "INST", "STACK_GLOBAL"}, {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
IDENTIFIERS = re.compile(r"[\w.]+ [\w.]+")  # the argument of GLOBAL and INST: module and name


def uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def signature(version: ModelVersion) -> dict[str, Any] | None:
    """{"inputs": …, "outputs": …, "params": {name: type}} from the version's MLmodel file; None where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(f"{uri(version)}/MLmodel", dst_path=folder)
            found = yaml.safe_load(Path(path).read_text())
        except (MlflowException, OSError) as error:
            if _is_missing(error):
                return None
            raise
        except (yaml.YAMLError, UnicodeDecodeError):
            return None
    found = found.get("signature") if isinstance(found, dict) else None
    if not found:
        return None
    try:
        parts = {name: json.loads(text) if text else None for name, text in found.items()}
        params = {item["name"]: item["type"] for item in parts.get("params") or []}
    except (ValueError, TypeError, KeyError, AttributeError):  # none that one could check a request by
        return None
    return {"inputs": parts.get("inputs"), "outputs": parts.get("outputs"), "params": params}


def look(version: ModelVersion) -> dict[str, Finding]:
    """Fetch the version's files and look at each: findings `manifest` and `no_pickle`."""
    with tempfile.TemporaryDirectory(prefix="ratchet-promoter-") as folder:
        try:
            path = Path(mlflow.artifacts.download_artifacts(uri(version), dst_path=folder))
        except (MlflowException, OSError) as error:
            if not _is_missing(error):
                raise
            gone = Finding(False, f"version {version.version}: its files are not there ({error})")
            return {"manifest": gone, "no_pickle": gone}
        return {"manifest": against_manifest(path, version.tags.get(MANIFEST_SHA256)), "no_pickle": no_pickle(path)}


def against_manifest(folder: Path, expected: str | None) -> Finding:
    """Whether a model's folder holds exactly the files of its manifest, and that is the one with this sha256."""
    if expected is None:
        return Finding(False, f"the version has no tag {MANIFEST_SHA256}: it was not registered by `trainer train`")
    if wrong := manifest.differences(folder, expected):
        return Finding(False, "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
    return Finding(True, f"{len(manifest.listed(folder))} files have the sha256 of the manifest {expected[:12]}…")


def no_pickle(folder: Path) -> Finding:
    """Whether no file holds pickled code, by name or by content."""
    files = _files(folder)
    found = [path.relative_to(folder).as_posix() for path in files if _is_pickle(path)]
    if found:
        return Finding(False, f"pickled or compiled code in {', '.join(found[:5])}: loading it would run it")
    return Finding(True, f"none in {len(files)} files")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in REFUSED:
        return True
    with path.open("rb") as file:
        start = file.read(SCANNED)
    if path.suffix == ".safetensors":  # eight bytes of length and then JSON, or it does not load
        return start[8:9] != b"{"
    return start.startswith(MAGIC) or start[257:262] == b"ustar" or zipfile.is_zipfile(path) or _calls(start)


def _calls(content: bytes) -> bool:
    """Whether bytes begin with a pickle, or several, that imports and calls something; also where it is cut short.

    A second line behind the manifest: what only pickle itself understands, and pickletools does not, is not found.
    """
    if content[:1] == b"\x80" and content[1:2] <= b"\x05":
        return True  # a pickle of protocol 2 to 5, whatever comes later
    stream, imported = io.BytesIO(content), False
    while stream.tell() < len(content):
        stack: list[object] = []
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                _step(stack, opcode)
                if opcode.name in IMPORTS:
                    imported = imported or opcode.name == "STACK_GLOBAL" or bool(IDENTIFIERS.fullmatch(str(argument)))
                if imported and opcode.name in CALLS:
                    return True
        except Exception:  # it ends in the middle, or in what is no pickle
            return False
    return False


def _step(stack: list[object], opcode: pickletools.OpcodeInfo) -> None:
    """What an opcode does to the depth of pickle's stack. Raises ValueError where it could not run: a mere text."""
    mark, taken = pickletools.markobject, opcode.stack_before
    if mark in taken or (opcode.name == "POP" and stack and stack[-1] is mark):
        if mark not in stack:
            raise ValueError("no mark")
        while stack.pop() is not mark:
            pass
        taken = taken[: taken.index(mark)] if mark in taken else []
    if len(taken) > len(stack):
        raise ValueError("empty stack")
    del stack[len(stack) - len(taken) :]
    stack.extend(opcode.stack_after)


def _is_missing(error: Exception) -> bool:
    """Whether what was asked for is not there; anything else is trouble with the store."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code == 404
    if isinstance(error, MlflowException):
        return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or " 404 " in str(error)
    return isinstance(error, FileNotFoundError)
