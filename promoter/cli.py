"""The command line: `promoter COMMAND --help`."""

import getpass
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from promoter import gate, registry, report, stages
from promoter.errors import InputError

DEFAULT_EXPERIMENT = "code_model_fine_tuning"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ratchet")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="http://127.0.0.1:5000",
    show_default=True,
    show_envvar=True,
    help="MLflow tracking server.",
)
@click.pass_context
def main(context: click.Context, tracking_uri: str) -> None:
    """Compare model versions, and let one into production only when it is better than what serves there.

    Exit codes: 0 done or nothing to do, 1 the gate or a check said no, 2 bad input, 4 somebody else is promoting.
    """
    context.obj = tracking_uri


def _options(*names: str) -> Callable[[Any], Any]:
    """The options that several commands share, by name."""
    known = {
        "experiment": click.option(
            "--experiment-name", default=DEFAULT_EXPERIMENT, show_default=True, help="MLflow experiment."
        ),
        "model": click.option(
            "--model-name",
            default=f"{DEFAULT_EXPERIMENT}_model",
            show_default=True,
            help="Registered model (the PyFunc one).",
        ),
        "metric": click.option(
            "--metric",
            "metrics",
            multiple=True,
            default=report.SHOWN_METRICS,
            help="Metric to show, may be repeated; the first one sorts.  [default: the evaluation's]",
        ),
        "policy": click.option(
            "--policy",
            default="default",
            show_default=True,
            help="YAML file, or the name of a shipped policy.",
        ),
        "by": click.option("--by", default=getpass.getuser, help="Who promotes, for the record.  [default: you]"),
        "format": click.option(
            "--format",
            "output_format",
            type=click.Choice(["text", "json", "markdown"]),
            default="text",
            show_default=True,
            help="How to print.",
        ),
    }

    def add(command: Any) -> Any:
        for name in reversed(names):
            command = known[name](command)
        return command

    return add


