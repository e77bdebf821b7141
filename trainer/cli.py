"""The command line: `trainer [train|prepare|evaluate|export|try] [--config FILE] [section.key=value …]`."""

import difflib
import json
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import click

from code_model import threads
from contract.errors import InputError, disk_full, unexpected
from contract.names import EVALUATOR_DIR, GOMP_SPINCOUNT, PRODUCTION, pyfunc_model
from contract.redaction import redact
from contract.tracking import as_ours
from trainer import folders
from trainer.config import CONFIGS, Config, load_config, to_yaml, with_source
from trainer.options import walk


class _TrainByDefault(click.Group):
    """`trainer trainer.lr=1e-4` is short for `trainer train trainer.lr=1e-4`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            if args[0].isalpha():
                near = difflib.get_close_matches(args[0], self.commands, n=1)
                hint = f"Did you mean '{near[0]}'?" if near else f"Expected {', '.join(self.commands)}, or a setting."
                raise click.UsageError(f"No such command '{args[0]}'. {hint}")
            args = ["train", *args]
        return super().parse_args(ctx, args)


class _ConfigHelp(click.Command):
    """Adds the configuration's fields, each with its default, to `--help`: all, or those of some sections."""

    sections: tuple[str, ...] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(40, formatter.width - 6)
        with formatter.section("Configuration (override as section.key=value)"):
            for key, value, option in walk(Config()):
                if self.sections and key.partition(".")[0] not in self.sections:
                    continue
                expected = f" Expected: {option['expected']}." if option["expected"] else ""
                default = "none" if value is None else value
                formatter.write(f"  {key}  [{default}]\n")
                for line in textwrap.wrap(option["help"] + expected, width):
                    formatter.write(f"      {line}\n")
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        formatter.write(f"\nShipped configurations for --config: {names}.\n")


class _PrepareHelp(_ConfigHelp):
    sections = ("data", "model", "trainer")


class _ExportHelp(_ConfigHelp):
    sections = ("tracking",)


class _ChangesHelp(_ConfigHelp):
    sections = ("data", "tracking")


class _TryHelp(_ConfigHelp):
    sections = ("model", "tracking")


class _EvaluateHelp(_ConfigHelp):
    sections = ("data", "eval", "model", "trainer", "tracking", "seed")


def _config_options(command: Any) -> Any:
    command = click.argument("overrides", nargs=-1, metavar="[section.key=value]...")(command)
    help = "YAML file, or the name of a shipped one."
    return click.option("--config", "-c", "config_path", metavar="FILE", help=help)(command)


