"""An evaluation as a run in MLflow: metrics, the table, and the tags by which two evaluations are found comparable."""

import dataclasses
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from tqdm import tqdm

from code_model import fim
from code_model.text import encode_prompt, start
from contract import names
from contract.errors import InputError
from contract.files import sha256_of
from contract.names import EVALUATION_TABLE
from trainer.config import EvalConfig
from trainer.data import benchmarks
from trainer.data.example import KINDS, Example, digest
from trainer.data.rows import parse
from trainer.evaluation.models import JudgedModel
from trainer.evaluation.page import page
from trainer.evaluation.sandbox import Sandbox
from trainer.evaluation.summary import in_words, summarise
from trainer.evaluation.table import evaluate, steps, to_generate
from trainer.tracking import say
from trainer.training.collator import prompt_of


class Judged(NamedTuple):
    """What came of judging one model."""

    table: pd.DataFrame  # of the held-out examples
    metrics: dict[str, float]  # of them and of the benchmark
    evidence: str  # sha256 of the table's file


@dataclass(frozen=True)
class Evaluation:
    """What models are judged by: held-out examples, and a benchmark where one is configured."""

    config: EvalConfig
    seed: int  # of drawn samples
    examples: list[Example]
    digest: str  # of the examples
    benchmark: list[Example] = field(default_factory=list)

    @classmethod
    def of(cls, config: EvalConfig, seed: int, examples: list[Example], digest: str) -> "Evaluation":
        """With the configured benchmark's tasks. Raises InputError where its tests, or others, cannot be run here."""
        rows = benchmarks.rows(config.benchmark, "eval.benchmark") if config.benchmark is not None else ()
        benchmark = [item for row in rows if isinstance(item := parse(row, lambda messages: "", "python"), Example)]
        evaluation = cls(config, seed, examples, digest, benchmark)
        if evaluation.has_tests:
            with Sandbox(config.test_timeout_s, config.test_memory_mb):
                pass  # it works
        return evaluation

    @property
    def has_tests(self) -> bool:
        return any(example.test is not None for example in (*self.examples, *self.benchmark))

    def check(self, tokenizer: Any, positions: int | None) -> None:
        """Raise InputError where a prompt and the tokens to come do not fit into the model's positions."""
        for examples, key in ((self.examples, "max_new_tokens"), (self.benchmark, "benchmark_max_new_tokens")):
            if not examples:
                continue
            longest = max((len(encode_prompt(tokenizer, prompt_of(tokenizer, item))) for item in examples), default=0)
            wanted = longest + getattr(self.config, key)
            if positions is not None and wanted > positions:
                raise InputError(
                    f"The longest prompt has {longest} tokens; with eval.{key}={getattr(self.config, key)} that makes "
                    f"{wanted}. Expected at most {positions}, the positions that the model has."
                )

    def tags(self, role: str, base_model: str, dtype: str, tokenizer: Any) -> dict[str, str]:
        """The tags of a run that make two evaluations of one model the same."""
        config = self.config
        settings = ["greedy", f"max_new_tokens={config.max_new_tokens}", dtype.removeprefix("torch.")]
        settings.append("healed")  # prompts end before tokens that may go on: see code_model.healing
        settings.append("+".join(sorted({example.language for example in self.examples})))
        generated = to_generate(self.examples, config)
        if len(generated) < len(self.examples):
            which = digest([self.examples[number].number for number in generated])
            settings.append(f"completions of {len(generated)} ({which[:8]})")
        # A token of one tokenizer is not one of another, and so is no figure that counts by tokens.
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        settings.append(f"tokenizer {hashlib.sha256(vocabulary).hexdigest()[:8]}")
        if self.has_tests:
            settings.append(f"tests within {config.test_timeout_s:g} s and {config.test_memory_mb} MB")
        if self.has_tests and config.samples:
            drawn = f"{config.samples} samples at temperature={config.temperature:g}, top_p={config.top_p:g}"
            settings.append(f"{drawn}, seed={self.seed}, k={config.pass_at}")
        if config.benchmark is not None:
            settings.append(f"{config.benchmark} with max_new_tokens={config.benchmark_max_new_tokens}")
        return {
            names.ROLE: role,
            names.BASE_MODEL: base_model,
            names.DATASET_DIGEST: self.digest,
            names.PROMPT_TEMPLATE: self._prompt_template(tokenizer),
            names.EVAL_SETTINGS: ", ".join(settings),
        }

    def _prompt_template(self, tokenizer: Any) -> str:
        """How prompts are made of examples. A chat's are made with the data already, and in their digest."""
        first = "".join(tokenizer.convert_ids_to_tokens(start(tokenizer)))
        template = f"after {first}" if first else "as they are"
        if all(example.kind not in KINDS for example in (*self.examples, *self.benchmark)):
            return template
        gap = fim.rendered(fim.Context("PREFIX", "SUFFIX", "PATH"), tokenizer).replace("\n", "\\n")
        return f"{template}, gaps as {gap}" if first else f"gaps as {gap}"

    def run(self, model: JudgedModel, what: str, base: pd.DataFrame | None = None) -> Judged:
        """Judge a model, and log table, metrics and the table's sha256 to the active run.

        The table's page shows it beside the base model's table, where that is given.
        """
        on_benchmark = dataclasses.replace(self.config, max_new_tokens=self.config.benchmark_max_new_tokens)
        generated = len(to_generate(self.examples, self.config))
        on = f"{len(self.examples)} held-out examples"
        on += f", completing {generated}" if generated < len(self.examples) else ""
        table = self._judge(model, self.examples, self.config, f"{what} on {on}")
        metrics = summarise(table, self.config)
        evidence = _log(table, metrics, EVALUATION_TABLE)
        mlflow.log_text(page(table, base, what), EVALUATION_TABLE.replace(".parquet", ".html"))
        mlflow.set_tag(names.EVIDENCE, evidence)
        say("  " + in_words(metrics, "eval"))
        if self.benchmark:
            name = str(self.config.benchmark)
            tasks = self._judge(model, self.benchmark, on_benchmark, f"{what} on {name}")
            found = summarise(tasks, on_benchmark, prefix=name)
            _log(tasks, found, f"eval/{name}.parquet")
            say("  " + in_words(found, name))
            metrics |= found
        return Judged(table, metrics, evidence)

    def _judge(self, model: JudgedModel, examples: list[Example], config: EvalConfig, what: str) -> pd.DataFrame:
        say(f"Evaluating {what}")
        disable = not sys.stderr.isatty()
        with tqdm(total=steps(examples, config), unit="step", leave=False, disable=disable) as bar:
            return evaluate(model, examples, config, self.seed, bar.update)


