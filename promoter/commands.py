"""What the promoter's commands do; cli.py declares them, with what each option means."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import outcomes
from contract.errors import InputError
from contract.lease import Claim, lease
from contract.metrics import SHOWN, lower_is_better
from contract.names import ARCHIVED, PRODUCTION, STAGING, VALIDATED, VALIDATION
from contract.outcomes import FREEZE, NOTHING, ROLLBACK, UNFREEZE
from contract.tracking import without_retries
from promoter import policy, promotion, records, registry, report, stages, tables
from promoter.decision import Stage
from promoter.promotion import Outcome, Request


def compare(
    uri: str,
    experiment_name: str,
    metrics: tuple[str, ...],
    params: tuple[str, ...],
    tags: tuple[str, ...],
    filter_string: str,
    limit: int,
    order_by: str | None,
    output_format: str,
) -> None:
    """Compare an experiment's runs by any metrics, params and tags; sorted and filtered by the tracking server."""
    client = registry.connect(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        known = ", ".join(item.name for item in client.search_experiments(max_results=50))
        raise InputError(f"There is no experiment '{experiment_name}'. There are: {known}.")
    order = order_by or f"metrics.`{metrics[0]}` {'ASC' if lower_is_better(metrics[0]) else 'DESC'}"
    try:
        # Once: at some filters, such as a time that is no date, MLflow's server fails, and would again.
        with without_retries() if filter_string or order_by else nullcontext():
            runs = client.search_runs([experiment.experiment_id], filter_string, order_by=[order], max_results=limit)
    except MlflowException as error:
        fails = error.error_code == "INTERNAL_ERROR" and bool(filter_string or order_by)
        if error.error_code != "INVALID_PARAMETER_VALUE" and not fails:
            raise
        raise InputError(
            f"--filter is '{filter_string}' and --order-by '{order}', which MLflow does not take: {error.message}. "
            "Expected, for example: --filter \"metrics.`eval/passed` > 0.1 and tags.role = 'candidate'\""
        ) from error
    columns = tables.Columns(metrics, params, tags)
    columns.check(runs)
    table = tables.runs_table(runs, columns)
    if output_format == "text":
        table = table.drop(columns="run_id", errors="ignore")  # too wide for a terminal
    click.echo(tables.render(table, output_format))


def compare_versions(
    uri: str,
    experiment_name: str,
    model_name: str,
    metrics: tuple[str, ...],
    params: tuple[str, ...],
    tags: tuple[str, ...],
    filter_string: str,
    limit: int,
    output_format: str,
) -> None:
    """Compare a registered model's versions, newest first, with aliases, stage, and their runs' metrics and params."""
    client = registry.connect(uri)
    versions = registry.versions(client, model_name, filter_string, limit)
    columns, runs = tables.Columns(metrics, params, tags), registry.runs_of(client, versions)
    columns.check(runs.values())
    click.echo(tables.render(tables.versions_table(versions, runs, columns), output_format))


def best(uri: str, experiment_name: str, model_name: str, policy_name: str, output_format: str) -> None:
    """Show the version that is best by the policy's primary metric, among those evaluated on the newest one's data."""
    primary = policy.load(policy_name).primary
    client = registry.connect(uri)
    versions = registry.comparable(registry.versions(client, model_name))
    version = registry.best(client, versions, primary.metric, primary.definition.direction)
    found = [version] if version is not None else []
    columns = tables.Columns((primary.metric, *(name for name in SHOWN if name != primary.metric)))
    click.echo(tables.render(tables.versions_table(found, registry.runs_of(client, found), columns), output_format))


def gate(context: click.Context, /, number: str | None, policy_name: str, by: str, stage: Stage, **_: Any) -> None:
    """Judge a version against the incumbent, and leave the decision with its reports; nothing is moved."""
    request = Request(stage, "gate", by, policy.load(policy_name), only_judge=True)
    with _promoting(context) as work:
        if number is not None or STAGING in registry.aliases(work.client, work.model):
            outcome = promotion.run(work.client, work.claim, chosen(work.client, work.model, number), request)
        else:
            outcome = _of_the_best(work, request, set())
    finish(context, outcome)


def auto_promote(context: click.Context, /, policy_name: str, by: str, stage: Stage, **_: Any) -> None:
    """Gate an experiment's candidates against the version in production, best first, until one may be promoted."""
    request = Request(stage, "auto-promote", by, policy.load(policy_name))
    passed_over: list[Outcome] = []
    while True:
        with _promoting(context) as work:  # each decision is a record of its own
            outcome = _of_the_best(work, request, {item.entry.version for item in passed_over})
        if not outcome.refused:
            break
        passed_over.append(outcome)
    if passed_over and outcome.entry.outcome == outcomes.NOTHING_TO_DO:
        outcome = passed_over.pop()  # they were all refused: the last one's refusal is the answer
    for refused in passed_over:
        if context.params["output_format"] == "text":
            click.echo(tables.decision_text(refused.decision) if refused.decision is not None else "")
            click.echo(f"Version {refused.entry.version} of {refused.entry.model}: refused. The next best:\n")
    finish(context, outcome, passed_over)


def promote(
    context: click.Context,
    /,
    number: str | None,
    policy_name: str,
    by: str,
    stage: Stage,
    force: bool,
    reason: str,
    **_: Any,
) -> None:
    """Promote one version, by default the staged one. It has to pass the gate."""
    if force and not any(character.isalnum() for character in reason):
        raise InputError(f"--force needs --reason TEXT, which says why, for the record; it is {reason!r}.")
    request = Request(stage, "promote", by, policy.load(policy_name), force, reason)
    with _promoting(context) as work:
        outcome = promotion.run(work.client, work.claim, chosen(work.client, work.model, number), request)
    finish(context, outcome)


def approve(context: click.Context, /, number: str | None, by: str, reason: str, **_: Any) -> None:
    """Let a version go on that awaits approval. It is gated once more, by the same policy, since time has passed."""
    with _promoting(context) as work:
        waiting = records.awaiting(work.client, work.model, number)
        tags = waiting[0].data.tags
        version = registry.version(work.client, work.model, tags["version"])
        if version.tags.get("stage") == ARCHIVED:
            raise InputError(
                f"Version {version.version} was archived while it awaited approval. `promoter promote --version "
                f"{version.version}` takes it nevertheless."
            )
        stage: Stage = "Production" if tags["stage"] == "Production" else "Staging"
        request = Request(
            stage, "approve", by, records.policy_of(work.client, waiting[0]), False, reason, approved=True
        )
        outcome = promotion.run(work.client, work.claim, version, request)
        if work.claim is not None:  # it awaits nothing any more
            for run in waiting:
                done = outcomes.WITHDRAWN if outcome.refused else outcomes.APPROVED
                work.client.set_tag(run.info.run_id, "outcome", done)
    finish(context, outcome)


def validate(
    context: click.Context,
    experiment_name: str,
    model_name: str,
    number: str | None,
    policy_name: str,
    dry_run: bool,
    unconfined: bool,
) -> None:
    """Load a version as serving does, generate with it, compute its evaluation again, and tag it with the result."""
    from promoter import recomputation, validation

    client = registry.connect(context.obj)
    wanted = chosen(client, model_name, number)
    passed = True
    for version, result in validation.run(client, wanted, policy.load(policy_name), not unconfined):
        its, named = version is wanted, f"Version {version.version} of {model_name}"
        if not its:
            click.echo(f"{named}, with which it is compared:")
        for check in result.checks:
            click.echo(tables.check_text(check.name, check.passed, check.detail))
        for prompt, completion in result.samples[:1]:
            click.echo("A sample:\n" + "\n".join(f"    {line}" for line in (prompt + completion).splitlines()))
        what, passed = "validation" if its else "its evaluation, computed again:", passed and result.passed
        if not dry_run:
            if its:
                status = "passed" if result.passed else "failed"
                client.set_model_version_tag(model_name, str(version.version), VALIDATION, status)
            if result.recomputed:
                right = recomputation.with_validated(version.tags, result.recomputed)
                client.set_model_version_tag(model_name, str(version.version), VALIDATED, right)
        click.echo(f"{named}: {what} {'passed' if result.passed else 'FAILED'}.")
    if not passed:
        context.exit(1)


def rollback(context: click.Context, /, by: str, reason: str, number: str | None, **_: Any) -> None:
    """Put the previous version back into production, at once and without a gate; the one taken out is archived."""
    with _promoting(context) as work:
        if any(run.data.tags["action"] == ROLLBACK for run in work.settled):
            number = registry.aliases(work.client, work.model)[PRODUCTION]
            why = f"a rollback that was interrupted is complete now: version {number} is in production"
            outcome = promotion.nothing(None, "Production", ROLLBACK, by, why)
        else:
            live = registry.aliases(work.client, work.model).get(PRODUCTION)
            if number is not None and number != live:
                there = f"version {live}" if live else "none"
                raise InputError(f"--from is {number}, and {there} is in production. Nothing was moved.")
            entry = stages.rollback(work.claim, work.client, work.model, reason, by)
            outcome = Outcome(entry, None, work.claim.run_id if work.claim else None)
    finish(context, outcome)


def freeze(context: click.Context, /, by: str, reason: str, **_: Any) -> None:
    """Let no version into Staging or Production until `promoter unfreeze`."""
    _freeze(context, FREEZE, by, reason)


def unfreeze(context: click.Context, /, by: str, reason: str, **_: Any) -> None:
    """Let versions be promoted again."""
    _freeze(context, UNFREEZE, by, reason)


def _freeze(context: click.Context, action: str, by: str, reason: str) -> None:
    with _promoting(context) as work:
        wanted = action == FREEZE
        if (registry.frozen_by(work.client, work.model) is not None) == wanted:
            why = f"{work.model} is {'frozen already' if wanted else 'not frozen'}"
            outcome = promotion.nothing(None, "Production", action, by, why)
        else:
            entry = stages.freeze(work.claim, work.client, work.model, action, reason, by)
            outcome = Outcome(entry, None, work.claim.run_id if work.claim else None)
    finish(context, outcome)


def archive(context: click.Context, /, number: str, by: str, reason: str, **_: Any) -> None:
    """Take a version out of the running, and all its aliases from it; never the one in production."""
    with _promoting(context) as work:
        entry = stages.archive(work.claim, registry.version(work.client, work.model, number), reason, by)
        outcome = Outcome(entry, None, work.claim.run_id if work.claim else None)
    finish(context, outcome)


def history(uri: str, experiment_name: str, model_name: str, output_format: str, all_of_them: bool, limit: int) -> None:
    """Who moved which version from where to where, when, why, and by which evidence (a run); newest first."""
    client = registry.connect(uri)
    registry.aliases(client, model_name)  # an unknown model is an error, not an empty history
    table = tables.history_table(records.history(client, model_name, limit, all_of_them))
    click.echo(tables.render(tables.fitted(table) if output_format == "text" else table, output_format))


@dataclass(frozen=True)
class _Work:
    """What a promoting command works with."""

    client: MlflowClient
    model: str
    claim: Claim | None  # None: a dry run
    settled: Sequence[Run] = ()  # records of dead promoters that were completed first


@contextmanager
def _promoting(context: click.Context) -> Iterator[_Work]:
    """Under the lock, with all settled that dead promoters left; in a dry run without."""
    given = context.params
    client, model = registry.connect(context.obj), given["model_name"]
    registry.aliases(client, model)  # an unknown model is told before anything is written
    if given["dry_run"]:
        yield _Work(client, model, None)
        return
    with lease(client, model, given["by"], given["wait_s"]) as claim:
        yield _Work(client, model, claim, stages.settle(claim))


def chosen(client: MlflowClient, model: str, number: str | None) -> ModelVersion:
    """The version with a number, or the staged one. Raises InputError."""
    if number is not None:
        return registry.version(client, model, number)
    staged = registry.with_alias(client, model, STAGING)
    if staged is None:
        raise InputError("No version is in Staging. Name one with --version, or run `promoter auto-promote` first.")
    return staged


def _of_the_best(work: _Work, request: Request, without: set[str]) -> Outcome:
    """What comes of a request with the best candidate that was not refused on the same evidence before."""
    left = [item for item in registry.candidates(work.client, work.model) if str(item.version) not in without]
    primary = request.policy.primary
    refused: Mapping[str, str] = {}
    if not request.only_judge:  # who asks for the gate's word shall get it
        refused = records.refused_by(work.client, work.model, records.digest(request.policy), request.stage)
    before: list[str] = []
    while (version := registry.best(work.client, left, primary.metric, primary.definition.direction)) is not None:
        outcome = promotion.run(work.client, work.claim, version, request, refused)
        if not outcome.refused_before:
            return outcome
        before.append(outcome.entry.version)
        left.remove(version)
    why = "there is no candidate newer than the version in production (`promote --version` takes any)"
    if before:
        which = f"version {before[0]} was" if len(before) == 1 else f"versions {', '.join(before)} were"
        why = (
            f"{which} refused on the same evidence before (`promoter history --all`), and there is no other candidate. "
            "`promoter gate --version N` asks the gate again"
        )
    return promotion.nothing(None, request.stage, request.action, request.by, why)


def finish(context: click.Context, outcome: Outcome, passed_over: Sequence[Outcome] = ()) -> None:
    """Print what came of it, also to GitHub's step summary; exit with 1 where the gate said no."""
    entry, decision, dry_run = outcome.entry, outcome.decision, context.params["dry_run"]
    would = "would be: " if dry_run else ""
    if entry.outcome == outcomes.NOTHING_TO_DO:
        texts = {
            "text": f"Nothing to do: {entry.why}.",
            "markdown": f"Nothing to do: {entry.why}.",
            "json": tables.to_json({"outcome": entry.outcome, "why": entry.why, "dry_run": dry_run}),
        }
    else:
        facts = decision.to_dict() if decision is not None else {}
        extra = {"dry_run": dry_run, "run_id": outcome.run_id} | vars(entry)
        if passed_over:
            extra["refused_first"] = [vars(item.entry) | {"run_id": item.run_id} for item in passed_over]
        replaces = entry.replaces not in (NOTHING, entry.version)
        instead = f" instead of version {entry.replaces}" if replaces else ""
        line = f"Version {entry.version} of {entry.model} → {entry.stage}{instead}: {would}{entry.outcome}."
        if entry.version == NOTHING:
            line = f"{entry.model}: {would}{entry.outcome}."
        if decision is not None and not decision.passed and not outcome.refused:
            line += " The gate says no; --force overrules it."
        if decision is None:
            line += f" {entry.why}."
        if entry.outcome == outcomes.AWAITING and not dry_run:
            line += f"\nTo let it go on: promoter approve --version {entry.version} --by NAME --reason TEXT"
        if outcome.run_id is not None:
            given = context.find_root().params
            address = (given["public_url"] or given["tracking_uri"]).rstrip("/")
            line += f"\nReport: {address}{records.report_of(MlflowClient().get_run(outcome.run_id))}"
        texts = {
            "text": "\n".join([*([tables.decision_text(decision)] if decision is not None else []), line]),
            "markdown": report.markdown(replace(entry, outcome=would + entry.outcome), decision),
            "json": tables.to_json(facts | extra),
        }
    click.echo(texts[context.params.get("output_format") or "text"])
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(texts["markdown"] + "\n")
        except OSError as error:  # what was done is done
            click.echo(f"GITHUB_STEP_SUMMARY is {summary}, which cannot be written: {error.strerror}.", err=True)
    if outcome.refused:
        context.exit(1)
