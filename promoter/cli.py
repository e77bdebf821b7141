"""The command line: `promoter COMMAND --help`. What each command does: commands.py, which takes seconds to import."""

import signal
import threading
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from contract.errors import Unreachable, disk_full, unexpected
from contract.names import LOOP_FROZEN, LOOP_RUN_NOW
from contract.tracking import as_ours
from promoter.options import options, text


class _Promoter(click.Group):
    """Gives trouble with the tracking server its exit code, and no stack trace; its options may follow the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [*_own_options(self, args), *args])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):  # click's matter
            raise
        except Exception as error:
            left = "What was begun is finished by the same command."
            ours = disk_full(error, left) or as_ours(error, left)
            if ours is None and isinstance(error, OSError):
                ours = Unreachable(f"The tracking server, or its store, did not do its work: {error}. {left}")
            raise ours or unexpected(error, left) from error
        except KeyboardInterrupt:
            click.echo("Interrupted. What was begun is finished by the same command.", err=True)
            ctx.exit(130)


def _own_options(group: click.Group, args: list[str]) -> list[str]:
    """The group's options that have a value, with it; they are taken out of `args`."""
    options = (option for option in group.params if isinstance(option, click.Option) and not option.is_flag)
    names = {name for option in options for name in option.opts}
    found: list[str] = []
    number = 0
    while number < len(args) and args[number] != "--":
        name, with_value, _ = args[number].partition("=")
        length = 1 if with_value else 2
        if name in names and number + length <= len(args):
            found += args[number : number + length]
            del args[number : number + length]
        else:
            number += 1
    return found


@click.group(cls=_Promoter, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ratchet")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="http://127.0.0.1:5000",
    show_default=True,
    show_envvar=True,
    help="MLflow tracking server.",
)
@click.option(
    "--public-url",
    envvar="TRACKING_PUBLIC_URL",
    show_envvar=True,
    help="Where people open the tracking server, for the links that are printed.  [default: the tracking URI]",
)
@click.pass_context
def main(context: click.Context, tracking_uri: str, public_url: str | None) -> None:
    """Compare model versions, and let one into production only when it is better than what serves there.

    Exit codes: 0 promoted or nothing to do, 1 the gate or a check said no, 2 bad input, 3 the tracking server does
    not do its work, 4 somebody else is promoting.
    """
    context.obj = tracking_uri
    if threading.current_thread() is threading.main_thread():
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the lock is let go at SIGTERM too
        context.call_on_close(lambda: signal.signal(signal.SIGTERM, previous))


@main.command()
@options("experiment", "columns", "format")
@click.option("--order-by", help='E.g. "metrics.`eval/passed` DESC".  [default: best first by the first metric]')
@click.pass_obj
def compare(uri: str, /, **given: Any) -> None:
    """Compare an experiment's runs by any metrics, params and tags; sorted and filtered by the tracking server.

    Example: promoter compare --metric eval/passed --param trainer.lr --filter "params.`trainer.method` = 'lora'"
    """
    from promoter import commands

    commands.compare(uri, **given)


@main.command("compare-versions")
@options("experiment", "model", "columns", "format")
@click.pass_obj
def compare_versions(uri: str, /, **given: Any) -> None:
    """Compare a registered model's versions, newest first, with aliases, stage, and their runs' metrics and params."""
    from promoter import commands

    commands.compare_versions(uri, **given)


@main.command()
@options("experiment", "model", "policy", "format")
@click.pass_obj
def best(uri: str, /, **given: Any) -> None:
    """Show the version that is best by the policy's primary metric, among those evaluated on the newest one's data."""
    from promoter import commands

    commands.best(uri, **given)


@main.command()
@options("experiment", "model", "version", "policy", "by", "stage", "dry-run", "wait", "format")
@click.pass_context
def gate(context: click.Context, /, **given: Any) -> None:
    """Judge a version against the incumbent, and leave the decision with its reports; nothing is moved.

    Without --version: the staged one, or else the best candidate.
    """
    from promoter import commands

    commands.gate(context, **given)


