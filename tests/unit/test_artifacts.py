"""A version's files: the manifest that the trainer writes, and code that nobody shall run unseen."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest

from contract import manifest
from promoter.artifacts import against_manifest, no_pickle


class Evil:
    def __reduce__(self):
        return print, ("you ran me",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    (tmp_path / "artifacts" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "artifacts" / "tokenizer.json").write_text('{"model": "(I1\\n."}')
    return tmp_path


def test_a_manifest_lists_all_files_but_itself(folder: Path) -> None:
    digest = manifest.write(folder)
    assert set(json.loads((folder / manifest.NAME).read_text())["files"]) == {
        "MLmodel",
        "artifacts/model.safetensors",
        "artifacts/tokenizer.json",
    }
    (folder / "registered_model_meta").write_text("model_name: m\n")  # as MLflow adds it to what it fetches
    found = against_manifest(folder, digest)
    assert (found.passed, "3 files" in found.detail) == (True, True)


def test_every_change_of_the_files_is_found(folder: Path) -> None:
    digest = manifest.write(folder)
    weights = folder / "artifacts" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + b"]")
    assert against_manifest(folder, digest).detail == "artifacts/model.safetensors was changed"
    weights.unlink()
    assert against_manifest(folder, digest).detail == "artifacts/model.safetensors is gone"
    weights.write_bytes(before)
    (folder / "extra.py").write_text("import os")
    assert against_manifest(folder, digest).detail == "extra.py was not there at training"
    forged = manifest.write(folder)  # a manifest that fits the changed files is another one
    assert forged != digest
    assert "manifest.json was changed" in against_manifest(folder, digest).detail
    assert "no tag manifest_sha256" in against_manifest(folder, None).detail
    (folder / manifest.NAME).unlink()
    assert against_manifest(folder, digest).detail == "manifest.json is gone"


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("python_model.pkl", b""),
        ("weights.bin", b""),
        ("training_args.PT", b""),
        ("innocent.json", pickle.dumps(Evil(), protocol=0)),
        ("innocent.txt", pickle.dumps(Evil(), protocol=2)),
        ("innocent", pickle.dumps(Evil())),
        ("cut.dat", pickle.dumps(Evil())[:-1]),
        ("cut.txt", b"cbuiltins\nprint\n(S'you ran me'\ntR"),
        ("second.dat", pickle.dumps(1) + pickle.dumps(Evil())),
        ("innocent.dat", zipped(pickle.dumps(Evil()))),
        ("inner.dat", zipped(zipped(b""))),
        ("packed.dat", gzip.compress(pickle.dumps(Evil()), mtime=0)),
        ("array.dat", b"\x93NUMPY\x01\x00"),
        ("array.npz", b""),
        ("model.safetensors", pickle.dumps(Evil())),
        ("deep/er/optimizer.pt", b""),
        ("native.so", b""),
    ],
)
def test_pickled_code_is_found_by_name_and_by_content(folder: Path, name: str, content: bytes) -> None:
    assert no_pickle(folder).passed
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    found = no_pickle(folder)
    assert (found.passed, name in found.detail) == (False, True)


def test_texts_of_all_kinds_are_no_pickles(folder: Path, root: Path) -> None:
    for number, path in enumerate([*root.glob("*.md"), *root.glob("trainer/**/*.py"), root / "docker-compose.yml"]):
        (folder / f"text_{number}").write_bytes(path.read_bytes())
    (folder / "empty").write_bytes(b"")
    (folder / "dot.txt").write_text(".")
    for number, words in enumerate(
        ("collections\nabc\nred", "cat\ndog\ntoken", "cloudpickle\nmlflow\ntorch", "int\nlong\ntokens")
    ):
        (folder / f"words_{number}.txt").write_text(words + "\n")
    assert no_pickle(folder).passed, no_pickle(folder).detail
