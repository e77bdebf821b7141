"""Sources: files of every kind, archives, what is chosen of them, and how old git says that they are."""

import gzip
import io
import json
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from contract.errors import InputError
from tests.support.data import load_from, write_jsonl, write_tree
from tests.support.git import git
from trainer import git as ours
from trainer.config import load_config, with_source
from trainer.data import filters
from trainer.data.items import File, Row
from trainer.data.pathspec import Selection
from trainer.data.sources import EXPECTED, archives, open_source

ROWS = [{"prompt": f"q{n}", "completion": f"answer {n * 7919} {n * 31}"} for n in range(9)]
CODE = b"x = 1\n"


def items(source: object, selection: Selection | None = None) -> list[File | Row]:
    return list(open_source(str(source), "data.source", selection).items)


def paths(source: object, selection: Selection | None = None) -> dict[str, str | None]:
    """Of each file in a source why it is left out, or None."""
    return {item.path: item.dropped for item in items(source, selection) if isinstance(item, File)}


def test_rows_are_read_from_every_kind_of_file(tmp_path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "lines.json", ROWS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "bom.json").write_text("\n" + json.dumps(ROWS), encoding="utf-8-sig")
    pd.DataFrame([*ROWS, {"text": "t"}]).to_parquet(tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        read = items(path)
        assert [row.values for row in read[:9]] == [
            row | ({"text": None} if path.suffix == ".parquet" else {}) for row in ROWS
        ]
        assert read[2].where == f"{path}, {'line' if 'line' in path.name or 'jsonl' in path.name else 'row'} 3"
    found = load_from(tmp_path / "a.parquet")
    assert len(found.train) + len(found.held_out) == 10
    assert not found.report.rows


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "t"}\n' * 9, mtime=0)[:-9],
            "cannot be read: .*Expected rows in a whole file",
        ),
        ("a.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.json", b'[{"text": "t"},', "is not JSON: .*Expected a list of objects"),
        ("a.parquet", b"PAR1 and no more", "cannot be read: .*Expected a whole Parquet file"),
        ("a.zip", b"PK\x03\x04 and no more", "cannot be read as an archive: File is not a zip file"),
        ("a.tar", b"", "cannot be read as an archive"),
        ("a.tgz", b"\x1f\x8b\x08 and no more", "cannot be read as an archive"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"'{tmp_path / name}' {expected}"):
        items(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", r"Expected JSONL: python -c .*read_csv\('.*a\.csv'\)\.to_json\('a\.jsonl', orient='records'"),
        ("a.tsv", r"read_csv\('.*a\.tsv', sep='\\t'\)"),
        ("a.pdf", r"a file of another kind\. Expected a file of code, rows \(\.jsonl, .*or a folder of code"),
        ("a.so", "a file of another kind"),
        ("a.jsonl.zst", "a file of another kind"),
        ("plain", "a file of another kind"),
    ],
)
def test_a_file_of_another_kind_is_refused_before_anything_is_read(tmp_path, name: str, expected: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"data\.source is '{tmp_path / name}', .*{expected}"):
        open_source(str(tmp_path / name), "data.source")


