"""How often `monitor drift` sees foreign code among production's prompts, and code that is not: `python -m
tests.bench.drift`.

Prompts are cut at random places in the files of a package that is installed here. Of 200, four of a file, 40 are from
another package. Printed are the looks that find that at the certainty of a weekly look, the years of 52 looks with a
false alarm, and both again for the peer: a domain classifier (logistic regression on the same features, tested on files
that it has not seen).
"""

import random
import sysconfig
from pathlib import Path

import click
import numpy as np

from contract.monitoring import code_before
from services.monitor import budget
from services.monitor.inputs import FEATURES, Piece, by_chance, compare

WEEK = budget.to_spend(0.05, 0.0, 7 * 86_400.0) * budget.SHARES["inputs"]
PAIRS = (("networkx", "mlflow"), ("sklearn", "scipy"), ("jinja2", "click"), ("transformers", "torch"))
OF_A_FILE, FOLDS, SAMPLE = 4, 4, 12_000


def files_of(package: str) -> list[tuple[str, str]]:
    """(name, text) of at most 600 files."""
    root = Path(sysconfig.get_path("purelib")) / package
    found = []
    for path in sorted(root.rglob("*.py")):
        if "tests" not in path.parts and len(text := path.read_text(encoding="utf-8", errors="replace")) > 1500:
            found.append((str(path.relative_to(root)), text))
    return found[:600]


def cut(file: tuple[str, str], length: int, dice: random.Random) -> Piece:
    """What stands before a cursor."""
    name, text = file
    at = dice.randrange(min(length, len(text) - 1), len(text))
    return Piece(code_before(text[max(0, at - length) : at]) or text[:200], name)


def asked(files: list[tuple[str, str]], number: int, dice: random.Random) -> list[Piece]:
    """Prompts, four of a file, of longer files more often."""
    found: list[Piece] = []
    while len(found) < number:
        [file] = dice.choices(files, [len(text) for _, text in files])
        found += [cut(file, 1500, dice) for _ in range(OF_A_FILE)]
    return found[:number]


def classified(sample: list[Piece], prompts: list[Piece], dice: np.random.Generator) -> float:
    """The peer's p-value."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    pieces = [*sample, *prompts]
    groups = np.array([f"{n >= len(sample)} {piece.group}" for n, piece in enumerate(pieces)])
    theirs = np.arange(len(pieces)) >= len(sample)
    grams = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=FEATURES, lowercase=False)
    features = TfidfTransformer().fit_transform(abs(grams.transform([piece.code for piece in pieces])))
    names, number = np.unique(groups, return_inverse=True)
    fold = (dice.permutation(len(names)) % FOLDS)[number]
    scores = np.zeros(len(pieces))
    for one in range(FOLDS):
        inside = fold == one
        model = LogisticRegression(class_weight="balanced", solver="liblinear")
        scores[inside] = model.fit(features[~inside], theirs[~inside]).decision_function(features[inside])
    return by_chance(scores, np.ones(len(pieces)), list(groups), theirs, dice)


@click.command()
@click.option("--looks", default=20, show_default=True, help="At foreign code, of each pair of packages.")
@click.option("--years", default=2, show_default=True, help="Of 52 looks at nothing foreign, of each pair.")
@click.option("--length", default=600, show_default=True, help="Characters that a training example sees.")
@click.option("--peer/--no-peer", default=True, show_default=True)
def main(looks: int, years: int, length: int, peer: bool) -> None:
    """Print the table."""
    click.echo(f"20% of 200 prompts are foreign; a weekly look may be wrong {WEEK:.5f} of the time")
    for package, other in PAIRS:
        files, foreign = files_of(package), files_of(other)
        found, theirs, alarms, theirs_false = 0, 0, 0, 0
        for number in range(looks):
            dice = random.Random(number)
            sample = [cut(file, length, dice) for file in dice.choices(files, [len(t) for _, t in files], k=SAMPLE)]
            prompts = asked(files, 160, dice) + [
                Piece(piece.code, f"foreign {piece.group}") for piece in asked(foreign, 40, dice)
            ]
            found += compare(sample, prompts, seed=number).p <= WEEK
            if peer:
                theirs += classified(sample[:1500], prompts, np.random.default_rng(number)) <= WEEK
        for year in range(years):
            dice = random.Random(10_000 + year)
            sample = [cut(file, length, dice) for file in dice.choices(files, [len(t) for _, t in files], k=SAMPLE)]
            ours = [compare(sample, asked(files, 200, dice), seed=week).p for week in range(52)]
            alarms += min(ours) <= WEEK
            if peer:
                theirs_false += any(
                    classified(sample[:1500], asked(files, 200, dice), np.random.default_rng(week)) <= WEEK
                    for week in range(4)
                )
        line = f"{package:12s} and {other:8s} found {found}/{looks}, years with a false alarm {alarms}/{years}"
        if peer:
            line += f"; a domain classifier {theirs}/{looks}, {theirs_false}/{years} (4 looks)"
        click.echo(line)


if __name__ == "__main__":
    main()
