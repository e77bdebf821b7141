"""How well a model knows what comes at an editor's cursor: base and tuned, by where in its line the cursor is.

    python -m tests.bench.cursors                       # six code bases, six minutes of training each: two hours
    python -m tests.bench.cursors rich zod --steps 36 trainer.lr=1e-3
    python -m tests.bench.cursors --forms rich          # no training: in which form the base model reads a prompt best
    python -m tests.bench.cursors --copy FOLDER rich    # the code base without its held-out files, to train elsewhere
    python -m tests.bench.cursors --judge FOLDER rich   # no training: the base model beside the model in a folder

Each code base is tuned by `trainer train` against a tracking server of its own, and judged on its held-out files.
Printed are means over the held-out places with a cursor of that kind: nats of the first token and of the first line,
and the share of completions with the reference's first line, base → tuned. `gain` is what tuning takes off the nats of
the first line; `of line_start` compares that gain with the one at a line's start.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from code_model import fim
from code_model.text import encode_completions, encode_prompt
from contract import names
from contract.metrics import CURSORS
from contract.tracking import read_table
from tests.support import codebases
from tests.support.tracking import make_stack, server
from trainer import base_model
from trainer.config import Config, load_config
from trainer.data.example import Example
from trainer.evaluation.models import LoadedModel
from trainer.evaluation.table import evaluate
from trainer.preparation import prepare_data
from trainer.training.collator import EncodedExample, encode

STEPS = 72  # of 8 examples: six minutes on two cores
SETTINGS = (
    *("data.max_eval_examples=160", "data.max_eval_examples_per_file=32", "eval.max_generated=96"),
    *("data.max_train_examples=600", "trainer.lr=1.5e-3"),
)
SHOWN = ("first_token_nll", "first_line_nll", "first_line_match")
FORMS: dict[str, Callable[[fim.Context], str]] = {
    "prefix alone": lambda context: context.prefix,
    "prefix, suffix, middle": lambda context: fim.fill(context.prefix, context.suffix or "", fim.NEUTRAL),
    "suffix, prefix": lambda context: f"{fim.NEUTRAL[1]}{context.suffix}{fim.NEUTRAL[2]}{context.prefix}",
}


def tables(name: str, steps: int, settings: list[str]) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """The evaluation tables of base and tuned model, and the seconds that training took."""
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as home:
        stack = make_stack(Path(home))
        with server(stack):
            source = f"data.source={codebases.fetch(name)}"
            training = stack.popen("trainer", "train", source, f"trainer.max_steps={steps}", *SETTINGS, *settings)
            output, _ = training.communicate()
            if training.returncode:
                sys.exit(f"trainer train on {name} ended with {training.returncode}:\n{output}")
            runs = {}
            for experiment in stack.client.search_experiments():
                for run in stack.client.search_runs([experiment.experiment_id]):
                    runs[run.data.tags.get(names.ROLE)] = run
            base, tuned = (
                read_table(stack.client, runs[role].info.run_id, names.EVALUATION_TABLE)
                for role in (names.BASE, names.CANDIDATE)
            )
            return base, tuned, runs[names.CANDIDATE].data.metrics["run/seconds"]


def rows(base: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What to print of each kind of cursor."""
    both = base.merge(tuned, on="example_id", suffixes=("_base", "_tuned"))
    gain_at_start = None
    for cursor in CURSORS:
        of_cursor = both[both["cursor_base"] == cursor]
        row: dict[str, Any] = {"cursor": cursor, "places": len(of_cursor)}
        for column in SHOWN:
            before, after = (of_cursor[f"{column}_{side}"].astype(float).mean() for side in ("base", "tuned"))
            row[column] = f"{before:.3f} → {after:.3f}"
            if column == "first_line_nll":
                gain = 1 - after / before
                gain_at_start = gain if gain_at_start is None else gain_at_start
                row |= {"gain": f"{gain:.1%}", "of line_start": f"{gain / gain_at_start:.2f}"}
        yield row


def load(name: str, settings: Sequence[str], model: str | None = None) -> tuple[Config, LoadedModel]:
    """The configuration for a code base, and its model, or another."""
    settings = [f"data.source={codebases.fetch(name)}", *SETTINGS, "data.max_train_examples=1", *settings]
    config = load_config(None, settings if model is None else [*settings, f"model.name={model}"])
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    return config, LoadedModel(base_model.load_model(base, config.model, tokenizer), tokenizer)


def held_out(config: Config, model: LoadedModel) -> list[Example]:
    """The examples that a code base's models are judged by."""
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as folder:
        return prepare_data(config, model.tokenizer, Path(folder), model.positions).held_out


def copy(name: str, settings: list[str], folder: Path) -> None:
    """The code base without its held-out files."""
    files = {example.group for example in held_out(*load(name, settings))}
    source = codebases.fetch(name)
    shutil.copytree(
        source,
        folder,
        ignore=lambda at, entries: [item for item in entries if str(Path(at, item).relative_to(source)) in files],
    )
    print(f"{folder}: {name} without {len(files)} held-out files")


def judged(name: str, settings: list[str], folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The evaluation tables of the base model and of the one in a folder."""
    config, base = load(name, settings)
    examples = held_out(config, base)
    _, tuned = load(name, settings, folder)
    one, other = (evaluate(model, examples, config.eval, config.seed) for model in (base, tuned))
    return one, other


def forms(name: str, settings: list[str]) -> Iterator[dict[str, Any]]:
    """Nats of the first line for the untuned base model, by form and by what is done at the cut."""
    config, model = load(name, settings)
    tokenizer = model.tokenizer
    gaps = [example for example in held_out(config, model) if example.kind == "fim"]

    def apart(prompt: str, completion: str) -> EncodedExample:
        ids = encode_prompt(tokenizer, prompt)
        [new] = encode_completions(tokenizer, [ids], [completion])
        return EncodedExample([*ids, *new, tokenizer.eos_token_id], len(ids))

    for cursor in CURSORS:
        chosen = [example for example in gaps if example.cursor == cursor]
        for form, write in FORMS.items():
            row: dict[str, Any] = {"cursor": cursor, "places": len(chosen), "form": form}
            for what, made in (("apart", apart), ("taken back", lambda p, c: encode(tokenizer, Example(p, c)))):
                encoded = [made(write(fim.read(item.prompt)), item.completion) for item in chosen]
                found = [model.likelihoods([item])[0].first_line for item in encoded]
                row[what] = f"{sum(found) / max(len(found), 1):.2f}"
            yield row


def main() -> None:
    """Print a table for each code base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="names of code bases, and settings KEY=VALUE of the trainer")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of 8 examples")
    parser.add_argument("--forms", action="store_true", help="compare forms of prompts, without training")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="copy the code base, without its held-out files")
    parser.add_argument("--judge", metavar="FOLDER", help="judge the model in a folder, without training")
    options = parser.parse_intermixed_args()
    settings = [item for item in options.data if "=" in item]
    for name in [item for item in options.data if "=" not in item] or codebases.NAMES:
        if options.forms:
            print(f"\n{name}\n{pd.DataFrame(forms(name, settings)).to_string(index=False)}", flush=True)
            continue
        if options.copy is not None:
            copy(name, settings, options.copy)
            continue
        if options.judge is not None:
            base, tuned = judged(name, settings, options.judge)
            print(f"\n{name}: {options.judge}, {len(base)} held-out places", flush=True)
        else:
            base, tuned, seconds = tables(name, options.steps, settings)
            print(f"\n{name}: {options.steps} steps in {seconds:.0f} s, {len(base)} held-out places", flush=True)
        print(pd.DataFrame(rows(base, tuned)).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
