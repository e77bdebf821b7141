"""What the registry and the promoter's records say of the model that is served."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from contract.names import FROZEN, PREVIOUS, PRODUCTION, PROMOTIONS, STAGES
from contract.outcomes import AWAITING, NOTHING, PROMOTED, REFUSED, ROLLED_BACK, link
from contract.redaction import redact
from serving.settings import ServingSettings

SHOWN = 10  # decisions of each kind
MOVED = (PROMOTED, ROLLED_BACK)  # into production


@dataclass(frozen=True)
class Decision:
    """A decision record."""

    at: str  # ISO 8601, UTC
    version: str  # `nothing` where it is about the model
    stage: str
    replaces: str
    outcome: str
    by: str
    why: str
    report: str  # its address


@dataclass(frozen=True)
class Facts:
    """Of one model, at one time."""

    production: str | None = None  # by the alias
    previous: str | None = None
    serves_by: Decision | None = None  # which put the version in production there
    frozen: Decision | None = None
    is_frozen: bool = False
    waiting: Sequence[Decision] = ()
    refused: Sequence[Decision] = ()
    last: Sequence[Decision] = ()
    address: str = ""  # of the model's page in the MLflow UI
    seconds: float = 0.0  # that the tracking server took
    trouble: str = ""  # why nothing of this is known


class Registry:
    """Asks the tracking server, several things at once. Blocks."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self._pool = ThreadPoolExecutor(6, "page-facts")
        self._client: Any = None
        public = settings.tracking_public_url or redact(settings.mlflow_tracking_uri)
        self.public = public.rstrip("/")

    def facts(self) -> Facts:
        """What there is to know. Raises what MLflow's client, or the way to the server, raises."""
        from mlflow import MlflowClient

        if self._client is None:
            self._client = MlflowClient(self.settings.mlflow_tracking_uri)
        client, name, began = self._client, self.settings.serving_model, time.monotonic()
        model = self._pool.submit(self._model, name)
        experiment = client.get_experiment_by_name(PROMOTIONS)
        found: dict[str, Sequence[Decision]] = {}
        if experiment is not None and "'" not in name:
            ids = [experiment.experiment_id]
            asked = {
                "waiting": (f"tags.outcome = '{AWAITING}'", 5 * SHOWN),
                "refused": (f"tags.outcome = '{REFUSED}'", SHOWN),
                **{kind: (f"tags.stage = '{STAGES[PRODUCTION]}' and tags.outcome = '{kind}'", 1) for kind in MOVED},
                "last": ("", SHOWN),
            }
            futures = {kind: self._pool.submit(self._decisions, ids, name, *how) for kind, how in asked.items()}
            found = {kind: future.result() for kind, future in futures.items()}
        aliases, tags = model.result()
        production = aliases.get(PRODUCTION)
        moves = [move for kind in MOVED for move in found.get(kind, ())]
        last_move = max(moves, key=lambda move: move.at, default=None)
        frozen = tags.get(FROZEN)
        waiting: dict[tuple[str, str], Decision] = {}
        for decision in found.get("waiting", ()):
            if aliases.get(decision.stage.lower()) != decision.version:
                waiting.setdefault((decision.version, decision.stage), decision)  # the newest
        return Facts(
            production=production,
            previous=aliases.get(PREVIOUS),
            serves_by=last_move if last_move is not None and last_move.version == production else None,
            is_frozen=frozen is not None,
            frozen=self._frozen(frozen) if frozen else None,
            address=f"{self.public}/#/models/{quote(name, safe='')}",
            seconds=time.monotonic() - began,
            waiting=list(waiting.values()),
            refused=found.get("refused", ()),
            last=found.get("last", ()),
        )

    def _model(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Versions by alias, and tags; none of a model that is not there yet."""
        from mlflow.exceptions import MlflowException

        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return {}, {}
        return {alias: str(number) for alias, number in model.aliases.items()}, dict(model.tags)

    def _decisions(self, ids: list[str], name: str, terms: str, most: int) -> Sequence[Decision]:
        found = self._client.search_runs(
            ids,
            f"tags.model = '{name}' and attributes.status = 'FINISHED'" + (f" and {terms}" if terms else ""),
            order_by=["attributes.start_time DESC"],
            max_results=most,
        )
        return [self._decision(run) for run in found]

    def _decision(self, run: Any) -> Decision:
        tags: Callable[..., str] = run.data.tags.get
        at = tags("decided_at") or time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(run.info.start_time / 1000))
        return Decision(
            *(at, tags("version", NOTHING), tags("stage", ""), tags("replaces", NOTHING)),
            *(tags("outcome", ""), tags("by", ""), tags("why", "")),
            self.public + link(run.info.experiment_id, run.info.run_id),
        )

    def _frozen(self, run_id: str) -> Decision | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._decision(self._client.get_run(run_id))
        except MlflowException:  # its record was deleted; frozen it is all the same
            return None
