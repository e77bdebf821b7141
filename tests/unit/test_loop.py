"""The loop: when a round begins, what its steps do, and that each part of the budget holds."""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from contract.errors import Busy, InputError
from contract.files import try_lock
from services.loop import calendar, state
from services.loop.config import Loop, load
from services.loop.jobs import TOOK_TOO_LONG, TRAINING_LOCK, Done
from services.loop.rounds import HOUR_S, REFUSED, WEEK_S, Facts, Known, Round, Verdict, decide, freezes, seconds_left
from services.loop.sources import moved, quoted
from services.loop.state import Record
from services.loop.work import AHEAD_S, STAGED, Work, settings
from services.tracking.readiness import wait_until
from trainer.config import load_config

NOW = 1_700_000_000.0


def loop(**changed: Any) -> Loop:
    values: dict[str, Any] = {"model": "code_model", "data": {"sources": ["git:/srv/app"]}, "cooldown_hours": 24}
    return Loop.model_validate(values | changed)


def verdict(wanted: Loop, rounds: list[Round], now: float = NOW, **known: Any) -> Verdict:
    """Of what is known at once, and of what is seen of the code."""
    at_once = {name: known.pop(name) for name in ("free_gb", "frozen", "asked_for") if name in known}
    free_gb = at_once.pop("free_gb", 500.0)
    return decide(wanted, Known(lambda: free_gb, **at_once), lambda: Facts(**known), rounds, now)


def round_(hours_ago: float, end: str = "promoted", hours: float = 1.0, gpus: int = 0, trained: bool = True) -> Round:
    began = NOW - HOUR_S * hours_ago
    ended = began + HOUR_S * hours
    return Round(f"r{hours_ago}", began, ended, end, trained, HOUR_S * hours * trained, gpus, ended * trained)


@pytest.mark.parametrize(
    ("changed", "known", "rounds", "why"),
    [
        ({}, {"commits": 50}, [], "50 commits"),
        ({}, {"commits": 49}, [], None),
        ({}, {"functions": 0.1}, [], "10% of the functions"),
        ({"triggers": {"accepted": 500}}, {"accepted": 500}, [], "500 completions"),
        ({}, {"accepted": 10**6}, [], None),
        ({}, {"news": "it is new"}, [], "it is new"),
        ({}, {"drift": "inputs"}, [], "production has drifted: inputs"),
        ({"triggers": {"drift": False}}, {"drift": "inputs"}, [], None),
        ({}, {"commits": 50}, [round_(23)], None),  # the cooldown
        ({}, {"commits": 50}, [round_(23, trained=False)], None),
        ({}, {"commits": 50}, [round_(25)], "50 commits"),
        ({"cooldown_hours": 0}, {"commits": 50}, [round_(0.9, "failed", 0.1, trained=False)], None),
        ({"cooldown_hours": 0}, {"commits": 50}, [round_(0.9, "refused", 0.1)], "50 commits"),
        ({}, {"news": "it is new", "unreadable": "it is gone"}, [], None),
        ({}, {"commits": 50}, [round_(-1000, trained=False)], "50 commits"),  # a clock that went wrong
        ({}, {"asked_for": "a test (ada)"}, [round_(1)], "asked for: a test (ada)"),
        ({}, {"asked_for": "a test (ada)", "unreadable": "gone"}, [round_(1)], "asked for: a test (ada)"),
        ({}, {"asked_for": "a test (ada)", "frozen": "no (ada)"}, [], None),
        ({}, {"commits": 50}, [round_(150), round_(30)], None),  # two of two rounds
        ({}, {"commits": 50}, [round_(150, trained=False), round_(30)], "50 commits"),
        ({}, {"commits": 50}, [round_(170, hours=1), round_(30)], "50 commits"),
        ({}, {"commits": 50}, [round_(170, hours=3), round_(30)], None),  # its training ended within the week
        ({}, {"commits": 50, "free_gb": 19.9}, [], None),
        ({"training": {"budget": {"hours": 5}}}, {"commits": 50}, [round_(30, hours=5)], None),
        ({"training": {"budget": {"gpu_hours": 10}}}, {"commits": 50}, [round_(30, hours=3, gpus=4)], None),
        ({"triggers": {"calendar": "0 3 * * *"}}, {}, [round_(30)], "the calendar rings"),
        ({"triggers": {"calendar": "0 3 1 1 *"}}, {}, [round_(30)], None),
        ({"triggers": {"calendar": "0 3 * * *"}}, {"since": NOW - 60}, [], None),  # production is new
        ({"triggers": {"calendar": "0 3 * * *"}}, {"since": NOW - 90_000}, [], "the calendar rings"),
        ({}, {"commits": 50}, [Round("r", NOW - WEEK_S, None, "")], None),  # it goes on
    ],
)
def test_when_a_round_begins(
    changed: dict[str, Any], known: dict[str, Any], rounds: list[Round], why: str | None
) -> None:
    found = verdict(loop(**changed), rounds, **known)
    assert found.begins == (why is not None), found.why
    assert why is None or why in found.why


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_budgets_hold_to_the_unit_over_a_year(gpus: int) -> None:
    """Whatever happens, and whenever the loop looks; trainings take as long as they may, or less."""
    dice = random.Random(gpus)
    known = loop(training={"budget": {"rounds": 3, "hours": 10.0, "gpu_hours": 30.0}}, cooldown_hours=1)
    rounds: list[Round] = []
    now = NOW
    while now < NOW + 52 * WEEK_S:
        now += dice.uniform(0.1, 12) * HOUR_S
        if verdict(known, rounds, now, commits=dice.randrange(200)).begins:
            seconds = min(dice.uniform(0.1, 8) * HOUR_S, seconds_left(known, rounds, gpus, now))
            rounds.append(Round(str(now), now, now + seconds, "failed", True, seconds, gpus, now + seconds))
            now += seconds
    assert len(rounds) > 60
    for one in rounds:
        week = [other for other in rounds if one.spent_at <= other.spent_at < one.spent_at + WEEK_S]
        assert len(week) <= 3
        assert sum(other.trained_s for other in week) <= 10 * HOUR_S + 1e-6
        assert sum(other.trained_s * gpus for other in week) <= 30 * HOUR_S + 1e-6


