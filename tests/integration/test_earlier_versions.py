"""A version that an earlier release logged: served, swapped to and back, judged and validated by today's."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from contract import versions
from contract.messages import PROTOCOL
from tests.support.serving import PROMPT, Serving, register, serving_process, variant
from tests.support.tracking import Stack
from tests.support.versions import register_as_logged
from trainer.cli import main

pytestmark = pytest.mark.integration

MODEL = "earlier_model"


@pytest.fixture(scope="module", params=versions.KNOWN)
def earlier(request, stack: Stack) -> str:
    """The number of a version that an earlier release logged."""
    return register_as_logged(stack, MODEL, request.param)


@pytest.fixture(scope="module")
def today(stack: Stack, tiny, tmp_path_factory) -> str:
    """The number of a version as this release logs it, which answers otherwise."""
    return register(stack, MODEL, variant(tiny.folder, tmp_path_factory.mktemp("today") / "model", 1))


@pytest.fixture(scope="module")
def service(stack: Stack, earlier: str, tmp_path_factory) -> Iterator[Serving]:
    stack.client.set_registered_model_alias(MODEL, "production", earlier)
    with serving_process(stack, MODEL, tmp_path_factory.mktemp("serving")) as service:
        service.wait_for_version(earlier)
        yield service


def complete(service: Serving) -> str:
    """A completion by each of the doors; both are the model's greedy one."""
    asked = {"prompt": PROMPT, "max_tokens": 8}
    reply = requests.post(f"{service.url}/v1/completions", json=asked, timeout=60)
    assert reply.status_code == 200, reply.text
    text = str(reply.json()["choices"][0]["text"])
    assert service.ask().json()["predictions"] == [text]
    assert reply.json()["usage"]["completion_tokens"] > 0
    return text


def test_it_is_served_and_swapped_to_and_back(stack: Stack, service: Serving, earlier: str, today: str) -> None:
    texts = {earlier: complete(service)}
    for number in (today, earlier, today):
        stack.client.set_registered_model_alias(MODEL, "production", number)
        service.wait_for_version(number)
        assert complete(service) == texts.setdefault(number, complete(service))
    assert texts[earlier] != texts[today]
    assert service.status()["engine"]["protocol"] == PROTOCOL


def test_it_is_judged_by_its_own_code(stack: Stack, earlier: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"def f{n}():\n", "completion": f"    return {n}\n"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "rows.jsonl")
    result = CliRunner().invoke(
        main,
        [
            *("evaluate", "--model-uri", f"models:/{MODEL}/{earlier}", "--data", data, "--format", "json"),
            *("eval.max_new_tokens=8", "data.language=python"),
        ],
        env={"MLFLOW_TRACKING_URI": stack.url},
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert 4 < json.loads(result.stdout)["eval/nll_per_token"] < 12  # random weights, one token per byte
    newest = stack.client.search_runs(
        [stack.client.get_experiment_by_name("earlier").experiment_id],  # type: ignore[union-attr]
        f"tags.evaluates = '{MODEL}/{earlier}'",
    )[0]
    assert newest.info.status == "FINISHED"


def test_it_is_validated(stack: Stack, earlier: str) -> None:
    result = stack.promoter("validate", "--model-name", MODEL, "--version", earlier)
    assert result.exit_code == 0, result.output
    assert stack.client.get_model_version(MODEL, earlier).tags["validation_status"] == "passed"


def test_a_version_of_a_later_release_is_refused_and_the_live_one_serves_on(
    stack: Stack, service: Serving, today: str, tiny
) -> None:
    stack.client.set_registered_model_alias(MODEL, "production", today)
    service.wait_for_version(today)
    later = register(stack, MODEL, tiny.folder, metadata={"ratchet_protocol": "99", "ratchet_release": "7.1.0"})
    stack.client.set_registered_model_alias(MODEL, "production", later)
    service.wait_for(lambda: later in service.status()["refused"], "it is refused")
    why = service.status()["refused"][later]
    assert "speaks protocol 99" in why
    assert "Serve it with Ratchet 7.1.0" in why
    assert service.version() == today
