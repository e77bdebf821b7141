"""The first process of the container: keeps the version that the alias names behind the gateway, and both running.

It resolves the alias, starts `mlflow models serve` for exactly that version, and tells the gateway (state.py).
When the alias moves, a second process is started beside the first. Once its files are found as at training, and it has
loaded and answered, new requests go to it, and the first ends when it has answered what it had begun. A version that
fails any of this never goes live: the first serves on. Where none is live and production's files are broken, the
version with the alias `previous` serves until they are mended.
"""

import contextlib
import logging
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contract.errors import InputError, RatchetError, Unreachable
from contract.names import DRIFT, MANIFEST_SHA256, PREVIOUS, PRODUCTION
from serving.settings import RunSettings, ServingSettings
from serving.supervisor import state, versions
from serving.supervisor.gateway_process import GatewayProcess
from serving.supervisor.model_process import ModelProcess, lacks_memory, start
from serving.supervisor.state import Live, Pending, State
from serving.supervisor.trial import TrialRunner
from serving.supervisor.versions import Broken, NotYet, Refused, Unavailable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

T = TypeVar("T")
log = logging.getLogger(__name__)
TICK_S = 0.1
LONGEST_PAUSE_S = 60.0  # between attempts to get or start what fails
SILENT_S = 60.0  # a live model that does not answer for so long is ended
BACKUP_EVERY_S = 60.0  # it is asked when the last backup was
LASTED_S = 60.0  # a process that lived so long was well: its next restart does not wait


@dataclass
class Running:
    """A version that is live."""

    version: "ModelVersion"
    process: ModelProcess
    instead_of: str = ""  # the version that the alias names, whose files are broken


@dataclass(frozen=True)
class Asked:
    """What the registry says."""

    version: "ModelVersion"  # that the alias names
    broken: str | None = None  # the number for which `previous` was looked up
    previous: "ModelVersion | None" = None
    challenger: "ModelVersion | None" = None


@dataclass
class Preparation:
    """A version on its way, in a thread of its own."""

    version: "ModelVersion"
    seen: float  # monotonic: when the alias was first seen on it
    result: "Future[ModelProcess]"
    abandoned: threading.Event
    instead_of: str | None = None  # the version that the alias names, which has just failed without it


