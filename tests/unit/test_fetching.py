"""Fetching a version: what its manifest lists, and that as at training, whatever else is put among its files."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.exceptions import MlflowException
from requests import RequestException

from contract import manifest
from contract.fetching import fetch
from contract.manifest import NotAsTrained

FILES = {
    "MLmodel": "flavors: {}",
    "code/own/__init__.py": "",
    "artifacts/m/weights": "w" * 100_000,
    "artifacts/m/ü – [1] +&='.txt": "odd",
}


def version(folder: Path, sha256: str | None) -> ModelVersion:
    tags = [] if sha256 is None else [ModelVersionTag("manifest_sha256", sha256)]
    return ModelVersion("code", "1", creation_timestamp=1, source=str(folder), tags=tags)


@pytest.fixture(autouse=True)
def _no_database() -> Iterator[None]:
    """MLflow's own default is a database in the working directory, made by whoever asks for a client."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch) -> Path:
    """The store's folder of a version."""
    folder = tmp_path / "store"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    monkeypatch.setattr("mlflow.MlflowClient.get_model_version_download_uri", lambda *_: folder.as_uri())
    return folder


def found(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_added_file_is_not_fetched(trained: Path, tmp_path: Path) -> None:
    sha256 = manifest.write(trained)
    expected = found(trained)
    (trained / "code" / "sitecustomize.py").write_text("raise SystemExit")
    (trained / "added").mkdir()
    (trained / "added" / "file").write_text("x")
    folder = fetch(version(trained, sha256), tmp_path / "here")
    assert found(folder) == expected
    assert manifest.differences(folder, sha256) == []


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: (folder / "MLmodel").write_text("flavors: []"), "MLmodel was changed$"),  # as long as before
        (lambda folder: (folder / "MLmodel").write_text(""), "MLmodel was changed: it has 0 bytes, and had 11"),
        (lambda folder: (folder / "artifacts/m/weights").unlink(), "artifacts/m/weights is gone"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json was changed"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is gone"),
        (lambda folder: os.truncate(folder / "manifest.json", 1 << 30), "manifest.json was changed: it has 1073741824"),
    ],
)
def test_what_is_not_as_at_training_is_said(trained: Path, tmp_path: Path, harm: Callable[[Path], Any], why) -> None:
    sha256 = manifest.write(trained)
    harm(trained)
    with pytest.raises(NotAsTrained) as caught:
        fetch(version(trained, sha256), tmp_path / "here")
    assert caught.match(why)


@pytest.mark.parametrize(
    "names",
    [
        ["../x"],
        ["/tmp/ratchet-x"],
        ["a/../../x"],
        ["a/./x"],
        ["a//x"],
        ["a/"],
        [""],
        ["."],
        [".."],
        ["a\0b"],
        ["\ud800"],
        ["x" * 256],
        ["manifest.json"],
        ["registered_model_meta"],
        ["a", "a/b"],
        ["a", "a/b/c"],
    ],
)
def test_a_manifest_that_lists_what_is_no_file_below_the_folder_is_refused(
    trained: Path, tmp_path: Path, names: list[str]
) -> None:
    """Whoever made the version made the tag as well."""
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    text = json.dumps({"files": dict.fromkeys(names, entry)})
    (trained / "manifest.json").write_text(text)
    (tmp_path / "x").touch()
    with pytest.raises(NotAsTrained, match=r"manifest\.json lists"):
        fetch(version(trained, hashlib.sha256(text.encode()).hexdigest()), tmp_path / "inner" / "here")
    assert list(found(tmp_path / "inner")) == ["here/manifest.json"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"files": 1}', '{"files": ["a"]}', '{"files": {"a": 1}}', '{"files": {"a": {}}}'),
        *('{"files": {"a": {"sha256": 1, "bytes": 1}}}', '{"files": {"a": {"sha256": "0", "bytes": 1}}}'),
        '{"files": {"a": {"sha256": "' + "0" * 64 + '", "bytes": "1"}}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(trained: Path, tmp_path: Path, text: str) -> None:
    (trained / "manifest.json").write_text(text)
    with pytest.raises(NotAsTrained, match=r"manifest\.json (lists no files|says)"):
        fetch(version(trained, hashlib.sha256(text.encode()).hexdigest()), tmp_path / "here")


def test_a_link_in_the_store_that_leads_out_of_it_is_not_followed(trained: Path, tmp_path: Path) -> None:
    sha256 = manifest.write(trained)
    (trained / "MLmodel").unlink()
    (tmp_path / "secret").write_text(FILES["MLmodel"])
    (trained / "MLmodel").symlink_to(tmp_path / "secret")
    with pytest.raises((NotAsTrained, MlflowException)):
        fetch(version(trained, sha256), tmp_path / "here")


def test_a_version_without_a_manifest_is_fetched_whole(trained: Path, tmp_path: Path, monkeypatch) -> None:
    download = mlflow.artifacts.download_artifacts
    asked = []

    def by_uri(uri: str, dst_path: str) -> str:
        asked.append(uri)
        return download(str(trained), dst_path=dst_path)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", by_uri)
    folder = fetch(version(trained, None), tmp_path / "here")
    assert asked == ["models:/code/1"]
    assert found(folder) == FILES


class Proxy(BaseHTTPRequestHandler):
    """Answers as a tracking server before S3: 500 for a file that is gone, and for all that `broken` names."""

    root: Path
    broken: str | None
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(self.path).removeprefix("/api/2.0/mlflow-artifacts/artifacts")
        self.asked.append(path)
        body, status = b"", 500
        if path.startswith("?"):
            folder = self.root / parse_qs(path[1:])["path"][0].removeprefix("v").lstrip("/")
            files = [
                {"path": entry.name, "is_dir": entry.is_dir(), "file_size": entry.stat().st_size}
                for entry in (folder.iterdir() if folder.is_dir() else [])
            ]
            body, status = json.dumps({"files": files}).encode(), 200
        elif (file := self.root / path.removeprefix("/v/")).is_file() and self.broken != path:
            body, status = file.read_bytes(), 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(trained: Path, monkeypatch) -> Iterator[type[Proxy]]:
    class Own(Proxy):
        root, broken, asked = trained, None, []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("mlflow.MlflowClient.get_model_version_download_uri", lambda *_: "mlflow-artifacts:/v")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")
    yield Own
    mlflow.set_tracking_uri(before)
    server.shutdown()
    server.server_close()


def test_one_request_fetches_one_file(trained: Path, tmp_path: Path, proxy: type[Proxy]) -> None:
    sha256 = manifest.write(trained)
    (trained / "added").write_text("x")
    assert manifest.differences(fetch(version(trained, sha256), tmp_path / "here"), sha256) == []
    files = [path for path in proxy.asked if not path.startswith("?")]
    assert sorted(files) == sorted(f"/v/{name}" for name in (*FILES, "manifest.json"))
    assert len(proxy.asked) - len(files) == 3  # each folder that holds a file, once


def test_a_file_that_is_gone_is_told_from_a_store_that_fails(trained: Path, tmp_path: Path, proxy: type[Proxy]) -> None:
    sha256 = manifest.write(trained)
    proxy.broken = "/v/MLmodel"
    with pytest.raises((MlflowException, RequestException), match="500"):
        fetch(version(trained, sha256), tmp_path / "first")
    (trained / "MLmodel").unlink()
    proxy.asked.clear()
    with pytest.raises(NotAsTrained, match="MLmodel is gone"):
        fetch(version(trained, sha256), tmp_path / "second")
    assert "/v/MLmodel" not in proxy.asked  # MLflow's client would ask again for minutes
