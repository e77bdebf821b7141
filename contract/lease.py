"""One promoter at a time for a model, wherever it runs: a lease that is kept in the tracking server.

MLflow has no compare-and-swap, and promoters reach nothing but MLflow. So each one writes down its claim, a RUNNING run
in the experiment `promotions`. Claims have an order, and the first one gets the lock:

1. A promoter writes its claim and looks. It waits, or gives up, where an earlier claim is there, or a granted one.
2. Else it marks its claim as granted and looks once more. Where an earlier claim has come, it takes the mark back.

Two never hold it. The later of two held it only if the earlier claim was not there at its second look. Then its mark
was there before that claim, and the earlier promoter saw it. And the first never waits for those that wait behind it.

A claim has an owner and a lease, which a thread renews. A promoter that died does not, and after the lease the next one
takes over. A lease's time is the server's, by its `Date` header: promoters' clocks may differ, and then claims are only
served in another order. The claim becomes the record of what its promoter does (records.py), or is deleted.
"""

import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from contract.errors import Busy, InputError, Unreachable
from contract.names import PROMOTIONS
from contract.redaction import redact
from contract.tracking import RETRIES, create_once

LEAST_S = 6.0  # of a lease, so that there is time to renew it
CLOCK_S = 2.0  # how far behind a `Date` header may be
PACE_S = 0.5  # of looking, while others hold the lock
TAKE_BACK_S = 10.0  # within which a promoter takes its mark back, however slow its machine is
LEASE_UNTIL, OWNER, CLAIM, GRANTED = "lease_until", "owner", "claim", "granted"  # tags of a claim


def lease_s() -> float:
    """Seconds after which a promoter that died no longer counts. Raises InputError."""
    given = os.environ.get("PROMOTER_LEASE_S") or "30"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not LEAST_S <= seconds < math.inf:
        raise InputError(f"PROMOTER_LEASE_S is '{given}'. Expected a number of seconds, at least {LEAST_S:g}.")
    return seconds


def _now() -> float:
    """Seconds of a clock that goes on while the machine is suspended, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Claim:
    """A claim to the lock: a run that others see. Once granted, `check` before each write; `keep` makes it a record."""

    def __init__(self, client: MlflowClient, run_id: str, model: str, began: float) -> None:
        self.client, self.run_id, self.model = client, run_id, model
        self.kept = False
        self._valid_until = self._end(began)
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raise Busy where the lease has run out, as on a machine that slept: somebody else may have it now."""
        if _now() > self._valid_until:
            self._lapsed()

    def confirm(self) -> None:
        """`check`, and ask the server too: before the write that counts. A third of the lease is left for it."""
        run = self.client.get_run(self.run_id)
        live = run.info.status == "RUNNING" and run.info.lifecycle_stage == "active"
        if not live or _lease_until(run) <= server_time(self.client.tracking_uri) + self.write_timeout_s:
            self._lapsed()
        self.check()

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """`check`, and have MLflow's client send each request once and give it up before the lease's end."""
        self.check()
        bounds = {
            RETRIES: "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(self.write_timeout_s)),
        }
        before = {name: os.environ.get(name) for name in bounds}
        os.environ.update(bounds)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    @property
    def write_timeout_s(self) -> float:
        """Seconds after which a write is given up, so that it does not arrive after the lease."""
        return lease_s() / 3

    def _end(self, began: float) -> float:
        """When the last write of a lease that was renewed at `began` has to be sent."""
        return began + lease_s() - CLOCK_S - self.write_timeout_s

    def _lapsed(self) -> None:
        raise Busy(
            f"The lease on {self.model} has run out, since it was not renewed in time: this machine slept, or the "
            "tracking server did. What was begun is taken back or finished by the next promoter; run the same command "
            "again."
        )

    def keep(self) -> None:
        """Let the claim stay as the record of what follows."""
        self.kept = True

    def release(self) -> None:
        self._released.set()
        self._renewer.join(timeout=2)  # it may be waiting for a server that is gone; it ends with the process

    def _renew(self) -> None:
        while not self._released.wait(lease_s() / 6):
            began = _now()
            with suppress(Exception):  # once more in a sixth of the lease; `check` sees when it is too late
                until = server_time(self.client.tracking_uri) + lease_s()
                if self.client.get_run(self.run_id).info.status != "RUNNING":
                    self._valid_until = 0.0  # somebody has taken over
                if _now() > self._valid_until:  # a lease that has run out is not renewed: others have seen that it had
                    return
                self.client.set_tag(self.run_id, LEASE_UNTIL, f"{until:.3f}")
                self._valid_until = self._end(began)