def test_one_file_of_code_is_a_source(tmp_path) -> None:
    for name in ("src", "eval"):
        (tmp_path / name).mkdir()
    write_tree(tmp_path / "src", files=3)
    found = load_from(tmp_path / "src" / "beta.py", eval_source=str(tmp_path / "src" / "alpha.py"))
    assert {item.group for item in found.train} == {"beta.py"}
    assert {item.group for item in found.held_out} == {"alpha.py"}
    (tmp_path / "large.py").write_bytes(b"#" * (filters.MAX_BYTES + 1))
    assert paths(tmp_path / "large.py") == {"large.py": filters.TOO_LARGE}


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_an_archive_is_read_like_a_folder(tmp_path, suffix: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "vendor").mkdir()
    write_tree(tmp_path / "src")
    (tmp_path / "src" / "vendor" / "v.py").write_bytes(CODE)
    (tmp_path / "src" / "README.md").write_bytes(b"text")
    members = {
        f"./top-1.0//{path.relative_to(tmp_path / 'src')}": path.read_bytes()
        for path in (tmp_path / "src").rglob("*.*")
    }
    archive = tmp_path / f"Top{suffix.upper()}"
    if suffix in archives.ZIP:
        write_zip(archive, members)
    else:
        write_tar(archive, members, f"w:{suffix.rpartition('.')[2].removeprefix('t').replace('ar', '')}")
    assert dict(sorted(paths(archive).items())) == paths(tmp_path / "src")
    packed, folder = load_from(archive), load_from(tmp_path / "src")
    assert (packed.train_digest, packed.held_out_digest) == (folder.train_digest, folder.held_out_digest)
    assert packed.report.files == folder.report.files


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_only_a_folder_that_all_are_in_is_taken_off(tmp_path, write) -> None:
    path = tmp_path / ("a.zip" if write is write_zip else "a.tgz")
    write(path, {"package/src/a.py": CODE, "package/package.json": b"{}"})
    assert paths(path) == {"src/a.py": None}
    write(path, {"pkg/a.py": CODE, "pkg-1.dist-info/METADATA": b""})
    assert paths(path) == {"pkg/a.py": None}
    write(path, {"a/a.py": CODE, "setup.py": CODE})
    assert paths(path) == {"a/a.py": None, "setup.py": None}
    write(path, {"a/a.py": CODE, "__MACOSX/a/._a.py": CODE})
    assert paths(path) == {"a.py": None}