@main.command("auto-promote")
@options("experiment", "model", "policy", "by", "stage", "dry-run", "wait", "format")
@click.pass_context
def auto_promote(context: click.Context, /, **given: Any) -> None:
    """Gate an experiment's best candidate against the version in production, and promote it if it is better.

    A candidate is a fine-tuned version newer than the one in production. Under a policy with `approval: manual`, one
    that passes awaits `promoter approve`.
    """
    from promoter import commands

    commands.auto_promote(context, **given)


@main.command()
@options("experiment", "model", "version", "policy", "by", "stage", "dry-run", "wait", "format")
@click.option("--force", is_flag=True, help="Promote although the gate says no; needs --reason.")
@click.option("--reason", default="", help="Why, for the record.")
@click.pass_context
def promote(context: click.Context, /, **given: Any) -> None:
    """Promote one version, by default the staged one. It has to pass the gate."""
    from promoter import commands

    commands.promote(context, **given)


@main.command()
@options("experiment", "model", "reason", "dry-run", "wait", "format")
@click.option("--version", "number", help="Which version.  [default: the newest that awaits approval]")
@click.option("--by", required=True, callback=text, help="Who approves, for the record.")
@click.pass_context
def approve(context: click.Context, /, **given: Any) -> None:
    """Let a version go on that awaits approval. It is gated once more, by the same policy, since time has passed."""
    from promoter import commands

    commands.approve(context, **given)


@main.command()
@options("experiment", "model", "version", "policy", "dry-run")
@click.option("--unconfined", is_flag=True, help="Run the version's code where it cannot be confined: you trust it.")
@click.pass_context
def validate(context: click.Context, /, **given: Any) -> None:
    """Load a version as serving does, generate with it, compute its evaluation again, and tag it with the result.

    Its code runs without network, login and files. The evaluation of the version that it is compared with is computed
    again too, where it was not yet.
    """
    from promoter import commands

    commands.validate(context, **given)


@main.command()
@options("experiment", "model", "by", "dry-run", "wait", "format")
@click.option("--from", "number", help="Only if this version is in production: another is an error.")
@click.option("--reason", default="rolled back by hand", show_default=True, callback=text, help="Why, for the record.")
@click.pass_context
def rollback(context: click.Context, /, **given: Any) -> None:
    """Put the previous version back into production, at once and without a gate; the one taken out is archived."""
    from promoter import commands

    commands.rollback(context, **given)


@main.command()
@options("experiment", "model", "by", "reason", "dry-run", "wait", "format")
@click.pass_context
def freeze(context: click.Context, /, **given: Any) -> None:
    """Let no version into Staging or Production, whatever asks for it, until `promoter unfreeze`.

    Rolling back, archiving and asking the gate go on.
    """
    from promoter import commands

    commands.freeze(context, **given)


@main.command()
@options("experiment", "model", "by", "reason", "dry-run", "wait", "format")
@click.pass_context
def unfreeze(context: click.Context, /, **given: Any) -> None:
    """Let versions be promoted again."""
    from promoter import commands

    commands.unfreeze(context, **given)


@main.command()
@options("experiment", "model", "by", "dry-run", "wait", "format")
@click.option("--version", "number", required=True, help="Which version.")
@click.option("--reason", default="archived by hand", show_default=True, callback=text, help="Why, for the record.")
@click.pass_context
def archive(context: click.Context, /, **given: Any) -> None:
    """Take a version out of the running, and all its aliases from it; never the one in production."""
    from promoter import commands

    commands.archive(context, **given)


@main.group(invoke_without_command=True)
@options("experiment", "model", "version", "by", "dry-run", "wait", "format")
@click.option(
    "--policy",
    "policy_name",
    default="default",
    show_default=True,
    help="YAML file, or the name of a shipped one (docs/trials.md).",
)
@click.option("--reason", default="", help="Why, for the record.")
@click.pass_context
def trial(context: click.Context, /, **given: Any) -> None:
    """Let a staged version answer a share of production's requests, and users decide: it is promoted, rolled back, or
    stays where it is.

    Runs until the trial has ended, and shows how it stands. Killed, the same command goes on with it; after `lease_s`
    without it serving gives the challenger nothing more. Exit codes: 0 promoted, 1 not.

    Example: promoter trial --version 7 --policy trial.yaml
    """
    if context.invoked_subcommand is not None:  # options may come before its name, too
        said = {
            name: given[name] for name in given if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        }
        context.default_map = {context.invoked_subcommand: said}
        return
    from promoter.trials import commands

    commands.trial(context, **given)


