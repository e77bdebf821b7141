"""The promoter's commands on a real tracking server, over versions that were registered in a moment, not trained."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from contract.files import sha256_of
from infra.gate_demo import register, table
from promoter.cli import main
from promoter.statistics import spend
from tests.support.promoters import mark_validated
from tests.support.tracking import Stack

pytestmark = pytest.mark.integration
FORCE = ("--force", "--reason", "t")


class Registry:
    """A registered model of a test's own, and the promoter on it."""

    def __init__(self, stack: Stack, experiment: str) -> None:
        self.stack, self.client, self.experiment = stack, stack.client, experiment
        self.model = f"{experiment}_model"

    def add(self, nll: float, ok: float = 0.9, **options: str) -> str:
        """Register a version; nll: change per token against 1.5 nats, ok: share that parses."""
        number = 1 + len(self.client.search_model_versions(f"name = '{self.model}'"))
        version = register(self.client, self.model, table(nll, ok, seed=number, examples=120), **options)
        mark_validated(self.client, version)
        return str(version.version)

    def run(self, command: str, *arguments: str, expected: int = 0) -> str:
        result = self.stack.promoter(command, "--experiment-name", self.experiment, *arguments)
        assert result.exit_code == expected, (result.output, result.exception)
        return result.output

    def json(self, command: str, *arguments: str, expected: int = 0):  # type: ignore[no-untyped-def]
        return json.loads(self.run(command, *arguments, "--format", "json", expected=expected))

    def promote(self, number: str, stage: str = "Production") -> None:
        self.run("promote", "--version", number, "--stage", stage, *FORCE)

    @property
    def aliases(self) -> dict[str, str]:
        return {alias: str(number) for alias, number in self.client.get_registered_model(self.model).aliases.items()}

    def description(self, number: str) -> str:
        return str(self.client.get_model_version(self.model, number).description)

    def tags(self, number: str) -> dict[str, str]:
        return dict(self.client.get_model_version(self.model, number).tags)


@pytest.fixture
def registry(stack: Stack, request) -> Registry:
    mlflow.set_tracking_uri(stack.url)
    return Registry(stack, request.node.name.removeprefix("test_")[:60])


