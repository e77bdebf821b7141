"""Fetching a version: the files that its manifest lists, each as it was at training, and no other.

Whoever may write among a version's files may add one. Nobody asks for that here, so it does no harm.
"""

from concurrent.futures import Future, as_completed, wait
from pathlib import Path
from posixpath import dirname
from typing import TYPE_CHECKING, Any

from contract import manifest
from contract.files import sha256_of
from contract.manifest import Entry, NotAsTrained
from contract.names import MANIFEST_SHA256

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LARGEST_MANIFEST = 16 << 20  # bytes: of some 80,000 files
Sizes = dict[str, int | None] | None  # of the files in a folder of the store; None where it does not list them


def fetch(version: "ModelVersion", folder: Path) -> Path:
    """Fetch a version's files to a folder, which is made; returns it. A version without a manifest is fetched whole.

    Raises NotAsTrained where a file is gone or changed, MlflowException or RequestException where the tracking server
    or its store does not do its work, OSError where this machine cannot hold the files.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder.mkdir(parents=True, exist_ok=True)
    expected = version.tags.get(MANIFEST_SHA256)
    if expected is None:
        uri = f"models:/{version.name}/{version.version}"
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    location = MlflowClient().get_model_version_download_uri(version.name, str(version.version))
    store = get_artifact_repository(location)
    top = _sizes(store, "")
    if wrong := _seen_in_listing(manifest.NAME, None, top):
        raise NotAsTrained([wrong])
    _get(store, manifest.NAME, folder)
    _get_all(store, manifest.read(folder, expected), folder, top)
    return folder


def _get_all(store: Any, entries: dict[str, Entry], folder: Path, top: Sizes) -> None:
    """Fetch what a manifest lists, several at once. `top`: the sizes of what lies in no folder. Raises as `fetch`."""
    from mlflow.utils.file_utils import ArtifactProgressBar

    progress: Any = ArtifactProgressBar
    parents = sorted({dirname(name) for name in entries} - {""})
    listings = store.thread_pool.map(lambda parent: _sizes(store, parent), parents)
    sizes: dict[str, Sizes] = {"": top, **dict(zip(parents, listings, strict=True))}
    seen = [_seen_in_listing(name, entry, sizes[dirname(name)]) for name, entry in entries.items()]
    if wrong := [why for why in seen if why]:
        raise NotAsTrained(wrong)
    futures: list[Future[list[str]]] = [
        store.thread_pool.submit(_get_as_trained, store, name, entry, folder) for name, entry in entries.items()
    ]
    try:
        with progress.files(desc="Downloading artifacts", total=len(futures)) as bar:
            for future in as_completed(futures):
                future.result()
                bar.update()
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)  # so that nothing is written to the folder any more
        raise
    if wrong := [why for future in futures for why in future.result()]:
        raise NotAsTrained(wrong)


def _get_as_trained(store: Any, name: str, entry: Entry, folder: Path) -> list[str]:
    """Fetch one file; returns how it is not as at training, in words."""
    try:
        path = _get(store, name, folder)
    except NotAsTrained as error:
        return error.wrong
    return [] if sha256_of(path) == entry.sha256 else [f"{name} was changed"]


def _get(store: Any, name: str, folder: Path) -> Path:
    """Fetch one file. Raises NotAsTrained where it is gone.

    Straight by `_download_file`, which every store of MLflow's has: `download_artifacts` would list a folder for each
    file, and show a progress bar for each.
    """
    from mlflow.exceptions import MlflowException

    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store._download_file(name, str(path))
    except (MlflowException, OSError) as error:  # RequestException is an OSError
        if _is_missing(error):
            raise NotAsTrained([f"{name} is gone"]) from error
        raise
    except Exception as error:  # of a store's own client
        raise MlflowException(f"{name}: {error}") from error
    return path


def _is_missing(error: Exception) -> bool:
    """Whether a store says that a file is not there; anything else is trouble with the store."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code == 404
    if isinstance(error, MlflowException):
        return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
    return isinstance(error, FileNotFoundError)


# What a listing tells before anything is fetched. On S3 the tracking server answers 500 for a file that is gone, which
# MLflow's client asks for again for minutes; and a file that has grown could fill the disk.


def _sizes(store: Any, folder: str) -> Sizes:
    """What a folder of the store lists."""
    try:
        return {item.path: item.file_size for item in store.list_artifacts(folder or None) if not item.is_dir}
    except Exception:  # a name among them that MLflow takes no listing with, no right to list: fetching says more
        return None


def _seen_in_listing(name: str, entry: Entry | None, sizes: Sizes) -> str | None:
    """How a file is not as at training, in words, by what its folder lists; None where that does not say."""
    if sizes is None or not _is_listed_by_its_name(name):
        return None
    if name not in sizes:
        return f"{name} is gone"
    size = sizes[name]
    if size is not None and (size > LARGEST_MANIFEST if entry is None else size != entry.bytes):
        return f"{name} was changed: it has {size} bytes" + (f", and had {entry.bytes}" if entry else "")
    return None


def _is_listed_by_its_name(name: str) -> bool:
    """Whether MLflow lists a file as it is called: it decodes names as URLs, and drops a lone `a/a`."""
    *_, parent, last = ["", *name.split("/")]
    return parent != last and name.isprintable() and name == name.strip() and not set(name) & set("%?#:;")
