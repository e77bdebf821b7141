"""The challenger of a trial: a second version that runs beside the live one, and answers a share of the requests.

Whatever goes wrong with it ends its traffic, and never the live version's. Why it was ended is written on the version,
where the promoter sees it, and every other replica.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from contract.errors import RatchetError
from contract.names import TRIAL, TRIAL_SHARE, TRIAL_STOPPED
from contract.trials import LEASE_RAN_OUT, LEAST_SHARE, Trial, stopped, why_stopped
from serving.settings import RunSettings
from serving.supervisor import versions
from serving.supervisor.model_process import ModelProcess, shortage, start
from serving.supervisor.state import Challenger, Live, stopped_file

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
STARTS = 4  # of a challenger's process; one that ends more often is ended for good
PAUSE_S = 2.0  # before the second start; each further one waits twice as long


@dataclass
class Running:
    """A challenger, and how far it is."""

    version: "ModelVersion"
    trial: Trial
    share: float
    process: ModelProcess | None = None
    starting: "Future[ModelProcess] | None" = None
    abandoned: threading.Event = field(default_factory=threading.Event)
    starts: int = 0
    not_before: float = 0.0  # monotonic: its next start
    since: float = 0.0  # since 1970: when it went live
    stopped: str = ""
    told: bool = True  # whether the version says why it was stopped

    @property
    def number(self) -> str:
        return str(self.version.version)


class TrialRunner:
    """Follows the alias `challenger`; its methods are called from the supervisor's loop, and do not block."""

    def __init__(
        self,
        settings: RunSettings,
        live: Callable[[], ModelProcess | None],
        describe: Callable[["ModelVersion", ModelProcess, float], Live],
        in_thread: Callable[[str, Callable[[], Any]], "Future[Any]"],
        retire: Callable[[str, ModelProcess], None],
    ) -> None:
        self.settings = settings
        self._live, self._describe, self._in_thread, self._retire = live, describe, in_thread, retire
        self._now: Running | None = None

    @property
    def state(self) -> Challenger | None:
        """As the gateway is told it."""
        now = self._now
        if now is None:
            return None
        answers = now.process is not None and not now.stopped
        return Challenger(
            version=now.number,
            trial=now.trial.id,
            share=now.share,
            unit=now.trial.unit,
            until=now.trial.until,
            limits=now.trial.limits.model_dump(),
            shadow=now.trial.shadow,
            live=self._describe(now.version, now.process, now.since) if answers and now.process else None,
            stopped=now.stopped,
        )

    @property
    def folders(self) -> list[Path]:
        """What must not be deleted."""
        return [] if self._now is None else [versions.folder_of(self.settings, self._now.version)]

    def follow(self, version: "ModelVersion | None", live: str | None) -> None:
        """Do as the registry says: `version` has the alias, `live` is the number of the one that serves."""
        number = str(version.version) if version is not None else None
        found = None if version is None or number == live else read(version)
        if found is None and self._now is not None and self._now.number == number != live:
            return  # somebody has spoilt its tags: the lease ends it, unless the promoter writes them anew
        if version is None or found is None:
            self._end()
            return
        trial, share = found
        if self._now is None or (self._now.trial.id, self._now.number) != (trial.id, str(version.version)):
            self._end()
            self._now = Running(version, trial, share)
            log.info("Version %s is on trial: %g%% of the requests", version.version, 100 * share)
        now = self._now
        if share != now.share:
            log.info("Version %s gets %g%% of the requests", version.version, 100 * share)
        if now.process is not None and not now.process.only_when_idle(trial.shadow) and not trial.shadow:
            log.info(
                "Version %s has left the shadow, and starts anew: its process may not have more than idle time", number
            )
            idle, now.process, now.starts = now.process, None, 0
            self._start(now, idle)
        now.version, now.trial, now.share = version, trial, share
        if (why := why_stopped(version.tags.get(TRIAL_STOPPED, ""), trial.id)) and not now.stopped:
            self._stop(why, told=True)
        if not now.told:
            self._tell(now)

    def watch(self) -> None:
        """Look at the process, and at what the gateway says; start it, where it is to run."""
        now = self._now
        if now is None or now.stopped:
            return
        if why := self._reported(now):
            self._stop(why)
        elif time.time() >= now.trial.until:
            self._stop(LEASE_RAN_OUT)
        elif now.starting is not None:
            if now.starting.done():
                self._take(now, now.starting)
        elif now.process is not None:
            if not now.process.alive():
                log.error("The challenger, version %s, has ended: %s", now.number, now.process.last_words())
                ended, now.process = now.process, None
                ended.stop()
                if now.starts >= STARTS:
                    self._stop(f"its process ended {now.starts} times: {ended.last_words()}")
        elif self._live() is not None and time.monotonic() >= now.not_before:
            self._start(now)

    def adopt(self, version: "ModelVersion") -> ModelProcess | None:
        """The process of a challenger that goes into production: it is the live one's from now on."""
        now = self._now
        if now is None or now.number != str(version.version) or now.process is None or not now.process.alive():
            return None
        if not now.process.only_when_idle(False):
            return None
        process, now.process, self._now = now.process, None, None
        return process

    def make_way(self, why: str) -> bool:
        """Give the memory back, from any thread; whether there was any."""
        now = self._now
        if now is None or now.process is None:
            return False
        process = now.process
        self._stop(why, retire=False)
        process.stop()
        return True

    def close(self) -> None:
        """End it, and wait for that."""
        now, self._now = self._now, None
        if now is None:
            return
        now.abandoned.set()
        if now.process is not None:
            now.process.stop()
        elif now.starting is not None:
            try:
                now.starting.result(timeout=20).stop()
            except BaseException:  # it has never come up
                return

    def _start(self, now: Running, instead_of: ModelProcess | None = None) -> None:
        now.starts += 1
        now.not_before = time.monotonic() + PAUSE_S * 2 ** (now.starts - 1)
        now.starting = self._in_thread(f"challenger {now.number}", lambda: self._bring_up(now, instead_of))

    def _bring_up(self, now: Running, instead_of: ModelProcess | None) -> ModelProcess:
        """Fetch, check, start and ask it. In a thread of its own."""
        if instead_of is not None:
            instead_of.stop()
        folder = versions.fetch(self.settings, now.version)
        code = versions.code_of(folder, now.version)
        live = self._live()
        if live is not None and (lacking := shortage(live, self.settings.serving_memory_reserve_mb)):
            raise RatchetError(f"there is too little memory for two: {lacking}")
        return start(self.settings, folder, code, now.number, lambda step: None, lambda: not now.abandoned.is_set())

    def _take(self, now: Running, result: "Future[ModelProcess]") -> None:
        now.starting = None
        try:
            now.process, now.since = result.result(), time.time()
            now.process.only_when_idle(now.trial.shadow)
        except Exception as error:
            why = error.message if isinstance(error, RatchetError) else f"{type(error).__name__}: {error}"
            if isinstance(error, versions.Unavailable) and now.starts < STARTS:
                log.warning("The challenger, version %s, is not there yet: %s", now.number, why)
                return
            self._stop(f"it does not start: {why}")
        else:
            log.info("The challenger, version %s, answers %g%% of the requests", now.number, 100 * now.share)

    def _reported(self, now: Running) -> str:
        """Why a gateway worker has stopped it; empty if none has."""
        try:
            said = json.loads(stopped_file(self.settings.serving_run_folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return str(said["why"]) if said.get("trial") == now.trial.id else ""

    def _stop(self, why: str, told: bool = False, retire: bool = True) -> None:
        """Give it no requests any more, as long as this trial lasts."""
        now = self._now
        assert now is not None
        log.error("The trial of version %s is stopped: %s", now.number, why)
        now.stopped, now.told = why, told
        now.abandoned.set()
        self._let_go(now, retire)
        if not told:
            self._tell(now)

    def _end(self) -> None:
        """The alias has left it."""
        if self._now is not None:
            log.info("Version %s is on trial no more", self._now.number)
            self._now.abandoned.set()
            self._let_go(self._now)
            self._now = None

    def _let_go(self, now: Running, retire: bool = True) -> None:
        process, now.process = now.process, None
        if process is not None and retire:
            self._retire(now.number, process)
        if now.starting is not None:
            starting, now.starting = now.starting, None
            self._in_thread("abandoned", lambda: starting.result().stop())

    def _tell(self, now: Running) -> None:
        now.told = True

        def write() -> None:
            if not versions.stopped(self.settings, now.version, stopped(now.trial.id, now.stopped)):
                now.told = False  # once more when the registry answers again

        self._in_thread("trial", write)


def read(version: "ModelVersion") -> tuple[Trial, float] | None:
    """What a version's tags say of its trial; None where they say nothing that can be followed."""
    try:
        trial, share = Trial.model_validate_json(version.tags.get(TRIAL, "")), float(version.tags.get(TRIAL_SHARE, ""))
    except (ValidationError, ValueError):
        return None
    return (trial, share) if LEAST_SHARE <= share <= 1 - LEAST_SHARE else None
