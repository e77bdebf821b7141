"""Validation: load a version as serving does, ask it something, compute its evaluation again, look at what comes out.

Its files are fetched and compared first; only code of a release that is known here is run, in a process that has
neither our login nor a network (confined_process.py). What that process says is data: parsed, bounded, compared.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from contract import fetching, metrics, versions
from contract.errors import InputError
from contract.manifest import NotAsTrained
from contract.names import MANIFEST_SHA256
from contract.versions import UnknownVersion
from promoter import artifacts, confined_process, confinement, evidence, recomputation, registry, released_code
from promoter.policy import Policy
from promoter.recomputation import Sample, Table

WORKER = Path(__file__).with_name("validation_worker.py")
PROMPTS = (
    'def add(a, b):\n    """Return the sum of two numbers."""\n',
    'def read_text(path):\n    """Return the contents of a text file."""\n',
)
MAX_NEW_TOKENS = 32
MOST_CHARACTERS = 2000  # of anything that the version says, shown
RECOMPUTED = "evaluation recomputed"
# What the version's process looks at, in this order; it may stop where one fails.
LOADS = "loads"
ASKED = (
    *("generates", "answers one text per prompt", "completions are not empty", "greedy decoding repeats itself"),
    "refuses an unknown parameter by name",
)


@dataclass(frozen=True)
class Check:
    """One check, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Result:
    """The checks in their order, a (prompt, completion) pair for each prompt answered, and the tables found right."""

    checks: list[Check]
    samples: list[tuple[str, str]]
    recomputed: tuple[str, ...] = ()  # sha256 of each

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def run(
    client: MlflowClient, version: ModelVersion, policy: Policy, confined: bool
) -> Iterator[tuple[ModelVersion, Result]]:
    """What is found of a version; then, where its incumbent's evaluation was not computed again yet, of the incumbent.

    Raises InputError where no model can be loaded, or none can be confined and that was not waived.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "Loading a model needs torch, which is not installed here. Run this where it is; in the Compose stack: "
            "docker compose run --rm --entrypoint promoter serving validate"
        )
    _why_unconfined(confined)  # before anything is fetched
    own = evidence.fetch(client, version, policy)
    limit_s, paths = policy.safety.smoke_time_limit_s, _tables_of(policy)
    yield version, _of_version(client, version, own.run_id, paths, limit_s, confined, smoke=True)
    incumbent = registry.incumbent_of(client, version)
    if incumbent is None:
        return
    compared = evidence.fetch(client, incumbent, policy, like=own)
    found = _of_version(client, incumbent, compared.run_id, paths, limit_s, confined, smoke=False)
    if found.checks:
        yield incumbent, found


def _tables_of(policy: Policy) -> list[str]:
    """The tables that a policy's metrics are read from."""
    return sorted({found.table for name in policy.metrics if (found := metrics.parse(name)) is not None})


def _of_version(
    client: MlflowClient,
    version: ModelVersion,
    run_id: str,
    paths: Sequence[str],
    limit_s: float,
    confined: bool,
    smoke: bool,
) -> Result:
    """Fetch a version and the tables of a run about it that were not found right yet, and check them."""
    with tempfile.TemporaryDirectory(prefix="ratchet-promoter-") as temporary:
        tables = []
        if run_id:
            evaluated = client.get_run(run_id)
            fetched = [recomputation.fetch(client, evaluated, path, Path(temporary)) for path in paths]
            tables = [table for table in fetched if table is not None]
        if not smoke:
            tables = [table for table in tables if not recomputation.validated(version.tags, table.sha256)]
            if not tables:
                return Result([], [])
        try:  # what the manifest lists, as serving does: a file that somebody has added is not there for it
            folder = fetching.fetch(version, Path(temporary, "version"))
        except NotAsTrained as error:
            return Result([Check("files as at training", False, "; ".join(error.wrong[:5]))], [])
        return validate(folder, version, limit_s, tables, smoke, confined)


