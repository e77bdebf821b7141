"""What users kept of production's completions, from its traces: `traces:serving`.

Of those alone who agreed (`python -m serving.gateway.tokens consent NAME yes`); what a user wants deleted,
`python -m services.tracking.traces delete --user NAME` deletes. What a user has changed comes first,
and counts as written by a model only as far as it is the model's; no user gives more than a share of it all. Held-out
code is never among it: what is too like that is left out as everything else is, and no row of it is judged by.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rapidfuzz.distance import LCSseq

from code_model import fim
from contract.errors import InputError
from contract.names import KEPT_TEXT, TRAINS
from trainer.data.items import Row
from trainer.data.sources.base import first_line

PAGE, MOST_TRACES = 200, 50_000
# Share of the rows that one of many users gives at most, and how many each may give in any case.
MOST_OF_A_USER, SOME_OF_A_USER = 0.25, 20
LONGER, MORE = 2, 200  # times a completion, and characters, that may stand in its place: more is no change of it
# Copyleft licences, by the words that stand at the head of a file under one.
COPYLEFT = re.compile(
    r"GNU\s+(?:AFFERO\s+|LESSER\s+|LIBRARY\s+)?GENERAL\s+PUBLIC\s+LICENSE|SPDX-License-Identifier:\s*[^\n]*\b[AL]?GPL",
    re.IGNORECASE,
)
CONTROL = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|</?s>|<start_of_turn>|<end_of_turn>")  # of chat templates and the like


@dataclass(frozen=True)
class Kept:
    """One completion that its user has accepted."""

    id: str
    user: str
    inputs: Any  # as the request had them
    completion: str
    text: str  # that the user kept: the completion, or what became of it
    repository: str = ""
    language: str = ""

    @cached_property
    def by_model(self) -> int:
        """Characters of the text that the model wrote, at most: those that both have in the same order."""
        return int(LCSseq.similarity(self.completion, self.text))


def rows(name: str, key: str) -> Iterator[Row]:
    """The rows of an experiment of traces; none where there is none yet. Raises InputError, naming `key`."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return
        yield from chosen(list(_kept(client, experiment.experiment_id)), f"traces:{name}")
    except MlflowException as error:
        raise InputError(f"{key} is 'traces:{name}', which cannot be read: {first_line(error)}.") from error


def chosen(found: list[Kept], name: str) -> Iterator[Row]:
    """Rows to train on, those that users have changed first, and of each user no more than a share."""
    found = sorted(found, key=lambda kept: (kept.by_model / max(len(kept.text), 1), kept.id))
    most, given = fair(found), dict[str, int]()
    for kept in found:
        where = f"{name}, completion {kept.id}"
        context = _context(kept.inputs)
        if context is None or not kept.text.strip():
            yield Row(None, where, ("no prompt or no text", "its trace does not hold both"))
        elif len(kept.text) > LONGER * len(kept.completion) + MORE:
            yield Row(None, where, ("no change of the completion", "what was kept is far longer than the completion"))
        elif COPYLEFT.search(context.prefix) or COPYLEFT.search(context.suffix or "") or COPYLEFT.search(kept.text):
            yield Row(None, where, ("under a copyleft licence", "the file says that it is under one"))
        elif CONTROL.search(context.prefix + kept.text):
            yield Row(None, where, ("holds control tokens", "it holds tokens that steer a model, as <|im_start|> does"))
        elif given.get(kept.user, 0) >= most:
            yield Row(None, where, ("too many of one user", f"one user gives at most {most}"))
        else:
            given[kept.user] = given.get(kept.user, 0) + 1
            values = {"prompt": fim.write(context), "completion": kept.text, "by_model": kept.by_model}
            values |= {"group": f"{kept.user} {context.path}", "repository": kept.repository or name}
            yield Row(values | ({"language": kept.language} if kept.language else {}), where)


def fair(found: list[Kept]) -> int:
    """The most that a user may give: SOME_OF_A_USER, or MOST_OF_A_USER of what all give; of fewer users their part."""
    counts: dict[str, int] = {}
    for kept in found:
        counts[kept.user] = counts.get(kept.user, 0) + 1
    most, share = max(counts.values(), default=0), max(MOST_OF_A_USER, 1 / max(len(counts), 1))
    while most > SOME_OF_A_USER and most > share * sum(min(count, most) for count in counts.values()):
        most -= 1
    return max(most, SOME_OF_A_USER)


def _kept(client: Any, experiment: str) -> Iterator[Kept]:
    wanted = f"tags.{TRAINS} = 'true' AND feedback.accepted = 'true'"
    token, read = None, 0
    while read < MOST_TRACES:
        page = client.search_traces(
            locations=[experiment],
            filter_string=wanted,
            max_results=PAGE,
            page_token=token,
            order_by=["timestamp_ms DESC"],
        )
        for trace in page:
            if (kept := _of_trace(trace)) is not None:
                yield kept
        read += len(page)
        if not (token := page.token):
            return


def _of_trace(trace: Any) -> Kept | None:
    span = next((span for span in trace.data.spans if span.inputs), None)
    completions = span.outputs.get("completions") if span is not None and isinstance(span.outputs, dict) else None
    said = {item.name: getattr(item, "value", None) for item in trace.info.assessments}
    if span is None or not isinstance(completions, list) or len(completions) != 1 or said.get("accepted") is not True:
        return None  # of several texts it is not told which
    text, tags = said.get(KEPT_TEXT), trace.info.tags
    return Kept(
        id=tags.get("completion_id", trace.info.trace_id),
        user=tags.get("user", ""),
        inputs=span.inputs,
        completion=str(completions[0]),
        text=text if isinstance(text, str) else str(completions[0]),
        repository=tags.get("repository", ""),
        language=tags.get("language", ""),
    )


def _context(inputs: Any) -> fim.Context | None:
    """What stood around the cursor."""
    given = inputs.get("inputs") if isinstance(inputs, dict) else inputs
    first = given[0] if isinstance(given, list) and len(given) == 1 else None
    first = {"prompt": first} if isinstance(first, str) else first
    if not isinstance(first, dict) or not isinstance(first.get("prompt"), str):
        return None
    prompt, suffix, path = first["prompt"], first.get("suffix"), first.get("path")
    for own in fim.KNOWN:  # an editor that fills in the middle itself
        if suffix is None and (parts := fim.parts(prompt, own)) is not None:
            prompt, suffix = parts
    return fim.Context(prompt, suffix if isinstance(suffix, str) else None, path if isinstance(path, str) else "")
