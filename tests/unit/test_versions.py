"""What serving knows of versions: which has the alias, its files fetched once and compared with their manifest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.exceptions import MlflowException

from contract import manifest
from serving.settings import ServingSettings
from serving.supervisor import versions
from serving.supervisor.versions import (
    Broken,
    InputError,
    NotYet,
    Unavailable,
    Unreachable,
    fetch,
    folder_of,
    resolve,
)


def version(number: str, source: str = "models:/m-1", **tags: str) -> ModelVersion:
    return ModelVersion(
        "code",
        number,
        creation_timestamp=1,
        source=source,
        tags=[ModelVersionTag(key, value) for key, value in tags.items()],
    )


def folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> ServingSettings:
    """A registry whose versions' files come from the URI alone; version 3's cannot be fetched."""

    def download(uri: str, dst_path: str) -> str:
        if uri.endswith("/3"):
            raise MlflowException("the store is gone")
        if uri.endswith("/4"):
            raise OSError(28, "No space left on device")
        folder = Path(dst_path) / "model"
        folder.mkdir(parents=True)
        (folder / "MLmodel").write_text(uri)
        return str(folder)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    return ServingSettings(ratchet_home=tmp_path, serving_model="code")


def test_an_unreachable_tracking_server_is_named_and_not_awaited_as_a_promotion() -> None:
    with pytest.raises(Unreachable, match=r"No answer from the tracking server at http://127\.0\.0\.1:9"):
        resolve(ServingSettings(mlflow_tracking_uri="http://127.0.0.1:9"))
    assert not issubclass(Unreachable, NotYet)


def test_files_are_fetched_once_and_those_of_other_versions_go(settings: ServingSettings, monkeypatch) -> None:
    first = fetch(settings, version("1"))
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", None)
    assert fetch(settings, version("1")) == first
    monkeypatch.undo()
    assert folder_of(settings, version("1", source="models:/m-2")) != first  # another database's version 1
    with pytest.raises(Unavailable, match="code version 3 cannot be fetched"):
        fetch(settings, version("3"))


def test_half_a_model_is_never_there(settings: ServingSettings) -> None:
    first = fetch(settings, version("1"))
    with pytest.raises(Unavailable, match="code version 3 cannot be fetched: the store is gone"):
        fetch(settings, version("3"))
    with pytest.raises(InputError, match="No space left on device"):
        fetch(settings, version("4"))
    assert folders(first.parent) == [first]
    second = fetch(settings, version("2"))
    versions.keep_only([second])
    assert folders(first.parent) == [second]


def test_what_another_replica_serves_is_not_deleted(settings: ServingSettings) -> None:
    served = fetch(settings, version("1"))
    program = (
        "import sys; from pathlib import Path; from serving.supervisor import versions\n"
        "with versions._alone(Path(sys.argv[1]).parent): versions._hold(Path(sys.argv[1]))\n"
        "print('holds', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(served)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "holds\n"
    second = fetch(settings, version("2"))
    versions.keep_only([second])
    assert folders(served.parent) == sorted([served, second])
    other.communicate("")
    versions.keep_only([second])
    assert folders(served.parent) == [second]


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Path:
    """The folder of a version's artifacts."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "weights").write_text("as trained")
    monkeypatch.setattr("mlflow.MlflowClient.get_model_version_download_uri", lambda *_: folder.as_uri())
    return folder


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda folder: (folder / "weights").write_text("as mended "), "weights was changed"),
        (lambda folder: (folder / "weights").unlink(), "weights is gone"),
        (lambda folder: (folder / "more.py").write_text("x"), "more.py was not there at training"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json was changed"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is gone"),
    ],
)
def test_what_has_changed_on_this_machine_is_fetched_anew(settings, store: Path, caplog, harm, found: str) -> None:
    trained = version("1", manifest_sha256=manifest.write(store))
    folder = fetch(settings, trained)
    harm(folder)
    assert fetch(settings, trained) == folder
    assert found in caplog.text
    assert manifest.differences(folder, trained.tags["manifest_sha256"]) == []


def test_what_has_changed_in_the_store_is_broken_until_it_is_mended(settings, store: Path) -> None:
    trained = version("1", manifest_sha256=manifest.write(store))
    (store / "added").write_text("x")
    (store / "weights").write_text("as mended ")
    with pytest.raises(Broken, match="not those of its training: weights was changed"):
        fetch(settings, trained)
    assert not folder_of(settings, trained).exists()
    (store / "weights").write_text("as trained")
    assert sorted(path.name for path in fetch(settings, trained).iterdir()) == ["manifest.json", "weights"]


def test_a_version_without_a_manifest_is_served_unchecked(settings, caplog) -> None:
    fetch(settings, version("1"))
    assert "are not checked" in caplog.text


def test_what_was_live_last_is_remembered_while_its_files_are_here(settings: ServingSettings) -> None:
    assert versions.remembered(settings) is None
    live = version("1", role="candidate")
    fetch(settings, live)
    versions.remember(settings, live)
    found = versions.remembered(settings)
    assert found is not None
    assert (found.version, found.tags, folder_of(settings, found)) == ("1", live.tags, folder_of(settings, live))
    assert versions.remembered(settings.model_copy(update={"serving_model": "other"})) is None
    note = json.loads((settings.models / versions.LAST_LIVE).read_text())
    (settings.models / versions.LAST_LIVE).write_text(json.dumps(note | {"version": "2"}))
    assert versions.remembered(settings) is None  # its files are not here
    (settings.models / versions.LAST_LIVE).write_text("{")
    assert versions.remembered(settings) is None
