"""Who may ask what of the tracking server: the matrix of all of MLflow's routes, and what names a role."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import InputError
from services.tracking import access, rights
from services.tracking.settings import TrackingSettings


def test_each_route_of_mlflow_is_decided_for_each_role(root: Path) -> None:
    """A route that is new, or decided otherwise, shows as a line that differs: decide, and write the file anew."""
    command = [sys.executable, "-m", "tests.support.rights"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == (root / "tests/fixtures/rights.txt").read_text().splitlines()


def test_a_client_may_repeat_what_met_no_database(root: Path) -> None:
    """Whichever statement of a request it fails at: a 4xx would end a training, since no client repeats it."""
    command = [sys.executable, "-m", "tests.support.outages"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr[-2000:]
    # Among them is what MLflow logs of a request that it answers with 500: its WSGI server has stdout for stderr.
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("statement ")]
    assert {route for route, *_ in found} >= {"runs/create", "runs/log-metric", "runs/search"}
    assert len(found) > 300
    assert not [line for line in found if line[-1] not in ("200", "500", "503")]  # 500 is MLflow's own; repeated too
    assert not [line for line in found if line[2:] == ["on", "200"]]


def matrix(root: Path) -> dict[str, list[str]]:
    lines = (root / "tests/fixtures/rights.txt").read_text().partition("\nroute")[2].splitlines()[1:]
    rows = [line.split() for line in lines]
    return {f"{method} {route}": decided for route, method, *decided in rows}


def test_no_role_but_the_promoters_moves_an_alias_and_none_a_stage_or_a_right(root: Path) -> None:
    found = matrix(root)
    assert len(found) > 200
    writes = {asked: may for asked, may in found.items() if not asked.startswith("GET ")}
    for method in ("POST", "DELETE"):
        assert writes.pop(f"{method} registered-models/alias") == ["-", "yes", "-", "-"]
    assert writes.pop("PATCH users/update-password") == ["-", "-", "-", "yes"]  # MLflow: one's own
    closed = ("users/", "roles/", "gateway", "/gateway", "webhooks", "workspaces", "assistant", "/ajax-api/3.0/jobs")
    closed += ("model-versions/transition-stage", "registered-models/delete ", "registered-models/rename")
    of_these = [may for asked, may in writes.items() if f"{asked.partition(' ')[2]} ".startswith(closed)]
    assert len(of_these) > 50
    assert {"".join(may) for may in of_these} == {"----"}


def test_each_tag_of_a_version_has_one_writer() -> None:
    assert not rights.OF_TRAINER & rights.OF_PROMOTER
    assert len(rights.OURS) == len(rights.OF_TRAINER) + len(rights.OF_PROMOTER) + len(rights.OF_SERVING) + len(
        rights.OF_MONITOR
    )


def test_the_parts_users_have_their_roles_and_the_setting_gives_more() -> None:
    assert access.roles("") == {part: part for part in rights.PARTS}
    assert access.roles("ada=promoter, ci = trainer,")["ada"] == "promoter"
    assert access.roles("ada=promoter, ci = trainer,")["ci"] == "trainer"


@pytest.mark.parametrize("text", ["ada", "ada=admin", "=promoter", "admin,promoter"])
def test_a_role_that_is_none_stops_the_server(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"TRACKING_ROLES has .* Expected USER=ROLE"):
        access.environment(TrackingSettings(ratchet_home=tmp_path, tracking_roles=text, _env_file=None))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("/api/2.0/mlflow/runs/get", "runs/get"),
        ("/ajax-api/3.0/mlflow/traces/<trace_id>/tags", "traces/*/tags"),
        ("/api/2.0/mlflow-artifacts/artifacts/<path:artifact_path>", "mlflow-artifacts/artifacts/*"),
        ("/ajax-api/3.0/jobs/{job_id}", "/ajax-api/3.0/jobs/*"),
        ("/x/api/2.0/mlflow/runs/get", "/x/api/2.0/mlflow/runs/get"),
    ],
)
def test_a_route_has_one_name_whatever_the_prefix(rule: str, name: str) -> None:
    assert rights.name_of(rule) == name


@pytest.mark.parametrize(
    "path", ["/v1/traces/", "/V1/traces", "//v1/traces", "/api/2.0/mlflow/runs/get", "mcp-serversx"]
)
def test_only_its_exact_path_is_a_route_of_fastapis_own(path: str) -> None:
    assert rights.native(path) is None
    assert rights.native("/v1/traces") == "/v1/traces"
    assert rights.native("/api/3.0/mlflow/mcp-servers/a/versions/1") == "mcp-servers/*"