def test_paths_lead_nowhere_and_links_are_not_followed(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("../../up.py", "/etc/root.py", "a.py", "a.py"):
            info = tarfile.TarInfo(name)
            info.size = len(CODE)
            archive.addfile(info, io.BytesIO(CODE))
        link = tarfile.TarInfo("link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert paths(tmp_path / "a.tar") == {"../../up.py": "hidden", "etc/root.py": None, "a.py": None}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        entry = zipfile.ZipInfo("link.py")
        entry.external_attr = 0o120777 << 16
        zipped.writestr(entry, "/etc/passwd")
        zipped.writestr("b.py", CODE)
    assert paths(tmp_path / "a.zip") == {"b.py": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip"]


def test_of_a_member_that_is_twice_in_a_tar_the_last_counts(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"old = 1\n", b"new = 1\n"):
            info = tarfile.TarInfo("a.py")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert items(tmp_path / "a.tar") == [File("a.py", b"new = 1\n")]


def test_large_members_are_left_out_also_where_the_header_says_less(tmp_path, monkeypatch) -> None:
    large = b"#" * (filters.MAX_BYTES + 1)
    for name, write in (("a.zip", write_zip), ("a.tgz", write_tar)):
        write(tmp_path / name, {"large.py": large, "a.py": CODE})
        assert paths(tmp_path / name) == {"large.py": filters.TOO_LARGE, "a.py": None}
    content = (tmp_path / "a.zip").read_bytes()
    said = len(large).to_bytes(4, "little")
    assert content.count(said) == 2
    (tmp_path / "lies.zip").write_bytes(content.replace(said, (10).to_bytes(4, "little")))
    with pytest.raises(InputError, match="cannot be read as an archive"):  # ten bytes, and of another checksum
        items(tmp_path / "lies.zip")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    for name in ("a.zip", "a.tgz"):
        with pytest.raises(InputError, match=r"holds more than 2 files of .*unpack it, and give the folder"):
            items(tmp_path / name)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MAX_TOTAL", 10**6)
    for name in ("a.zip", "a.tgz"):
        with pytest.raises(InputError, match=r"holds \d files of 0\.0 GB"):
            items(tmp_path / name)


def test_an_encrypted_archive_is_refused(tmp_path) -> None:
    write_zip(tmp_path / "a.zip", {"a.py": CODE})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # as its own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and the directory say it
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"is encrypted \(a\.py\)\. Expected an archive without a password"):
        items(tmp_path / "a.zip")


@pytest.fixture
def repository(tmp_path) -> Path:
    """Three commits, 100 seconds apart: two files, one changed, one in a folder and with an odd name."""
    root = tmp_path / "repository"
    (root / "pkg").mkdir(parents=True)
    git(tmp_path, "init", "--quiet", str(root))
    for number, names in enumerate((("a.py", "b.py"), ("b.py",), ("pkg/é\n.py", "pkg/c.py"))):
        for name in names:
            (root / name).write_text(f"x = {number}\n")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", str(number), when=1000 + 100 * number)
    return root


def test_git_says_when_files_were_last_changed(repository, tmp_path) -> None:
    times = {"a.py": 1000, "b.py": 1100, "pkg/é\N{REPLACEMENT CHARACTER}.py": 1200, "pkg/c.py": 1200}
    assert open_source(str(repository), "data.source").last_changed() == times
    assert open_source(f"git:{repository}", "data.source").last_changed() == times
    early = open_source(f"git:{repository}@HEAD~1", "data.source")
    assert early.last_changed() == {"a.py": 1000, "b.py": 1100}
    inner = {"é\N{REPLACEMENT CHARACTER}.py": 1200, "c.py": 1200}
    for source in (str(repository / "pkg"), f"git:{repository / 'pkg'}"):
        assert open_source(source, "data.source").last_changed() == inner
    assert open_source(str(repository / "a.py"), "data.source").last_changed() == times
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(tmp_path / "bare.git"))
    assert open_source(f"git:{tmp_path / 'bare.git'}", "data.source").last_changed() == times


def test_what_is_not_committed_is_newest(repository, tmp_path) -> None:
    (repository / "a.py").write_text("x = 7\n")
    (repository / "pkg" / "new.py").write_text("x = 7\n")
    (repository / "staged.py").write_text("x = 7\n")
    git(repository, "add", "staged.py")
    # A filter of the repository's own is a program, and none of them is run.
    git(repository, "config", "filter.own.clean", f"touch {tmp_path / 'ran'}; cat")
    git(repository, "config", "filter.own.required", "true")
    (repository / ".gitattributes").write_text("*.py filter=own\n")
    os.utime(repository / "b.py", (time.time(), time.time()))
    found = open_source(str(repository), "data.source").last_changed()
    newest = dict.fromkeys(("a.py", "pkg/new.py", "staged.py", ".gitattributes"), 1201)
    assert found == {"b.py": 1100, "pkg/é\N{REPLACEMENT CHARACTER}.py": 1200, "pkg/c.py": 1200} | newest
    assert not (tmp_path / "ran").exists()
    git(repository, "config", "filter.a=b.clean", f"touch {tmp_path / 'ran'}; cat")
    (repository / ".gitattributes").write_text("*.py filter=a=b\n")
    found = open_source(str(repository), "data.source").last_changed()
    assert found is not None
    assert ours.commit(repository) == git(repository, "rev-parse", "HEAD")  # whether it is dirty cannot be told
    git(repository, "config", "--remove-section", "filter.a=b")
    assert ours.commit(repository) == f"{git(repository, 'rev-parse', 'HEAD')}-dirty"
    assert not (tmp_path / "ran").exists()
    assert found["pkg/new.py"] == 1201
    assert not (tmp_path / "ran").exists()


def test_a_users_settings_do_not_change_what_is_read(repository) -> None:
    for name, value in (
        ("log.showRoot", "false"),
        ("log.date", "relative"),
        ("core.quotePath", "true"),
        ("diff.renames", "copies"),
    ):
        git(repository, "config", name, value)
    git(repository, "mv", "a.py", "z.py")
    git(repository, "commit", "--quiet", "-m", "moved", when=2000)
    found = open_source(f"git:{repository}", "data.source").last_changed()
    assert found is not None
    assert (found["z.py"], found["b.py"]) == (2000, 1100)


def test_where_git_knows_nothing_there_is_no_history(tmp_path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.py").write_bytes(CODE)
    write_zip(tmp_path / "a.zip", {"a.py": CODE})
    git(tmp_path, "init", "--quiet", str(tmp_path / "empty"))
    for source in (tmp_path / "plain", tmp_path / "a.zip", tmp_path / "empty", "package:email"):
        assert open_source(str(source), "data.source").last_changed() is None


def test_files_are_chosen_in_every_source_of_files(repository, tmp_path, monkeypatch) -> None:
    (repository / "pkg" / "é\n.py").unlink()
    git(repository, "commit", "--quiet", "--all", "-m", "one less")
    write_zip(tmp_path / "a.zip", {"top/a.py": CODE, "top/pkg/c.py": CODE, "top/b.py": CODE})
    write_tar(tmp_path / "a.tgz", {"top/a.py": CODE, "top/pkg/c.py": CODE, "top/b.py": CODE})
    monkeypatch.syspath_prepend(str(tmp_path))
    (repository / "__init__.py").touch()
    sources = [repository, f"git:{repository}", tmp_path / "a.zip", tmp_path / "a.tgz", "package:repository"]
    for source in sources:
        found = paths(source, Selection.of(["pkg", "*b.py"], "b.py"))
        chosen = [path for path, dropped in found.items() if dropped is None]
        assert (chosen, found["a.py"], found["b.py"]) == (["pkg/c.py"], *["data.include or data.exclude"] * 2), source


def test_chosen_files_and_rows_with_files_are_counted(tmp_path) -> None:
    (tmp_path / "src").mkdir()
    write_tree(tmp_path / "src")
    texts = {path.name: path.read_text() for path in (tmp_path / "src").iterdir()}
    write_jsonl(tmp_path / "rows.jsonl", [{"content": text, "path": f"src/{name}"} for name, text in texts.items()])
    for source, include in (
        (tmp_path / "src", ["*eta.py", "gamma.py"]),
        (tmp_path / "rows.jsonl", ["*eta.py", "src/gamma.py"]),
    ):
        found = load_from(source, include=include, exclude=":(icase)*THETA.py")
        names = {Path(item.group).name for item in [*found.train, *found.held_out]}
        assert names == {"beta.py", "eta.py", "zeta.py", "gamma.py"}
        assert found.report.files["left out: data.include or data.exclude"] == 4
    with pytest.raises(InputError, match=r"data\.include has 'nothing', which matches none of the 8 files"):
        load_from(tmp_path / "src", include=["nothing"])
    with pytest.raises(InputError, match="unknown magic 'attr:x'"):
        load_from(tmp_path / "src", exclude=":(attr:x)")


@pytest.mark.parametrize("override", ["data.source=", "data.source=null", "data.source=[]", "data.source=1e5"])
def test_what_is_no_source_is_told_all_kinds(monkeypatch, override: str) -> None:
    monkeypatch.delenv("DATA_SOURCE", raising=False)
    monkeypatch.delenv("DATA_SOURCE_FALLBACK", raising=False)
    with pytest.raises(InputError) as caught:
        load_from(with_source(load_config(None, [override])).data.source)
    assert EXPECTED in caught.value.message
    assert ("./NAME" in caught.value.message) == ("1e5" in override)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *(
            (f"{folder}/x.py", True)
            for folder in ("tests", "a/test/b", "spec", "src/__tests__", "App.UnitTests", "e2e")
        ),
        *((name, True) for name in ("test_a.py", "a/a_test.py", "conftest.py", "tests.py", "a_test.go", "x_test.rs")),
        *((name, True) for name in ("a.test.ts", "a.spec.js", "b/a.test.tsx", "a.spec.mjs", "a.cy.ts", "a-test.js")),
        *(
            (name, True)
            for name in ("FooTest.java", "FooTests.cs", "FooIT.java", "TestFoo.java", "FooTest.kt", "a_spec.rb")
        ),
        *((name, True) for name in ("foo_test.cc", "test_foo.cpp", "FooTest.php", "FooTests.swift", "FooSpec.scala")),
        *((name, False) for name in ("a.py", "contest.py", "latest.py", "testing.py", "attest/a.py", "pytest/a.py")),
        *(
            (name, False)
            for name in ("test_data.json", "Latest.java", "Contest.java", "Testable.java", "numpy/testing/x.py")
        ),
        *(
            (name, False)
            for name in ("inspect.js", "aspect.ts", "greatest.ts", "src/spec.go", "tester.py", "Spectest.md")
        ),
    ],
)
def test_tests_are_told_by_the_names_that_tools_expect(path: str, expected: bool) -> None:
    assert filters.is_test(path) is expected