@click.group(cls=_TrainByDefault, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ratchet")
def main() -> None:
    """Fine-tune a code model on your code, and register it in MLflow. With overrides alone: train."""
    for variable in (
        *("CHECKPOINTS_DIR", "DATA_SOURCE", EVALUATOR_DIR, "MLFLOW_TRACKING_URI", "RATCHET_HOME"),
        "TRACKING_PUBLIC_URL",
    ):
        if not os.environ.get(variable):
            os.environ.pop(variable, None)  # empty counts as unset, as the env files say
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # no progress bars in a pipe: plain lines instead


@main.command(cls=_ConfigHelp, short_help="Fine-tune, judge and register a model (the default).")
@click.option("--dry-run", is_flag=True, help="Check model, data and tracking server, print the configuration, stop.")
@_config_options
def train(config_path: str | None, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Train: evaluate the base model, fine-tune it, evaluate the result, log and register both.

    Example: trainer train --config demo data.source=src trainer.epochs=2
    """
    config = with_source(load_config(config_path, overrides))
    left = "A run that had not finished has registered nothing; the same command goes on with it."
    with _interruptible(left, config.checkpoint.folder, config.model.cache_dir) as folder:
        _check_before_imports(config)
        from trainer import job  # torch and transformers take seconds to import

        prepared = job.prepare(config, folder)
        if dry_run:
            click.echo(f"\n{redact(to_yaml(config))}\nEverything is in order; nothing was trained (--dry-run).")
            return
        job.run(prepared)


@main.command(cls=_PrepareHelp, short_help="Show what a run would train on, with a report.")
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default="prepared",
    show_default=True,
    help="Folder for train.jsonl, held_out.jsonl, report.md, report.json and lengths.png.",
)
@_config_options
def prepare(config_path: str | None, output: Path, overrides: tuple[str, ...]) -> None:
    """Prepare data without training: what a run would train on and be judged by, with a report.

    Example: trainer prepare -o prepared data.source=path/to/your/repo; then look at prepared/report.md. To train on
    just that: trainer train data.source=prepared/train.jsonl data.eval_source=prepared/held_out.jsonl
    """
    config = with_source(load_config(config_path, overrides))
    _check_output(output, [config.data.source, config.data.eval_source])
    existed = output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise click.UsageError(f"--output is '{output}', where nothing can be written: {error}.") from error
    try:
        with _interruptible("Nothing was written.", output, config.model.cache_dir):
            from trainer import base_model
            from trainer.data.prepare import OUTPUTS
            from trainer.preparation import check_length, prepare_data

            base_model.quiet()
            base = base_model.resolve(config.model, weights=False)
            positions = base_model.positions(base)
            check_length(config, positions)
            tokenizer = base_model.load_tokenizer(base)
            data = prepare_data(config, tokenizer, output, positions)
            click.echo(f"\n{data.report.to_markdown()}\nWritten to {output}: {', '.join(OUTPUTS)}")
    finally:
        if not existed:
            with suppress(OSError):
                output.rmdir()  # where nothing was written


def _check_before_imports(config: Config) -> None:
    """Raise InputError, or Unreachable, for what a second shows: a source that is not there, no tracking server."""
    from trainer.data.prepare import check_sources, source_names

    names = [*source_names(config.data.source), *source_names(config.data.eval_source)]
    if not any(name.startswith("runs:") for name in names):  # those are looked up on the server
        check_sources(config.data)
    if config.distributed.machine_rank == 0:
        from trainer import tracking

        tracking.check_experiment(tracking.connect(config.tracking.uri), config.tracking.experiment_name)


def _check_output(folder: Path, sources: list[Any]) -> None:
    """Raise click.UsageError where preparing data would write over what they are made from."""
    from trainer.data.prepare import OUTPUTS, source_names
    from trainer.data.sources import folders

    outputs = {os.path.realpath(folder / name): name for name in OUTPUTS}
    for source in chain.from_iterable(map(source_names, sources)):
        path = folders.path_of(source, f"The source is '{source}'")
        if os.path.realpath(path) == os.path.realpath(folder):
            raise click.UsageError(f"--output is '{folder}', the source '{source}' itself. Expected another folder.")
        if folders.exists(path) and (name := outputs.get(os.path.realpath(path))):
            raise click.UsageError(
                f"--output is '{folder}', where {name} is the source '{source}' itself. Expected another folder."
            )


@main.command(cls=_EvaluateHelp, short_help="Judge a registered version on any data set.")
@click.option("--model-uri", required=True, help="Which version: models:/NAME/NUMBER or models:/NAME@ALIAS.")
@click.option(
    "--data",
    metavar="SOURCE",
    help="What to judge it on, all of it: any source that data.eval_source takes, such as benchmark:humaneval, or "
    "runs:/RUN_ID, the examples of another run, in the same way.  [default: the held-out part of data.source]",
)
@click.option("--again", is_flag=True, help="Also where the same was done before.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_config_options
def evaluate(
    config_path: str | None,
    model_uri: str,
    data: str | None,
    again: bool,
    output_format: str,
    overrides: tuple[str, ...],
) -> None:
    """Evaluate a registered version on a data set, as a run that the promoter takes as evidence.

    Example: trainer evaluate --model-uri models:/code_model_fine_tuning_model/2 --data held_out.jsonl
    """
    config = load_config(config_path, overrides)
    with _interruptible("A run that had begun has ended, as FAILED or KILLED.", config.checkpoint.folder):
        from trainer.evaluation.registered_version import evaluate_version, settings_of

        if data is not None:
            settings = ["data.max_eval_examples=null"]
            if data.startswith("runs:/"):
                settings += settings_of(config.tracking.uri, data.removeprefix("runs:/").strip("/"))
            config = load_config(config_path, [*settings, *overrides])
            config.data.source, config.data.eval_source = [], data
        with _to_stderr(output_format == "json"):
            metrics = evaluate_version(config, model_uri, again)
    if output_format == "json":
        click.echo(json.dumps(metrics, indent=2, sort_keys=True))
        return
    for name, value in sorted(metrics.items()):
        click.echo(f"  {name:<36}{value:>12.4f}")


@main.command(cls=_ChangesHelp, short_help="Show how far code has moved since a version was trained.")
@click.option("--model-uri", metavar="URI", help="Which version's sources: models:/NAME/NUMBER or models:/NAME@ALIAS.")
@click.option("--since", metavar="COMMIT", help="Of data.source instead, since this commit, tag or branch.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_config_options
def changes(
    config_path: str | None, model_uri: str | None, since: str | None, output_format: str, overrides: tuple[str, ...]
) -> None:
    """Compare code with what it was when a version was trained on it: functions, files and languages.

    \b
    trainer changes --model-uri models:/code_model_fine_tuning_model@production
    trainer changes --since v1.2 data.source=path/to/your/repo
    """
    if (model_uri is None) == (since is None):
        raise click.UsageError("Expected --model-uri or --since, and not both.")
    config = load_config(config_path, overrides)
    with _interruptible("Nothing was written."):
        from trainer.data.changes import in_words
        from trainer.evaluation.registered_version import changes_of

        with _to_stderr(output_format == "json"):
            found = changes_of(config, model_uri, since)
    if output_format == "json":
        click.echo(json.dumps([item.to_dict() for item in found], indent=2))
    else:
        click.echo("\n\n".join(map(in_words, found)))


@main.command(cls=_ExportHelp, short_help="Write a registered version for use elsewhere.")
@click.option("--model-uri", required=True, help="Which version: models:/NAME/NUMBER or models:/NAME@ALIAS.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["adapter", "merged", "gguf"]),
    default="merged",
    show_default=True,
    help="adapter: PEFT's, to put on the base model. merged: a folder that transformers and vLLM load. gguf: a file "
    "for llama.cpp and Ollama.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="Where to: a name that is free.")
@click.option(
    "--gguf-type",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    help="Number format of a GGUF file.  [default: f16]",
)
@_config_options
def export(
    config_path: str | None, model_uri: str, form: str, output: Path, gguf_type: str | None, overrides: tuple[str, ...]
) -> None:
    """Export a registered version: its adapter, its merged weights, or a GGUF file.

    Example: trainer export --model-uri models:/code_model_fine_tuning_model@production --format gguf -o tuned.gguf
    """
    if gguf_type is not None and form != "gguf":
        raise click.UsageError(f"--gguf-type is {gguf_type}, and --format is {form}. Expected --format gguf with it.")
    config = load_config(config_path, overrides)
    with _interruptible("Nothing was written.", output):
        from trainer.export import export as write

        write(config, model_uri, form, output, gguf_type or "f16")


@main.command("try", cls=_TryHelp, short_help="See a version and its base model side by side on code of yours.")
@click.option(
    "--model-uri",
    help="Which version: models:/NAME/NUMBER or models:/NAME@ALIAS; or the folder of a model.  [default: the one in "
    "production of tracking.experiment_name]",
)
@click.option("--base/--no-base", default=True, help="Beside it the base model, as it was.  [default: base]")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, help="Longest completion.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the likeliest token.")
@click.option("--page", is_flag=True, help="As a page in your browser: on this machine alone, with a token.")
@click.option("--port", type=int, help="Of the page.  [default: a free one]")
@click.option("--config", "-c", "config_path", metavar="FILE", help="YAML file, or the name of a shipped one.")
@click.argument("arguments", nargs=-1, metavar="[FILE:LINE:COLUMN | -] [section.key=value]...")
def try_(
    model_uri: str | None,
    base: bool,
    max_new_tokens: int,
    temperature: float,
    page: bool,
    port: int | None,
    config_path: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Complete code at a cursor, by a version and by the base model that it was tuned from.

    \b
    trainer try                          type or paste code, as often as you like
    trainer try src/add.py:12:5          at a place in a file: line and column, from 1, as editors show them
    echo 'def add(a, b):' | trainer try  a text, at its end or where <|cursor|> stands in it
    trainer try --page                   in your browser
    """
    places = [item for item in arguments if "=" not in item or re.search(r":\d+:\d+$", item)]
    if len(places) + page > 1:
        raise click.UsageError(f"There are {' '.join(places)}{' and --page' * page}. Expected one of them.")
    if port is not None and not page:
        raise click.UsageError(f"--port is {port}, and there is no --page. Expected both.")
    config = load_config(config_path, [item for item in arguments if item not in places])
    if model_uri is None:
        model_uri = f"models:/{pyfunc_model(config.tracking.experiment_name)}@{PRODUCTION}"
    with _interruptible("Nothing was written."):
        from code_model.params import GenerationParams
        from trainer.playground import command

        params = GenerationParams(max_new_tokens, temperature)
        if page:
            command.serve(config, model_uri, base, params, port or 0)
        else:
            command.run(config, model_uri, base, places[0] if places else None, params)


@contextmanager
def _to_stderr(wanted: bool) -> Iterator[None]:
    """Keep what is said on the way out of a machine-readable answer."""
    previous = sys.stdout
    if wanted:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = previous


def _step_back() -> None:
    """Leave the machine's cores to what people wait for, such as serving. To be called before torch is imported."""
    if GOMP_SPINCOUNT not in os.environ:
        os.environ[GOMP_SPINCOUNT] = threads.rounds()
    given = os.environ.get("TRAINER_NICE") or "10"
    if not (given.isdigit() and int(given) < 20):
        raise InputError(f"TRAINER_NICE is '{given}'. Expected 0 to 19: how far to step back for other processes.")
    if hasattr(os, "setpriority"):
        own = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(own, int(given)))


@contextmanager
def _interruptible(what_is_left: str, *writes: str | Path) -> Iterator[Path]:
    """Give every way to fail its exit code and a word on what is left; yields a folder that goes afterwards.

    `writes`: the folders that the command writes to, besides its own.
    """
    _step_back()
    os.environ.setdefault("MPLCONFIGDIR", str(Path(folders.cache()) / "matplotlib"))  # its own takes any XDG_CACHE_HOME
    from trainer import tracking

    with tracking.terminated_as_interrupt():
        try:
            with tempfile.TemporaryDirectory(prefix="ratchet-data-") as folder:
                yield Path(folder)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            ours = disk_full(error, what_is_left, writes)
            raise ours or as_ours(error, what_is_left) or unexpected(error, what_is_left) from error
        except KeyboardInterrupt as interrupt:
            terminated = isinstance(interrupt, tracking.Terminated)
            click.echo(f"\n{'Terminated' if terminated else 'Interrupted'}. {what_is_left}", err=True)
            sys.exit(143 if terminated else 130)


if __name__ == "__main__":
    main()
