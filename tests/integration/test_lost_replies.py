"""The tracking server does what it is asked, and its reply is lost: nothing is there twice."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.doses import STEPS
from tests.support.proxy import proxy
from tests.support.tracking import Stack
from tests.support.training import candidate, finish, losses, settings

pytestmark = pytest.mark.integration


@contextmanager
def forgetful_proxy(target: str, requests_lost: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """(URL, paths whose replies were lost so far): passes on all requests, and loses two replies of each path.

    Those whose request holds the bytes that stand beside the path.
    """
    lost: list[str] = []

    def keep(method: str, path: str, body: bytes) -> bool:
        for end, inside in requests_lost.items():
            if path.endswith(end) and inside in body and lost.count(end) < 2:
                lost.append(end)
                return False
        return True

    with proxy(target, keep) as url:
        yield url, lost


def test_lost_replies_make_no_second_run_version_or_metric(stack: Stack, tiny) -> None:
    paths = {"/model-versions/create": b"candidate", "/runs/create": b"candidate", "/runs/log-batch": b"train/loss"}
    with forgetful_proxy(stack.url, paths) as (url, lost):
        finish(stack, *settings(tiny, "lost"), MLFLOW_TRACKING_URI=url)
    # The run's one, each version's one, and two of metrics, which are simply sent again.
    assert {path: lost.count(path) for path in paths} == dict(zip(paths, (2, 1, 2), strict=True))
    run = candidate(stack, "lost")  # one
    assert [step for step, _ in losses(stack, run)] == list(range(1, STEPS + 1))
    for name in ("lost_model", "lost_pytorch_model"):
        versions = stack.client.search_model_versions(f"name = '{name}'")
        assert sorted(version.tags["role"] for version in versions) == ["base", "candidate"]
