"""Sources behind a network: S3, the Hugging Face Hub, runs on the tracking server."""

import io
import os
import re
from collections.abc import Iterator

from contract.errors import InputError
from trainer.data import filters
from trainer.data.items import File, Row
from trainer.data.languages import language_of
from trainer.data.sources import single
from trainer.data.sources.base import Choose, first_line

BUFFER = 2**20  # bytes that S3 is asked for at once


def s3(name: str, key: str, choose: Choose) -> Iterator[File | Row]:
    """An object, or the code below a prefix, by Arrow's S3 client. Raises InputError for what it does not give."""
    from pyarrow import ArrowException, fs

    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true" if os.environ.get("AWS_ACCESS_KEY_ID") else "false")
    # Some S3 servers answer for a part of an object with the checksum of the whole: as docker-compose.yml has it.
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "WHEN_REQUIRED")
    place, _, inside = name.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", place):
        raise InputError(f"{key} is '{name}', where '{place}' is no name of a bucket. Expected s3://BUCKET/KEY.")
    try:
        bucket, _ = fs.FileSystem.from_uri(f"s3://{place}")
        path = f"{place}/{inside}".rstrip("/")
        kind = bucket.get_file_info(path).type
        if kind == fs.FileType.File:
            single.check(name, key)
            with io.BufferedReader(bucket.open_input_file(path), BUFFER) as file:
                yield from single.read_open(file, name, choose)
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
            if dropped := choose(inside):
                yield File(inside, dropped=dropped)
            elif item.size > filters.MAX_BYTES:
                yield File(inside, dropped=filters.TOO_LARGE)
            else:
                with bucket.open_input_stream(item.path) as stream:
                    yield File(inside, stream.read())
    except (OSError, ArrowException) as error:
        raise InputError(
            f"{key} is '{name}', which S3 does not give: {first_line(error)}. Expected s3://BUCKET/KEY, readable with "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile or role); another S3 is AWS_ENDPOINT_URL_S3."
        ) from error


def hub(rest: str, key: str) -> Iterator[Row]:
    """The rows of a data set of the Hub. Raises InputError, naming `key`, where it does not load."""
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
            f"{key} is 'hub:{rest}', which does not load: {first_line(error)}. Expected a data set of the Hub that "
            "you may read (HF_TOKEN for a private one); without network give a .jsonl file."
        ) from error


def run(run_id: str, key: str) -> Iterator[Row]:
    """Prompt and reference of a run's evaluation table. Raises InputError, naming `key`, if it has none."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from contract.names import EVALUATION_TABLE, GROUP, REPOSITORY
    from contract.tracking import read_table

    try:
        table = read_table(MlflowClient(), run_id, EVALUATION_TABLE)
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{key} is 'runs:/{run_id}', which has no evaluation table: {first_line(error)}. "
            "Expected the id of a run of `trainer train` or `trainer evaluate`."
        ) from error
    for number, row in enumerate(table.to_dict(orient="records"), start=1):
        values = {"prompt": row["prompt"], "completion": row["reference"]}
        columns = ("kind", "language", "test", "function", GROUP, REPOSITORY)
        values |= {name: row[name] for name in columns if isinstance(row.get(name), str)}
        yield Row(values, f"runs:/{run_id}, row {number}")
