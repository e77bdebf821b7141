"""Where data come from: each source as a stream of files and rows.

path/to/code            a folder; in a git work tree, what git does not ignore
git:path/to/repo@v1.2   a local git repository at a commit, tag or branch (HEAD by default), bare or not
package:NAME            the source of an installed Python package
path/to/rows.jsonl      one JSON object a line
s3://bucket/key         a .jsonl object, or a prefix with code; credentials as AWS's own tools find them
hub:ORG/NAME[:SPLIT]    a data set of the Hugging Face Hub (split train by default), streamed
runs:/RUN_ID            the held-out examples that a run was evaluated on
benchmark:humaneval     a public data set with tests
"""

import importlib.util
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.errors import InputError
from trainer import git
from trainer.data import benchmarks, filters
from trainer.data.items import File, Row
from trainer.data.languages import language_of

EXPECTED = (
    "a folder of code, a .jsonl file, package:NAME, git:PATH[@REVISION], s3://BUCKET/KEY, hub:ORG/NAME[:SPLIT], "
    "runs:/RUN_ID or benchmark:NAME"
)


@dataclass
class Source:
    """A source as configured; `items` streams it once."""

    name: str
    key: str  # the configuration's, for messages
    items: Iterator[File | Row]
    location: str  # where that is
    folder: Path | None = None  # where git may know the commit
    commit: str | None = None


def open_source(name: str, key: str) -> Source:
    """The source of that name. Raises InputError, naming the configuration's `key`, where there is none."""
    scheme, _, rest = name.partition(":")
    if not name.strip():
        raise InputError(f"{key} is empty. Expected {EXPECTED}.")
    if name.startswith("s3://"):
        return Source(name, key, _s3(name, key), name)
    if name.startswith("hub:"):
        return Source(name, key, _hub(rest, key), name)
    if name.startswith("runs:/"):
        return Source(name, key, _run(rest.strip("/"), key), name)
    if scheme == "benchmark":
        return Source(name, key, benchmarks.rows(rest, key), name)
    if scheme == "git":
        return _git(rest, key)
    path = _package_folder(rest, key) if scheme == "package" else _path(name, key)
    if not _exists(path):
        raise InputError(f"{key} is '{name}', which does not exist. Expected {EXPECTED}.")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise InputError(
            f"{key} is '{name}', which user {os.getuid()} may not read. Make it readable to all "
            "(chmod -R a+rX), or train as its owner."
        )
    if path.is_dir():
        return Source(name, key, _folder(path), str(path), folder=path)
    return Source(name, key, _jsonl(path), str(path), folder=path.parent)


