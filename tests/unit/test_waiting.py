"""Before there is a model to serve: the port answers, and the health check tells waiting from failing."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from serving.__main__ import NotYet, Unavailable, Unreachable, fetch, resolve, wait_for_model
from serving.health import health
from serving.settings import ServingSettings
from serving.waiting import FAILING, WAITING, WaitingRoom
from tests.integration.conftest import free_port


@pytest.mark.parametrize(("status", "well"), [(WAITING, True), (FAILING, False)])
def test_who_waits_is_well_and_who_fails_is_not(status: str, well: bool) -> None:
    port = free_port()
    with WaitingRoom("127.0.0.1", port) as room:
        room.say(status, "for a reason")
        assert health(f"http://127.0.0.1:{port}") == (well, f"{status}: for a reason")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data=b"x" * 1_000_000)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 503
        assert caught.value.headers["Retry-After"]
        assert json.load(caught.value) == {"status": status, "message": "for a reason"}
    well_after, state = health(f"http://127.0.0.1:{port}")
    assert not well_after
    assert "no answer" in state


def test_an_unreachable_tracking_server_is_named_and_not_awaited_as_a_promotion() -> None:
    with pytest.raises(Unreachable, match=r"No answer from the tracking server at http://127\.0\.0\.1:9"):
        resolve(ServingSettings(mlflow_tracking_uri="http://127.0.0.1:9"))
    assert not issubclass(Unreachable, NotYet)


def test_waiting_ends_with_the_alias_and_tells_what_kept_it(monkeypatch, capsys, tmp_path: Path) -> None:
    answers = iter(
        [NotYet("no alias yet"), Unreachable("nobody there"), Unavailable("cannot be fetched"), ("3", tmp_path)]
    )

    def prepare(settings: ServingSettings) -> tuple[str, Path]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("serving.__main__.prepare", prepare)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert wait_for_model(ServingSettings(serving_port=free_port())) == ("3", tmp_path)
    assert capsys.readouterr().out == "Waiting. no alias yet\nFailing. nobody there\nFailing. cannot be fetched\n"


def test_a_version_is_fetched_once_and_the_one_before_it_goes(monkeypatch, tmp_path: Path) -> None:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

    fetched = []

    def download(uri: str, dst_path: str) -> str:
        fetched.append(uri)
        if uri.endswith("/3"):
            raise MlflowException("the store is gone")
        folder = Path(dst_path) / "model"
        folder.mkdir()
        (folder / "MLmodel").write_text(uri)
        return str(folder)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    settings = ServingSettings(ratchet_home=tmp_path)

    def version(number: str, source: str = "models:/m-1") -> ModelVersion:
        return ModelVersion("code", number, creation_timestamp=1, source=source)

    first = fetch(settings, version("1"))
    assert fetch(settings, version("1")) == first
    assert fetched == ["models:/code/1"]
    other_database = fetch(settings, version("1", source="models:/m-2"))
    assert other_database != first
    with pytest.raises(Unavailable, match="code version 3 cannot be fetched: the store is gone"):
        fetch(settings, version("3"))
    assert list(other_database.parent.iterdir()) == [other_database]  # what is served stays until the next is there
