"""What production was asked: prompts from its traces, some of each file."""

import json
import random
import re
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from contract.monitoring import code_before
from contract.names import TRACES
from services.monitor.inputs import Piece

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE, MOST_TRACES = 100, 5_000
MOST_OF_A_FILE = 4
# What editors put around the code before the cursor that fill in the middle themselves.
PREFIX = re.compile(r"<[|｜]?fim[-_▁](?:prefix|begin)[|｜]?>|▁?<PRE>")
SUFFIX = re.compile(r"<[|｜]?fim[-_▁](?:suffix|hole)[|｜]?>|▁?<SUF>")


def prompts(client: "MlflowClient", model: str, since: float, most: int, seed: int = 0) -> list[Piece]:
    """At most so many, of traces that hold texts, since a time in seconds since 1970; a text once, few of a file."""
    experiment = client.get_experiment_by_name(TRACES)
    if experiment is None:
        return []
    found: dict[str, Piece] = {}
    token, read = None, 0
    while read < MOST_TRACES:
        page = client.search_traces(
            locations=[experiment.experiment_id],
            filter_string=f"tags.model = '{model}' AND timestamp_ms >= {int(1000 * since)}",
            max_results=PAGE,
            page_token=token,
            order_by=["timestamp_ms DESC"],
        )
        for trace in page:
            if (piece := _piece(trace)) is not None:
                found.setdefault(piece.code, piece)
        read += len(page)
        token = page.token
        if not token:
            break
    pieces, of_file = list(found.values()), Counter[str]()
    random.Random(seed).shuffle(pieces)
    chosen = []
    for piece in pieces:
        of_file[piece.group] += 1
        if of_file[piece.group] <= MOST_OF_A_FILE:
            chosen.append(piece)
    return chosen[:most]


def _piece(trace: Any) -> Piece | None:
    inputs = next((span.inputs for span in trace.data.spans if span.inputs), None)
    given: Any = inputs.get("inputs") if isinstance(inputs, dict) else inputs
    first = given[0] if isinstance(given, list) and given else given
    if isinstance(first, str):
        first = {"prompt": first}
    if not isinstance(first, dict) or not isinstance(first.get("prompt"), str):
        return None
    code = code_before(PREFIX.split(SUFFIX.split(first["prompt"])[0])[-1])
    if not code:
        return None
    day = datetime.fromtimestamp(trace.info.request_time / 1000, UTC).strftime("%Y-%m-%d")
    tags = trace.info.tags
    file = first.get("path") or json.dumps([tags.get("user", ""), day])
    return Piece(code, f"{tags.get('repository', '')} {file}")