def _path(text: str, key: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # the home of a user who does not exist
        raise InputError(f"{key} is '{text}': {error} Expected {EXPECTED}.") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _package_folder(name: str, key: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent that is missing or no package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{key} names the package '{name}', which is not installed here as a folder of Python code. "
            "Expected package:NAME with an importable package, e.g. package:email, or the path of a folder."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _folder(root: Path) -> Iterator[File]:
    """The files of code below a folder, by path; of a git work tree those that it does not ignore."""
    listed = git.output(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed:
        paths: Iterable[str] = sorted(set(os.fsdecode(listed).split("\0")) - {""})
    else:
        paths = sorted(
            (Path(folder) / name).relative_to(root).as_posix()
            for folder, folders, names in os.walk(root)
            if not _prune_hidden(folders)
            for name in names
        )
    generated = _linguist_attributes(root, paths) if listed else {}
    for path in paths:
        if language_of(path) is None:
            continue
        dropped = filters.by_name(path) or generated.get(path)
        yield _read(root / path, _printable(path)) if dropped is None else File(_printable(path), dropped=dropped)


def _read(file: Path, path: str) -> File:
    try:
        if not file.exists():  # tracked, but deleted
            return File(path, dropped="deleted")
        if not file.is_file():
            return File(path, dropped="no file")
        if file.stat().st_size > filters.MAX_BYTES:
            return File(path, dropped=filters.TOO_LARGE)
        return File(path, file.read_bytes())
    except OSError:
        return File(path, dropped="unreadable")


def _printable(path: str) -> str:
    """A file's name as text, also where it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


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


def _git(rest: str, key: str) -> Source:
    """A local repository at a commit, without checking it out."""
    path, _, revision = rest.rpartition("@")
    if not path or _exists(_path(rest, key)):  # no revision, or an @ in the path
        path, revision = rest, "HEAD"
    root = _path(path, key)
    if not _exists(root) or not git.output(root, "rev-parse", "--git-dir"):
        raise InputError(f"{key} is 'git:{rest}', where there is no git repository. Expected git:PATH[@REVISION].")
    commit = git.output(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    if not commit:
        raise InputError(
            f"{key} is 'git:{rest}', but {root} has no commit '{revision}'. "
            "Expected a commit, tag or branch that `git rev-parse` knows."
        )
    return Source(f"git:{rest}", key, _git_files(root, commit, key), f"{root}@{commit}", commit=commit)


def _git_files(root: Path, commit: str, key: str) -> Iterator[File]:
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
        [*git.COMMAND, "-C", str(root), "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for described, name in entries:
            mode, _, blob = described.split()
            path = _printable(name)
            if not mode.startswith("100") or language_of(path) is None:  # a link or a submodule; no code
                continue
            dropped = filters.by_name(path) or generated.get(name)
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


def _jsonl(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            yield from _rows(file, str(path))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error}. Expected JSONL in UTF-8.") from error


def _rows(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where} cannot be read as text: {error}. Expected JSONL in UTF-8.") from error
        if not text.strip():
            continue
        try:
            yield Row(json.loads(text), where)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON: {error}. Expected one JSON object a line.") from error


def _s3(name: str, key: str) -> Iterator[File | Row]:
    """An object of rows, or the code below a prefix, through Arrow's S3 client."""
    from pyarrow import ArrowException, fs

    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true" if os.environ.get("AWS_ACCESS_KEY_ID") else "false")
    place, _, inside = name.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", place):
        raise InputError(f"{key} is '{name}', where '{place}' is no name of a bucket. Expected s3://BUCKET/KEY.")
    try:
        bucket, _ = fs.FileSystem.from_uri(f"s3://{place}")
        path = f"{place}/{inside}".rstrip("/")
        kind = bucket.get_file_info(path).type
        if kind == fs.FileType.File:
            with bucket.open_input_stream(path) as stream:
                yield from _rows(io.BufferedReader(stream), name)
            return
        found = bucket.get_file_info(fs.FileSelector(path, recursive=True)) if kind == fs.FileType.Directory else []
        if not found:
            raise InputError(
                f"{key} is '{name}', where S3 has nothing. Expected s3://BUCKET/KEY of an object or prefix."
            )
        for item in sorted(found, key=lambda item: str(item.path)):
            inside = item.path.removeprefix(path).lstrip("/")
            if item.type != fs.FileType.File or language_of(inside) is None:
                continue
            if dropped := filters.by_name(inside):
                yield File(inside, dropped=dropped)
            elif item.size > filters.MAX_BYTES:
                yield File(inside, dropped=filters.TOO_LARGE)
            else:
                with bucket.open_input_stream(item.path) as stream:
                    yield File(inside, stream.read())
    except (OSError, ArrowException) as error:
        raise InputError(
            f"{key} is '{name}', which S3 does not give: {_first_line(error)}. Expected s3://BUCKET/KEY, readable with "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile or role); another S3 is AWS_ENDPOINT_URL_S3."
        ) from error


def _hub(rest: str, key: str) -> Iterator[Row]:
    import datasets

    name, _, split = rest.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"{key} is 'hub:{rest}'. Expected hub:ORG/NAME or hub:ORG/NAME:SPLIT.")
    datasets.disable_progress_bars()
    try:
        stream = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(stream, start=1):
            yield Row(row, f"hub:{rest}, row {number}")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{key} is 'hub:{rest}', which does not load: {_first_line(error)}. Expected a data set of the Hub that "
            "you may read (HF_TOKEN for a private one); without network give a .jsonl file."
        ) from error


def _run(run_id: str, key: str) -> Iterator[Row]:
    """Prompt and reference of a run's evaluation table."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from contract.names import EVALUATION_TABLE
    from contract.tracking import read_table

    try:
        table = read_table(MlflowClient(), run_id, EVALUATION_TABLE)
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{key} is 'runs:/{run_id}', which has no evaluation table: {_first_line(error)}. "
            "Expected the id of a run of `trainer train` or `trainer evaluate`."
        ) from error
    for number, row in enumerate(table.to_dict(orient="records"), start=1):
        values = {"prompt": row["prompt"], "completion": row["reference"]}
        names = ("kind", "language", "test", "function")
        values |= {name: row[name] for name in names if isinstance(row.get(name), str)}
        yield Row(values, f"runs:/{run_id}, row {number}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
