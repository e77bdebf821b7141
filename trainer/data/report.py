"""What went into a data set, what was dropped and why; as JSON, as a page to read, and as a histogram."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.secrets import Secret

EXAMPLES_OF_EACH = 10  # names in the report of what was dropped for one reason
SECRETS_LISTED = 50


@dataclass
class Report:
    """Counts of everything that was read, by what became of it."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)  # read, or why not
    file_names: dict[str, list[str]] = field(default_factory=dict)  # some of those left out, by reason
    examples: Counter[str] = field(default_factory=Counter)  # made, or why dropped
    secrets: Counter[str] = field(default_factory=Counter)  # redacted, by type
    secret_places: list[str] = field(default_factory=list)  # file:line type, never the value
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop_file(self, path: str, reason: str) -> None:
        self.files[reason] += 1
        names = self.file_names.setdefault(reason, [])
        if len(names) < EXAMPLES_OF_EACH:
            names.append(path)

    def add_secrets(self, place: str, found: Sequence[Secret]) -> None:
        for secret in found:
            self.secrets[secret.type] += 1
            if len(self.secret_places) < SECRETS_LISTED:
                self.secret_places.append(f"{place}:{secret.line} {secret.type}")

    def describe_split(
        self, name: str, digest: str, lengths: Any, kinds: Counter[str], languages: Counter[str]
    ) -> None:
        """`lengths`: tokens of each example, prompt, completion and end of text together."""
        quantiles = np.quantile(lengths, [0, 0.5, 0.95, 1]) if len(lengths) else np.zeros(4)
        self.splits[name] = {
            "examples": len(lengths),
            "tokens": int(np.sum(lengths)),
            "digest": digest,
            "kinds": dict(kinds.most_common()),
            "languages": dict(languages.most_common()),
            "tokens_per_example": dict(
                zip(("min", "median", "p95", "max"), quantiles.round().astype(int).tolist(), strict=True)
            ),
        }

    def counts(self) -> dict[str, int]:
        """In one line: what was read, dropped and kept."""
        files = {f"files {name}": count for name, count in self.files.items()}
        secrets = {"secrets redacted": self.secrets.total()} if self.secrets else {}
        splits = {name: split["examples"] for name, split in self.splits.items()}
        return {**files, **secrets, **self.examples, **splits}

    def in_words(self) -> str:
        """The counts as part of a message."""
        return ", ".join(f"{count} {name}" for name, count in self.counts().items() if count) or "nothing to read"

    def to_dict(self) -> dict[str, Any]:
        return {
            "sources": self.sources,
            "files": dict(self.files),
            "files_left_out": self.file_names,
            "examples": dict(self.examples),
            "secrets_redacted": dict(self.secrets),
            "secret_places": self.secret_places,
            "splits": self.splits,
        }

    def to_markdown(self) -> str:
        lines = ["# Data report", "", "| source | found at | files or rows |", "|---|---|---|"]
        lines += [f"| `{item['name']}` | `{item['location']}` | {item['read']} |" for item in self.sources]
        if self.files:
            lines += ["", "## Files", "", "| files | | for example |", "|---|---|---|"]
            for reason, count in self.files.items():
                names = ", ".join(f"`{name}`" for name in self.file_names.get(reason, [])[:3])
                lines.append(f"| {count} | {reason} | {names} |")
        lines += ["", "## Examples", "", "| examples | |", "|---|---|"]
        lines += [f"| {count} | {reason} |" for reason, count in self.examples.items()]
        lines += ["", "## Split", "", "| | " + " | ".join(self.splits) + " |", "|---" * (len(self.splits) + 1) + "|"]
        for row in ("examples", "tokens", "kinds", "languages", "tokens_per_example", "digest"):
            cells = []
            for split in self.splits.values():
                value = split[row]
                cells.append(", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
            lines.append(f"| {row.replace('_', ' ')} | " + " | ".join(cells) + " |")
        lines += ["", f"## Secrets: {self.secrets.total()} redacted", ""]
        lines += [f"- {count} × {kind}" for kind, count in self.secrets.most_common()]
        if self.secret_places:
            lines += ["", "Where (they are still in the source: rotate them and take them out):", ""]
            lines += [f"- `{place}`" for place in self.secret_places]
        return "\n".join(lines) + "\n"


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
