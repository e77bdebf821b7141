"""Which version the supervisor serves, as aliases move and files break; processes and registry are stand-ins."""

import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersion

from contract.trials import Trial
from serving.settings import ServingSettings
from serving.supervisor import supervisor as module
from serving.supervisor import trial, versions
from serving.supervisor.model_process import ModelProcess
from serving.supervisor.supervisor import Supervisor
from serving.supervisor.versions import Broken, NotYet, Refused


@dataclass
class World:
    """A registry, a store, and the machine's processes."""

    aliases: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    raising: set[str] = field(default_factory=set)
    asked: int = 0
    fetched: list[str] = field(default_factory=list)
    tags: dict[str, str | None] = field(default_factory=dict)
    trial: dict[str, str] = field(default_factory=dict)  # tags of the challenger
    root: bool = True  # whether serving may take a process back from idle
    processes: dict[str, list[Any]] = field(default_factory=dict)

    def named(self, settings: ServingSettings, alias: str) -> ModelVersion:
        self.asked += 1
        if alias not in self.aliases:
            raise NotYet(f"No version has the alias {alias}")
        version = ModelVersion("code", self.aliases[alias], creation_timestamp=1, source="models:/m-1")
        if alias == "challenger":
            version.tags.update(self.trial)
        return version

    def fetch(self, settings: ServingSettings, version: ModelVersion) -> Path:
        self.fetched.append(str(version.version))
        if version.version in self.broken:
            raise Broken("weights was changed")
        return Path()

    def start(self, settings: Any, folder: Path, code: Any, version: str, *_: object) -> Any:
        if version in self.raising:
            raise Refused("it does not load")
        process = SimpleNamespace(pid=1, url="", socket="", up=True, retire=lambda _: None)
        process.alive, process.responds, process.last_words = lambda: process.up, lambda: True, lambda: "killed"
        process.idle, process.stop = False, lambda: setattr(process, "up", False)

        def only_when_idle(idle: bool) -> bool:
            process.idle = idle or (process.idle and not self.root)
            return bool(process.idle == idle)

        process.only_when_idle = only_when_idle
        self.processes.setdefault(version, []).append(process)
        return process


@pytest.fixture
def world(monkeypatch) -> World:
    world = World()
    monkeypatch.setattr(versions, "_named", world.named)
    monkeypatch.setattr(versions, "fetch", world.fetch)
    monkeypatch.setattr(versions, "code_of", lambda *_: None)
    monkeypatch.setattr(versions, "backed_up_at", lambda settings: 0.0)
    monkeypatch.setattr(versions, "tell", lambda _, version, why: world.tags.update({version.version: why}))
    monkeypatch.setattr(versions, "remember", lambda *_: None)
    monkeypatch.setattr(versions, "keep_only", lambda *_: None)
    monkeypatch.setattr(module, "start", world.start)
    monkeypatch.setattr(module, "lacks_memory", lambda *_: None)
    monkeypatch.setattr(trial, "start", world.start)
    monkeypatch.setattr(trial, "shortage", lambda *_: None)
    monkeypatch.setattr(versions, "stopped", lambda _, version, why: bool(world.tags.update({version.version: why})))
    monkeypatch.setattr(module, "TICK_S", 0.001)
    return world


