"""Whether the code in a version's folder is that of the release that made it: only then it is run.

Of the release that is installed here the package `code_model` itself; of earlier ones released_code.json, {release:
{path below `code`: sha256}}. Who raises the release's number adds the last one's: `python -m promoter.released_code`.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from contract.files import sha256_of
from contract.versions import METADATA_RELEASE, RELEASE
from promoter.decision import Finding

DIGESTS = Path(__file__).with_name("released_code.json")
FIRST = "0.1.0"  # it wrote no release into its versions
LOADER = "mlflow.pyfunc.loaders.code_model"  # MLflow's, of a model whose code is a file; it unpickles nothing
# Of each package the file that MLflow runs: a copy of it lies beside MLmodel.
LOADED = {"code_model": "code_model/pyfunc.py", "serving": "serving/model.py"}
SHOWN = 3  # differences


def installed() -> dict[str, str]:
    """The sha256 of each file of the package that this release logs with a version, by its path below `code`."""
    found = importlib.util.find_spec("code_model")  # found and not imported: it needs torch
    if found is None or not found.submodule_search_locations:
        return {}
    return _digests(Path(found.submodule_search_locations[0]).parent, "code_model")


def known() -> dict[str, Mapping[str, str]]:
    """The files of every release whose versions this one may run, by its number."""
    earlier: dict[str, Mapping[str, str]] = json.loads(DIGESTS.read_text(encoding="utf-8"))
    return {**earlier, RELEASE: installed()}


def compare(folder: Path) -> Finding:
    """Whether all code in a version's folder is that of the release which its MLmodel names."""
    try:
        described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        flavor, metadata = described["flavors"]["python_function"], described.get("metadata") or {}
        release = str(metadata.get(METADATA_RELEASE, FIRST))
        loaded = [str(flavor.get("loader_module")), str(flavor.get("code")), Path(described_code(described)).name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        return Finding(False, f"its MLmodel file cannot be read: {type(error).__name__}: {error}")
    expected = known().get(release)
    if not expected:
        return Finding(
            False,
            f"Ratchet {release[:40]} made it, whose code this installation does not know (it knows "
            f"{', '.join(sorted(known()))}). Validate it with that release, or train anew",
        )
    package = next(iter(expected)).partition("/")[0]
    entry = LOADED[package]
    if loaded != [LOADER, "code", Path(entry).name]:
        return Finding(False, f"its MLmodel has MLflow load {loaded}. Expected {[LOADER, 'code', Path(entry).name]}")
    there = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix == ".py" or path.is_relative_to(folder / "code"))
    }
    wanted = {Path(entry).name: expected[entry]} | {f"code/{name}": digest for name, digest in expected.items()}
    wrong = [
        *(f"{name} is gone" for name in wanted if name not in there),
        *(f"{name} is no file of that release" for name in there if name not in wanted),
        *(f"{name} is another" for name in wanted if name in there and there[name] != wanted[name]),
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        here = "; this release's own code has changed since: train anew" if release == RELEASE else ""
        return Finding(False, f"not as Ratchet {release} has it: {'; '.join(wrong[:SHOWN])}{more}{here}")
    return Finding(True, f"{len(wanted)} files as Ratchet {release} has them")


def described_code(described: Mapping[str, Any]) -> str:
    """The file that MLflow runs, as an MLmodel names it: where it lay when it was logged."""
    return str(described["flavors"]["python_function"]["model_code_path"])


def _digests(parent: Path, package: str) -> dict[str, str]:
    return {
        path.relative_to(parent).as_posix(): sha256_of(path)
        for path in sorted((parent / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    print(json.dumps({RELEASE: installed()}, indent=1))