def find(client: MlflowClient, experiment_id: str, tags: dict[str, str]) -> Run | None:
    """An earlier run with these tags: it evaluated the same model on the same data in the same way.

    One of an earlier release, which does not name its table's sha256, is no evidence any more.
    """
    same = " and ".join(f"tags.{name} = '{tags[name]}'" for name in (names.ROLE, names.DATASET_DIGEST))
    runs = client.search_runs([experiment_id], f"{same} and attributes.status = 'FINISHED'")
    same_run = (run for run in runs if tags.items() <= run.data.tags.items() and names.EVIDENCE in run.data.tags)
    run = next(same_run, None)
    if run is not None:
        say(f"Evaluated on this data before: {run.info.run_name}")
    return run


def manifest_tag(version: ModelVersion) -> dict[str, str]:
    """The tag of a run that judges a registered version: which files those were. Ratchet 0.1.0 had no manifest."""
    manifest = version.tags.get(names.MANIFEST_SHA256)
    return {names.EVALUATED_MANIFEST: manifest} if manifest is not None else {}


def _log(table: pd.DataFrame, metrics: dict[str, float], path: str) -> str:
    """Log a table and its metrics; returns the sha256 of the table's file."""
    mlflow.log_metrics(metrics)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(path).name
        table.to_parquet(file)
        mlflow.log_artifact(str(file), str(Path(path).parent))
        return sha256_of(file)
