"""What a version consists of: its files against the manifest written at training, pickled code, its signature.

The manifest is `manifest.json` in the model's folder, {"files": {path: {"sha256": …, "bytes": …}}}, of all files but
itself; its own sha256 is the version's tag `manifest_sha256`, kept in the database and not beside the files.
"""

import hashlib
import json
import pickletools
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from promoter.gate import Finding

MANIFEST = "manifest.json"
ADDED_BY_MLFLOW = ("registered_model_meta",)  # when a version is fetched: its name and number
MANIFEST_TAG = "manifest_sha256"  # of a version
PICKLES = {
    *(".pkl", ".pickle", ".pck", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill", ".cloudpickle"),
    *(".pyc", ".pyo", ".so", ".h5", ".keras"),  # no pickles, but code that nobody can read
}
SCANNED = 64 << 20  # bytes of a file without a telling name that are looked through for a pickle
# Opcodes that call something; a text that happens to parse as a pickle has none.
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4"}


def uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def signature(version: ModelVersion) -> dict[str, Any] | None:
    """{"inputs": …, "outputs": …, "params": {name: type}} from the version's MLmodel file; None where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(f"{uri(version)}/MLmodel", dst_path=folder)
            found = (yaml.safe_load(Path(path).read_text()) or {}).get("signature")
        except (MlflowException, OSError) as error:
            if _is_missing(error):
                return None
            raise
    if not found:
        return None
    parts = {name: json.loads(text) if text else None for name, text in found.items()}
    params = {item["name"]: item["type"] for item in parts.get("params") or []}
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
        return {"manifest": against_manifest(path, version.tags.get(MANIFEST_TAG)), "no_pickle": no_pickle(path)}


def against_manifest(folder: Path, expected: str | None) -> Finding:
    """Whether a model's folder holds exactly the files of its manifest, and that is the one with this sha256."""
    file = folder / MANIFEST
    if expected is None:
        return Finding(False, f"the version has no tag {MANIFEST_TAG}: it was not registered by `trainer train`")
    if not file.is_file():
        return Finding(False, f"{MANIFEST} is gone")
    if (found := _sha256(file)) != expected:
        return Finding(False, f"{MANIFEST} was changed: sha256 {found[:12]}…, the version's tag says {expected[:12]}…")
    listed: dict[str, Any] = json.loads(file.read_text())["files"]
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in (MANIFEST, *ADDED_BY_MLFLOW):
        there.pop(name, None)
    wrong = [f"{name} is gone" for name in listed if name not in there]
    wrong += [f"{name} was not there at training" for name in there if name not in listed]
    wrong += [
        f"{name} was changed" for name in listed if name in there and _sha256(there[name]) != listed[name]["sha256"]
    ]
    if wrong:
        return Finding(False, "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
    return Finding(True, f"{len(listed)} files have the sha256 of the manifest {expected[:12]}…")


def no_pickle(folder: Path) -> Finding:
    """Whether no file holds pickled code, by name or by content."""
    files = _files(folder)
    found = [path.relative_to(folder).as_posix() for path in files if _is_pickle(path)]
    if found:
        return Finding(False, f"pickled or compiled code in {', '.join(found[:5])}: loading it would run it")
    return Finding(True, f"none in {len(files)} files")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLES:
        return True
    if path.suffix == ".safetensors":  # eight bytes of length and then JSON, or it does not load
        with path.open("rb") as file:
            return file.read(9)[8:] != b"{"
    if zipfile.is_zipfile(path):  # torch.save's form
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).suffix.lower() in PICKLES for name in archive.namelist())
    with path.open("rb") as file:
        return _calls(file.read(SCANNED))


def _calls(content: bytes) -> bool:
    """Whether bytes begin with a pickle that calls something."""
    called = False
    try:
        for opcode, _, _ in pickletools.genops(content):
            called = called or opcode.name in CALLS
    except Exception:  # it ends in the middle, or in what is no pickle
        return called and content[:1] == b"\x80"
    return called


def _is_missing(error: Exception) -> bool:
    """Whether what was asked for is not there; anything else is trouble with the store."""
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, MlflowException)
        and (error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or "404" in str(error))
    )
