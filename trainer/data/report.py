"""What went into a data set, what was dropped and why; as JSON, as a page to read, and as a histogram."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contract.secrets import Secret
from trainer.data.example import KINDS
from trainer.data.items import Unusable
from trainer.data.split import GATE_GROUPS

EXAMPLES_OF_EACH = 10  # names in the report of what was dropped for one reason
SECRETS_LISTED = 50
REASONS_IN_WORDS = 6  # in one line
PLACES_IN_WORDS = 3  # of rows left out for one reason
BAR = "\\|"  # does not end a table's cell
TRAIN, HELD_OUT = "train", "held out"  # the two sides


@dataclass
class Side:
    """What is known of the examples of one side of the split."""

    lengths: Any = field(default_factory=lambda: array("I"))  # tokens of each
    numbers: Any = field(default_factory=lambda: array("Q"))
    groups: Any = field(default_factory=lambda: array("Q"))
    kinds: Counter[str] = field(default_factory=Counter)
    cursors: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    # Of those that are made of places in files, how many:
    places: int = 0
    tokens_of_places: int = 0
    tests: int = 0
    with_path: int = 0
    have_imports: int = 0  # before the cursor, in their files
    with_imports: int = 0  # and show one
    by_file: Counter[int] = field(default_factory=Counter)


@dataclass
class Report:
    """Counts of everything that was read, by what became of it."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)  # read, or why not
    file_names: dict[str, list[str]] = field(default_factory=dict)  # some of those left out, by reason
    rows: Counter[str] = field(default_factory=Counter)  # that cannot be used, by reason
    row_places: dict[str, list[str]] = field(default_factory=dict)  # where some of those stand, and what is wrong
    examples: Counter[str] = field(default_factory=Counter)  # made, or why dropped
    secrets: Counter[str] = field(default_factory=Counter)  # redacted, by type
    secret_places: list[str] = field(default_factory=list)  # file:line type, never the value
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    source_as_targets: float | None = None  # share of the characters of the files that some example wants
    held_out_twins: float | None = None  # share of the held-out examples that have a near twin to train on

    def drop_file(self, path: str, reason: str) -> None:
        self.files[reason] += 1
        _add_name(self.file_names, reason, path)

    def drop_row(self, problem: Unusable) -> None:
        self.rows[problem.reason] += 1
        _add_name(self.row_places, problem.reason, str(problem))

    def warnings(self, before: Counter[str]) -> list[str]:
        """What to say of the rows dropped since `before`, a copy of `rows`: of each reason how many, and the first."""
        lines = []
        for reason, count in (self.rows - before).items():
            lines.append(f"{count} {'row' if count == 1 else 'rows'} left out: {reason}")
            lines += [f"  {place}" for place in self.row_places[reason][before[reason] :][:PLACES_IN_WORDS]]
        return lines

    def add_secrets(self, place: str, found: Sequence[Secret]) -> None:
        for secret in found:
            self.secrets[secret.type] += 1
            if len(self.secret_places) < SECRETS_LISTED:
                self.secret_places.append(f"{place}:{secret.line} {secret.type}")

    def describe_split(self, name: str, digest: str, side: Side, window: int) -> None:
        """What is on one side of the split. `window`: tokens that an example may have."""
        lengths = np.asarray(side.lengths)
        quantiles = np.quantile(lengths, [0, 0.5, 0.95, 1]) if len(lengths) else np.zeros(4)
        self.splits[name] = {
            "examples": len(lengths),
            "groups": len(set(side.groups)),
            "tokens": int(np.sum(lengths)),
            "digest": digest,
            "kinds": dict(side.kinds.most_common()),
            "cursors": dict(side.cursors.most_common()),
            "languages": dict(side.languages.most_common()),
            "tokens_per_example": dict(
                zip(("min", "median", "p95", "max"), quantiles.round().astype(int).tolist(), strict=True)
            ),
        }
        if side.places:
            of_places = side.places
            self.splits[name]["shares"] = {
                "from tests": round(side.tests / of_places, 3),
                "from the file with most": round(max(side.by_file.values()) / of_places, 3),
                "prompts with a path": round(side.with_path / of_places, 3),
                "prompts with imports": round(side.with_imports / max(side.have_imports, 1), 3),
                "of the window filled": round(side.tokens_of_places / (of_places * window), 3),
            }

    def counts(self) -> dict[str, int]:
        """In one line: what was read, dropped and kept."""
        files = {f"files {name}": count for name, count in self.files.items()}
        rows = {f"rows dropped: {name}": count for name, count in self.rows.items()}
        secrets = {"secrets redacted": self.secrets.total()} if self.secrets else {}
        splits = {name: split["examples"] for name, split in self.splits.items()}
        return {**files, **rows, **secrets, **self.examples, **splits}

    def held_out_in_words(self) -> str:
        """What there is to judge by, and whether it is enough for the gate."""
        split = self.splits[HELD_OUT]
        of_code = set(split["kinds"]) <= set(KINDS)
        unit = ("file" if of_code else "group") + "s" * (split["groups"] != 1)
        line = f"Held out: {split['examples']} examples of {split['groups']} {unit}"
        if self.held_out_twins is not None:
            line += f", {self.held_out_twins:.0%} with a near twin to train on"
        if split["groups"] < GATE_GROUPS:
            line += f"; the promoter's default policy wants {GATE_GROUPS} groups or more (docs/data.md, The split)"
        return line

    def in_words(self) -> str:
        """The counts as part of a message; of many reasons for leaving things out those that count most."""
        counts = {name: count for name, count in self.counts().items() if count}
        reasons = sorted((name for name in counts if ": " in name), key=lambda name: -counts[name])
        rest = reasons[REASONS_IN_WORDS:] if len(reasons) > REASONS_IN_WORDS + 1 else []
        words = [f"{count} {name}" for name, count in counts.items() if name not in rest]
        if rest:
            words.append(f"{sum(counts[name] for name in rest)} left out for {len(rest)} other reasons")
        return ", ".join(words) or "nothing to read"

    def to_dict(self) -> dict[str, Any]:
        return {
            "sources": self.sources,
            "files": dict(self.files),
            "files_left_out": self.file_names,
            "rows_dropped": dict(self.rows),
            "row_places": self.row_places,
            "examples": dict(self.examples),
            "secrets_redacted": dict(self.secrets),
            "secret_places": self.secret_places,
            "splits": self.splits,
            "source_as_targets": self.source_as_targets,
            "held_out_twins": self.held_out_twins,
        }

    def to_markdown(self) -> str:
        lines = ["# Data report", "", "| source | found at | files or rows |", "|---|---|---|"]
        lines += [f"| {_code(item['name'])} | {_code(item['location'])} | {item['read']} |" for item in self.sources]
        if self.files:
            lines += ["", "## Files", "", "| files | | for example |", "|---|---|---|"]
            for reason, count in self.files.items():
                names = ", ".join(map(_code, self.file_names.get(reason, [])[:3]))
                lines.append(f"| {count} | {reason} | {names} |")
        if self.rows:
            lines += ["", f"## Rows: {self.rows.total()} left out", ""]
            for reason, count in self.rows.most_common():
                lines.append(f"- {count} × {reason}")
                lines += [f"  - {_code(place)}" for place in self.row_places[reason]]
        lines += ["", "## Examples", "", "| examples | |", "|---|---|"]
        lines += [f"| {count} | {reason} |" for reason, count in self.examples.items()]
        lines += ["", "## Split", "", f"{self.held_out_in_words()}.", ""]
        if self.source_as_targets is not None:
            lines += [f"{self.source_as_targets:.0%} of the code in the files is wanted by some example.", ""]
        lines += ["| | " + " | ".join(self.splits) + " |", "|---" * (len(self.splits) + 1) + "|"]
        of_examples = ("kinds", "cursors", "languages", "tokens_per_example", "shares")
        for row in ("examples", "groups", "tokens", *of_examples, "digest"):
            cells = []
            for split in self.splits.values():
                value = split.get(row, "")
                cells.append(", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
            lines.append(f"| {row.replace('_', ' ')} | " + " | ".join(cells) + " |")
        lines += ["", f"## Secrets: {self.secrets.total()} redacted", ""]
        lines += [f"- {count} × {kind}" for kind, count in self.secrets.most_common()]
        if self.secret_places:
            lines += ["", "Where (they are still in the source: rotate them and take them out):", ""]
            lines += [f"- {_code(place)}" for place in self.secret_places]
        return "\n".join(lines) + "\n"


def _add_name(names: dict[str, list[str]], reason: str, name: str) -> None:
    listed = names.setdefault(reason, [])
    if len(listed) < EXAMPLES_OF_EACH:
        listed.append(name)


def _code(text: str) -> str:
    """Text that may be anything, such as a file's name or what quotes a row, as code in a cell of Markdown."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", BAR) + "`"


def histogram(lengths: dict[str, Any], max_length: int, path: Path) -> None:
    """Lengths in tokens of the examples of each split, and of those that were too long, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    longest = max([max_length, *(int(values.max()) for values in lengths.values() if len(values))])
    # Six bins each time the length doubles, one of whose edges is the limit.
    below, above = int(6 * np.log2(max(max_length, 8) / 4)), int(np.ceil(6 * np.log2((longest + 1) / max_length)))
    edges = max_length * 2.0 ** (np.arange(-below, max(above, 1) + 1) / 6)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    colours = {"train": "tab:blue", "held out": "tab:orange", "too long": "lightgray"}
    bottom = np.zeros(len(edges) - 1)
    for name, values in lengths.items():
        if len(values):
            heights, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            label = f"{name}: {len(values):,}, median {int(np.median(values))} tokens"
            axes.bar(edges[:-1], heights, np.diff(edges), bottom, align="edge", color=colours.get(name), label=label)
            bottom += heights
    axes.axvline(max_length, color="tab:red", linewidth=1, label=f"trainer.max_length={max_length}")
    axes.set_xscale("log", base=2)
    axes.set_ylim(top=max(float(bottom.max()) * 1.08, 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="tokens (prompt, completion and end of text)", ylabel="examples", title="Lengths of the examples")
    axes.legend()
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=120)
    plt.close(figure)
