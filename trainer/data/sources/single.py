"""One file as a source: rows, an archive, or code; by its suffix."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from contract.errors import InputError
from trainer.data import filters
from trainer.data.items import File, Row
from trainer.data.languages import language_of
from trainer.data.sources import archives, row_files
from trainer.data.sources.base import Choose

EXPECTED = (
    "a file of code, rows (.jsonl, .jsonl.gz, .json or .parquet), an archive of code (.zip, .whl, .tar, .tar.gz, .tgz, "
    ".tar.bz2 or .tar.xz)"
)
TABLES = {".csv": "", ".tsv": ", sep='\\t'"}  # how pandas reads them


def is_code(name: str) -> bool:
    """Whether a file is code itself."""
    return language_of(name) is not None


def check(name: str, key: str) -> None:
    """Raise InputError, naming the configuration's `key`, for a file of another kind."""
    if is_code(name) or row_files.is_rows(name) or archives.is_archive(name):
        return
    path = PurePosixPath(name)
    if (separator := TABLES.get(path.suffix.lower())) is not None:
        raise InputError(
            f"{key} is '{name}', which does not tell an empty text from none. Expected JSONL: "
            f"python -c \"import pandas; pandas.read_csv('{name}'{separator}).to_json('{path.stem}.jsonl', "
            "orient='records', lines=True)\""
        )
    raise InputError(f"{key} is '{name}', a file of another kind. Expected {EXPECTED}, or a folder of code.")


def read(path: Path, choose: Choose) -> Iterator[File | Row]:
    """What a file on disk holds. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield from read_open(file, str(path), choose)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error}. Expected {EXPECTED}.") from error


def read_open(file: BinaryIO, name: str, choose: Choose) -> Iterator[File | Row]:
    """What an open file holds that seeks, by the suffix of its name. Raises InputError where it is broken."""
    if is_code(name):
        path = PurePosixPath(name).name
        dropped = choose(path)
        content = file.read(filters.MAX_BYTES + 1) if dropped is None else b""
        yield (
            File(path, dropped=filters.TOO_LARGE) if len(content) > filters.MAX_BYTES else File(path, content, dropped)
        )
    elif archives.is_archive(name):
        yield from archives.files(file, name, choose)
    else:
        yield from row_files.rows(file, name)