@contextmanager
def lease(
    client: MlflowClient,
    model: str,
    owner: str,
    wait_s: float = 0.0,
    experiment: str = PROMOTIONS,
    doing: str = "promoting",
) -> Iterator[Claim]:
    """Hold the lock on a model. Raises Busy where another has it, at once or after `wait_s` seconds.

    `experiment`: where the claims are. There is one lock on a model in each. `doing`: what for, to those who wait.
    """
    experiment_id = _experiment(client, experiment)
    claim = _claim(client, experiment_id, model, owner)
    try:
        _wait_for_grant(claim, experiment_id, wait_s, doing)
        yield claim
    except BaseException:
        claim.release()
        with suppress(Exception):  # what failed goes out; without this the next one waits for the lease's end
            if claim.kept:
                client.set_tag(claim.run_id, LEASE_UNTIL, "0")
        raise
    finally:
        claim.release()
        if not claim.kept:
            with suppress(Exception):
                client.delete_run(claim.run_id)


def _wait_for_grant(claim: Claim, experiment_id: str, wait_s: float, doing: str) -> None:
    """Come back when the claim is granted. Raises Busy."""
    client, began = claim.client, time.monotonic()
    ours = _order(client.get_run(claim.run_id))
    while True:
        claim.check()
        others = _live(client, experiment_id, claim)
        earlier = [run for run in others if _order(run) < ours]
        if not earlier and all(GRANTED not in run.data.tags for run in others):
            client.set_tag(claim.run_id, GRANTED, "true")
            others = _live(client, experiment_id, claim)
            earlier = [run for run in others if _order(run) < ours]
            if not earlier:
                return
            client.delete_tag(claim.run_id, GRANTED)
        # One that came later and is granted holds the lock, or has seen us and is about to take its mark back.
        patience = wait_s if earlier else max(wait_s, TAKE_BACK_S)
        if time.monotonic() - began > patience:
            raise Busy(_busy(claim.model, doing, min(earlier or others, key=_order), server_time(client.tracking_uri)))
        time.sleep(PACE_S)


def is_alive(client: MlflowClient, claim: str, now: float) -> bool:
    """Whether a claim, by its run's id, is one whose lease has not run out. `now`: the server's time."""
    try:
        run = client.get_run(claim)
    except MlflowException:
        return False
    return run.info.status == "RUNNING" and run.info.lifecycle_stage == "active" and _lease_until(run) > now


def unfinished(client: MlflowClient, model: str, own: str) -> list[Run]:
    """What promoters of this model have left RUNNING who are dead: their leases have run out.

    A claim with a live lease, under our lock, is one that waits.
    """
    experiment = client.get_experiment_by_name(PROMOTIONS)
    if experiment is None:
        return []
    now = server_time(client.tracking_uri)
    return [run for run in _running(client, experiment.experiment_id, model, own) if _lease_until(run) <= now]


def _experiment(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        with suppress(MlflowException):  # another was quicker
            return str(client.create_experiment(name))
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise Unreachable(f"The tracking server neither has nor makes the experiment '{name}'.")
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _claim(client: MlflowClient, experiment_id: str, model: str, owner: str) -> Claim:
    key, began = uuid.uuid4().hex, _now()
    tags = {
        "model": model,
        OWNER: f"{owner}@{socket.gethostname()}, process {os.getpid()}",
        CLAIM: key,
        LEASE_UNTIL: f"{server_time(client.tracking_uri) + lease_s():.3f}",
    }

    def look() -> Run | None:
        return next(iter(client.search_runs([experiment_id], f"tags.{CLAIM} = '{key}'")), None)

    run = create_once(look, lambda: client.create_run(experiment_id, tags=tags, run_name=f"{model}: claim"))
    return Claim(client, run.info.run_id, model, began)


def _live(client: MlflowClient, experiment_id: str, claim: Claim) -> list[Run]:
    """Other promoters' claims whose leases have not run out."""
    now = server_time(client.tracking_uri)
    return [run for run in _running(client, experiment_id, claim.model, claim.run_id) if _lease_until(run) > now]


def _running(client: MlflowClient, experiment_id: str, model: str, own: str) -> list[Run]:
    found = client.search_runs([experiment_id], f"tags.model = '{model}' and attributes.status = 'RUNNING'")
    return [run for run in found if run.info.run_id != own and CLAIM in run.data.tags]


def _order(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _lease_until(run: Run) -> float:
    try:
        return float(run.data.tags.get(LEASE_UNTIL, 0))
    except ValueError:  # somebody has written it by hand; its owner writes it anew
        return 0.0


def _busy(model: str, doing: str, holder: Run, now: float) -> str:
    since = datetime.fromtimestamp(holder.info.start_time / 1000, UTC).strftime("%H:%M:%S UTC")
    left = max(0.0, _lease_until(holder) - now)
    return (
        f"Somebody else is {doing} {model}: {holder.data.tags.get(OWNER, 'unknown')}, since {since}. Nothing was "
        f"changed; try again. Should they be dead, the lease ends in {left:.0f} s."
    )


def server_time(uri: str) -> float:
    """Seconds since 1970 by the tracking server's clock; by ours where it is a database that we open ourselves."""
    if not uri.startswith("http"):
        return time.time()
    try:
        date = requests.get(f"{uri.rstrip('/')}/health", timeout=10).headers.get("Date")
    except requests.RequestException as error:
        raise Unreachable(f"No tracking server at {redact(uri)} ({type(error).__name__}).") from error
    return parsedate_to_datetime(date).timestamp() if date else time.time()
