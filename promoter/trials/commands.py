"""What `promoter trial` and its commands do; promoter/cli.py declares them."""

import click
from click.core import ParameterSource

from contract import outcomes
from contract.errors import InputError
from contract.lease import lease
from contract.names import PRODUCTION
from contract.outcomes import TRIAL
from promoter import registry, stages, tables
from promoter.commands import chosen, finish
from promoter.promotion import Outcome, nothing
from promoter.records import Entry
from promoter.trials import policy, report, watch
from promoter.trials.watch import Running


def trial(
    context: click.Context,
    /,
    model_name: str,
    number: str | None,
    policy_name: str,
    by: str,
    reason: str,
    dry_run: bool,
    wait_s: float,
    output_format: str,
    **_: object,
) -> None:
    """Begin a trial, or go on with the one of this version that runs, and watch it until it has ended."""
    wanted = policy.load(policy_name)
    client = registry.connect(context.obj)
    running, begun = watch.current(client, model_name), False
    if running is not None and number is not None and running.number != number:
        raise InputError(
            f"Version {running.number} is on trial already. Expected that version, to go on with its trial, or "
            "`promoter trial stop` first."
        )
    if running is not None and _is_given(context, "policy_name") and wanted != running.policy:
        raise InputError(
            f"--policy is '{policy_name}', and the trial of version {running.number} began with another, which stays. "
            "Expected no --policy, to go on with it, or `promoter trial stop` first."
        )
    if dry_run:
        version = chosen(client, model_name, running.number if running else number)
        if running is None:
            watch.refuse(client, version)
            text = watch.plan(version, registry.aliases(client, model_name)[PRODUCTION], wanted)
        else:
            text = f"Would go on with the trial of version {running.number}, at {running.share:.0%} of the requests."
        facts = {
            "dry_run": True,
            "version": str(version.version),
            "policy": (running.policy if running else wanted).model_dump(mode="json"),
            "plan": text,
        }
        click.echo(tables.to_json(facts) if output_format == "json" else text)
        return
    if running is None:
        with lease(client, model_name, by, wait_s) as claim:
            stages.settle(claim)
            running, begun = watch.begin(claim, chosen(client, model_name, number), wanted, by, reason), True
    _say(f"{'Trial' if begun else 'Going on with the trial'} of version {running.number} of {running.model} against "
         f"version {running.incumbent}. Ctrl-C leaves it running for {running.policy.lease_s:g} s.")  # fmt: skip
    entry = watch.watch(running, _say, wait_s if _is_given(context, "wait_s") else watch.WAIT_S)
    _end(context, running, entry)


def status(context: click.Context, /, model_name: str, output_format: str, **_: object) -> None:
    """Show how the running trial stands."""
    running = _running(context, model_name)
    verdict, progress = running.verdict(anew=True), running.progress
    facts = {
        "model": model_name,
        "challenger": running.number,
        "incumbent": running.incumbent,
        "step": progress.step + 1,
        "steps": len(running.policy.steps),
        "share": running.share,
        "shadow": running.in_shadow,
        "began": progress.began,
        "requests": {"incumbent": verdict.requests[0], "challenger": verdict.requests[1]},
        "next": verdict.action,
        "why": verdict.why,
        "measures": [report.facts_of(one) for one in verdict.measures],
        "events": [vars(event) | {"when": event.when} for event in progress.events],
        "run_id": running.id,
    }
    if output_format == "json":
        click.echo(tables.to_json(facts))
        return
    lines = [
        f"Version {running.number} of {model_name} is on trial against version {running.incumbent}: step "
        f"{progress.step + 1} of {len(running.policy.steps)}, {running.share:.0%} of the requests; so far "
        f"{verdict.requests[0]} incumbent, {verdict.requests[1]} challenger."
        if not running.in_shadow
        else f"Version {running.number} of {model_name} is in the shadow of version {running.incumbent}, with copies "
        f"of {running.share:.0%} of the requests; {verdict.why}."
    ]
    for one in verdict.measures:
        state = "holds" if one.holds else "worse" if one.is_worse else "open"
        role = ", decides" if one.decides else ""
        lines.append(f"- {one.text}: {state} (allowed: -{100 * one.margin:.3g}{role})")
    lines += [f"- {event.when}: {event.what}" for event in progress.events]
    click.echo("\n".join(lines))


def stop(context: click.Context, /, reason: str, **_: object) -> None:
    """End the running trial without a result."""
    _end_by_hand(context, "inconclusive", f"stopped by hand: {reason}")


def promote(context: click.Context, /, reason: str, **_: object) -> None:
    """End the running trial and put the challenger into production."""
    _end_by_hand(context, "promote", f"promoted by hand: {reason}")


def _end_by_hand(context: click.Context, action: str, why: str) -> None:
    given = context.params
    model_name, by = given["model_name"], given["by"]
    if given["dry_run"]:
        what = "go into production" if action == "promote" else "get no requests any more"
        click.echo(f"Version {_running(context, model_name).number} would {what}; {why}.")
        return
    client = registry.connect(context.obj)
    registry.aliases(client, model_name)  # an unknown model is told as one
    with lease(client, model_name, by, given["wait_s"]) as claim:
        settled = [run.data.tags for run in stages.settle(claim) if run.data.tags.get("action") == TRIAL]
    if ended := next((tags for tags in settled if tags["outcome"] != outcomes.ON_TRIAL), None):
        done = f"the end of version {ended['version']}'s trial was interrupted, and is complete now: {ended['outcome']}"
        finish(context, nothing(None, ended["stage"], TRIAL, by, done))
        return
    running = _running(context, model_name)
    try:
        verdict = running.verdict(anew=True)
    except ArithmeticError:  # whatever somebody has done to its figures: it can be ended
        verdict = None
    entry = watch.end(running, action, why, verdict, by)
    _end(context, running, entry, stopped=action == "inconclusive")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) == ParameterSource.COMMANDLINE


def _running(context: click.Context, model_name: str) -> Running:
    running = watch.current(registry.connect(context.obj), model_name)
    if running is None:
        raise InputError(f"No version of {model_name} is on trial. `promoter trial --version N` starts one.")
    return running


def _end(context: click.Context, running: Running, entry: Entry, stopped: bool = False) -> None:
    finish(context, Outcome(entry, None, running.record))
    if entry.outcome != outcomes.PROMOTED and not stopped:
        context.exit(1)


def _say(line: str) -> None:
    click.echo(line, err=True)
