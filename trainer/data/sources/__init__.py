"""Where data come from: each source as a stream of files and rows.

path/to/code            a folder; in a git work tree, what git does not ignore
path/to/file.py         one file of code
path/to/archive.zip     code in an archive (.zip, .whl, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz), which is not unpacked
git:path/to/repo@v1.2   a local git repository at a commit, tag or branch (HEAD by default), bare or not
package:NAME            the source of an installed Python package
path/to/rows.jsonl      one JSON object a line (.jsonl.gz too), a .json list of objects, or a .parquet file
s3://bucket/key         such a file, or a prefix with code; credentials as AWS's own tools find them
hub:ORG/NAME[:SPLIT]    a data set of the Hugging Face Hub (split train by default), streamed
runs:/RUN_ID            the held-out examples that a run was evaluated on
traces:serving          what users kept of production's completions, of those who agreed
benchmark:humaneval     a public data set with tests
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.errors import InputError
from trainer.data import benchmarks, filters
from trainer.data.items import File, Row
from trainer.data.pathspec import LEFT_OUT, Selection
from trainer.data.sources import feedback, folders, history, remote, single
from trainer.data.sources.single import EXPECTED as EXPECTED_FILE

EXPECTED = (
    f"a folder of code, {EXPECTED_FILE}, package:NAME, git:PATH[@REVISION], s3://BUCKET/KEY, hub:ORG/NAME[:SPLIT], "
    "runs:/RUN_ID, traces:serving or benchmark:NAME"
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
    repository: str = ""  # what its examples say that they are from; without: `name`
    root: Path | None = None  # the folder that its paths begin at, where git may know their history
    may_be_empty: bool = False

    def last_changed(self) -> dict[str, int] | None:
        """When each file was last changed, by its path here: seconds since 1970, of the commit.

        What a work tree has changed or added since then is a second newer than its newest commit. None where there is
        no git history: other sources, and a folder that git does not track.
        """
        return history.last_changed(self.root, self.commit) if self.root is not None else None


def open_source(name: str, key: str, selection: Selection | None = None) -> Source:
    """The source of that name, with the files that are chosen. Raises InputError, naming `key`, if it is missing."""

    def choose(path: str) -> str | None:
        return LEFT_OUT if selection is not None and selection.leaves_out(path) else filters.by_name(path)

    scheme, _, rest = name.partition(":")
    if not name.strip():
        raise InputError(f"{key} is empty. Expected {EXPECTED}.")
    if name.startswith("s3://"):
        return Source(name, key, remote.s3(name, key, choose), name)
    if name.startswith("hub:"):
        return Source(name, key, remote.hub(rest, key), name)
    if name.startswith("runs:/"):
        return Source(name, key, remote.run(rest.strip("/"), key), name)
    if scheme == "traces":
        return Source(name, key, feedback.rows(rest, key), name, may_be_empty=True)
    if scheme == "benchmark":
        return Source(name, key, benchmarks.rows(rest, key), name)
    if scheme == "git":
        root, path, commit = folders.find_commit(rest, key)
        files = folders.files_of_commit(root, commit, key, choose)
        # Without the commit: the same code base is called the same at each.
        return Source(name, key, files, f"{root}@{commit}", None, commit, f"git:{path}", root)
    place = _package_folder(rest, key) if scheme == "package" else folders.path_of(name, f"{key} is '{name}'")
    if not folders.exists(place):
        raise InputError(f"{key} is '{name}', which does not exist. Expected {EXPECTED}.")
    if not os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)):
        raise InputError(
            f"{key} is '{name}', which user {os.getuid()} may not read. Make it readable to all "
            "(chmod -R a+rX), or train as its owner."
        )
    if not place.is_dir() and not place.is_file():  # a pipe, say, to wait at for ever
        raise InputError(f"{key} is '{name}', which is neither a folder nor a file. Expected {EXPECTED}.")
    if place.is_dir():
        return Source(name, key, folders.files(place, choose), str(place), place, root=place)
    single.check(name, key)
    history_of = place.parent if single.is_code(name) else None
    return Source(name, key, single.read(place, choose), str(place), place.parent, root=history_of)


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
