"""The users of the tracking server that the parts are: made, and given the rights that each needs and no more.

python -m infra.accounts     # the one-shot `accounts` of docker-compose.prod.yml; run again, it changes nothing

Signs in as `admin`. Each user's name and password come from the file in which MLflow's client looks for its own
(~/.mlflow/credentials): /run/secrets/trainer_credentials and so on. A password that differs from the user's is given to
the user, so that one is changed by writing the file and running this again.
"""

import configparser
import os
from pathlib import Path
from typing import NamedTuple

import click
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from contract.errors import InputError, Unreachable
from contract.names import DEFAULT_EXPERIMENT, JOBS, MONITORING, PROMOTIONS, ROUNDS, TRACES, pyfunc_model, pytorch_model
from services.tracking.rights import PARTS

SECRETS = Path("/run/secrets")
OWN = "__user_"  # how the name begins of the role that holds one user's own grants, in MLflow


class Grant(NamedTuple):
    """A right, in MLflow's terms."""

    resource: str  # experiment, registered_model, …
    name: str  # the resource's name; an experiment's id to MLflow itself
    permission: str  # READ, EDIT, MANAGE


def grants(part: str, experiments: list[str]) -> set[Grant]:
    """Where a part may do what its role may (services.tracking.rights): `part` is one of PARTS, `experiments` are those
    in which models are trained."""
    models = [model for name in experiments for model in (pyfunc_model(name), pytorch_model(name))]
    on_experiments, on_models, others = {
        # Adds runs and versions. To take back a version that it could not finish takes MANAGE.
        # The monitor has the same account: it reads what production was asked, and writes down its looks. And the
        # loop's worker: it reads the loop's jobs, and writes down what came of them.
        "trainer": (
            "EDIT",
            "MANAGE",
            {
                *(Grant("experiment", name, "READ") for name in (TRACES, ROUNDS)),
                *(Grant("experiment", name, "EDIT") for name in (MONITORING, JOBS)),
            },
        ),
        # Moves aliases, writes tags and takes them back; deletes the claims in its experiment that it gave up; reads
        # what became of a trial's requests. The loop has the same account.
        "promoter": (
            "READ",
            "MANAGE",
            {
                *(Grant("experiment", name, "MANAGE") for name in (PROMOTIONS, ROUNDS)),
                *(Grant("experiment", name, "READ") for name in (TRACES, JOBS)),
            },
        ),
        # Reads the version that it serves and the decisions on it, says on its page where it cannot; writes traces and
        # feedback. To take a tag back is MANAGE to MLflow too.
        "serving": (
            "READ",
            "MANAGE",
            {Grant("experiment", TRACES, "EDIT"), Grant("experiment", PROMOTIONS, "READ")},
        ),
    }[part]
    return {
        *(Grant("experiment", name, on_experiments) for name in experiments),
        *(Grant("registered_model", name, on_models) for name in models),
        *others,
    }


class Admin:
    """The tracking server, as its admin sees it."""

    def __init__(self, uri: str, password: str) -> None:
        from mlflow.server.auth.client import AuthServiceClient  # which takes its time

        os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        self.uri = uri
        self.auth = AuthServiceClient(uri)
        self.client = MlflowClient(uri)

    def check(self) -> None:
        """Raise InputError where the admin's password is wrong."""
        if self.status("admin", os.environ["MLFLOW_TRACKING_PASSWORD"]) == 401:
            raise InputError(
                "The tracking server refuses the user 'admin': mlflow_admin_password is not the password that it has "
                "now. The file counts at the first start alone; write the password of now into it."
            )

    def status(self, user: str, password: str) -> int:
        """What the server answers to a user who asks about himself: 200, or 401 where the password is wrong."""
        url = f"{self.uri}/api/2.0/mlflow/users/get"
        return requests.get(url, params={"username": user}, auth=(user, password), timeout=30).status_code

    def ensure_user(self, user: str, password: str) -> str:
        """The user, with this password. Returns what was done."""
        try:
            self.auth.get_user(user)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.auth.create_user(user, password)
            return "made"
        if self.status(user, password) == 200:
            return "there already"
        self.auth.update_user_password(user, password)
        return "has a new password"

    def id_of(self, grant: Grant) -> str:
        """By what MLflow knows the resource; it is made where it is not there, so that no part has to."""
        if grant.resource == "experiment":
            found = self.client.get_experiment_by_name(grant.name)
            return str(found.experiment_id if found else self.client.create_experiment(grant.name))
        try:
            self.client.get_registered_model(grant.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(grant.name)
        return grant.name

    def ensure_grants(self, user: str, wanted: set[Grant]) -> list[str]:
        """Give the user these rights, and take all others of its own. Returns a line for each change."""
        target = {(grant.resource, self.id_of(grant)): grant for grant in wanted}
        held = {
            (row.resource_type, row.resource_pattern): row.permission
            for role in self.auth.list_user_roles(user)
            if role.name.startswith(OWN)
            for row in self.auth.list_role_permissions(role.id)
        }
        done = []
        for key, grant in sorted(target.items()):
            if held.get(key) != grant.permission:
                self.auth.grant_user_permission(user, *key, grant.permission)
                done.append(f"{grant.permission} on {grant.resource} {grant.name}")
        for resource, pattern in sorted(held.keys() - target.keys()):
            self.auth.revoke_user_permission(user, resource, pattern)
            done.append(f"no longer {held[resource, pattern]} on {resource} {pattern}")
        return done


def credentials(path: Path) -> tuple[str, str]:
    """User name and password of a credentials file of MLflow's. Raises InputError for a file that is none."""
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read_string(path.read_text())
        found = config["mlflow"]
        return found["mlflow_tracking_username"], found["mlflow_tracking_password"]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. `make env-prod` writes it.") from error
    except (configparser.Error, KeyError) as error:
        raise InputError(
            f"{path} is no credentials file of MLflow's: {error}. Expected a section [mlflow] with "
            "mlflow_tracking_username and mlflow_tracking_password. `make env-prod` writes one."
        ) from error


@click.command(context_settings={"max_content_width": 110})
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", required=True, help="The server.  [$MLFLOW_TRACKING_URI]")
@click.option(
    "--experiments",
    envvar="RATCHET_EXPERIMENTS",
    default=DEFAULT_EXPERIMENT,
    show_default=True,
    help="Experiments in which models are trained, separated by commas.  [$RATCHET_EXPERIMENTS]",
)
def main(tracking_uri: str, experiments: str) -> None:
    """Make the users trainer, promoter and serving, and give each the rights that it needs and no more."""
    names = [name.strip() for name in experiments.split(",") if name.strip()]
    if not names:
        raise InputError(f"RATCHET_EXPERIMENTS is {experiments!r}: expected names of experiments, separated by commas.")
    accounts = {part: credentials(SECRETS / f"{part}_credentials") for part in PARTS}
    try:
        password = (SECRETS / "mlflow_admin_password").read_text().strip()
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}. `make env-prod` writes it.") from error
    admin = Admin(tracking_uri.rstrip("/"), password)
    try:
        admin.check()
        for part, (user, secret) in accounts.items():
            click.echo(f"User {user}: {admin.ensure_user(user, secret)}")
            for line in admin.ensure_grants(user, grants(part, names)):
                click.echo(f"  {line}")
    except (MlflowException, requests.RequestException) as error:
        raise Unreachable(f"The tracking server at {tracking_uri} did not do it: {error}") from error


if __name__ == "__main__":
    main(prog_name="python -m infra.accounts")
