"""One promoter at a time for a model, wherever it runs: a lease that is kept in the tracking server.

MLflow has no compare-and-swap, and promoters reach nothing but MLflow. So each one writes down its claim, a RUNNING run
in the experiment `promotions`, and then looks: it holds the lock only where no other live claim is there. Of two
claims at once each writes before it looks, so at least one sees the other. The later one withdraws; the earlier waits.

A claim has an owner and a lease, which a thread renews. A promoter that died does not, and after the lease the next one
takes over. Time is the server's, by its `Date` header: promoters' clocks may differ. The claim becomes the record of
what the promoter does (records.py), or is deleted where it does nothing.
"""

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

from promoter.errors import Busy, Unreachable

EXPERIMENT = "promotions"
PACE_S = 0.3  # of looking, while others withdraw
WITHDRAW_S = 15.0  # within which a later claim is withdrawn, or else held by somebody
LEASE_UNTIL, OWNER, CLAIM = "lease_until", "owner", "claim"  # tags of a claim


def lease_s() -> float:
    """Seconds after which a promoter that died no longer counts."""
    return float(os.environ.get("PROMOTER_LEASE_S") or 30)


class Claim:
    """The lock, held: a run that others see. `check` before each write; `keep` makes it a record."""

    def __init__(self, client: MlflowClient, run_id: str, model: str) -> None:
        self.client, self.run_id, self.model = client, run_id, model
        self.kept = False
        self._valid_until = time.monotonic() + lease_s()
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raise Busy where the lease has run out, as on a machine that slept: somebody else may have it now."""
        if time.monotonic() > self._valid_until:
            raise Busy(
                f"The lease on {self.model} has run out, since the tracking server did not renew it in time. What was "
                "begun is finished by the next promoter; run the same command again."
            )

    def keep(self) -> None:
        """Let the claim stay as the record of what follows."""
        self.kept = True

    def release(self) -> None:
        self._released.set()
        self._renewer.join()

    def _renew(self) -> None:
        while not self._released.wait(lease_s() / 3):
            began = time.monotonic()
            with suppress(Exception):  # once more in a third of the lease; `check` sees when it is too late
                until = _server_time(self.client.tracking_uri) + lease_s()
                if self.client.get_run(self.run_id).info.status != "RUNNING":
                    self._valid_until = 0.0  # somebody has taken over
                    return
                self.client.set_tag(self.run_id, LEASE_UNTIL, f"{until:.3f}")
                self._valid_until = began + lease_s()


@contextmanager
def lease(client: MlflowClient, model: str, owner: str, wait_s: float = 0.0) -> Iterator[Claim]:
    """Hold the lock on a model. Raises Busy where another has it, at once or after `wait_s` seconds."""
    experiment_id = _experiment(client)
    deadline = time.monotonic() + wait_s
    while True:
        claim = _claim(client, experiment_id, model, owner)
        holder = _first_other(client, experiment_id, model, claim.run_id)
        if holder is None:
            break
        claim.release()
        client.delete_run(claim.run_id)
        if time.monotonic() >= deadline:
            raise Busy(_busy(model, holder, _server_time(client.tracking_uri)))
        time.sleep(PACE_S)
    try:
        yield claim
    except BaseException:
        with suppress(Exception):  # what failed goes out; without this the next one waits for the lease's end
            if claim.kept:
                client.set_tag(claim.run_id, LEASE_UNTIL, "0")
        raise
    finally:
        claim.release()
        if not claim.kept:
            with suppress(Exception):
                client.delete_run(claim.run_id)


def unfinished(client: MlflowClient, model: str, own: str) -> list[Run]:
    """What promoters of this model have left RUNNING who are dead: their leases have run out.

    A claim with a live lease, under our lock, is one that has not looked yet, and will withdraw.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    now = _server_time(client.tracking_uri)
    return [run for run in _running(client, experiment.experiment_id, model, own) if _lease_until(run) <= now]


def _experiment(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        with suppress(MlflowException):  # another promoter was quicker
            return str(client.create_experiment(EXPERIMENT))
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise Unreachable(f"The tracking server neither has nor makes the experiment '{EXPERIMENT}'.")
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _claim(client: MlflowClient, experiment_id: str, model: str, owner: str) -> Claim:
    key = uuid.uuid4().hex
    tags = {
        "model": model,
        OWNER: f"{owner}@{socket.gethostname()}, process {os.getpid()}",
        CLAIM: key,
        LEASE_UNTIL: f"{_server_time(client.tracking_uri) + lease_s():.3f}",
    }
    run = client.create_run(experiment_id, tags=tags, run_name=f"{model}: claim")
    # A reply that was lost makes MLflow's client ask again: the same claim, twice.
    for twin in client.search_runs([experiment_id], f"tags.{CLAIM} = '{key}'"):
        if twin.info.run_id != run.info.run_id:
            client.delete_run(twin.info.run_id)
    return Claim(client, run.info.run_id, model)


def _first_other(client: MlflowClient, experiment_id: str, model: str, own: str) -> Run | None:
    """Who holds the lock, or will: None where that is us."""
    deadline = time.monotonic() + WITHDRAW_S
    while True:
        now = _server_time(client.tracking_uri)
        others = [run for run in _running(client, experiment_id, model, own) if _lease_until(run) > now]
        if not others:
            return None
        ours = client.get_run(own)
        earlier = [run for run in others if _order(run) < _order(ours)]
        if earlier or time.monotonic() > deadline:
            return min(earlier or others, key=_order)
        time.sleep(PACE_S)


def _running(client: MlflowClient, experiment_id: str, model: str, own: str) -> list[Run]:
    found = client.search_runs([experiment_id], f"tags.model = '{model}' and attributes.status = 'RUNNING'")
    return [run for run in found if run.info.run_id != own and CLAIM in run.data.tags]


def _order(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _lease_until(run: Run) -> float:
    return float(run.data.tags.get(LEASE_UNTIL, 0))


def _busy(model: str, holder: Run, now: float) -> str:
    since = datetime.fromtimestamp(holder.info.start_time / 1000, UTC).strftime("%H:%M:%S UTC")
    left = max(0.0, _lease_until(holder) - now)
    return (
        f"Somebody else is promoting {model}: {holder.data.tags.get(OWNER, 'unknown')}, since {since}. Nothing was "
        f"changed; try again. Should they be dead, the lease ends in {left:.0f} s."
    )


def _server_time(uri: str) -> float:
    """Seconds since 1970 by the tracking server's clock; by ours where it is a database that we open ourselves."""
    if not uri.startswith("http"):
        return time.time()
    try:
        date = requests.get(f"{uri.rstrip('/')}/health", timeout=10).headers.get("Date")
    except requests.RequestException as error:
        raise Unreachable(f"No tracking server at {uri} ({type(error).__name__}).") from error
    return parsedate_to_datetime(date).timestamp() if date else time.time()
