"""Folders of code and git repositories, as streams of files."""

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from contract.errors import InputError
from trainer import git
from trainer.data import filters
from trainer.data.items import File
from trainer.data.languages import language_of
from trainer.data.sources.base import Choose, printable

LINK, UNREADABLE = "a link", "unreadable"  # why a file is left out


def path_of(text: str, said: str) -> Path:
    """The path that somebody wrote. Raises InputError, which begins with what they `said`, where it cannot be one."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # the home of a user who does not exist
        raise InputError(f"{said}: {error} Expected a path.") from error


def exists(path: Path) -> bool:
    """Whether there is anything of that name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def files(root: Path, choose: Choose) -> Iterator[File]:
    """The files of code below a folder, by path; of a git work tree those that it does not ignore."""
    unreadable: list[OSError] = []  # folders
    listed = git.output(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed:
        paths: Iterable[str] = sorted(set(os.fsdecode(listed).split("\0")) - {""})
    else:
        paths = sorted(
            (Path(folder) / name).relative_to(root).as_posix()
            for folder, folders, names in os.walk(root, onerror=unreadable.append)
            if not _prune_hidden(folders)
            for name in names
        )
        if (root / ".git").exists() and not git.output(root, "rev-parse", "--git-dir"):
            click.echo(
                f"{root} has a .git that git cannot read: what .gitignore names is taken too. Repair it, or say what "
                "to leave out with data.exclude.",
                err=True,
            )
    for error in unreadable:
        yield File(f"{printable(os.path.relpath(error.filename, root))}/", dropped=UNREADABLE)
    generated = _linguist_attributes(root, paths) if listed else {}
    for path in paths:
        if language_of(path) is None:
            continue
        dropped = choose(printable(path)) or generated.get(path)
        yield _read(root / path, printable(path)) if dropped is None else File(printable(path), dropped=dropped)


def _read(file: Path, path: str) -> File:
    try:
        if file.is_symlink():  # to what may be somewhere else
            return File(path, dropped=LINK)
        if not file.exists():  # tracked, but deleted
            return File(path, dropped="deleted")
        if not file.is_file():
            return File(path, dropped="no file")
        if file.stat().st_size > filters.MAX_BYTES:
            return File(path, dropped=filters.TOO_LARGE)
        return File(path, file.read_bytes())
    except OSError:
        return File(path, dropped=UNREADABLE)


def _prune_hidden(folders: list[str]) -> bool:
    """Keep os.walk out of hidden folders. Returns False."""
    folders[:] = [name for name in folders if not name.startswith(".")]
    return False


def _linguist_attributes(root: Path, paths: Iterable[str], index: str | None = None) -> dict[str, str]:
    """What .gitattributes calls generated or vendored: the work tree's, or the one in an `index` file."""
    names = "\0".join(path for path in paths if language_of(path)).encode(errors="surrogateescape")
    command = ["check-attr", "-z", "--stdin", "linguist-generated", "linguist-vendored"]
    if index is not None:
        command.insert(1, "--cached")
    words = os.fsdecode(git.output(root, *command, stdin=names, index=index)).split("\0")
    return {
        path: attribute.removeprefix("linguist-")
        for path, attribute, value in zip(words[0::3], words[1::3], words[2::3], strict=False)
        if value in ("set", "true")
    }


def find_commit(rest: str, key: str) -> tuple[Path, str, str]:
    """Of PATH[@REVISION]: the repository's folder, PATH, and the commit. Raises InputError, naming `key`, for none."""
    path, _, revision = rest.rpartition("@")
    if not path or exists(path_of(rest, f"{key} is 'git:{rest}'")):  # no revision, or an @ in the path
        path, revision = rest, "HEAD"
    root = path_of(path, f"{key} is 'git:{rest}'")
    if not exists(root) or not git.output(root, "rev-parse", "--git-dir"):
        raise InputError(f"{key} is 'git:{rest}', where there is no git repository. Expected git:PATH[@REVISION].")
    commit = git.output(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    if not commit:
        raise InputError(
            f"{key} is 'git:{rest}', but {root} has no commit '{revision}'. "
            "Expected a commit, tag or branch that `git rev-parse` knows."
        )
    return root, path, commit


def current(source: str) -> str:
    """A source as it is now: of git:PATH@REVISION the branch; HEAD where that is a commit, a tag, or gone."""
    if not source.startswith("git:"):
        return source
    try:
        root, path, _ = find_commit(source.removeprefix("git:"), "data.source")
    except InputError:  # a branch that was merged and deleted
        path = source.removeprefix("git:").rpartition("@")[0]
        if not path:
            raise
        find_commit(path, "data.source")
        return f"git:{path}"
    revision = source.removeprefix(f"git:{path}").removeprefix("@") or "HEAD"
    name = git.output(root, "rev-parse", "--symbolic-full-name", "--verify", "--quiet", revision).decode()
    return source if name.startswith(("refs/heads/", "refs/remotes/")) else f"git:{path}"


def files_of_commit(root: Path, commit: str, key: str, choose: Choose) -> Iterator[File]:
    """The files of code at a commit, which is not checked out. Raises InputError, naming `key`, where content lacks."""
    # A folder inside the repository, or nothing.
    top = os.fsdecode(git.output(root, "rev-parse", "--show-prefix")).removesuffix("\n")
    below = ["--", top] if top else []
    listed = os.fsdecode(git.output(root, "ls-tree", "-r", "-z", "--full-tree", commit, *below))
    split = [entry.split("\t", 1) for entry in listed.split("\0") if entry]
    entries = [(described, path.removeprefix(top)) for described, path in split]
    with tempfile.TemporaryDirectory(prefix="ratchet-git-") as folder:
        index = str(Path(folder, "index"))
        git.output(root, "read-tree", commit, index=index)
        generated = _linguist_attributes(root, (path for _, path in entries), index)
    with subprocess.Popen(
        [*git.COMMAND, "-C", str(root), "cat-file", "--batch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | git.ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for described, name in entries:
            mode, _, blob = described.split()
            path = printable(name)
            if mode == "160000" or language_of(path) is None:  # a submodule; no code
                continue
            if not mode.startswith("100"):
                yield File(path, dropped=LINK)
                continue
            dropped = choose(path) or generated.get(name)
            if dropped is not None:
                yield File(path, dropped=dropped)
                continue
            process.stdin.write(blob.encode() + b"\n")
            process.stdin.flush()
            header = process.stdout.readline().split()
            if len(header) != 3:
                raise InputError(
                    f"{key} names {root}, which lacks the content of {path} at {commit}. Expected a whole repository, "
                    "and not a partial clone: git fetch --refetch"
                )
            size = int(header[2])
            if size > filters.MAX_BYTES:
                for start in range(0, size, filters.MAX_BYTES):  # to what comes after it
                    process.stdout.read(min(filters.MAX_BYTES, size - start))
                process.stdout.read(1)
                yield File(path, dropped=filters.TOO_LARGE)
                continue
            yield File(path, process.stdout.read(size + 1)[:-1])
        process.stdin.close()
