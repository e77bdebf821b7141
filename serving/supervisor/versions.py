"""Versions in the registry and on this machine: which one has the alias, and whether its files are as at training."""

import fcntl
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from contract import fetching, manifest, versions
from contract.errors import InputError, RatchetError, Unreachable
from contract.files import try_lock, write_whole
from contract.manifest import NotAsTrained
from contract.names import (
    BACKED_UP_AT,
    CHALLENGER_ALIAS,
    MANIFEST_SHA256,
    PREVIOUS,
    PRODUCTION,
    PROMOTIONS,
    REFUSED,
    TRIAL_STOPPED,
)
from contract.tracking import RETRIES
from contract.versions import UnknownVersion, VersionCode
from serving.settings import ServingSettings

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
LAST_LIVE = "last-live.json"  # what was served last, for a start without the tracking server


class NotYet(InputError):
    """No version has the alias, but one may get it."""


class Unavailable(RatchetError):
    """The version to serve cannot be got from the tracking server for now."""


class Refused(RatchetError):
    """The version itself is at fault."""


class Broken(Refused):
    """Files of the version are gone, or are not those of its training. They may be mended."""


def resolve(settings: ServingSettings) -> "ModelVersion":
    """The version that the alias names. Raises NotYet if it names none, Unreachable if nobody can say."""
    return _named(settings, settings.serving_alias)


def previous(settings: ServingSettings) -> "ModelVersion | None":
    """The version that was in production before; None if there was none. Raises Unreachable."""
    try:
        return _named(settings, PREVIOUS)
    except NotYet:
        return None


def challenger(settings: ServingSettings) -> "ModelVersion | None":
    """The version that is on trial; None if none is. Raises Unreachable."""
    try:
        return _named(settings, CHALLENGER_ALIAS)
    except NotYet:
        return None


def backed_up_at(settings: ServingSettings) -> float:
    """When what the tracking server holds was last backed up, in seconds since 1970; 0: never, or nobody can say."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        experiment = MlflowClient(settings.mlflow_tracking_uri).get_experiment_by_name(PROMOTIONS)
        return float(experiment.tags.get(BACKED_UP_AT, 0)) if experiment is not None else 0.0
    except (MlflowException, ValueError):
        return 0.0


def _named(settings: ServingSettings, alias: str) -> "ModelVersion":
    os.environ.setdefault(RETRIES, "1")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name = settings.serving_model
    try:
        return MlflowClient(settings.mlflow_tracking_uri).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise NotYet(f"No version of '{name}' has the alias '{alias}'. {_advice(name, alias)}") from error
        raise Unreachable(
            f"No answer from the tracking server at {settings.mlflow_tracking_uri}: {error}. Start it with "
            "`make start-mlflow` (in the stack: `docker compose up -d tracking`), or set MLFLOW_TRACKING_URI."
        ) from error


def _advice(name: str, alias: str) -> str:
    if alias != PRODUCTION:
        return f"Expected SERVING_ALIAS to be one that a version has; it is '{PRODUCTION}' by default."
    return (
        f"Put one there first: promoter promote --model-name {shlex.quote(name)} --stage Production --version N; or "
        "set SERVING_MODEL to the model that is meant."
    )


def folder_of(settings: ServingSettings, version: "ModelVersion") -> Path:
    """Where a version's files are, or would be, on this machine."""
    # The number alone would do for one database only: another one's version 1 is another model.
    identity = hashlib.sha256(f"{version.source} {version.creation_timestamp}".encode()).hexdigest()[:12]
    return settings.models / version.name / f"{version.version}-{identity}"


def fetch(settings: ServingSettings, version: "ModelVersion") -> Path:
    """A version's files on this machine, as at training: fetched once, and anew where they have changed here since.

    Raises Broken where they are not as at training in the store either, Unavailable where they cannot be fetched,
    InputError where they cannot be written.
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
            if folder.is_dir() and _is_as_trained(folder, version):
                return folder
            for left in folder.parent.glob("fetching-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            log.info("Fetching %s version %s …", version.name, version.version)
            if not sys.stderr.isatty():
                os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
            # Fetched aside and renamed, so that no one ever loads half a model.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as aside:
                fetching.fetch(version, Path(aside) / "version").rename(folder)
    except NotAsTrained as error:
        raise Broken(error.message) from error
    except (MlflowException, RequestException) as error:
        raise Unavailable(f"{version.name} version {version.version} cannot be fetched: {error}") from error
    except OSError as error:
        raise InputError(f"RATCHET_HOME: {settings.models} cannot hold a model: {error}.") from error
    if MANIFEST_SHA256 not in version.tags:
        log.warning("Version %s has no tag %s: its files are not checked", version.version, MANIFEST_SHA256)
    return folder


def _is_as_trained(folder: Path, version: "ModelVersion") -> bool:
    """Whether a version's files on this machine are those of its training. They are deleted where not."""
    try:
        manifest.check(folder, version.tags)
    except NotAsTrained as error:
        log.warning("Version %s on this machine is deleted, and fetched anew: %s", version.version, error.message)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def keep_only(folders: list[Path]) -> None:
    """Delete the files of all versions of the model but these, and those that another replica holds."""
    with _alone(folders[0].parent):
        for other in [held for held in _held if held.parent == folders[0].parent and held not in folders]:
            _held.pop(other).close()
        for other in folders[0].parent.iterdir():
            if not other.is_dir() or other in folders or other.name.startswith("fetching-"):
                continue
            with _lock_of(other).open("w") as file, suppress(OSError):
                if try_lock(file):
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


def code_of(folder: Path, version: "ModelVersion") -> VersionCode:
    """The code in a version's folder. Raises Refused where this release cannot run it."""
    try:
        return versions.code_of(folder, version.tags)
    except UnknownVersion as error:
        raise Refused(f"this serving cannot run it: {error.message}") from error


def tell(settings: ServingSettings, version: "ModelVersion", refused: str | None) -> None:
    """Say on the version's page that it could not go live, or take that back. Nothing depends on it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(settings.mlflow_tracking_uri)
    try:
        if refused is not None:
            client.set_model_version_tag(version.name, version.version, REFUSED, refused[:5000])
        elif REFUSED in version.tags:
            client.delete_model_version_tag(version.name, version.version, REFUSED)
    except MlflowException as error:
        log.warning("The tag %s was not written: %s", REFUSED, error.message)


def stopped(settings: ServingSettings, version: "ModelVersion", why: str) -> bool:
    """Say on a challenger's page why it gets no requests any more; whether that could be done."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(settings.mlflow_tracking_uri)
        client.set_model_version_tag(version.name, version.version, TRIAL_STOPPED, why[:5000])
    except MlflowException as error:
        log.warning("The tag %s was not written: %s", TRIAL_STOPPED, error.message)
        return False
    return True


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
            log.info("The registry tells %s when an alias moves", url)
    except Exception as error:  # of whatever kind: polling finds the alias too
        every = settings.serving_poll_s
        log.warning("No webhook: a moved alias is found by asking every %g s. %s", every, error)


def remember(settings: ServingSettings, version: "ModelVersion") -> None:
    """Note what is live, for a start without the tracking server."""
    note = {
        name: getattr(version, name)
        for name in ("name", "version", "creation_timestamp", "source", "run_id", "tags", "model_id")
    }
    write_whole(settings.models / LAST_LIVE, json.dumps(note))


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