class Supervisor:
    """Runs until SIGTERM. `run` returns the exit code."""

    def __init__(self, settings: ServingSettings) -> None:
        folder = tempfile.mkdtemp(prefix="ratchet-serving-")  # in memory in the stack: it does not fill up
        self.settings = RunSettings(**settings.model_dump(), serving_run_folder=Path(folder))
        self.state = State()
        self.telling = threading.Lock()
        # Plain flags: a signal may come while this thread holds the lock of an Event.
        self.stopping = False
        self.nudged = False  # ask for the alias now
        self.asking: Future[Asked] | None = None  # for the alias, in a thread: it may take long
        self.silent_since: float | None = None  # since when the live model has not answered
        self.gateway = GatewayProcess(self.settings)
        self.live: Running | None = None
        self.preparing: Preparation | None = None
        self.before: ModelVersion | None = None  # was live until the one on its way needed its memory
        self.retiring: list[tuple[str, threading.Thread]] = []
        self.pause, self.not_before = 1.0, 0.0
        self.wanted: tuple[str, float] | None = None  # version and when it was first seen
        self.broken: str | None = None  # the version that the alias names, where its files are and nothing was live
        self.asked_at = self.backup_asked_at = -1e9
        self.trial = TrialRunner(
            self.settings,
            lambda: self.live.process if self.live else None,
            lambda version, process, since: replace(self._describe(Running(version, process)), since=since),
            *(self._in_thread, self._retire),
        )
        self.ended: int | None = None  # the exit code, where there is nothing to go on for

    def run(self) -> int:
        """Serve until told to stop."""
        folder = self.settings.serving_run_folder
        state.write(self.state, folder / "state.json")
        try:
            return self._run()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)
        first = None if self.settings.serving_wait else self._first()  # raises where there is none
        self.gateway.start()
        self._in_thread("webhook", lambda: versions.ask_to_be_told(self.settings))
        try:
            if first is not None:
                self._prepare(first)
            while not self.stopping and self.ended is None:
                self._tick()
                time.sleep(TICK_S)
        finally:
            self._stop()
        return self.ended or 0

    # Deciding

    def _tick(self) -> None:
        self.gateway.watch()
        self._watch_model()
        self.retiring = [item for item in self.retiring if item[1].is_alive()]
        if self.preparing is not None and self.preparing.result.done():
            self._take(self.preparing)
        now = time.monotonic()
        if self.asking is not None and self.asking.done():
            asked, self.asking = self.asking, None
            self._follow(asked)
        if self.asking is None and (self.nudged or now - self.asked_at >= self.settings.serving_poll_s):
            self.nudged = False
            self.asked_at = now
            self.asking = self._in_thread("asking", self._ask)
        if now > self.backup_asked_at + BACKUP_EVERY_S:
            self.backup_asked_at = now
            self._in_thread("backup", self._ask_for_backup)
        self.trial.watch()
        self._tell(draining=tuple(version for version, _ in self.retiring), challenger=self.trial.state)

    def _ask_for_backup(self) -> None:
        """In a thread of its own: the next version does not wait for it."""
        self._tell(backed_up_at=versions.backed_up_at(self.settings) or self.state.backed_up_at)

    def _ask(self) -> Asked:
        """Look at the live model, and then for the alias. In a thread of its own; raises what `resolve` does."""
        running = self.live
        if running is None or running.process.responds():
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = time.monotonic()
        elif time.monotonic() - self.silent_since > SILENT_S:
            log.error("Version %s has not answered for %.0f s, and is ended", running.version.version, SILENT_S)
            self.silent_since = None
            running.process.stop()  # `_watch_model` starts it again
        version, broken = versions.resolve(self.settings), self.broken
        self._tell(drift=version.tags.get(DRIFT, ""))
        if self.settings.serving_alias != PRODUCTION:
            return Asked(version, broken)
        challenger = versions.challenger(self.settings)
        if broken != str(version.version):
            return Asked(version, broken, None, challenger)
        return Asked(version, broken, versions.previous(self.settings), challenger)

    def _follow(self, asking: "Future[Asked]") -> None:
        """Bring the alias's version on its way, if it is not live, on its way, or refused."""
        try:
            asked = asking.result()
        except NotYet as error:
            self.trial.follow(None, None)
            self.wanted = None
            self._not_instead()
            if self.live is None and self.preparing is None:
                self._tell(status=state.WAITING, message=error.message)
            return
        except Unreachable as error:
            if self.live is None and self.preparing is None and time.monotonic() >= self.not_before:
                self._without_tracking(error)
            return
        version = asked.version
        number = str(version.version)
        live = str(self.live.version.version) if self.live else None
        if live in (None, number) or number != self._on_trial:  # else it is about to be adopted
            self.trial.follow(asked.challenger, live)
        if self.wanted is None or self.wanted[0] != number:
            self.wanted = (number, time.monotonic())
            self.pause, self.not_before = 1.0, 0.0  # what failed was another version
            self._forget_refusals(number)
            self._not_instead()
        if self.preparing is not None:
            if number not in (str(self.preparing.version.version), self.preparing.instead_of):
                self.preparing.abandoned.set()  # the alias has moved on
            return
        if self.live is not None and str(self.live.version.version) == number:
            return
        if self.broken == number and (asked.broken != number or self._fall_back(asked.previous)):
            return
        if self.live is not None and number in self.state.refused and self.live.instead_of != number:
            return  # the live one serves on; until the alias moves
        if time.monotonic() >= self.not_before:
            self._prepare(version)

    def _fall_back(self, previous: "ModelVersion | None") -> bool:
        """Bring the version `previous` on its way, which is to serve while production is broken; whether it is."""
        broken, live = self.broken, self.live
        if previous is None or str(previous.version) == broken:
            if live is None:
                why = f"version {broken}: {self.state.refused.get(str(broken), '')}"
                none = f". No other version has the alias '{PREVIOUS}', to serve instead"
                self._failing(why + (none if self.settings.serving_alias == PRODUCTION else ""))
            return False
        number = str(previous.version)
        if live is not None and (str(live.version.version) == number or number in self.state.refused):
            return False
        if time.monotonic() >= self.not_before:
            self._prepare(previous, instead_of=broken)
        return True

    def _not_instead(self) -> None:
        """The alias has left the version that was broken: what is live serves in nobody's place."""
        self.broken = None
        if self.live is not None and self.live.instead_of:
            self.live.instead_of = ""
            self._tell(message="", live=self.state.live and replace(self.state.live, instead_of=""))

    def _forget_refusals(self, number: str) -> None:
        """The alias came to this version: what was refused is tried again when the alias comes to it again."""
        self._tell(refused={version: why for version, why in self.state.refused.items() if version != number})

    def _without_tracking(self, error: Unreachable) -> None:
        """Nobody says which version has the alias: serve the one that was live last, if it is here."""
        version = versions.remembered(self.settings)
        if version is None:
            self._tell(status=state.FAILING, message=error.message)
            return
        log.warning("%s Serving version %s, which was live last.", error.message, version.version)
        self._prepare(version)

    def _first(self) -> "ModelVersion | None":
        """The version to begin with. Raises NotYet, Unreachable."""
        try:
            version = versions.resolve(self.settings)
        except Unreachable:
            if versions.remembered(self.settings) is None:
                raise
            return None  # `_follow` comes to it
        self.wanted = (str(version.version), time.monotonic())
        return version

    # A version on its way

    def _prepare(self, version: "ModelVersion", instead_of: str | None = None) -> None:
        seen = self.wanted[1] if self.wanted and self.wanted[0] == str(version.version) else time.monotonic()
        task = Preparation(version, seen, Future(), threading.Event(), instead_of)
        if self.live is None:
            self._tell(status=state.STARTING, message=f"version {version.version} is on its way")

        if (process := self.trial.adopt(version)) is not None:
            task.result.set_result(process)  # it has shown that it answers
        else:
            task.result = self._in_thread(f"version {version.version}", lambda: self._bring_up(task))
        self.preparing = task

    @property
    def _on_trial(self) -> str | None:
        challenger = self.trial.state
        return challenger.version if challenger else None

    def _in_thread(self, name: str, work: Callable[[], T]) -> "Future[T]":
        """Do what may take long, as tracking does, beside the loop."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, name=name, daemon=True).start()
        return result

    def _bring_up(self, task: Preparation) -> ModelProcess:
        """Fetch, check, start and ask a version. In a thread of its own."""
        version, number = task.version, str(task.version.version)
        label = {"version": number}

        def go_on() -> bool:
            return not (task.abandoned.is_set() or self.stopping)

        def step(name: str) -> None:
            if not go_on():
                raise InterruptedError
            self._tell(pending=Pending(number, name, time.time()))

        step("fetching")
        folder = versions.fetch(self.settings, version)
        code = versions.code_of(folder, version)
        running = self.live
        reserve_mb = self.settings.serving_memory_reserve_mb
        if running is not None and lacks_memory(running.process, reserve_mb):
            self.trial.make_way(f"version {number} is on its way into production, and needs its memory")
        if running is not None and (lacking := lacks_memory(running.process, reserve_mb)):
            log.warning(lacking, extra=label)
            step("waiting for the memory of the version before")
            self._make_way()
        try:
            return start(self.settings, folder, code, number, step, go_on)
        except Refused as error:
            # By itself, or by the kernel (SIGKILL).
            starved = "out of memory" in error.message.lower() or "return code = -9" in error.message.lower()
            if self.live is None or not starved:
                raise
            log.warning("no memory beside the live version (%s); once more without it", error.message, extra=label)
            self._make_way()
            return start(self.settings, folder, code, number, step, go_on)

    def _make_way(self) -> None:
        """Stop the live version before the next one is loaded; requests wait at the gateway."""
        running, self.live = self.live, None
        if running is None:
            return
        self.before = running.version
        self._tell(status=state.STARTING, message="the next version is loading, without the one before", live=None)
        running.process.retire(self.settings.serving_timeout_s)

    def _take(self, task: Preparation) -> None:
        """Let a version live that is ready, or say why it is not."""
        self.preparing = None
        number = str(task.version.version)
        try:
            process = task.result.result()
        except InterruptedError:
            self._tell(pending=None)
            return
        except (Refused, Unavailable, InputError) as error:
            self._not_live(task, error)
            return
        except Exception as error:
            self._not_live(task, Refused(f"{type(error).__name__}: {error}"))
            return
        if number == (self.wanted and self.wanted[0]):
            self.broken = None
        old, self.live = self.live, Running(task.version, process, self.broken or "")
        first = old is None and self.state.swaps == 0 and self.before is None
        self.before, self.pause, self.not_before = None, 1.0, 0.0
        took = time.monotonic() - task.seen
        self._tell(
            status=state.SERVING,
            message=self._why_instead(number),
            pending=None,
            live=self._describe(self.live),
            refused={version: why for version, why in self.state.refused.items() if version != number},
            swaps=self.state.swaps + (not first),
            last_swap_s=took,
        )
        address = f"http://{self.settings.serving_host}:{self.settings.serving_port}"
        name, alias = task.version.name, PREVIOUS if self.broken else self.settings.serving_alias
        log.info("Serving %s version %s (%s) at %s; ready in %.1f s", name, number, alias, address, took)
        if old is not None:
            self._retire(str(old.version.version), old.process)
        self._in_thread("tag", lambda: versions.tell(self.settings, task.version, None))
        with contextlib.suppress(OSError):
            versions.remember(self.settings, task.version)
            kept = [task.version, *([old.version] if old else [])]  # the one before too: a rollback fetches nothing
            folders = [versions.folder_of(self.settings, version) for version in kept]
            versions.keep_only([*folders, *self.trial.folders])

    def _why_instead(self, number: str) -> str:
        """Why a version that goes live is not the one that the alias names; empty where it is."""
        if self.broken is None:
            return ""
        return (
            f"version {self.broken}, which has the alias '{self.settings.serving_alias}', is broken: "
            f"{self.state.refused.get(self.broken, '')}. Version {number} serves instead until that is mended"
        )

    def _not_live(self, task: Preparation, error: RatchetError) -> None:
        number, why = str(task.version.version), error.message
        serving = self.live.version.version if self.live else None
        rest = f" Version {serving} serves on." if serving else ""
        log.error("Version %s does not go live: %s.%s", number, why.rstrip("."), rest)
        self.not_before = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        if isinstance(error, Refused):
            self._tell(
                pending=None,
                refused={**self.state.refused, number: why},
                swaps_failed=self.state.swaps_failed + 1,
            )
            if self.live is not None and self.live.instead_of == number:
                self._tell(message=self._why_instead(str(self.live.version.version)))
            self._in_thread("tag", lambda: versions.tell(self.settings, task.version, why))
        else:
            trouble = f"version {number}: {why}" if self.live else self.state.message
            self._tell(pending=None, message=trouble, swaps_failed=self.state.swaps_failed + 1)
        if self.live is not None:
            if isinstance(error, Refused) and not isinstance(error, Broken):
                self._not_instead()  # mended, and it does not load: to try that again and again would disturb
        elif self.before is not None and str(self.before.version) != number:
            back, self.before = self.before, None
            self._prepare(back, instead_of=number)  # the one that had made way
        elif isinstance(error, Broken) and self.wanted is not None and number == self.wanted[0]:
            self.broken, self.nudged = number, True  # is there a version `previous`? `_follow` goes on
        else:
            self.broken = None  # what the alias names has its turn again
            self._failing(f"version {number}: {why}")

    def _failing(self, why: str) -> None:
        """Nothing can be served, and that is said."""
        self._tell(status=state.FAILING, message=why)
        if not self.settings.serving_wait and self.state.swaps == 0 and self.state.restarts == 0:
            self.ended = 1  # a first start that fails, where nobody asked to wait

    def _describe(self, running: Running) -> Live:
        version, process = running.version, running.process
        return Live(
            version.name,
            str(version.version),
            str(version.run_id or ""),
            version.tags.get(MANIFEST_SHA256, ""),
            process.url,
            str(process.socket),
            process.pid,
            time.time(),
            str(version.source).rpartition("/")[2],
            running.instead_of,
        )

    # What is running

    def _retire(self, number: str, process: ModelProcess) -> None:
        thread = threading.Thread(target=process.retire, args=(self.settings.serving_timeout_s,), daemon=True)
        thread.start()
        self.retiring.append((number, thread))

    def _watch_model(self) -> None:
        """Start the live version again where its process has ended."""
        running = self.live
        if running is None or running.process.alive():
            return
        version, process = running.version, running.process
        log.error("Version %s has ended: %s", version.version, process.last_words())
        self.live = None
        lasted = time.time() - self.state.live.since if self.state.live else 0.0
        if lasted > LASTED_S:
            self.pause = 1.0
        self.not_before = time.monotonic() + (0.0 if lasted > LASTED_S or self.state.restarts == 0 else self.pause)
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        self._tell(
            status=state.STARTING,
            message=f"version {version.version} has ended, and is started again",
            live=None,
            restarts=self.state.restarts + 1,
        )
        process.stop()
        if self.preparing is None and time.monotonic() >= self.not_before:
            # Without asking tracking, which may be down; the alias may name one that was refused.
            self._prepare(version, instead_of=self.wanted[0] if self.wanted else None)
        else:
            self.before = version  # comes back where the one that the alias names fails

    def _stop(self) -> None:
        """End the gateway, once it has answered what it had begun, and then the models."""
        if self.preparing is not None:
            self.preparing.abandoned.set()
        if self.live is None and self.ended is None:
            self._tell(status=state.FAILING, message="serving is being stopped")  # nobody waits for a model any more
        self.gateway.end(lambda: self.live is not None and bool(self.live.process.busy()))
        if self.preparing is not None:
            with contextlib.suppress(BaseException):
                self.preparing.result.result(timeout=20).stop()
        self.trial.close()
        if self.live is not None:
            self.live.process.stop()
        for _, thread in self.retiring:
            thread.join(20)

    def _tell(self, **values: Any) -> None:
        """Change the state, and let the gateway know. From any thread."""
        with self.telling:
            changed = self.state.changed(**values)
            if changed == self.state:
                return
            if (changed.status, changed.message) != (self.state.status, self.state.message) and changed.message:
                log.info("%s: %s", changed.status.capitalize(), changed.message)
            self.state = changed
            try:
                state.write(changed, self.settings.serving_run_folder / "state.json")
            except OSError as error:
                log.error("The state was not written: %s", error)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.nudged = True
        else:
            self.stopping = True