def test_a_partial_clone_runs_nothing_to_get_what_it_lacks(repository, tmp_path) -> None:
    """A repository's own settings may name a command as its remote, and allow it."""
    ran = tmp_path / "ran"
    command = tmp_path / "command.sh"
    command.write_text(f"#!/bin/sh\ntouch {ran}\n")
    command.chmod(0o755)
    for name, value in (
        ("core.repositoryformatversion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", f"ext::{command} lazy"),
        ("remote.origin.promisor", "true"),
        ("protocol.ext.allow", "always"),
    ):
        git(repository, "config", name, value)
    blob = git(repository, "rev-parse", "HEAD:b.py").strip()
    (repository / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(InputError, match=r"lacks the content of b\.py"):
        items(f"git:{repository}")
    assert not ran.exists()


def test_links_are_left_out_and_counted(repository, tmp_path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("SECRET = 1\n")
    (repository / "link.py").symlink_to(outside)
    git(repository, "add", "link.py")
    git(repository, "commit", "--quiet", "-m", "link")
    assert paths(repository)["link.py"] == paths(f"git:{repository}")["link.py"] == "a link"
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "link.py").symlink_to(outside)
    assert paths(plain) == {"link.py": "a link"}


def test_a_repository_that_git_cannot_read_is_told(tmp_path, capfd) -> None:
    write_tree(tmp_path, files=1)
    (tmp_path / ".git").mkdir()
    assert list(paths(tmp_path)) == ["alpha.py"]
    assert "has a .git that git cannot read" in capfd.readouterr().err


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch) -> None:
    write_tree(tmp_path, files=1)

    def walk(root, onerror):  # root may list every folder, so the error is made
        onerror(PermissionError(13, "Permission denied", f"{root}/secret"))
        yield str(root), [], ["alpha.py"]

    monkeypatch.setattr("trainer.data.sources.folders.os.walk", walk)
    assert paths(tmp_path) == {"secret/": "unreadable", "alpha.py": None}


