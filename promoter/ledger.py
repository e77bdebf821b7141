"""What was tried against an incumbent, and the best that production had: kept in tags of the registered model.

Renaming the model takes them along, and deleting versions or runs does not shorten them. One tag for each incumbent,
`tried_against_N`, and as many more as its entries need; an entry is one batch of versions that came to the gate
together:

    {"on": data digest (12), "by": primary metric, "versions": "4-9", "tries": 6, "each": share of alpha}

`tries` may exceed the versions: those that were deleted before anybody asked were looked at too.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from contract.errors import InputError
from contract.lease import Claim
from contract.names import BEST_GUARDS, LEDGER
from promoter import statistics

LONGEST = 4000  # characters of a tag; MLflow takes 5,000 of a registered model's
DIGITS = 12  # of a data digest


@dataclass(frozen=True)
class Entry:
    """Versions that were tried together on the same data, by the same metric, and what each got of alpha."""

    on: str
    by: str
    versions: str  # ranges
    tries: int
    each: float


@dataclass(frozen=True)
class Judged:
    """What was judged on some data since an incumbent came."""

    versions: frozenset[str]
    deleted: frozenset[str]  # versions that are gone: on which data, nobody knows
    runs: int  # that have trained a version and judged it on these


@dataclass(frozen=True)
class Share:
    """A version's share of alpha, and the entry that has to be written before it is used; None: it is there."""

    of_alpha: float
    entry: Entry | None


def read(tags: Mapping[str, str], incumbent: str) -> list[Entry]:
    """The entries against an incumbent, oldest first."""
    found: list[Entry] = []
    for key in _keys(tags, incumbent):
        try:
            found += [Entry(**entry) for entry in _load(tags, key)]
            if not all(entry.tries > 0 and 0 < entry.each <= 1 and from_ranges(entry.versions) for entry in found):
                raise ValueError
        except (TypeError, ValueError, AttributeError) as error:
            raise _broken(tags, key) from error
    return found


def share(entries: Iterable[Entry], version: str, judged: Judged, digest: str, metric: str) -> Share:
    """What a version gets: what it was given before on these data by this metric, or else its part of what is left.

    Each version that was judged on the data counts, whether anybody has asked the gate about it: choosing the best of
    twenty is twenty tries.
    """
    entries = list(entries)
    ground = [entry for entry in entries if (entry.on, entry.by) == (digest[:DIGITS], metric)]
    for entry in ground:
        if version in from_ranges(entry.versions):
            return Share(entry.each, None)
    known = {number for entry in ground for number in from_ranges(entry.versions)}
    counted = {number for entry in entries for number in from_ranges(entry.versions)}  # a deleted one counts once
    new = ((judged.versions | {version}) - known) | (judged.deleted - counted)
    tries = max(len(new), judged.runs - sum(entry.tries for entry in ground))
    each = statistics.spend(1.0, sum(entry.tries for entry in entries), tries)
    return Share(each, Entry(digest[:DIGITS], metric, to_ranges(new), tries, each))


def write(claim: Claim, incumbent: str, entry: Entry) -> None:
    """Add an entry, in one request."""
    client, name = claim.client, claim.model
    tags = client.get_registered_model(name).tags
    keys = _keys(tags, incumbent)
    last = _load(tags, keys[-1]) if keys else []
    text = json.dumps([*last, asdict(entry)])
    if not keys or len(text) > LONGEST:
        key, text = f"{LEDGER}{incumbent}" + (f"_{len(keys) + 1}" if keys else ""), json.dumps([asdict(entry)])
    else:
        key = keys[-1]
    with claim.in_time():
        client.set_registered_model_tag(name, key, text)


def best_on(tags: Mapping[str, str], digest: str | None) -> dict[str, tuple[float, str]]:
    """The best that production had of each guard on these data: (value, version) by metric."""
    found = _load(tags, best_key(digest), "{}") if digest else {}
    try:
        best = {str(metric): (float(value), str(version)) for metric, (value, version) in found.items()}
        if not all(math.isfinite(value) for value, _ in best.values()):
            raise ValueError
    except (TypeError, ValueError, AttributeError) as error:
        raise _broken(tags, best_key(str(digest))) from error
    return best


def without(tags: Mapping[str, str], key: str, version: str) -> str:
    """What a tag of best values keeps once a version that had some of them is taken back."""
    return json.dumps({metric: found for metric, found in _load(tags, key).items() if found[1] != version})


def best_key(digest: str) -> str:
    """The tag that keeps it."""
    return f"{BEST_GUARDS}{digest[:DIGITS]}"


def _load(tags: Mapping[str, str], key: str, default: str = "[]") -> Any:
    try:
        return json.loads(tags.get(key, default))
    except (ValueError, RecursionError) as error:
        raise _broken(tags, key) from error


def _broken(tags: Mapping[str, str], key: str) -> InputError:
    return InputError(
        f"The registered model's tag {key} is {tags[key][:80]!r}. Expected JSON, as the promoter writes it. Put back "
        "what stood there, or delete the tag: then what it kept is forgotten."
    )


def _keys(tags: Mapping[str, str], incumbent: str) -> list[str]:
    first = f"{LEDGER}{incumbent}"
    more = (f"{first}_{number}" for number in range(2, 10_000))
    keys = []
    for key in (first, *more):
        if key not in tags:
            break
        keys.append(key)
    return keys


def to_ranges(numbers: Iterable[str]) -> str:
    """Version numbers in few characters: 1,2,3,7 is 1-3,7."""
    parts: list[list[int]] = []
    for number in sorted({int(number) for number in numbers}):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
    return text if len(text) <= LONGEST // 2 else f"{parts[0][0]}-{parts[-1][1]}"  # rather too many than too few


def from_ranges(text: str) -> set[str]:
    """What to_ranges was given."""
    pairs = [part.split("-") for part in text.split(",") if part]
    return {str(number) for pair in pairs for number in range(int(pair[0]), int(pair[-1]) + 1)}
