"""The command line: `trainer [train] [--config FILE] [section.key=value …]`."""

import os
import sys
import textwrap

import click

from trainer.config import CONFIGS, Config, load_config, to_yaml, walk


class _TrainByDefault(click.Group):
    """`trainer trainer.lr=1e-4` is short for `trainer train trainer.lr=1e-4`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["train", *args]
        return super().parse_args(ctx, args)


class _ConfigHelp(click.Command):
    """Adds every configuration field, with its default, to `--help`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(40, formatter.width - 6)
        with formatter.section("Configuration (override as section.key=value)"):
            for key, value, option in walk(Config()):
                expected = f" Expected: {option['expected']}." if option["expected"] else ""
                default = "none" if value is None else value
                formatter.write(f"  {key}  [{default}]\n")
                for line in textwrap.wrap(option["help"] + expected, width):
                    formatter.write(f"      {line}\n")
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        formatter.write(f"\nShipped configurations for --config: {names}.\n")


@click.group(cls=_TrainByDefault, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ratchet")
def main() -> None:
    """Fine-tune a code model on your code, and register it in MLflow. With overrides alone: train."""


@main.command(cls=_ConfigHelp)
@click.option("--config", "-c", "config_path", metavar="FILE", help="YAML file, or the name of a shipped one.")
@click.option("--dry-run", is_flag=True, help="Check model, data and tracking server, print the configuration, stop.")
@click.argument("overrides", nargs=-1, metavar="[section.key=value]...")
def train(config_path: str | None, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Train: evaluate the base model, fine-tune it, evaluate the result, log and register both.

    Example: trainer train --config demo data.source=src trainer.epochs=2
    """
    for variable in ("DATA_SOURCE", "MLFLOW_TRACKING_URI", "RATCHET_HOME"):
        if not os.environ.get(variable):
            os.environ.pop(variable, None)  # empty counts as unset, as the env files say
    config = load_config(config_path, overrides)
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # no progress bars in a pipe: plain lines instead
    from trainer import job, tracking  # torch and transformers take seconds to import

    with tracking.terminated_as_interrupt():
        try:
            prepared = job.prepare(config)
            if dry_run:
                click.echo(f"\n{to_yaml(config)}\nEverything is in order; nothing was trained (--dry-run).")
                return
            job.run(prepared)
        except KeyboardInterrupt as interrupt:
            reason = "terminated" if isinstance(interrupt, tracking.Terminated) else "interrupted"
            click.echo(
                f"\nTraining was {reason}. A run that had not finished is marked KILLED and has registered nothing.",
                err=True,
            )
            sys.exit(143 if isinstance(interrupt, tracking.Terminated) else 130)


if __name__ == "__main__":
    main()