def test_it_freezes_after_refusals_in_a_row() -> None:
    assert not freezes(loop(), [round_(n, REFUSED) for n in (3, 2)], 0)
    refused = [round_(n, REFUSED) for n in (13, 12, 11)]
    assert freezes(loop(), refused, 0)
    assert freezes(loop(), [round_(13, REFUSED), round_(12, "failed"), round_(11, REFUSED)], 0)
    assert not freezes(loop(), [round_(4, REFUSED), round_(3, REFUSED), round_(2), round_(1, REFUSED)], 0)
    assert not freezes(loop(), [*refused, round_(2, REFUSED)], NOW - 5 * HOUR_S)  # somebody let it go on


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("0 3 * * 0", "Sun"),
        ("0 3 * * 7", "Sun"),
        ("0 3 * * sun", "Sun"),
        ("0 3 * * 5-7", "Fri"),
        ("0 3 * * sat-mon", "Sat"),
        ("0 3 * * 1-5", "Wed"),
        ("0 3 * * */2", "Thu"),
    ],
)
def test_days_of_the_week_are_as_cron_counts_them(text: str, day: str) -> None:
    """Asked on a Tuesday night."""
    following = calendar.following(calendar.parse(text), NOW)
    assert time.strftime("%a %H:%M", time.gmtime(following)) == f"{day} 03:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sources: []}", "data.sources"),
        ("data: {sources: [src]}", "no whole path"),
        ("data: {sources: [/srv, /srv]}", "twice"),
        ("data: {sources: ['/srv/${oc.env:HOME}']}", "variable"),
        ('data: {sources: ["/srv\\0"]}', "data.sources"),
        ("model: code", "model"),
        ("triggers: {calendar: soon}", "triggers.calendar"),
        ("triggers: {calendar: 0 0 31 2 *}", "does not come"),
        ("triggers: {calendar: 0 0 1 * 1}", "cron takes either"),
        ("triggers: {calendar: 0 0 * * 8}", "'8' is no day of the week"),
        ("triggers: {commits: null, functions: null, drift: false}", "no round would ever begin"),
        ("triggers: {commits: true}", "commits is true"),
        ("triggers: {commits: 2023-99-99}", "is not YAML"),
        ("triggers: {functions: .nan}", "triggers.functions"),
        ("training: {budget: {hours: 200}}", "training.budget.hours"),
        ("training: {budget: {gpu_hours: .inf}}", "training.budget.gpu_hours"),
        ("training: {overrides: ['--config=x']}", "no setting"),
        ("training: {overrides: ['data={source: /srv}']}", "no setting"),
        ("training: {overrides: ['data.source=/srv']}", "for the loop to say"),
        ("training: {overrides: ['tracking.uri=http://x']}", "for the loop to say"),
        ("training: {config: configs/mine.yaml}", "training.config"),
        ("stop_words: ['']", "stop_words"),
        ("speed: 3", "speed"),
        ("gate: 3\ngate: 4", "'gate' stands there twice"),
        ("cooldown_hours: " + "9" * 5000, "is not YAML"),
        ("stop_words: " + "[" * 5000, "is not YAML"),
        ("- a list", "is not YAML"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "loop.yaml"
    needed = ("model: code_model\n", "data: {sources: [/srv]}\n")
    path.write_text("".join(line for line in needed if line[:5] != text[:5]) + text)
    with pytest.raises(InputError, match=message):
        load(path)


def test_sources_reach_the_trainer_as_they_are() -> None:
    sources = ["/srv/a, b", "git:/srv/it's [x]@main", "/srv/k: v #1"]
    assert load_config(None, [f"data.source={quoted(sources)}"]).data.source == sources
    told = settings(loop(data={"sources": sources, "feedback": True}))
    assert load_config(None, told).data.source == [*sources, "traces:serving"]


class Registry:
    """As much of a client as a round asks; a version is there once the trainer has run."""

    def __init__(self) -> None:
        self.versions: list[Any] = []
        self.tags: dict[str, str] = {}
        self.production = True

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, *_: Any) -> list[Any]:
        data = SimpleNamespace(tags={"train_digests": "d1", "dataset_digest": "d2"})
        return [SimpleNamespace(info=SimpleNamespace(run_id="run"), data=data)] if self.versions else []

    def search_model_versions(self, _: str) -> list[Any]:
        return self.versions

    def get_model_version_by_alias(self, *_: str) -> Any:
        return SimpleNamespace() if self.production else None

    def set_tag(self, run: str, name: str, value: str) -> None:
        self.tags[name] = value

    def get_run(self, run: str) -> Any:
        info = SimpleNamespace(run_id=run, start_time=0, end_time=None, status="RUNNING", lifecycle_stage="active")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=self.tags))


