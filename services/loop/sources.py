"""How far the sources have moved since a round's commits, or since the version in production was trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contract.errors import InputError
from contract.names import PRODUCTION
from services.loop.config import Loop
from services.loop.jobs import Done, Jobs

LOOK_S = 900.0  # that a look at the code may take


@dataclass
class Moved:
    """All sources together."""

    heads: dict[str, str] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()  # of the commits
    functions: float = 0.0
    news: str = ""  # why the code has to be trained on, where there is nothing that it could have moved from
    unreadable: str = ""  # why nothing is known of a source


def moved(loop: Loop, since: Mapping[str, str], in_production: bool, jobs: Jobs, tick: Any) -> Moved:
    """`since`: each source's commit of the round that made the last candidate; empty where there was none."""

    config = ["--config", loop.training.config] if loop.training.config else []
    chosen = [item for item in loop.training.overrides if item.startswith(("data.include=", "data.exclude="))]

    def look(*arguments: str) -> Done:
        return jobs.run("trainer", ["changes", *arguments, "--format", "json"], LOOK_S, tick)

    def compare(source: str, commit: str) -> Done:
        return look("--since", commit, *config, f"data.source={quoted([source])}", *chosen)

    found: dict[str, dict[str, Any]] = {}
    if not since and in_production:
        done = look("--model-uri", f"models:/{loop.model}@{PRODUCTION}")
        if done.exit_code not in (0, InputError.exit_code):
            return Moved(unreadable=f"it is not known how far the code has moved: {done.why}")
        found = {str(one["source"]): one for one in _changes(done)}
    result = Moved()
    for source in loop.data.sources:
        one = found.get(source)
        if one is None:
            done = compare(source, since.get(source, "HEAD"))
            if done.exit_code and source in since:  # a history that was written anew has lost the commit
                done = compare(source, "HEAD")
            if done.exit_code or not (changes := _changes(done)):
                result.unreadable = f"{source} cannot be read: {done.why}"
                if source in since:
                    result.heads[source] = since[source]
                continue
            one = changes[0]
            if str(one["since"]) != since.get(source, "").removesuffix("-dirty"):
                result.news = (
                    f"{source} is new to the loop"
                    if source not in since
                    else f"{source} has lost the commit that was trained on: its history was written anew"
                )
        found[source] = one
        result.heads[source] = str(one["head"])
    if not since and not in_production:
        result.news = "no version is in production"
    elif not since and result.news:
        result.news = "the version in production was not trained on these sources"
    ours = [found[source] for source in loop.data.sources if source in found]
    result.subjects = tuple(str(subject) for one in ours for subject in one["commits"])
    functions, new = (sum(int(one[key]) for one in ours) for key in ("functions", "new_functions"))
    result.functions = new / max(functions, 1)
    return result


def quoted(sources: list[str]) -> str:
    """As the trainer reads a list, whatever stands in a path."""
    return "[" + ",".join("'" + source.replace("'", "''") + "'" for source in sources) + "]"


def _changes(done: Done) -> list[dict[str, Any]]:
    answer = done.answer
    return [one for one in answer if isinstance(one, dict)] if isinstance(answer, list) and not done.exit_code else []