def test_a_pipe_is_no_source(tmp_path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="neither a folder nor a file"):
        open_source(str(tmp_path / "rows.jsonl"), "data.source")


def test_the_same_path_in_two_sources_is_two_files(tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    write_tree(one, functions=1)
    names = sorted(path.name for path in one.glob("*.py"))
    for name, other in zip(names[::2], names[1::2], strict=True):
        (one / other).rename(two / name)
    data = load_from([str(one), str(two)])
    expected = {(str(folder), name) for folder in (one, two) for name in names[::2]}
    assert {(item.repository, item.group) for item in [*data.train, *data.held_out]} == expected
    judged = {(item.repository, item.group) for item in data.held_out}
    assert f"of {len(judged)} files" in data.report.held_out_in_words()


def test_the_newest_of_several_repositories(repository, tmp_path) -> None:
    """The texts of one source are read between those of the next being stored."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_tree(tmp_path / name)
        git(tmp_path / name, "init", "--quiet")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "--quiet", "-m", "all")
    data = load_from([str(tmp_path / "one"), str(tmp_path / "two")], split="newest", near_duplicate_threshold=1)
    assert {item.repository for item in [*data.train, *data.held_out]} <= {str(tmp_path / "one"), str(tmp_path / "two")}
    assert all(item.completion in (item.function or "") for item in data.train)


def test_a_shallow_clone_does_not_know_what_is_newest(repository, tmp_path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", "shallow")
    with pytest.raises(InputError, match=r"git fetch --unshallow"):
        load_from(tmp_path / "shallow", split="newest")


def test_half_a_surrogate_costs_one_notebook_alone(tmp_path) -> None:
    write_tree(tmp_path, files=4)
    cell = {"cell_type": "code", "source": ["x = '\ud83d'"], "outputs": [], "metadata": {}, "execution_count": 1}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "half.ipynb").write_text(json.dumps(notebook))
    assert load_from(tmp_path).report.file_names["dropped: no code in it"] == ["half.ipynb"]


@pytest.mark.parametrize("override", ["data.source=nu\udcff", "data.include=f\udcff", "data.source=['\udcff']"])
def test_settings_that_are_not_utf_8_are_refused(override: str) -> None:
    with pytest.raises(InputError, match="is not UTF-8"):
        load_config(None, [override])


def test_a_marker_in_a_files_name_leaves_it_out(tmp_path) -> None:
    write_tree(tmp_path, files=4)
    (tmp_path / "<fim_middle>.py").write_text((tmp_path / "alpha.py").read_text())
    assert load_from(tmp_path).report.file_names["dropped: a marker in its name"] == ["<fim_middle>.py"]