class Jobs:
    """Stand-ins for trainer and promoter: what each command answers."""

    def __init__(self, client: Registry, answers: dict[str, Done | BaseException], gpus: int = 0) -> None:
        self.client, self.answers, self.count, self.started = client, answers, gpus, cast(list[str], [])

    def gpus(self) -> int:
        return self.count

    def run(self, part: str, arguments: Any, most_s: float, tick: Any) -> Done:
        name = "check" if arguments[0] == "loop" or "--dry-run" in arguments else arguments[0]
        self.started.append(name)
        answer = self.answers.get(name, Done(0, "", "", 1.0))
        tick(0.0)
        if isinstance(answer, BaseException):
            raise answer
        if name == "train" and not answer.exit_code:
            self.client.versions = [SimpleNamespace(version="7")]
        return answer


def work(client: Registry, jobs: Jobs, left_s: float = 18_000.0, **changed: Any) -> Work:
    claim = SimpleNamespace(in_time=nullcontext)
    record = Record(cast(Any, client), cast(Any, claim), "abc", dict(client.tags))
    return Work(record, loop(**changed), jobs, lambda _: None, lambda _: left_s, lambda: NOW)


def says(outcome: str | None) -> Done:
    return Done(0, json.dumps({"outcome": outcome, "why": "it is so"}) if outcome else "", "it broke", 1.0)


