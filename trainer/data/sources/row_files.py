"""Files of rows: JSONL, a JSON list, Parquet."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from contract.errors import InputError
from trainer.data.items import Row
from trainer.data.sources.base import first_line

JSONL = (".jsonl", ".ndjson")
SUFFIXES = (*JSONL, *(f"{suffix}.gz" for suffix in JSONL), ".json", ".json.gz", ".parquet")
BATCH = 1000  # rows of a Parquet file in memory


def is_rows(name: str) -> bool:
    """Whether a file's name says that it holds rows."""
    return name.lower().endswith(SUFFIXES)


def rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """The rows of a file, by its suffix; those that cannot be read say so. Raises InputError for a broken file."""
    suffix = name.lower().removesuffix(".gz")
    try:
        if suffix.endswith(".parquet"):
            yield from _parquet(file, name)
            return
        plain = gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file
        if suffix.endswith(".json"):
            yield from _json(plain, name)
        else:
            yield from _lines(plain, name)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"'{name}' cannot be read: {first_line(error)}. Expected rows in a whole file.") from error


def _lines(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield Row(json.loads(text), where)
        except UnicodeDecodeError as error:
            yield Row(None, where, ("not UTF-8", f"it is no UTF-8, {error.reason} at byte {error.start + 1}"))
        except json.JSONDecodeError as error:
            yield Row(None, where, ("not JSON", f"it is no JSON, {error.msg} at column {error.colno}"))
        except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
            yield Row(None, where, ("not JSON", f"it is no JSON that can be read: {error}"))


def _json(file: Any, name: str) -> Iterator[Row]:
    """A list of objects, which is read whole; or lines, as some call JSONL."""
    lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in file)
    first = next(filter(None, lines), b"")
    file.seek(0)
    if not first.startswith(b"["):
        yield from _lines(file, name)
        return
    try:
        values = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{name}' is not JSON: {error}. Expected a list of objects, or JSONL.") from error
    for number, value in enumerate(values, start=1):
        yield Row(value, f"{name}, row {number}")


def _parquet(file: BinaryIO, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{name}, row {number}")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"'{name}' cannot be read: {first_line(error)}. Expected a whole Parquet file.") from error