def validate(
    folder: Path,
    version: ModelVersion,
    limit_s: float,
    tables: Sequence[Table] = (),
    smoke: bool = True,
    confined: bool = True,
) -> Result:
    """Check a version whose files lie in `folder`, and tables about it. Its code runs where its files are right."""
    checks = list(_of_files(folder, version))
    if not all(check.passed for check in checks):
        return Result(checks, [])
    try:
        code = versions.code_of(folder, version.tags)
    except UnknownVersion as error:
        return Result([*checks, Check(LOADS, False, error.message)], [])
    drawn: list[tuple[Table, Sample]] = []
    for table in tables:
        sample = recomputation.draw(table)
        if table.max_new_tokens is None:
            sample = "its run does not say, in its tag eval_settings, how many tokens a completion has at most"
        if isinstance(sample, str):
            checks.append(Check(RECOMPUTED, False, f"{table.path} of run {table.run_id}: {sample}"))
        else:
            drawn.append((table, sample))
    request = {
        "folder": str(folder.resolve()),
        "code": str(code.folder.resolve()),
        "package": code.package,
        "generate": code.generate,
        "smoke": {"prompts": PROMPTS, "max_new_tokens": MAX_NEW_TOKENS} if smoke else None,
        "again": [recomputation.request(table, sample) for table, sample in drawn],
    }
    if why := _why_unconfined(confined):
        with_rights = "its code ran with your rights, network and files, though without your environment"
        checks.append(Check("unconfined", True, f"{why}; {with_rights}"))
    answer = confined_process.run(WORKER, request, [folder], limit_s, confined=not why)
    if answer.found is None:
        late = f"not within {limit_s:g} s (the policy's safety.smoke_time_limit_s)"
        name, why = (LOADS, answer.why) if answer.in_time else ("loads and answers in time", late)
        return Result([*checks, Check(name, False, _plain(why))], [])
    said, samples = _parsed(answer.found, smoke)
    checks += said
    right = []
    if said[0].passed:
        answers = answer.found.get("again")
        answers = answers if isinstance(answers, list) and len(answers) == len(drawn) else [None] * len(drawn)
        for (table, sample), found in zip(drawn, answers, strict=True):
            finding = recomputation.compare(table, sample, found)
            checks.append(Check(RECOMPUTED, finding.passed, _plain(finding.detail)))
            if finding.passed:
                right.append(table.sha256)
    return Result(checks, samples, tuple(right))


def _why_unconfined(confined: bool) -> str:
    """Why a version's code is not confined; empty where it is. Raises InputError where it should be and cannot."""
    if not confined:
        return "--unconfined was given"
    why = confinement.missing()
    if why and sys.platform == "linux":
        raise InputError(
            f"A version's code cannot be confined here: {why}. Expected Linux on which it can reach neither the "
            "network nor your files. Run this on another machine, or, where you trust who trained the version, with "
            "--unconfined: its code then runs with your rights, though without your environment."
        )
    return why


def _of_files(folder: Path, version: ModelVersion) -> Iterator[Check]:
    manifest = artifacts.against_manifest(folder, version.tags.get(MANIFEST_SHA256))
    yield Check("files as at training", manifest.passed, manifest.detail)
    pickles = artifacts.no_pickle(folder)
    yield Check("no pickled code", pickles.passed, pickles.detail)
    try:
        yield Check("a protocol that serving knows", True, str(versions.protocol_of(folder, version.tags)))
    except UnknownVersion as error:
        yield Check("a protocol that serving knows", False, error.message)
        return
    code = released_code.compare(folder)
    yield Check("code of the release that made it", code.passed, _plain(code.detail))


def _parsed(found: dict[str, Any], smoke: bool) -> tuple[list[Check], list[tuple[str, str]]]:
    """The checks that the version's process made, and what it wrote; a check that is not there has failed."""
    expected = (LOADS, *(ASKED if smoke else ()))
    try:
        said = {str(item["name"]): (item["passed"] is True, str(item["detail"])) for item in found["checks"]}
        samples = [(str(prompt), str(completion)) for prompt, completion in found["samples"]]
    except (KeyError, TypeError, ValueError):
        return [Check(LOADS, False, "its process gave an answer of another form")], []
    checks = []
    for name in expected:
        if name in said:
            checks.append(Check(name, said[name][0], _plain(said[name][1])))
        elif all(check.passed for check in checks):  # else it has ended there
            checks.append(Check(name, False, "its process did not look"))
    return checks, [(_plain(prompt), _plain(completion)) for prompt, completion in samples[: len(PROMPTS)]]


def _plain(text: str) -> str:
    """What somebody else has written, for a terminal: no control characters, not too long."""
    shown = text[:MOST_CHARACTERS]
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in shown)