@pytest.fixture
def supervisor(world: World, tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(
        ServingSettings(ratchet_home=tmp_path, serving_model="code", serving_wait=True, serving_poll_s=0.1)
    )
    supervisor.gateway = SimpleNamespace(watch=lambda: None)  # type: ignore[assignment]
    yield supervisor
    shutil.rmtree(supervisor.settings.serving_run_folder)


def until(supervisor: Supervisor, met: Callable[[], bool]) -> None:
    """Let it work until that is so; its pauses after failures are not waited for."""
    end = time.monotonic() + 20
    while not met():
        assert time.monotonic() < end, supervisor.state
        supervisor.not_before, supervisor.asked_at = 0.0, -1e9
        supervisor._tick()
        time.sleep(0.001)


def looks(supervisor: Supervisor, world: World) -> None:
    """Let it look at the alias some times, and do what follows."""
    enough = world.asked + 4
    until(supervisor, lambda: world.asked >= enough and supervisor.preparing is None)


def live(supervisor: Supervisor) -> tuple[str, str] | None:
    now = supervisor.state.live
    return (now.version, now.instead_of) if now else None


def on_trial(world: World, supervisor: Supervisor, shadow: bool = False) -> None:
    world.aliases = {"production": "1", "challenger": "2"}
    trial = Trial(id="t1", until=time.time() + 60, shadow=shadow)
    world.trial = {"trial": trial.model_dump_json(), "trial_share": "0.25"}
    until(supervisor, lambda: answers(supervisor) and live(supervisor) == ("1", ""))


def answers(supervisor: Supervisor) -> bool:
    challenger = supervisor.state.challenger
    return challenger is not None and challenger.live is not None


def test_a_challenger_that_goes_into_production_keeps_its_process(world, supervisor) -> None:
    on_trial(world, supervisor)
    world.aliases["production"] = "2"
    until(supervisor, lambda: live(supervisor) == ("2", ""))
    assert len(world.processes["2"]) == 1
    until(supervisor, lambda: supervisor.state.challenger is None)


@pytest.mark.parametrize("root", [True, False])
def test_a_challenger_that_leaves_the_shadow_has_the_processors(world, supervisor, root: bool) -> None:
    """Where serving may not give them back to its process, another one is started instead."""
    world.root = root
    on_trial(world, supervisor, shadow=True)
    assert world.processes["2"][0].idle
    on_trial(world, supervisor)
    until(supervisor, lambda: answers(supervisor) and not world.processes["2"][-1].idle)
    assert len(world.processes["2"]) == (1 if root else 2)
    assert [process.up for process in world.processes["2"]] == ([True] if root else [False, True])


def test_one_that_is_promoted_out_of_the_shadow_is_started_anew_where_it_has_to(world, supervisor) -> None:
    world.root = False
    on_trial(world, supervisor, shadow=True)
    world.aliases["production"] = "2"
    until(supervisor, lambda: live(supervisor) == ("2", ""))
    assert not world.processes["2"][-1].idle
    until(supervisor, lambda: supervisor.state.challenger is None)


def test_one_that_dies_just_then_is_no_challenger_any_more(world, supervisor) -> None:
    on_trial(world, supervisor)
    world.processes["2"][0].up = False
    world.aliases["production"] = "2"
    until(supervisor, lambda: live(supervisor) == ("2", ""))
    until(supervisor, lambda: supervisor.state.challenger is None)
    assert "2" not in world.tags or "lease" not in str(world.tags["2"])


def test_a_challenger_whose_tags_somebody_has_spoilt_goes_on_as_it_did(world, supervisor) -> None:
    on_trial(world, supervisor)
    for nonsense in ("", "0", "1", "nan", "-1", "x"):
        world.trial["trial_share"] = nonsense
        looks(supervisor, world)
        assert answers(supervisor)
        assert supervisor.state.challenger is not None
        assert supervisor.state.challenger.share == 0.25
    assert len(world.processes["2"]) == 1
    del world.aliases["challenger"]
    until(supervisor, lambda: supervisor.state.challenger is None)


def test_a_challenger_that_ends_again_and_again_is_stopped(world, supervisor, monkeypatch) -> None:
    monkeypatch.setattr(trial, "PAUSE_S", 0.001)
    on_trial(world, supervisor)
    for number in range(trial.STARTS):
        until(supervisor, lambda number=number: len(world.processes["2"]) == number + 1 and answers(supervisor))
        world.processes["2"][-1].up = False
        until(supervisor, lambda: not answers(supervisor))
    until(supervisor, lambda: supervisor.state.challenger is not None and bool(supervisor.state.challenger.stopped))
    assert live(supervisor) == ("1", "")
    until(supervisor, lambda: "ended 4 times" in str(world.tags.get("2")))


def test_broken_production_is_served_by_the_version_before_until_it_is_mended(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: live(supervisor) == ("1", "2"))
    assert supervisor.state.status == "serving"
    assert "version 2, which has the alias 'production', is broken: weights was changed" in supervisor.state.message
    assert "Version 1 serves instead" in supervisor.state.message
    until(supervisor, lambda: world.tags.get("2") == "weights was changed")
    world.broken.clear()
    until(supervisor, lambda: live(supervisor) == ("2", ""))
    assert (supervisor.state.message, supervisor.state.refused) == ("", {})


def test_without_a_version_before_that_is_said_and_one_that_comes_is_served(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2"}, {"2"}
    until(supervisor, lambda: "No other version has the alias 'previous'" in supervisor.state.message)
    assert supervisor.state.status == "failing"
    assert "version 2: weights was changed" in supervisor.state.message
    world.aliases["previous"] = "1"
    until(supervisor, lambda: live(supervisor) == ("1", "2"))


def test_a_broken_version_is_never_served_though_the_one_before_is_broken_too(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"1", "2"}
    until(supervisor, lambda: world.fetched.count("1") > 1 and world.fetched.count("2") > 1)  # by turns
    assert live(supervisor) is None
    world.broken.remove("1")
    until(supervisor, lambda: live(supervisor) == ("1", "2"))


def test_a_rollback_to_the_version_that_serves_instead_makes_it_production(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: live(supervisor) == ("1", "2"))
    world.aliases = {"production": "1"}
    until(supervisor, lambda: live(supervisor) == ("1", ""))
    assert supervisor.state.message == ""
    fetched = len(world.fetched)
    looks(supervisor, world)
    assert len(world.fetched) == fetched  # nor is the broken one asked for again


def test_a_promotion_ends_the_fallback(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: live(supervisor) == ("1", "2"))
    world.aliases = {"production": "3", "previous": "2"}
    until(supervisor, lambda: live(supervisor) == ("3", ""))
    assert supervisor.state.message == ""


def test_the_fallback_follows_the_alias_previous_and_stays_where_that_is_gone(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: live(supervisor) == ("1", "2"))
    world.aliases["previous"] = "0"
    until(supervisor, lambda: live(supervisor) == ("0", "2"))
    del world.aliases["previous"]
    looks(supervisor, world)
    assert live(supervisor) == ("0", "2")


def test_a_fallback_whose_process_ends_is_started_again(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: live(supervisor) == ("1", "2"))
    supervisor.live.process.up = False
    until(supervisor, lambda: supervisor.state.restarts == 1 and live(supervisor) == ("1", "2"))
    world.broken.clear()
    until(supervisor, lambda: live(supervisor) == ("2", ""))


def test_mended_files_that_do_not_load_leave_the_fallback_in_peace(world, supervisor) -> None:
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: live(supervisor) == ("1", "2"))
    world.raising, world.broken = {"2"}, set()
    until(supervisor, lambda: supervisor.state.refused.get("2") == "it does not load")
    assert live(supervisor) == ("1", "")
    fetched = len(world.fetched)
    looks(supervisor, world)
    assert len(world.fetched) == fetched


def test_where_another_version_is_live_a_broken_one_leaves_it_so(world, supervisor) -> None:
    world.aliases = {"production": "1", "previous": "0"}
    until(supervisor, lambda: live(supervisor) == ("1", ""))
    world.aliases, world.broken = {"production": "2", "previous": "1"}, {"2"}
    until(supervisor, lambda: "2" in supervisor.state.refused)
    looks(supervisor, world)
    assert live(supervisor) == ("1", "")
    supervisor.live.process.up = False  # and it comes back, though the alias names the refused one
    until(supervisor, lambda: supervisor.state.restarts == 1 and live(supervisor) is not None)
    assert live(supervisor)[0] == "1"


@pytest.mark.parametrize(
    ("predictions", "why"),
    [
        (["", "", ""], "with empty texts alone"),
        (["", " x", ""], None),
        ([None, 1, ""], "does not answer"),
        ({}, "does not answer"),
    ],
)
def test_an_empty_answer_is_none(monkeypatch, predictions, why: str | None) -> None:
    process = object.__new__(ModelProcess)
    process.url, process.timeout_s = "http://127.0.0.1:1", 1.0
    monkeypatch.setattr(process, "_stats", lambda: {"protocol": 1})
    monkeypatch.setattr(process, "last_words", lambda: "")
    answer = io.BytesIO(json.dumps({"predictions": predictions}).encode())
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: contextlib.nullcontext(answer))
    if why is None:
        process.smoke()
    else:
        with pytest.raises(Refused, match=why):
            process.smoke()
