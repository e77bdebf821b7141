"""Data on S3: rows, code below a prefix, and what is said where there is none."""

import gzip
import shutil
import uuid
from pathlib import Path

import boto3
import pandas as pd
import pytest

from contract.errors import InputError
from tests.support.data import load_from, write_jsonl, write_tree

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch) -> str:
    """A bucket with rows and code in it; the environment says how to reach it."""
    for name, value in (
        ("AWS_ENDPOINT_URL_S3", s3),
        ("AWS_ACCESS_KEY_ID", "ratchet"),
        ("AWS_SECRET_ACCESS_KEY", "right-secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    write_tree(tmp_path, files=4)
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"p{n}", "completion": f"{n * 7} and {n}"} for n in range(9)])
    client, name = boto3.Session().client("s3"), f"data-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    for kind in ("zip", "gztar"):
        archive = Path(shutil.make_archive(str(tmp_path.with_name(f"code-{kind}")), kind, tmp_path))
        client.upload_file(str(archive), name, f"code.{archive.name.partition('.')[2]}")
    pd.read_json(tmp_path / "rows.jsonl", lines=True).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    (tmp_path / "rows.csv").touch()
    for path in tmp_path.iterdir():
        client.upload_file(str(path), name, f"some/{path.name}")
    client.put_object(Bucket=name, Key="some/vendor/x.py", Body=b"x = 1\n")
    return f"s3://{name}"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_rows(bucket: str, name: str) -> None:
    rows = load_from(f"{bucket}/some/{name}", near_duplicate_threshold=1)
    assert len(rows.train) + len(rows.held_out) == 9


@pytest.mark.parametrize("name", ["code.zip", "code.tar.gz"])
def test_code_in_an_archive(bucket: str, name: str) -> None:
    code = load_from(f"{bucket}/{name}")
    assert code.report.files["read"] == 4


def test_one_file_of_code_and_one_of_another_kind(bucket: str) -> None:
    code = load_from(f"{bucket}/some/alpha.py", eval_source=f"{bucket}/some/beta.py")
    assert {item.group for item in [*code.train, *code.held_out]} == {"alpha.py", "beta.py"}
    with pytest.raises(InputError, match=r"rows\.csv'.*Expected JSONL"):
        load_from(f"{bucket}/some/rows.csv")


def test_code_below_a_prefix(bucket: str) -> None:
    code = load_from(f"{bucket}/some")
    assert {item.group for item in [*code.train, *code.held_out]} == {"alpha.py", "beta.py", "gamma.py", "delta.py"}
    assert code.report.file_names["dropped: vendored"] == ["vendor/x.py"]
    chosen = load_from(f"{bucket}/some", include="*a.py", exclude="beta.py")
    assert {item.group for item in [*chosen.train, *chosen.held_out]} == {"alpha.py", "gamma.py", "delta.py"}


@pytest.mark.parametrize("key", ["nothing.jsonl", "nothing/"])
def test_nothing_there(bucket: str, key: str) -> None:
    with pytest.raises(InputError, match=r"where S3 has nothing"):
        load_from(f"{bucket}/{key}")


def test_wrong_key_and_no_server(bucket: str, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID"):
        load_from(f"{bucket}/some/rows.jsonl")