@pytest.mark.parametrize(
    ("approval", "gate", "trial", "end", "parts"),
    [
        ("manual", "promoted", None, STAGED, ["promote", "validate"]),
        ("manual", "nothing to do", None, STAGED, ["promote", "validate"]),
        ("automatic", "awaiting approval", None, STAGED, ["promote"]),
        ("automatic", "promoted", "promoted", "promoted", ["promote", "validate", "trial"]),
        ("automatic", "promoted", "trial rolled back", REFUSED, ["promote", "validate", "trial"]),
        ("automatic", "promoted", "inconclusive", "inconclusive", ["promote", "validate", "trial"]),
        ("automatic", "refused", None, REFUSED, ["promote"]),
        ("automatic", "refused before", None, REFUSED, ["promote"]),
        ("automatic", None, None, "failed", ["promote"]),
    ],
)
def test_a_round_from_step_to_step_and_once_more_after_a_kill(
    approval: str, gate: str | None, trial: str | None, end: str, parts: list[str]
) -> None:
    client = Registry()
    jobs = Jobs(client, {"train": Done(0, "", "", 60.0), "promote": says(gate), "trial": says(trial)})
    assert work(client, jobs, approval=approval).go()[0] == end
    assert jobs.started == ["check", "check", "train", *parts]
    assert client.tags["trained_s"] == "60.0"
    assert (client.tags["train_digests"], client.tags["dataset_digest"]) == ("d1", "d2")
    jobs.started.clear()
    assert work(client, jobs, approval=approval).go()[0] == end  # killed before its end was written
    assert not {"train", "promote", "validate"} & set(jobs.started)


@pytest.mark.parametrize(("trial", "production"), [(None, True), ("default", False)])
def test_where_users_are_not_asked_or_there_is_nothing_to_compare_with(trial: str | None, production: bool) -> None:
    client = Registry()
    client.production = production
    jobs = Jobs(client, {"promote": says("promoted")})
    assert work(client, jobs, approval="automatic", trial=trial).go()[0] == "promoted"
    assert jobs.started[2:] == ["train", "promote", "validate", "promote"]


@pytest.mark.parametrize(("said", "end"), [("✗ its figures are others", REFUSED), ("the disk is full", "failed")])
def test_what_does_not_load_as_serving_loads_it_goes_no_further(said: str, end: str) -> None:
    client = Registry()
    jobs = Jobs(
        client,
        {
            "promote": says("promoted"),
            "validate": Done(1, "", f"{said}\nVersion 1: passed", 1.0) if end == REFUSED else Done(1, "", said, 1.0),
        },
    )
    assert work(client, jobs, approval="automatic").go()[0] == end
    assert said in client.tags["why"]
    assert "trial" not in jobs.started


def test_a_training_that_fails_ends_the_round_and_is_counted() -> None:
    client = Registry()
    jobs = Jobs(client, {"train": Done(1, "", "Error: the GPU is out of memory", 90.0)}, gpus=2)
    assert work(client, jobs).go() == ("failed", "its training failed (exit code 1): the GPU is out of memory")
    assert (client.tags["trained_s"], client.tags["gpus"], client.tags["training"]) == ("90.0", "2", "true")
    jobs.answers["train"] = Done(TOOK_TOO_LONG, "", "", 1000.4)
    assert "16.7 minutes that were left" in work(client, jobs, left_s=1000).go()[1]
    assert client.tags["trained_s"] == "1090.0"  # never more than there was


def test_a_training_that_is_killed_has_been_counted() -> None:
    """Its first minute is set aside before it is used."""
    client = Registry()
    jobs = Jobs(client, {"train": Busy("the lease has run out")})
    with pytest.raises(Busy):
        work(client, jobs).go()
    assert float(client.tags["trained_s"]) == AHEAD_S


