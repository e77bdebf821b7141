"""`make gate-demo`: four candidates before the gate, and why it lets only one of them through.

Truly better; equal; better on average but worse on a guard; evaluated on other data. Their evaluation tables are drawn
from a seed, no model is trained. Everything else is real: tracking server, registry, `promoter gate` and its reports.
"""

import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import click
import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from contract import names
from contract.files import sha256_of
from contract.names import EVALUATION_TABLE, MANIFEST_SHA256, PROMOTIONS, pyfunc_model
from infra.demo import Demo, answer, command
from infra.processes import home
from promoter import records, registry
from trainer.pyfunc_flavor import PyfuncWithManifest

EXPERIMENT = "gate_demo"
MODEL = pyfunc_model(EXPERIMENT)
EXAMPLES, FILES = 240, 30
# What stands in for a model; the gate judges tables, and looks at files without running them.
ECHO = """from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Echo(PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return list(model_input)


set_model(Echo())
"""


@dataclass(frozen=True)
class Candidate:
    """A version to be judged, and what the gate has to say."""

    name: str
    nll: float  # change per token against the incumbent, in nats; negative is better
    syntax_ok: float  # share of completions that parse
    digest: str
    exit_code: int
    expected: str  # in the verdict


CANDIDATES = (
    Candidate("truly better", -0.15, 0.90, "the-same-data", 0, "passed the gate"),
    Candidate("equal", 0.0, 0.90, "the-same-data", 1, "improvement"),
    Candidate("better on average, worse on a guard", -0.15, 0.70, "the-same-data", 1, "guard eval/syntax_ok"),
    Candidate("evaluated on other data", -0.40, 0.90, "other-data", 1, "trainer evaluate --model-uri"),
)


def table(nll: float, syntax_ok: float, seed: int, examples: int = EXAMPLES) -> pd.DataFrame:
    """An evaluation table of examples that are the same for every seed. nll: change per token against 1.5 nats."""
    common = np.random.default_rng(0)
    tokens = common.integers(8, 80, examples)
    difficulty = common.gamma(9, 1.5 / 9, examples)  # nats per token
    own = np.random.default_rng(seed)
    per_token = np.maximum(0.01, difficulty + nll + own.normal(0, 0.2, examples))
    parses = own.permutation(examples) < round(syntax_ok * examples)
    return pd.DataFrame(
        {
            "example_id": [f"example-{number}" for number in range(examples)],
            "group": [f"package/module_{number % FILES}.py" for number in range(examples)],
            "kind": "function",
            "prompt": [f'def step_{number}(value):\n    """Add {number} to value."""\n' for number in range(examples)],
            "reference": [f"    return value + {number}\n" for number in range(examples)],
            "completion": [
                f"    return value + {number}\n" if ok else f"    return value + {number})\n"
                for number, ok in enumerate(parses)
            ],
            "nll": per_token * tokens,
            "tokens": tokens,
            "syntax_ok": parses,
            "exact_match": parses,
            "edit_similarity": np.where(parses, 1.0, 0.97),
        }
    )


def register(
    client: MlflowClient,
    model: str,
    rows: pd.DataFrame,
    role: str = "candidate",
    digest: str = "the-same-data",
    name: str = "",
) -> ModelVersion:
    """Log a run with an evaluation table and a model that echoes, and register it as the trainer would."""
    tags = {
        names.ROLE: role,
        names.BASE_MODEL: "bundled:none@1",
        names.DATASET_DIGEST: digest,
        names.PROMPT_TEMPLATE: "as they are",
        names.EVAL_SETTINGS: "greedy, max_new_tokens=48",
    }
    means = {f"eval/{column}": float(rows[column].mean()) for column in ("syntax_ok", "exact_match", "edit_similarity")}
    metrics = {"eval/nll_per_token": float(rows["nll"].sum() / rows["tokens"].sum()), **means}
    experiment = mlflow.set_experiment(model.removesuffix("_model"))
    flavor = PyfuncWithManifest()
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(experiment_id=experiment.experiment_id, run_name=name or role, tags=tags) as run,
    ):
        table = Path(folder, EVALUATION_TABLE)
        table.parent.mkdir()
        rows.to_parquet(table)
        tags[names.EVIDENCE] = sha256_of(table)
        mlflow.log_artifact(str(table), table.parent.name)
        mlflow.log_metrics(metrics)
        code = Path(folder, "echo.py")
        code.write_text(ECHO)
        with warnings.catch_warnings(action="ignore"):  # advice on how to write models
            info = Model.log(
                artifact_path=None,
                name="model",
                flavor=flavor,
                python_model=str(code),
                pip_requirements=[],
            )
        mlflow.set_tags({names.EVIDENCE: tags[names.EVIDENCE], names.EVALUATED_MANIFEST: flavor.sha256})
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags[MANIFEST_SHA256] = flavor.sha256
    return client.create_model_version(
        model, info.model_uri, run.info.run_id, tags=tags, description=name, model_id=info.model_id
    )


def start_over(client: MlflowClient) -> None:
    """Take away what an earlier demo has left: its model, and its records, by which tries are counted."""
    try:
        client.delete_registered_model(MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    experiment = client.get_experiment_by_name(PROMOTIONS)
    if experiment is not None:
        for run in client.search_runs([experiment.experiment_id], f"tags.model = '{MODEL}'"):
            client.delete_run(run.info.run_id)


@click.command()
def main() -> None:
    """Register four candidates, have each judged, and keep the reports. Exits with 1 where a verdict is another."""
    demo = Demo(0.0)
    click.secho("The tracking server", bold=True)
    demo.start_tracking()
    client = registry.connect(demo.tracking_url)
    start_over(client)
    reports = home() / "gate-demo"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    register(client, MODEL, table(0.0, 0.90, seed=1), name="the incumbent")
    command(
        *("promoter", "promote", "--experiment-name", EXPERIMENT, "--version", "1", "--stage", "Production"),
        *("--force", "--reason", "the demonstration's incumbent"),
    )
    verdicts = []
    for seed, candidate in enumerate(CANDIDATES, 2):
        click.secho(f"\n{candidate.name}", bold=True)
        rows = table(candidate.nll, candidate.syntax_ok, seed)
        version = register(client, MODEL, rows, digest=candidate.digest, name=candidate.name)
        text, code = answer("promoter", "gate", "--experiment-name", EXPERIMENT, "--version", str(version.version))
        run_id = records.of_version(client, MODEL, str(version.version))[0].info.run_id
        path = client.download_artifacts(run_id, "decision.html", str(reports))
        own = reports / f"{version.version}-{candidate.name.replace(' ', '-').replace(',', '')}.html"
        Path(path).rename(own)
        verdicts.append((candidate, code == candidate.exit_code and candidate.expected in text, code, own))
    click.secho("\nVerdicts", bold=True)
    for candidate, right, code, own in verdicts:
        verdict = "passed" if code == 0 else "refused"
        click.echo(f"  {verdict:<8} {candidate.name:<38}{own}{'' if right else '   NOT AS EXPECTED'}")
    click.echo(f"\nRegistry: {demo.tracking_url}/#/models/{MODEL}\nStop:     make down")
    sys.exit(0 if all(right for _, right, _, _ in verdicts) else 1)


if __name__ == "__main__":
    main()
