"""Versions in the registry and on this machine: which one has the alias, and whether its files are as at training."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from serving.settings import ServingSettings

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MANIFEST = "manifest.json"
MANIFEST_TAG = "manifest_sha256"  # of a version
ADDED_BY_MLFLOW = "registered_model_meta"  # when it fetches a version
REFUSED_TAG = "serving_refused"  # of a version that could not go live: why
LAST_LIVE = "last-live.json"  # what was served last, for a start without the tracking server


class InputError(click.ClickException):
    """Bad input; the command exits with 2."""

    exit_code = 2


class NotYet(InputError):
    """No version has the alias, but one may get it."""


class Unreachable(InputError):
    """No tracking server says which version to serve."""


class Unavailable(click.ClickException):
    """The version to serve cannot be got from the tracking server for now; the command exits with 1."""


class Refused(click.ClickException):
    """The version itself is at fault; the command exits with 1."""


def resolve(settings: ServingSettings) -> "ModelVersion":
    """The version that the alias names. Raises NotYet where there is none, Unreachable where nobody can say."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, alias = settings.serving_model, settings.serving_alias
    try:
        return MlflowClient(settings.mlflow_tracking_uri).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise NotYet(
                f"No version of '{name}' has the alias '{alias}'. Put one there first: "
                "promoter promote --stage Production --version N"
            ) from error
        raise Unreachable(
            f"No answer from the tracking server at {settings.mlflow_tracking_uri}: {error}. Start it with "
            "`make start-mlflow` (in the stack: `docker compose up -d tracking`), or set MLFLOW_TRACKING_URI."
        ) from error


def folder_of(settings: ServingSettings, version: "ModelVersion") -> Path:
    """Where a version's files are, or would be, on this machine."""
    # The number alone would do for one database only: another one's version 1 is another model.
    identity = hashlib.sha256(f"{version.source} {version.creation_timestamp}".encode()).hexdigest()[:12]
    return settings.models / version.name / f"{version.version}-{identity}"


def fetch(settings: ServingSettings, version: "ModelVersion") -> Path:
    """A version's files on this machine, fetched once.

    Raises Unavailable where they cannot be fetched, InputError where they cannot be written.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    folder = folder_of(settings, version)
    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent):  # replicas share these folders: one fetches, and then it is there for all
            _hold(folder)
            if folder.is_dir():
                return folder
            for left in folder.parent.glob("fetching-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            click.echo(f"Fetching {version.name} version {version.version} …")
            if not sys.stderr.isatty():
                os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
            # Fetched aside and renamed, so that no one ever loads half a model.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as aside:
                uri = f"models:/{version.name}/{version.version}"
                Path(mlflow.artifacts.download_artifacts(uri, dst_path=aside)).rename(folder)
    except (MlflowException, RequestException) as error:
        raise Unavailable(f"{version.name} version {version.version} cannot be fetched: {error}") from error
    except OSError as error:
        raise InputError(f"RATCHET_HOME: {settings.models} cannot hold a model: {error}.") from error
    return folder


def keep_only(folders: list[Path]) -> None:
    """Delete the files of all versions of the model but these, and those that another replica holds."""
    with _alone(folders[0].parent):
        for other in [held for held in _held if held.parent == folders[0].parent and held not in folders]:
            _held.pop(other).close()
        for other in folders[0].parent.iterdir():
            if not other.is_dir() or other in folders or other.name.startswith("fetching-"):
                continue
            with _lock_of(other).open("w") as file, suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody holds it
                shutil.rmtree(other, ignore_errors=True)
                _lock_of(other).unlink(missing_ok=True)


_held: dict[Path, IO[str]] = {}  # versions' folders that this process uses; the system lets go when it ends


def _hold(folder: Path) -> None:
    """Keep other replicas from deleting a version's folder. Only within `_alone`."""
    if folder not in _held:
        _held[folder] = _lock_of(folder).open("w")
        fcntl.flock(_held[folder], fcntl.LOCK_SH)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Nobody else fetches or deletes a version of the model meanwhile."""
    with (parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def verify(folder: Path, version: "ModelVersion") -> str:
    """Compare a version's files with the manifest of its training; returns what was found.

    Raises Refused where one differs. A file is deleted with its folder then, to be fetched anew at the next try.
    """
    expected = version.tags.get(MANIFEST_TAG)
    if expected is None:
        return f"version {version.version} has no tag {MANIFEST_TAG}: its files are not checked"
    wrong = _differences(folder, expected)
    if wrong:
        shutil.rmtree(folder, ignore_errors=True)
        raise Refused(f"its files are not those of its training: {'; '.join(wrong[:3])}")
    return f"files as at training ({expected[:12]}…)"


def _differences(folder: Path, expected: str) -> list[str]:
    manifest = folder / MANIFEST
    if not manifest.is_file() or _sha256(manifest) != expected:
        return [f"{MANIFEST} is not the one that the tag {MANIFEST_TAG} tells"]
    listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    added = [name for name in there if name not in listed and name not in (MANIFEST, ADDED_BY_MLFLOW)]
    gone = [name for name in listed if name not in there]
    changed = [name for name in listed if name in there and _sha256(there[name]) != listed[name]["sha256"]]
    return [
        *(f"{name} was added" for name in added),
        *(f"{name} is gone" for name in gone),
        *(f"{name} was changed" for name in changed),
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tell(settings: ServingSettings, version: "ModelVersion", refused: str | None) -> None:
    """Say on the version's page that it could not go live, or take that back. Nothing depends on it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(settings.mlflow_tracking_uri)
    try:
        if refused is not None:
            client.set_model_version_tag(version.name, version.version, REFUSED_TAG, refused[:5000])
        elif REFUSED_TAG in version.tags:
            client.delete_model_version_tag(version.name, version.version, REFUSED_TAG)
    except MlflowException as error:
        click.echo(f"The tag {REFUSED_TAG} was not written: {error.message}")


def ask_to_be_told(settings: ServingSettings) -> None:
    """Register the webhook for moved aliases, where a URL is set and none is there. Nothing depends on it."""
    if not settings.serving_webhook_url:
        return
    from mlflow import MlflowClient

    client, url = MlflowClient(settings.mlflow_tracking_uri), settings.serving_webhook_url
    try:
        if not any(hook.url == url for hook in client.list_webhooks()):
            client.create_webhook(
                "serving", url, ["model_version_alias.created"], "Serving looks for the alias at once"
            )
            click.echo(f"The registry tells {url} when an alias moves")
    except Exception as error:  # of whatever kind: polling finds the alias too
        click.echo(f"No webhook: a moved alias is found by asking every {settings.serving_poll_s:g} s. {error}")


def remember(settings: ServingSettings, version: "ModelVersion") -> None:
    """Note what is live, for a start without the tracking server."""
    note = {
        name: getattr(version, name)
        for name in ("name", "version", "creation_timestamp", "source", "run_id", "tags", "model_id")
    }
    aside = settings.models / f"{LAST_LIVE}.{os.getpid()}.{socket.gethostname()}"
    aside.write_text(json.dumps(note), encoding="utf-8")
    aside.replace(settings.models / LAST_LIVE)


def remembered(settings: ServingSettings) -> "ModelVersion | None":
    """The version that was live last, where its files are still here."""
    from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

    try:
        note = json.loads((settings.models / LAST_LIVE).read_text(encoding="utf-8"))
        note["tags"] = [
            ModelVersionTag(key, value)  # type: ignore[no-untyped-call]
            for key, value in note["tags"].items()
        ]
        version = ModelVersion(**note)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return version if version.name == settings.serving_model and folder_of(settings, version).is_dir() else None