def test_a_round_that_could_not_work_does_not_train() -> None:
    client = Registry()
    jobs = Jobs(client, {"check": Done(2, "", "Error: no policy 'mine'", 1.0)})
    assert work(client, jobs).go() == ("failed", "it could not have worked: no policy 'mine'")
    assert jobs.started == ["check"]
    assert "training" not in client.tags
    assert work(client, Jobs(client, {}), left_s=0).go() == (
        "failed",
        "its training took all that was left of the budget",
    )


SLOW = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)  # as one that saves a checkpoint
print("at it", flush=True)
time.sleep(4)
"""


def test_a_trainer_whose_loop_was_killed_keeps_the_next_one_waiting(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    program = "from services.loop.jobs import Here; Here().run('slow', ['train'], 60, lambda _: None)"
    env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    env.pop("CHECKPOINTS_DIR", None)
    loop = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, text=True)
    assert loop.stderr is not None
    assert loop.stderr.readline() == "at it\n"
    loop.kill()
    loop.wait()
    with (tmp_path / ".local" / "state" / "ratchet" / TRAINING_LOCK).open("a") as lock:
        assert not try_lock(lock)
        assert wait_until(lambda: try_lock(lock), 20, lambda: True)


CHANGES = {"source": "/srv/a", "since": "c1", "head": "c2", "commits": ["two"], "functions": 10, "new_functions": 4}


@pytest.mark.parametrize(
    ("since", "production", "answers", "expected"),
    [
        ({"/srv/a": "c1"}, True, [(0, [CHANGES])], {"functions": 0.4, "subjects": ("two",), "heads": {"/srv/a": "c2"}}),
        ({}, True, [(0, [CHANGES])], {"functions": 0.4, "news": "", "heads": {"/srv/a": "c2"}}),
        ({}, True, [(2, None), (0, [CHANGES])], {"news": "the version in production was not trained on these sources"}),
        ({}, True, [(1, None)], {"news": "", "unreadable": "it is not known how far the code has moved: it broke"}),
        ({}, False, [(0, [CHANGES])], {"news": "no version is in production"}),
        (
            {"/srv/a": "gone"},
            True,
            [(2, None), (0, [CHANGES])],
            {"news": "/srv/a has lost the commit that was trained on: its history was written anew"},
        ),
        ({"/srv/b": "c0"}, True, [(0, [CHANGES])], {"news": "/srv/a is new to the loop"}),
        (
            {"/srv/a": "c1"},
            True,
            [(2, None), (2, None)],
            {"unreadable": "/srv/a cannot be read: it broke", "heads": {"/srv/a": "c1"}, "news": ""},
        ),
    ],
)
def test_how_far_the_sources_have_moved(
    since: dict[str, str], production: bool, answers: list[Any], expected: dict[str, Any]
) -> None:
    todo = [Done(code, json.dumps(answer), "Error: it broke", 1.0) for code, answer in answers]
    jobs = SimpleNamespace(run=lambda *_: todo.pop(0))
    found = moved(loop(data={"sources": ["/srv/a"]}), since, production, cast(Any, jobs), lambda _: None)
    assert {name: getattr(found, name) for name in expected} == expected
    assert todo == []


@pytest.mark.parametrize(
    ("tags", "seconds"),
    [({"trained_s": "90"}, 90), ({"trained_s": "abc"}, 120), ({"trained_s": "nan"}, 120), ({"trained_s": "-5"}, 120)],
)
def test_a_spoilt_tag_does_not_make_a_round_cheaper(tags: dict[str, str], seconds: float) -> None:
    info = SimpleNamespace(run_id="r", start_time=0, end_time=120_000, status="FINISHED", lifecycle_stage="deleted")
    run = SimpleNamespace(info=info, data=SimpleNamespace(tags={"training": "true", "gpus": "x", **tags}))
    assert state.round_of(cast(Any, run)).trained_s == seconds
    assert state.heads(cast(Any, SimpleNamespace(data=SimpleNamespace(tags={"heads": "[1"})))) == {}
