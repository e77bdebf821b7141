"""How well a model knows what comes at an editor's cursor: base and tuned, by where in its line the cursor is.

    python -m tests.bench.cursors                       # six code bases, six minutes of training each: two hours
    python -m tests.bench.cursors rich zod --steps 36 trainer.lr=1e-3
    python -m tests.bench.cursors --forms rich          # no training: in which form the base model reads a prompt best

Each code base is tuned by `trainer train` against a tracking server of its own, and judged on its held-out files.
Printed are means over the held-out places with a cursor of that kind: nats of the first token and of the first line,
and the share of completions with the reference's first line, base → tuned. `gain` is what tuning takes off the nats of
the first line; `of line_start` compares that gain with the one at a line's start.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
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
from trainer.data.example import Example
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


def forms(name: str) -> Iterator[dict[str, Any]]:
    """Nats of the first line for the untuned base model, by form and by what is done at the cut."""
    from trainer import base_model
    from trainer.config import load_config
    from trainer.evaluation.models import LoadedModel
    from trainer.preparation import prepare_data

    config = load_config(None, [f"data.source={codebases.fetch(name)}", "data.max_train_examples=1", *SETTINGS])
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    model = LoadedModel(base_model.load_model(base, config.model, tokenizer), tokenizer)
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as folder:
        held_out = prepare_data(config, tokenizer, Path(folder), model.positions).held_out
    gaps = [example for example in held_out if example.kind == "fim"]

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
    options = parser.parse_intermixed_args()
    settings = [item for item in options.data if "=" in item]
    for name in [item for item in options.data if "=" not in item] or codebases.NAMES:
        if options.forms:
            print(f"\n{name}\n{pd.DataFrame(forms(name)).to_string(index=False)}", flush=True)
            continue
        base, tuned, seconds = tables(name, options.steps, settings)
        print(f"\n{name}: {options.steps} steps in {seconds:.0f} s, {len(base)} held-out places", flush=True)
        print(pd.DataFrame(rows(base, tuned)).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
