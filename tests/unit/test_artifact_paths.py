"""What MLflow would take for the whole artifact store, or for another artifact, does not get to it."""

from urllib.parse import unquote

import pytest

from services.tracking.artifact_paths import what_is_wrong

API = "/api/2.0/mlflow-artifacts/artifacts"


EMPTY = [
    *("", "%20", "%00", "%01", "%09", "%3F", "%23", "%2e", "%252e", "%2e%2f%2e", "..", "."),
    *("a/%2e%2e/b", "a//b", "/", "a/%20/b", "%253Fx", "a%2523b", "%2525252e"),
]


@pytest.mark.parametrize("path", EMPTY)
@pytest.mark.parametrize("api", [API, API.replace("/api", "/ajax-api")])
def test_a_delete_of_all_is_refused(api: str, path: str) -> None:
    assert what_is_wrong("DELETE", unquote(f"{api}/{path}"), "") is not None


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("PUT", f"{API}/1/abc/artifacts/model/MLmodel", ""),
        ("GET", f"{API}/1/abc/artifacts/a file.txt", ""),
        ("GET", f"{API}/1/abc/artifacts/what?#1.txt", ""),
        ("DELETE", f"{API}/1/abc/artifacts/é☺/", ""),
        ("GET", API, ""),
        ("GET", API, "path=1%2Fabc"),
        ("GET", "/api/2.0/mlflow/runs/get", "run_id=%00"),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/1/abc/artifacts/a.bin", ""),
    ],
)
def test_what_names_one_is_let_through(method: str, path: str, query: str) -> None:
    assert what_is_wrong(method, path, query) is None


@pytest.mark.parametrize("query", ["path=%00", "path=.", "path=%252e%252e", "path=a%2F%2Fb"])
def test_a_list_of_all_by_another_name_is_refused(query: str) -> None:
    assert what_is_wrong("GET", API, query) is not None