@trial.command("status")
@options("experiment", "model", "format")
@click.pass_context
def trial_status(context: click.Context, /, **given: Any) -> None:
    """Show how the running trial stands."""
    from promoter.trials import commands

    commands.status(context, **given)


@trial.command("stop")
@options("experiment", "model", "by", "reason", "dry-run", "wait", "format")
@click.pass_context
def trial_stop(context: click.Context, /, **given: Any) -> None:
    """End the running trial without a result: the challenger gets no requests any more."""
    from promoter.trials import commands

    commands.stop(context, **given)


@trial.command("promote")
@options("experiment", "model", "by", "reason", "dry-run", "wait", "format")
@click.pass_context
def trial_promote(context: click.Context, /, **given: Any) -> None:
    """End the running trial and put the challenger into production, whatever the figures say."""
    from promoter.trials import commands

    commands.promote(context, **given)


@main.group()
def loop() -> None:
    """Watch and steer the loop that trains by itself (docs/loop.md)."""


@loop.command("status")
@options("experiment", "model", "format")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Show so many rounds.")
@click.pass_obj
def loop_status(uri: str, /, model_name: str, output_format: str, limit: int, **_: Any) -> None:
    """Show the last rounds: what began each, what it trained, and how it ended."""
    from promoter import loop as commands

    commands.status(uri, model_name, output_format, limit)


@loop.command("check")
@click.option("--gate", required=True, help="The gate's policy: a YAML file, or the name of a shipped one.")
@click.option("--trial", help="The trial's policy: as --gate.")
def loop_check(gate: str, trial: str | None) -> None:
    """Read the policies that a loop.yaml names, before the loop trains for hours."""
    from promoter import loop as commands

    commands.check(gate, trial)


@loop.command("freeze")
@options("experiment", "model", "by", "reason")
@click.pass_obj
def loop_freeze(uri: str, /, model_name: str, by: str, reason: str, **_: Any) -> None:
    """Begin no round any more, until `promoter loop resume`."""
    from promoter import loop as commands

    commands.say(uri, model_name, LOOP_FROZEN, by, reason)


@loop.command("resume")
@options("experiment", "model")
@click.pass_obj
def loop_resume(uri: str, /, model_name: str, **_: Any) -> None:
    """Let the loop begin rounds again."""
    from promoter import loop as commands

    commands.resume(uri, model_name)


@loop.command("run-now")
@options("experiment", "model", "by", "reason")
@click.pass_obj
def loop_run_now(uri: str, /, model_name: str, by: str, reason: str, **_: Any) -> None:
    """Begin a round when the loop next looks, whatever the triggers say; the budget holds."""
    from promoter import loop as commands

    commands.say(uri, model_name, LOOP_RUN_NOW, by, reason)


@main.command()
@options("experiment", "model", "format")
@click.option(
    "--all", "all_of_them", is_flag=True, help="Also decisions that moved nothing: refused, awaiting approval."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show so many entries.")
@click.pass_obj
def history(uri: str, /, **given: Any) -> None:
    """Who moved which version from where to where, when, why, and by which evidence (a run); newest first."""
    from promoter import commands

    commands.history(uri, **given)


@main.command()
@click.option("--host", envvar="PROMOTER_HOST", default="127.0.0.1", show_default=True, help="Interface to listen on.")
@click.option("--port", envvar="PROMOTER_PORT", type=click.IntRange(1, 65535), default=8010, show_default=True)
@click.option(
    "--tokens-file",
    envvar="SERVING_TOKENS_FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=".secrets/serving_tokens",
    show_default=True,
    show_envvar=True,
    help="Serving's tokens; administrators' among them may ask.",
)
@click.pass_context
def serve(context: click.Context, host: str, port: int, tokens_file: Path) -> None:
    """Listen for what administrators do on serving's page, and run it as these commands. Ends at SIGTERM.

    For a tracking server with logins: the promoter's account is here, and serving has none of its rights.
    """
    from promoter import server

    server.serve(tokens_file, host, port, context.obj, context.find_root().params["public_url"])


if __name__ == "__main__":
    main()