def test_four_candidates_get_the_verdicts_that_they_deserve(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    better, equal = registry.add(-0.3), registry.add(0.0)
    worse_on_guard, other = registry.add(-0.3, ok=0.5), registry.add(-0.5, digest="other")
    assert registry.json("gate", "--version", better)["outcome"] == "passed the gate"
    for number, check in (
        (equal, "improvement"),
        (worse_on_guard, "guard eval/syntax_ok"),
        (other, "same held-out data"),
    ):
        decision = registry.json("gate", "--version", number, expected=1)
        assert check in [reason["check"] for reason in decision["reasons"] if not reason["passed"]]
        assert registry.tags(number)["gate"] == "refused"
    assert registry.aliases == {"production": "1"}  # a gate moves nothing


def share(earlier: int, at_once: int) -> object:
    return pytest.approx(0.05 * spend(1.0, earlier, at_once))


def test_every_version_that_was_judged_counts_and_keeps_its_share(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    second, third = registry.add(-0.3), registry.add(0.0)
    assert registry.json("gate", "--version", second)["alpha"] == share(0, 2)
    assert registry.json("gate", "--version", third, expected=1)["alpha"] == share(0, 2)
    fourth, fifth = registry.add(-0.35), registry.add(-0.01)
    dry = registry.json("auto-promote", "--dry-run")
    assert (dry["version"], dry["alpha"]) == (fourth, share(2, 2))
    registry.run("auto-promote")
    assert registry.json("gate", "--version", fifth, expected=1)["alpha"] == share(2, 2)
    assert registry.json("gate", "--version", second)["alpha"] == share(0, 2)
    registry.run("promote", "--version", fourth, "--stage", "Production")
    # Another incumbent: of those that came after it, two were judged.
    sixth = registry.add(-0.9)
    assert registry.json("gate", "--version", sixth)["alpha"] == share(0, 2)


def test_no_way_of_asking_makes_twenty_tries_one(registry: Registry) -> None:
    """Choosing by `best` and promoting that; deleting the losers, the records, the runs; renaming the model."""
    registry.promote(registry.add(0.0))
    numbers = [registry.add(-0.001 * number) for number in range(1, 8)]
    best = registry.json("best")[0]["version"]
    command = ("promote", "--version", str(best), "--dry-run")
    assert registry.json(*command, expected=1)["alpha"] == share(0, 7)
    for number in numbers:
        if int(number) != best:
            run_id = registry.client.get_model_version(registry.model, number).run_id
            registry.client.delete_model_version(registry.model, number)
            registry.client.delete_run(str(run_id))
    assert registry.json(*command, expected=1)["alpha"] == share(0, 7)
    registry.run("gate", "--version", str(best), expected=1)
    experiment = registry.client.get_experiment_by_name("promotions")
    assert experiment is not None
    for run in registry.client.search_runs([experiment.experiment_id], f"tags.model = '{registry.model}'"):
        registry.client.delete_run(run.info.run_id)
    later = registry.add(-0.3)
    alpha = registry.json("gate", "--version", later, "--dry-run")["alpha"]
    assert alpha <= 0.05 * spend(1.0, 7)  # as the eighth, or less: where the newest was deleted too
    registry.client.rename_registered_model(registry.model, registry.model + "_renamed")
    renamed = registry.run(
        "gate", "--version", later, "--dry-run", "--model-name", registry.model + "_renamed", "--format", "json"
    )
    assert json.loads(renamed)["alpha"] == alpha


def test_the_next_best_has_its_turn_and_what_was_refused_is_not_asked_again(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    blocked, good = registry.add(-0.6, ok=0.4), registry.add(-0.3)
    out = registry.json("auto-promote")
    assert (out["version"], out["outcome"]) == (good, "promoted")
    assert [item["version"] for item in out["refused_first"]] == [blocked]
    registry.run("promote", "--stage", "Production")
    worse = registry.add(0.2)
    assert worse in registry.run("auto-promote", expected=1)
    told = registry.run("auto-promote")
    assert "Nothing to do" in told
    assert f"version {worse} was refused on the same evidence before" in told
    assert registry.json("gate", "--version", worse, expected=1)["outcome"] == "refused"  # asked for by name


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_a_figure_that_is_none_is_not_the_best(registry: Registry, value: float) -> None:
    registry.add(0.0)
    good, broken = registry.add(-0.1), registry.add(0.1)
    run_id = str(registry.client.get_model_version(registry.model, broken).run_id)
    registry.client.log_metric(run_id, "eval/nll_per_token", value)
    assert registry.json("best")[0]["version"] == int(good)


def test_production_emptied_by_hand_is_no_way_round_the_gate(registry: Registry) -> None:
    registry.add(0.0, role="base")
    registry.promote(registry.add(-0.3))
    registry.promote(registry.add(-0.6))
    registry.client.delete_registered_model_alias(registry.model, "production")
    far_worse = registry.add(-0.1)  # and better than the base model
    decision = registry.json("gate", "--version", far_worse, "--stage", "Production", expected=1)
    assert decision["incumbent"]["version"] == "3"
    registry.run("rollback", "--reason", "it is empty")
    assert registry.aliases == {"production": "2"}


def test_production_emptied_with_nothing_before_it_is_rolled_back_to_what_was_there(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    registry.client.delete_registered_model_alias(registry.model, "production")
    registry.run("rollback", "--reason", "it is empty")
    assert registry.aliases == {"production": "1"}


def test_deleting_what_was_in_production_is_no_way_round_the_gate(registry: Registry) -> None:
    registry.add(0.0, role="base")
    registry.promote(registry.add(-0.3))
    worse = registry.add(-0.1)
    registry.client.delete_registered_model_alias(registry.model, "production")
    registry.client.delete_model_version(registry.model, "2")
    refused = registry.run("promote", "--version", worse, "--stage", "Production", expected=2)
    assert "Version 2 of" in refused
    assert "was in production last, and is deleted" in refused
    registry.promote(worse)  # by force
    assert registry.aliases == {"production": worse}


def test_choosing_among_those_that_are_older_than_production_counts_them_all(registry: Registry) -> None:
    older = [registry.add(-0.001 * number) for number in range(5)]
    registry.promote(registry.add(0.0))
    assert registry.json("gate", "--version", older[3], "--dry-run", expected=1)["alpha"] == share(0, 5)


def test_a_staged_version_that_failed_validation_stands_in_nobodys_way(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    good, dud = registry.add(-0.3), registry.add(-0.6)
    registry.run("auto-promote")
    assert registry.aliases["staging"] == dud
    registry.client.set_model_version_tag(registry.model, dud, "validation_status", "failed")
    out = registry.json("auto-promote")
    assert (out["version"], out["outcome"], [item["version"] for item in out["refused_first"]]) == (
        good,
        "promoted",
        [dud],
    )
    assert registry.aliases["staging"] == good


def test_what_was_rolled_back_is_no_longer_the_best(registry: Registry) -> None:
    registry.promote(registry.add(0.0, ok=0.8))
    registry.promote(registry.add(0.8, ok=1.0))  # parses, and writes nonsense
    registry.run("rollback", "--reason", "it writes nonsense")
    number = registry.add(-0.3, ok=0.82)
    assert registry.json("gate", "--version", number)["passed"]


def test_a_table_that_was_overwritten_after_the_promotion_is_refused(registry: Registry, tmp_path) -> None:
    registry.add(0.0, role="base")
    incumbent = registry.add(-0.3)
    registry.run("promote", "--version", incumbent, "--stage", "Production")
    number = registry.add(-0.2)  # worse
    run_id = str(registry.client.get_model_version(registry.model, incumbent).run_id)
    forged = table(0.1, 0.9, seed=5, examples=120)
    forged.to_parquet(tmp_path / "examples.parquet")
    registry.client.log_artifact(run_id, str(tmp_path / "examples.parquet"), "eval")
    registry.client.log_metric(run_id, "eval/nll_per_token", float(forged["nll"].sum() / forged["tokens"].sum()))
    registry.client.set_tag(run_id, "evaluation_sha256", sha256_of(tmp_path / "examples.parquet"))
    decision = registry.json("gate", "--version", number, expected=1)
    failed = [reason["check"] for reason in decision["reasons"] if not reason["passed"]]
    assert "incumbent's table as by the trainer's tag" in failed
    assert "incumbent's table as by the record of its promotion" in failed


def test_an_invented_table_does_not_get_into_production(registry: Registry) -> None:
    """A candidate whose figures nobody has recomputed, and an evaluation of the incumbent that somebody has forged."""
    registry.promote(registry.add(0.0))
    number = registry.add(-0.9)
    registry.client.delete_model_version_tag(registry.model, number, "validated_tables")
    registry.client.delete_model_version_tag(registry.model, "1", "validated_tables")
    registry.run("promote", "--version", number)  # to be tried
    refused = registry.run("promote", "--version", number, "--stage", "Production", expected=1)
    assert "nobody has recomputed the figures of version 2" in refused
    assert registry.aliases["production"] == "1"


def test_before_production_the_base_model_is_the_incumbent(registry: Registry) -> None:
    registry.add(0.0, role="base")
    number = registry.add(-0.3)
    decision = registry.json("gate", "--version", number)
    assert (decision["incumbent"]["version"], decision["passed"]) == ("1", True)
    first = registry.json("gate", "--version", "1")
    assert (first["incumbent"], first["passed"]) == (None, True)


def test_approval_stops_and_goes_on(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    number = registry.add(-0.3)
    waiting = registry.run("auto-promote", "--stage", "Production", "--policy", "approval")
    assert "awaiting approval" in waiting
    assert f"promoter approve --version {number}" in waiting
    assert registry.aliases == {"production": "1"}
    assert registry.tags(number)["gate"] == "awaiting approval"
    assert "Missing option '--reason'" in registry.run("approve", "--by", "ada", expected=2)
    dry = registry.json("approve", "--by", "ada", "--reason", "read it", "--dry-run")
    assert (dry["outcome"], dry["dry_run"], registry.aliases) == ("promoted", True, {"production": "1"})
    done = registry.json("approve", "--by", "ada", "--reason", "read the report")
    assert (done["outcome"], done["policy"]["approval"]) == ("promoted", "manual")
    assert registry.aliases == {"production": number, "previous": "1"}
    [newest, *_] = registry.json("history")
    assert (newest["by"], newest["action"]) == ("ada", "approve")
    assert newest["why"].startswith("read the report (eval/nll_per_token")
    assert "No version of" in registry.run("approve", "--by", "ada", "--reason", "again", expected=2)


def test_what_awaits_approval_is_not_asked_for_twice_and_may_be_archived(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    sibling, number = registry.add(-0.1), registry.add(-0.3)
    command = ("auto-promote", "--stage", "Production", "--policy", "approval")
    registry.run(*command)
    assert f"version {number} of {registry.model} awaits approval already" in registry.run(*command)
    registry.client.delete_model_version(registry.model, sibling)  # it was tried beside it
    assert registry.json("approve", "--by", "a", "--reason", "r", "--dry-run")["outcome"] == "promoted"
    registry.run("archive", "--version", number)
    assert "was archived while it awaited approval" in registry.run("approve", "--by", "a", "--reason", "r", expected=2)
    assert registry.aliases == {"production": "1"}


def test_a_policy_without_correction_gives_no_share_to_keep(registry: Registry, tmp_path) -> None:
    policy = tmp_path / "free.yaml"
    policy.write_text(
        "primary: {metric: eval/nll_per_token, direction: lower_is_better}\nsignificance: {correction: none}\n"
    )
    registry.promote(registry.add(0.0))
    number = registry.add(-0.3)
    assert registry.json("gate", "--version", number, "--policy", str(policy))["alpha"] == 0.05
    later = registry.add(-0.4)  # it was a try all the same
    assert registry.json("gate", "--version", later)["alpha"] == share(1, 1)


def test_a_broken_table_is_refused_by_name(registry: Registry, tmp_path) -> None:
    number = registry.add(0.0)
    run_id = str(registry.client.get_model_version(registry.model, number).run_id)
    (tmp_path / "examples.parquet").write_bytes(b"not parquet")
    registry.client.log_artifact(run_id, str(tmp_path / "examples.parquet"), "eval")
    assert "eval/examples.parquet is broken" in registry.run("gate", "--version", number, expected=1)


def test_production_that_was_moved_by_hand_is_settled(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    registry.promote(registry.add(-0.3))
    registry.client.set_registered_model_alias(registry.model, "production", "1")  # a rollback in the UI
    assert "no version to roll back to" in registry.run("rollback", expected=2)
    assert registry.aliases == {"production": "1"}
    assert (registry.tags("1")["stage"], registry.tags("2")["stage"]) == ("Production", "Archived")


def test_what_was_in_production_before_comes_back_by_hand_alone(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    registry.promote(registry.add(-0.5))
    registry.promote("1")
    assert registry.aliases == {"production": "1", "previous": "2"}
    assert "Nothing to do: there is no candidate" in registry.run("auto-promote")


def test_a_hand_made_alias_brings_back_nothing_that_was_rolled_back(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    registry.promote(registry.add(-0.5))
    registry.client.set_registered_model_alias(registry.model, "champion", "2")
    registry.run("rollback", "--reason", "it writes nonsense")
    assert registry.aliases == {"production": "1", "champion": "2"}
    assert (registry.tags("2")["replaced_by"], "stage" in registry.tags("2")) == ("1", False)
    assert "**Replaced by version 1.** it writes nonsense" in registry.description("2")
    assert "Nothing to do: there is no candidate" in registry.run("auto-promote")


def test_an_approval_is_for_one_stage_and_one_policy(registry: Registry, tmp_path) -> None:
    registry.promote(registry.add(0.0))
    number = registry.add(-0.3)
    command = ("promote", "--version", number, "--policy")
    assert "awaiting approval" in registry.run(*command, "approval", "--stage", "Staging")
    assert "awaiting approval" in registry.run(*command, "approval", "--stage", "Production")
    stricter = tmp_path / "stricter.yaml"
    stricter.write_text("primary: {metric: eval/nll_per_token, direction: lower_is_better}\napproval: manual\n")
    assert "awaiting approval" in registry.run(*command, str(stricter), "--stage", "Production")
    assert "awaits approval already" in registry.run(*command, str(stricter), "--stage", "Production")


def test_a_number_is_a_number_however_it_is_written(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    for number in ("01", "1.0", "-1", "١", "x"):
        assert f"There is no version '{number}' of" in registry.run("archive", "--version", number, expected=2)


def test_a_dry_run_says_so_in_markdown_too(registry: Registry) -> None:
    number = registry.add(0.0, role="base")
    text = registry.run("promote", "--version", number, "--dry-run", "--format", "markdown")
    assert text.startswith(f"## {registry.model} version 1 → Staging: would be: promoted")


def test_json_is_json_whatever_the_figures_are(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    number = registry.add(-0.3)
    run_id = str(registry.client.get_model_version(registry.model, number).run_id)
    registry.client.log_metric(run_id, "eval/nll_per_token", float("nan"))
    refused = registry.run("gate", "--version", number, "--format", "json", expected=1)
    facts = json.loads(refused, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert facts["candidate"]["metrics"]["eval/nll_per_token"] is None


def test_an_approval_is_gated_once_more(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    number = registry.add(-0.2)
    registry.run("auto-promote", "--stage", "Production", "--policy", "approval")
    registry.promote(registry.add(-0.9))  # production moved meanwhile
    refused = registry.json("approve", "--by", "ada", "--reason", "late", expected=1)
    assert (refused["version"], refused["outcome"]) == (number, "refused")
    assert registry.aliases["production"] == "3"
    assert "No version of" in registry.run("approve", "--by", "ada", "--reason", "again", expected=2)


def test_changed_files_are_refused_and_not_even_loaded(registry: Registry) -> None:
    number = registry.add(0.0, role="base")
    version = registry.client.get_model_version(registry.model, number)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{registry.model}/{number}"))
    [code] = folder.glob("*.py")
    code.write_text("raise SystemExit('it was run')\n")
    registry.client.log_model_artifact(str(version.source).rpartition("/")[2], str(code))
    refused = registry.json("gate", "--version", number, expected=1)
    [reason] = [reason for reason in refused["reasons"] if not reason["passed"]]
    assert reason["detail"] == f"{code.name} was changed"
    validated = registry.run("validate", "--version", number, expected=1)
    assert f"✗ files as at training: {code.name} was changed" in validated
    assert "it was run" not in validated
    assert registry.tags(number)["validation_status"] == "failed"


def test_a_pickle_is_refused(registry: Registry, tmp_path) -> None:
    number = registry.add(0.0, role="base")
    (tmp_path / "weights.bin").write_bytes(b"anything")
    source = str(registry.client.get_model_version(registry.model, number).source)
    model_id = source.rpartition("/")[2]
    registry.client.log_model_artifact(model_id, str(tmp_path / "weights.bin"))
    refused = registry.run("gate", "--version", number, expected=1)
    assert "✗ no pickled code: pickled or compiled code in weights.bin" in refused
    assert "✗ files as at training: weights.bin was not there at training" in refused


def test_archive_takes_the_aliases_and_keeps_the_version_out(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    number = registry.add(-0.3)
    registry.promote(number, "Staging")
    assert "would be: archived" in registry.run("archive", "--version", number, "--dry-run")
    assert registry.aliases == {"production": "1", "staging": number}
    assert "archived. no longer wanted." in registry.run("archive", "--version", number, "--reason", "no longer wanted")
    assert registry.aliases == {"production": "1"}
    assert registry.tags(number)["stage"] == "Archived"
    assert "Nothing to do: there is no candidate" in registry.run("auto-promote")
    assert "There is no version '9'" in registry.run("archive", "--version", "9", expected=2)


def test_dry_runs_write_nothing_at_all(registry: Registry) -> None:
    def everything() -> tuple[object, ...]:
        experiments = [experiment.experiment_id for experiment in registry.client.search_experiments()]
        runs = registry.client.search_runs(experiments, max_results=5000)
        versions = registry.client.search_model_versions(f"name = '{registry.model}'")
        return registry.aliases, len(runs), [(version.tags, version.description) for version in versions]

    registry.promote(registry.add(0.0))
    staged = registry.add(-0.3)
    registry.promote(staged, "Staging")
    registry.promote(registry.add(-0.1))
    waiting = registry.add(-0.6)
    registry.run("promote", "--version", waiting, "--stage", "Production", "--policy", "approval")
    before = everything()
    for command in (
        ("gate", "--version", staged),
        ("auto-promote",),
        ("promote", "--stage", "Production"),
        ("promote", "--version", waiting, "--stage", "Staging"),
        ("approve", "--by", "ada", "--reason", "r"),
        ("rollback",),
        ("archive", "--version", staged),
        ("validate", "--version", staged),
    ):
        result = registry.stack.promoter(
            command[0], "--experiment-name", registry.experiment, *command[1:], "--dry-run"
        )
        assert result.exit_code in (0, 1), (command, result.output)  # validate finds that an echo is no model
        assert everything() == before, command


def test_github_gets_a_step_summary(registry: Registry, monkeypatch, tmp_path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    registry.promote(registry.add(0.0))
    registry.add(0.1)
    registry.run("auto-promote", expected=1)
    text = summary.read_text()
    assert text.startswith("# Before\n")
    assert f"## {registry.model} version 1 → Production: promoted" in text
    assert f"## {registry.model} version 2 → Staging: refused" in text
    assert "| eval/nll_per_token |" in text


def test_a_filter_at_which_the_server_fails_is_the_filter_s_fault(registry: Registry) -> None:
    registry.add(0.0)
    late = "attributes.start_time > 99999999999999999999999"
    assert f"--filter is '{late}'" in registry.run("compare", "--filter", late, expected=2)


def test_tables_take_any_column_and_filter(registry: Registry) -> None:
    for number in range(3):
        registry.add(-0.1 * number)
    rows = registry.json("compare", "--metric", "eval/syntax_ok", "--tag", "dataset_digest", "--limit", "2")
    assert [set(row) >= {"syntax_ok", "dataset_digest"} for row in rows] == [True, True]
    best = registry.json("compare")[0]
    [only] = registry.json("compare", "--filter", f"metrics.`eval/nll_per_token` <= {best['nll_per_token'] + 1e-9}")
    assert only["run_id"] == best["run_id"]
    assert "which MLflow does not take" in registry.run("compare", "--filter", "nonsense ~ 1", expected=2)
    assert "which MLflow does not take" in registry.run("compare", "--order-by", "nonsense", expected=2)
    versions = registry.json("compare-versions", "--filter", "version_number > 1", "--tag", "base_model")
    assert [row["version"] for row in versions] == [3, 2]
    assert versions[0]["base_model"] == "bundled:none@1"
    assert "which MLflow does not take" in registry.run("compare-versions", "--filter", "nonsense", expected=2)
    [row] = registry.json("best")
    assert row["version"] == 3


def test_of_equally_good_candidates_the_last_one_is_taken(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    for _ in range(2):
        register(registry.client, registry.model, table(-0.3, 0.9, seed=50, examples=120))
    assert registry.json("auto-promote")["version"] == "3"


def test_the_terminal_shows_the_verdict_in_colour_and_a_pipe_does_not(registry: Registry) -> None:
    import subprocess
    import sys

    registry.add(0.0, role="base")
    command = [sys.executable, "-m", "promoter", "gate", "--experiment-name", registry.experiment, "--version", "1"]
    plain = subprocess.run([*command, "--dry-run"], env=registry.stack.env, capture_output=True, text=True)
    assert "\x1b[" not in plain.stdout
    terminal = subprocess.run(
        ["script", "-qec", " ".join([*command, "--dry-run"]), "/dev/null"],
        env=registry.stack.env | {"TERM": "xterm"},
        capture_output=True,
        text=True,
    )
    assert "\x1b[32m\x1b[1mpassed" in terminal.stdout


def test_quotes_in_a_name_are_refused(registry: Registry) -> None:
    assert "holds a quote" in registry.run("history", "--model-name", "a'b", expected=2)


def test_a_version_registered_by_hand_is_listed_and_refused(registry: Registry) -> None:
    source = str(registry.client.get_model_version(registry.model, registry.add(0.0)).source)
    model_id = source.rpartition("/")[2]
    registry.client.create_model_version(registry.model, source, tags={"role": "candidate"}, model_id=model_id)
    assert registry.json("compare-versions")[0]["version"] == 2
    refused = registry.run("gate", "--version", "2", expected=1)
    assert "the version has no tag manifest_sha256" in refused
    assert "names no revision" in refused


def test_an_evaluation_made_later_counts_as_evidence(registry: Registry) -> None:
    """After the command that the gate named, both were judged on the same."""
    registry.promote(registry.add(0.0))
    number = registry.add(-0.3, digest="new")
    assert "trainer evaluate --model-uri" in registry.run("gate", "--version", number, expected=1)
    # What `trainer evaluate` writes, of the incumbent on the candidate's data.
    scratch = Registry(registry.stack, f"{registry.experiment}_scratch")
    other = registry.client.get_model_version(scratch.model, scratch.add(0.0, digest="new"))
    run = registry.client.get_run(str(other.run_id))
    experiment = registry.client.get_experiment_by_name(registry.experiment)
    assert experiment is not None
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    tags["evaluates"] = f"{registry.model}/1"
    tags["evaluated_manifest"] = registry.tags("1")["manifest_sha256"]
    copy = registry.client.create_run(experiment.experiment_id, tags=tags)
    for name, value in run.data.metrics.items():
        registry.client.log_metric(copy.info.run_id, name, value)
    path = registry.client.download_artifacts(run.info.run_id, "eval/examples.parquet")
    registry.client.log_artifact(copy.info.run_id, path, "eval")
    registry.client.set_terminated(copy.info.run_id)
    decision = registry.json("gate", "--version", number)
    assert decision["incumbent"]["run_id"] == copy.info.run_id


def test_an_odd_name_is_refused_before_anybody_is_asked(registry: Registry) -> None:
    for option in ("--metric", "--param", "--tag"):
        refused = registry.run("compare", option, 'odd name"x', expected=2)
        assert "'odd name\"x' is no name of a metric, param or tag" in refused


def test_a_server_that_fails_is_asked_again_a_few_times_and_people_are_told(monkeypatch) -> None:
    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 500)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(logging.getLogger("urllib3.util.retry"), "handlers", [])  # it speaks every ten seconds at most
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        result = CliRunner().invoke(main, ["--tracking-uri", uri, "compare"])
    finally:
        server.shutdown()
    assert result.exit_code == 3, result.output
    assert result.output.count("asking it again …") == 1
    assert "did not do its work" in result.output


def test_a_frozen_model_lets_nothing_in_and_rolls_back(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    better = registry.add(-0.3)
    registry.promote(better)
    best = registry.add(-0.6)
    assert registry.json("freeze", "--by", "ada", "--reason", "a release is on its way")["outcome"] == "frozen"
    for command in (("auto-promote", "--stage", "Production"), ("promote", "--version", best, *FORCE)):
        said = registry.run(*command, expected=1)
        assert "frozen by ada (a release is on its way" in said
        assert "promoter unfreeze" in said
    assert "frozen already" in registry.run("freeze", "--reason", "once more")
    assert registry.json("gate", "--version", best)["outcome"] == "passed the gate"
    assert "version 2 is in production" in registry.run("rollback", "--from", "1", expected=2)
    registry.run("rollback", "--from", "2", "--reason", "it writes nonsense")
    assert registry.aliases["production"] == "1"
    registry.run("unfreeze", "--by", "ada", "--reason", "it is out")
    assert "not frozen" in registry.run("unfreeze", "--reason", "once more")
    registry.run("auto-promote", "--stage", "Production")
    assert registry.aliases["production"] == best
    history = registry.json("history")
    assert [entry["outcome"] for entry in history][:4] == ["promoted", "unfrozen", "rolled back", "frozen"]
    assert "# " + f"{registry.model}: frozen" in registry.run("freeze", "--reason", "t", "--format", "markdown")


def test_an_approval_waits_while_the_model_is_frozen(registry: Registry) -> None:
    registry.promote(registry.add(0.0))
    waiting = registry.add(-0.3)
    registry.run("auto-promote", "--policy", "approval", "--stage", "Production")
    registry.run("freeze", "--reason", "t")
    registry.run("approve", "--by", "ada", "--reason", "read it", expected=1)
    registry.run("unfreeze", "--reason", "t")
    registry.run("approve", "--by", "ada", "--reason", "read it")
    assert registry.aliases["production"] == waiting