@main.command()
@_options("experiment", "metric", "format")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show so many runs.")
@click.pass_obj
def compare(uri: str, experiment_name: str, metrics: tuple[str, ...], output_format: str, limit: int) -> None:
    """Compare an experiment's runs, best first by the first metric (lower is better for nll, loss, perplexity)."""
    client = registry.connect(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        known = ", ".join(item.name for item in client.search_experiments())
        raise InputError(f"There is no experiment '{experiment_name}'. There are: {known}.")
    lower = any(word in metrics[0] for word in ("nll", "loss", "perplexity"))
    order = f"metrics.`{metrics[0]}` {'ASC' if lower else 'DESC'}"
    runs = client.search_runs([experiment.experiment_id], order_by=[order], max_results=limit)
    table = report.runs_table(runs, metrics)
    if output_format == "text":
        table = table.drop(columns="run_id", errors="ignore")  # too wide for a terminal
    click.echo(report.render(table, output_format))


@main.command("compare-versions")
@_options("model", "metric", "format")
@click.pass_obj
def compare_versions(uri: str, model_name: str, metrics: tuple[str, ...], output_format: str) -> None:
    """Compare the versions of a registered model, newest first, with aliases, stage and metrics."""
    client = registry.connect(uri)
    versions = registry.list_versions(client, model_name)
    click.echo(report.render(report.versions_table(client, versions, metrics), output_format))


@main.command()
@_options("model", "policy", "format")
@click.pass_obj
def best(uri: str, model_name: str, policy: str, output_format: str) -> None:
    """Show the best version by the policy's metric, among those evaluated on the newest one's data."""
    client = registry.connect(uri)
    loaded = gate.load_policy(policy)
    version = registry.best_of(client, registry.list_versions(client, model_name), loaded)
    found = [version] if version is not None else []
    metrics = (loaded.metric, *(name for name in report.SHOWN_METRICS if name != loaded.metric))
    click.echo(report.render(report.versions_table(client, found, metrics), output_format))


@main.command("auto-promote")
@_options("model", "policy", "by", "format")
@click.option(
    "--stage",
    type=click.Choice(["Staging", "Production"]),
    default="Staging",
    show_default=True,
    help="Where the best candidate goes if the gate passes it.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.pass_context
def auto_promote(
    context: click.Context,
    model_name: str,
    policy: str,
    by: str,
    output_format: str,
    stage: str,
    dry_run: bool,
) -> None:
    """Gate the best candidate against the version in production, and promote it if it is better."""
    client = registry.connect(context.obj)
    loaded = gate.load_policy(policy)
    with stages.lock(model_name):
        if not dry_run:
            stages.settle(client, model_name)
        candidates = registry.open_candidates(registry.list_versions(client, model_name))
        version = registry.best_of(client, candidates, loaded)
        if version is None:
            _nothing_to_do(output_format, "there is no candidate outside production and archive")
            return
        request = _Request(stage, "auto-promote", by, output_format, dry_run)
        _gate_and_promote(context, client, version, loaded, request)


@main.command()
@_options("model", "policy", "by", "format")
@click.option("--stage", type=click.Choice(["Staging", "Production", "Archived"]), required=True, help="Where to.")
@click.option("--version", "number", help="Which version.  [default: the staged one]")
@click.option("--force", is_flag=True, help="Promote although the gate says no; needs --reason.")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.pass_context
def promote(
    context: click.Context,
    model_name: str,
    policy: str,
    by: str,
    output_format: str,
    stage: str,
    number: str | None,
    force: bool,
    reason: str,
    dry_run: bool,
) -> None:
    """Promote one version, by default the staged one. It has to pass the gate, but for Archived."""
    client = registry.connect(context.obj)
    loaded = gate.load_policy(policy)
    if force and not reason:
        raise InputError("--force needs --reason TEXT: it goes into the record.")
    with stages.lock(model_name):
        version = _chosen(registry.list_versions(client, model_name), number)
        if stage != "Archived":
            request = _Request(stage, "promote", by, output_format, dry_run, force, reason)
            _gate_and_promote(context, client, version, loaded, request)
        elif dry_run:
            click.echo(f"Would archive version {version.version}.")
        else:
            stages.archive(client, version, {"passed": True, "why": reason or "archived by hand"}, by)
            click.echo(f"Version {version.version} of {model_name} is archived.")


@main.command()
@_options("model")
@click.option("--version", "number", help="Which version.  [default: the staged one]")
@click.pass_context
def validate(context: click.Context, model_name: str, number: str | None) -> None:
    """Load a version as serving does, generate with it, check what comes out, and tag the version with the result."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "Loading a model needs torch, which is not installed here. Run this where it is; in the Compose stack: "
            "docker compose run --rm --entrypoint promoter serving validate"
        )
    from promoter.validation import validate as run_checks  # the model brings torch and transformers

    client = registry.connect(context.obj)
    version = _chosen(registry.list_versions(client, model_name), number)
    checks, samples = run_checks(f"models:/{model_name}/{version.version}")
    for check in checks:
        click.echo(f"  {'✓' if check.passed else '✗'} {check.name}: {check.detail}")
    for prompt, completion in samples[:1]:
        click.echo("A sample:\n" + "\n".join(f"    {line}" for line in (prompt + completion).splitlines()))
    passed = all(check.passed for check in checks)
    client.set_model_version_tag(
        model_name, str(version.version), "validation_status", "passed" if passed else "failed"
    )
    click.echo(f"Version {version.version} of {model_name}: validation {'passed' if passed else 'FAILED'}.")
    if not passed:
        context.exit(1)


@main.command()
@_options("model", "by")
@click.option("--reason", default="rolled back by hand", show_default=True, help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.pass_obj
def rollback(uri: str, model_name: str, by: str, reason: str, dry_run: bool) -> None:
    """Put the previous version back into production; the one taken out is archived."""
    client = registry.connect(uri)
    with stages.lock(model_name):
        if dry_run:
            current, previous = stages.rollback_pair(client, model_name)
            click.echo(f"Would roll back production from version {current.version} to {previous.version}.")
            return
        taken_out, put_back = stages.rollback(client, model_name, reason, by)
    click.echo(f"Production of {model_name}: version {taken_out} → {put_back}. Reason: {reason}.")


@main.command()
@_options("model", "format")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show so many entries.")
@click.pass_obj
def history(uri: str, model_name: str, output_format: str, limit: int) -> None:
    """Who moved which version where, when and why; newest first."""
    client = registry.connect(uri)
    registry.list_versions(client, model_name)  # an unknown model is an error, not an empty history
    experiment = client.get_experiment_by_name(stages.EXPERIMENT)
    runs: list[Run] = []
    if experiment is not None:
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.model = '{model_name}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
    click.echo(report.render(report.history_table(runs), output_format))


def _chosen(versions: list[ModelVersion], number: str | None) -> ModelVersion:
    if number is not None:
        return registry.find_version(versions, number)
    staged = registry.with_alias(versions, registry.STAGING)
    if staged is None:
        raise InputError("No version is in Staging. Name one with --version, or run `promoter auto-promote` first.")
    return staged


@dataclass(frozen=True)
class _Request:
    """What a promoting command was asked to do with the version that it has chosen."""

    stage: str
    action: str
    by: str
    output_format: str
    dry_run: bool
    force: bool = False
    reason: str = ""


def _gate_and_promote(
    context: click.Context, client: MlflowClient, version: ModelVersion, policy: gate.Policy, request: _Request
) -> None:
    """Decide, act on the decision, print it. Exits with 1 where the gate says no."""
    name, number = version.name, str(version.version)
    versions = registry.list_versions(client, name)
    if request.stage.lower() in version.aliases:
        if not request.dry_run:
            stages.settle(client, name)
        _nothing_to_do(request.output_format, f"version {number} of {name} is in {request.stage} already")
        return
    if registry.PRODUCTION in version.aliases:
        raise InputError(f"Version {number} is in production, beyond {request.stage}. Take another, or roll back.")
    candidate = registry.evidence(client, version)
    incumbent = registry.incumbent_of(versions, version)
    decision = gate.decide(
        policy, candidate, registry.evidence(client, incumbent, like=candidate) if incumbent is not None else None
    )
    may_go = decision.passed or request.force
    if may_go and not request.dry_run:
        record = decision.to_dict() | {"forced": not decision.passed}
        if request.reason:
            record["why"] = f"{request.reason} ({decision.why})"
        stages.promote(client, version, request.stage, request.action, record, request.by)
    outcome = "promoted" if may_go else "refused"
    if request.output_format == "json":
        extra = {"outcome": outcome, "stage": request.stage, "dry_run": request.dry_run}
        click.echo(json.dumps({**extra, **decision.to_dict()}, indent=2))
    elif request.output_format == "markdown":
        header = {"model": name, "version": number, "stage": request.stage, "action": outcome, "by": request.by}
        click.echo(report.decision_report(header | decision.to_dict()))
    else:
        click.echo(report.decision_text(decision))
        verb = {
            (True, False): "is now in",
            (True, True): "would go to",
            (False, False): "does not go to",
            (False, True): "would not go to",
        }[may_go, request.dry_run]
        forced = ", although the gate says no (--force)" if may_go and not decision.passed else ""
        click.echo(f"Version {number} of {name} {verb} {request.stage}{forced}.")
    if not may_go:
        context.exit(1)


def _nothing_to_do(output_format: str, why: str) -> None:
    if output_format == "json":
        click.echo(json.dumps({"outcome": "nothing to do", "why": why}))
    else:
        click.echo(f"Nothing to do: {why}.")


if __name__ == "__main__":
    main()
