"""How a trial ends where somebody does something else meanwhile: recorded, and never over what nobody compared."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result

from contract.lease import lease
from contract.names import CHALLENGER_ALIAS, PRODUCTION, STAGE, STAGING, TRIAL, TRIAL_SHARE
from infra.gate_demo import register, table
from promoter.cli import main
from promoter.trials import watch
from promoter.trials.policy import TrialPolicy
from promoter.trials.watch import Running
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.integration
EXPERIMENT = "ends"
MODEL = f"{EXPERIMENT}_model"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator[Stack]:
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    with server(stack):
        mlflow.set_tracking_uri(stack.url)
        for number in range(4):
            register(stack.client, MODEL, table(-0.1 * number, 0.9, seed=number, examples=60))
        yield stack


@pytest.fixture
def running(own: Stack, monkeypatch) -> Running:
    """Version 2 on trial against version 1."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.url)
    client = own.client
    for alias in client.get_registered_model(MODEL).aliases:
        client.delete_registered_model_alias(MODEL, alias)
    for alias, number, stage in ((PRODUCTION, "1", "Production"), (STAGING, "2", "Staging")):
        client.set_registered_model_alias(MODEL, alias, number)
        client.set_model_version_tag(MODEL, number, STAGE, stage)
    with lease(client, MODEL, "ada", 30) as claim:
        return watch.begin(claim, client.get_model_version(MODEL, "2"), TrialPolicy(), "ada", "")


def promoter(own: Stack, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--tracking-uri", own.url, *arguments, "--model-name", MODEL])


def assert_ended(own: Stack, running: Running, outcome: str) -> None:
    """With a record that is finished, and without anything left of it."""
    assert running.record is not None
    run = own.client.get_run(running.record)
    assert (run.info.status, run.data.tags["outcome"], run.data.tags["trial_run"]) == ("FINISHED", outcome, running.id)
    model = own.client.get_registered_model(MODEL)
    assert CHALLENGER_ALIAS not in model.aliases
    assert TRIAL not in model.tags
    assert not {TRIAL, TRIAL_SHARE} & own.client.get_model_version(MODEL, "2").tags.keys()


def production(own: Stack) -> str:
    return str(own.client.get_registered_model(MODEL).aliases[PRODUCTION])


@pytest.mark.parametrize("number", ["3", "2"])
def test_who_goes_into_production_meanwhile_stays_there(own: Stack, running: Running, number: str) -> None:
    """Between the look at the traffic and the lock: nobody has compared the challenger with that one."""
    own.client.set_registered_model_alias(MODEL, PRODUCTION, number)
    entry = watch.end(running, "promote", "it is better", None)
    assert (entry.outcome, production(own)) == ("inconclusive", number)
    assert ("by hand" if number == "2" else "production is version 3 now, and was version 1") in entry.why
    assert_ended(own, running, "inconclusive")


def test_an_alias_taken_by_hand_is_an_end_with_a_record(own: Stack, running: Running) -> None:
    own.client.delete_registered_model_alias(MODEL, CHALLENGER_ALIAS)
    entry = watch.watch(running, print)
    assert (entry.outcome, entry.why) == ("inconclusive", "somebody has taken the alias from it")
    assert_ended(own, running, "inconclusive")


def test_a_promotion_by_the_promoter_itself_ends_it(own: Stack, running: Running) -> None:
    done = promoter(own, "promote", "--version", "3", "--stage", "Production", "--force", "--reason", "urgent")
    assert done.exit_code == 0, done.output
    assert watch.watch(running, print).outcome == "inconclusive"
    assert production(own) == "3"
    assert_ended(own, running, "inconclusive")


def test_frozen_it_goes_on_and_is_not_promoted_by_hand_either(own: Stack, running: Running) -> None:
    assert promoter(own, "freeze", "--reason", "release").exit_code == 0
    done = promoter(own, "trial", "promote", "--reason", "now")
    assert (done.exit_code, production(own)) == (1, "1"), done.output
    assert CHALLENGER_ALIAS in own.client.get_registered_model(MODEL).aliases
    assert promoter(own, "unfreeze", "--reason", "released").exit_code == 0
    done = promoter(own, "trial", "promote", "--reason", "now")
    assert (done.exit_code, production(own)) == (0, "2"), done.output
    running.record = own.client.get_model_version(MODEL, "2").tags["promotion_run_id"]
    assert_ended(own, running, "promoted")


def test_a_running_trial_is_shown_gone_on_with_and_stopped(own: Stack, running: Running, tmp_path: Path) -> None:
    status = promoter(own, "trial", "status", "--format", "json")
    assert json.loads(status.stdout)["challenger"] == "2"
    assert "is on trial against version 1: step 1 of 3" in promoter(own, "trial", "status").stdout
    assert promoter(own, "trial", "--dry-run").stdout.startswith("Would go on with the trial of version 2")
    for arguments, words in (
        (("trial", "--version", "3"), "Version 2 is on trial already"),
        (("trial", "--policy", "default", "--version", "99"), "Version 2 is on trial already"),
        (("trial", "stop", "--reason", ""), "Expected a text"),
    ):
        done = promoter(own, *arguments)
        assert (done.exit_code, words in done.output) == (2, True), done.output
    other = tmp_path / "other.yaml"
    other.write_text("{alpha: 0.1}")
    done = promoter(own, "trial", "--policy", str(other))
    assert (done.exit_code, "began with another, which stays" in done.output) == (2, True), done.output
    done = promoter(own, "trial", "stop", "--reason", "memory")
    assert (done.exit_code, "inconclusive. stopped by hand: memory." in done.output) == (0, True), done.output
    done = promoter(own, "trial", "stop", "--reason", "memory")
    assert (done.exit_code, "is on trial. `promoter trial --version N`" in done.output) == (2, True), done.output


@pytest.mark.parametrize("state", ["null", '{"began": "x"}', '{"began": 0, "step": 99, "step_began": 0, "events": []}'])
def test_a_spoilt_state_is_said_and_how_to_end_it(own: Stack, running: Running, state: str) -> None:
    own.client.set_tag(running.id, watch.STATE, state)
    done = promoter(own, "trial", "status")
    assert (done.exit_code, "Delete the alias 'challenger' to end it" in done.output) == (2, True), done.output


def test_what_cannot_be_tried_is_refused_before_anything_is_written(own: Stack, running: Running) -> None:
    assert promoter(own, "trial", "stop", "--reason", "for this test").exit_code == 0
    for arguments, words in (
        (("trial", "--version", "3"), "is not in Staging"),
        (("trial", "--version", "1"), "is in production"),
        (("trial", "--version", "77"), "77"),
        (("trial", "--policy", "no-such"), "No policy 'no-such'"),
    ):
        done = promoter(own, *arguments)
        assert (done.exit_code, words in done.output) == (2, True), done.output
    unknown = CliRunner().invoke(main, ["--tracking-uri", own.url, "trial", "--version", "2", "--model-name", "nope"])
    assert (unknown.exit_code, "no registered model 'nope'" in unknown.output) == (2, True), unknown.output
    done = promoter(own, "trial", "--dry-run", "--format", "json")
    assert json.loads(done.stdout)["version"] == "2"
