"""What editors tell of completions: in their own forms, and counted exactly whatever is killed or away meanwhile."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
import requests
from click.testing import CliRunner

from code_model import fim
from contract.names import TRACES
from services.tracking.traces import main as delete_traces
from serving.gateway.events.sender import Sender
from serving.gateway.events.store import Store
from serving.gateway.feedback import new_id
from serving.gateway.tokens import main as write_tokens
from serving.settings import ServingSettings
from tests.support import doses
from tests.support.events import completion
from tests.support.serving import Serving, register, serving_process
from tests.support.tracking import Stack, make_stack, server
from trainer.data.sources import feedback

pytestmark = pytest.mark.integration
MODEL = "told"


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny) -> Stack:
    """A tracking server of its own, with a version in production."""
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    with server(stack):
        number = register(stack, MODEL, tiny.folder)
        stack.client.set_registered_model_alias(MODEL, "production", number)
    return stack


@pytest.fixture(scope="module")
def service(own: Stack, tmp_path_factory) -> Iterator[Serving]:
    with server(own), serving_process(own, MODEL, tmp_path_factory.mktemp("serving")) as service:
        service.wait_for_version("1")
        yield service


def post(service: Serving, path: str, body: Any) -> requests.Response:
    return requests.post(service.url + path, json=body, timeout=60)


def total(service: Serving, name: str, **labels: str) -> float:
    """The sum of a metric over all label sets that have these."""
    text = requests.get(f"{service.url}/metrics", timeout=10).text
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = re.findall(rf"^ratchet_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    return sum(float(value) for found, value in lines if all(item in found for item in wanted))


def all_sent(service: Serving) -> None:
    service.wait_for(
        lambda: service.metric("ratchet_events_waiting") == 0, "all has come to MLflow", 900 if doses.FULL else 120
    )


def traces(stack: Stack) -> list[Any]:
    mlflow.set_tracking_uri(stack.url)
    experiment = stack.client.get_experiment_by_name(TRACES)
    if experiment is None:
        return []
    return mlflow.search_traces(locations=[experiment.experiment_id], return_type="list", max_results=100_000)


def test_tabbys_clients_work_unchanged(service: Serving, own: Stack) -> None:
    """Their requests, recorded from the agent's protocol: health, a completion, its events."""
    assert requests.get(f"{service.url}/tabby/v1/health", timeout=10).json()["model"] == f"{MODEL}/1"
    segments = {
        "prefix": "def add(a, b):\n    ",
        "suffix": "\n",
        "filepath": "src/add.py",
        "git_url": "git@example.org:a/b.git",
        "declarations": [{"filepath": "src/other.py", "body": "def other(): ..."}],
        "relevant_snippets_from_changed_files": [{"filepath": "c.py", "body": "x = 1", "score": 0.5}],
        "clipboard": "x",
    }
    answer = post(service, "/tabby/v1/completions", {"language": "python", "segments": segments, "user": "u"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"id", "choices"}
    assert set(body["choices"][0]) == {"index", "text"}
    view = {
        "type": "view",
        "completion_id": body["id"],
        "choice_index": 0,
        "view_id": f"view-{body['id']}-1700000000000",
    }
    assert post(service, "/tabby/v1/events", view).status_code == 200
    taken = view | {"type": "select", "elapsed": 1234}
    assert post(service, "/tabby/v1/events?select_kind=line", taken).status_code == 200
    labels = {"language": "python", "repository": "git@example.org:a/b.git"}
    assert (
        total(service, "completions_shown_total", **labels),
        total(service, "completions_accepted_total", **labels),
    ) == (1, 1)
    all_sent(service)
    [trace] = [trace for trace in traces(own) if trace.info.client_request_id == body["id"]]
    assert {item.name: item.feedback.value for item in trace.info.assessments} == {
        "viewed": True, "shown_ms": 1234, "accepted": True, "acceptance": 1.0,
    }  # fmt: skip
    assert trace.info.tags["repository"] == "git@example.org:a/b.git"


def test_llama_clients_work_unchanged(service: Serving) -> None:
    """What llama.vscode and llama.vim send to /infill; their other fields are about llama.cpp's cache and samplers."""
    asked = {
        "input_prefix": "import os\n\ndef f(x):\n",
        "input_suffix": "\n    return y\n",
        "input_extra": [{"filename": "a.py", "text": "y = 1\n", "time": 1}],
        "prompt": "    y = ",
        "n_predict": 8, "top_k": 40, "top_p": 0.99, "stream": False, "n_indent": 4, "samplers": ["top_k", "infill"],
        "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1000, "response_fields": ["content"],
    }  # fmt: skip
    answer = post(service, "/infill", asked)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["content"], str)
    warm_up = post(
        service, "/infill", {"input_extra": [], "input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0}
    )
    assert (warm_up.status_code, warm_up.json()["content"]) == (200, "")


def test_continues_data_are_found_by_their_texts(service: Serving) -> None:
    prompt = "class Continued:\n    def g(self"
    made = post(service, "/v1/completions", {"prompt": prompt, "max_tokens": 6}).json()
    data = {
        "accepted": True, "prefix": prompt, "suffix": "", "prompt": prompt, "completion": made["choices"][0]["text"],
        "modelProvider": "openai", "modelName": MODEL, "cacheHit": False, "time": 212, "completionId": "x",
        "uniqueId": "y", "eventName": "autocomplete", "schema": "0.2.0", "timestamp": "2026-11-30T01:00:00.000Z",
    }  # fmt: skip
    sent = {"name": "autocomplete", "schema": "0.2.0", "level": "all", "profileId": "local", "data": data}
    before = total(service, "completions_accepted_total")
    for body in (sent, sent, data):  # again, and without what is around it
        told = post(service, "/ingest/continue", body)
        assert (told.status_code, told.json()["completion_id"]) == (200, made["id"])
    assert total(service, "completions_accepted_total") == before + 1
    assert post(service, "/ingest/continue", {"name": "chatFeedback", "data": {"feedback": True}}).json() == {
        "accepted": 0
    }
    unknown = post(service, "/ingest/continue", sent | {"data": data | {"completion": "never said"}})
    assert unknown.status_code == 404


def test_a_stream_that_its_client_leaves_is_known(service: Serving) -> None:
    asked = {"prompt": "left", "max_tokens": 300, "temperature": 1.0, "stream": True, "path": "a.go"}
    with requests.post(f"{service.url}/v1/completions", json=asked, stream=True, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith(b"data: {"))
        id = json.loads(next(lines).removeprefix(b"data: "))["id"]
        assert post(service, "/v1/events", {"type": "view", "completion_id": id}).status_code == 200
        for _ in range(5):
            next(lines)
    taken = {"type": "select", "completion_id": id, "elapsed": 1000.5}
    assert post(service, "/v1/events", taken).status_code == 200
    service.wait_for(lambda: total(service, "completions_total", language="go") == 1, "its facts are kept", 20)
    assert total(service, "completions_accepted_total", language="go") == 1


def test_one_bad_event_among_several_keeps_none_of_the_others_out(service: Serving) -> None:
    made = post(service, "/v1/completions", {"prompt": "x", "max_tokens": 4, "n": 2}).json()["id"]
    view = {"type": "view", "completion_id": made}
    answer = post(service, "/v1/events", {"events": [view, view | {"completion_id": new_id("cmpl")}, view]})
    assert (answer.status_code, answer.json()["accepted"]) == (200, 2)
    [refused] = answer.json()["refused"]
    assert (refused["index"], refused["status"]) == (1, 404)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"type": "select", "completion_id": "cmpl-x"}, 404, "No completion 'cmpl-x' is known"),
        ({"type": "select", "completion_id": f"cmpl-ffffffff{'a' * 24}"}, 404, "is known"),  # made in the future
        ({"type": "selected", "completion_id": "cmpl-x"}, 422, "type is 'selected'"),
        ({"type": "view"}, 422, "completion_id is missing"),
        ({"type": "dismiss", "completion_id": "cmpl-x", "elapsed": -1}, 422, "elapsed is -1"),
        ({"type": "kept", "completion_id": "cmpl-x", "after_s": 31, "characters": 1}, 422, "30, 120, 600"),
        ({"type": "view", "completion_id": "cmpl-x", "choice_index": 64}, 422, "choice_index is 64"),
        ({"events": []}, 422, "events is []"),
        ({"events": [{"type": "view"}]}, 422, "completion_id is missing"),
        ({"type": "view", "completion_id": "x" * 2_000_000}, 413, "larger than"),
        ([], 422, "Expected a JSON object"),
    ],
)
def test_bad_events_are_named(service: Serving, body: Any, status: int, words: str) -> None:
    answer = post(service, "/v1/events", body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_secrets_are_overwritten_before_they_are_stored(service: Serving, own: Stack) -> None:
    key = "AKIA" + "Z7Q2M4XW9PLK3JHV"
    prompt = f"aws_access_key_id = '{key}'\ndef f("
    made = post(service, "/v1/completions", {"prompt": prompt, "max_tokens": 4}).json()
    all_sent(service)
    [trace] = [trace for trace in traces(own) if trace.info.client_request_id == made["id"]]
    assert key not in trace.to_json()
    assert "REDACTED" in trace.data.spans[0].inputs["inputs"][0]["prompt"]


def tell(url: str, made: dict[str, Any], dice: random.Random, truth: Counter[str]) -> None:
    """Send the events of one completion, some of them twice; add to the truth what they come to."""
    id, characters = made["id"], len(made["choices"][0]["text"])
    elapsed, taken = dice.choice([300, 749, 750, 4000]), dice.random() < 0.4
    events = [{"type": "view"}, {"type": "select" if taken else "dismiss", "elapsed": elapsed}]
    if taken:
        left = {30: characters, 120: characters // 2, 600: 0}
        events += [{"type": "kept", "after_s": after, "characters": count} for after, count in left.items()]
        for after, count in left.items():
            truth[f"watched {after}"] += characters
            truth[f"kept {after}"] += count
    for event in events:
        for _ in range(dice.choice([1, 1, 2])):
            answer = requests.post(f"{url}/v1/events", json={"completion_id": id, **event}, timeout=60)
            assert answer.status_code == 200, answer.text
    truth["completions"] += 1
    truth["viewed"] += 1
    if elapsed >= 750:
        truth["shown"] += 1
        truth["accepted"] += taken
    truth["taken"] += taken


def test_a_replay_gives_the_figures_exactly(own: Stack, tmp_path) -> None:
    """With a trace sample of 0.1, the tracking server away in between, and serving killed."""
    dice, truth, count = random.Random(7), Counter[str](), doses.COMPLETIONS

    def ask(service: Serving, times: int) -> None:
        for _ in range(times):
            prompt = {"prompt": f"def f{dice.random()}(", "max_tokens": dice.randint(1, 12), "path": "src/a.py"}
            tell(service.url, post(service, "/v1/completions", prompt).json(), dice, truth)

    settings = {"SERVING_TRACE_SAMPLE": "0.1"}
    with serving_process(own, MODEL, tmp_path / "serving", **settings) as service:
        with server(own):
            before = {trace.info.trace_id for trace in traces(own)}
            service.wait_for_version("1")
            ask(service, count // 3)
        away = time.monotonic()
        ask(service, count // 3)  # nobody takes traces now
        time.sleep(max(0.0, doses.EVENTS_OUTAGE_S - (time.monotonic() - away)))
        service.process.kill()
        service.process.wait()
    with server(own), serving_process(own, MODEL, tmp_path / "serving", **settings) as service:
        service.wait_for_version("1")
        ask(service, count - 2 * (count // 3))
        all_sent(service)
        for name in ("completions", "completions_viewed", "completions_shown", "completions_accepted"):
            assert total(service, f"{name}_total") == truth[name.removeprefix("completions_")], name
        for after in (30, 120, 600):
            for name in ("watched", "kept"):
                found = total(service, f"characters_{name}_total", after_s=str(after))
                assert found == truth[f"{name} {after}"], (name, after)
        found = [trace for trace in traces(own) if trace.info.trace_id not in before]
        by_day = Counter[str]()
        for _, name, _, value in Store(tmp_path / "serving" / "events", "another", 1 << 28).days(2):
            by_day[name] += int(value)
        assert by_day["accepted"] == truth["accepted"]
        assert sum(value for name, value in by_day.items() if name.startswith("seconds@")) == truth["completions"]
    said = [{item.name: item.feedback.value for item in trace.info.assessments} for trace in found]
    assert len(found) == len({trace.info.trace_id for trace in found}) == truth["completions"]
    assert all(len(trace.info.assessments) == len(names) for trace, names in zip(found, said, strict=True))
    assert sum(names["accepted"] for names in said) == truth["taken"]
    assert sum(names["accepted"] and names["shown_ms"] >= 750 for names in said) == truth["accepted"]
    acceptance = [names["acceptance"] for names in said if "acceptance" in names]
    assert (len(acceptance), sum(acceptance)) == (truth["shown"], truth["accepted"])  # what MLflow's overview shows
    with_texts = sum(bool(trace.data.spans[0].inputs) for trace in found)
    assert 0 < with_texts < len(found) / 3


def test_events_of_a_completion_that_another_serving_answered(own: Stack, tmp_path) -> None:
    with server(own):
        with serving_process(own, MODEL, tmp_path / "one") as one:
            one.wait_for_version("1")
            made = post(one, "/v1/completions", {"prompt": "x", "max_tokens": 4}).json()
            all_sent(one)
        with serving_process(own, MODEL, tmp_path / "two") as two:
            two.wait_for_version("1")
            taken = {"type": "select", "completion_id": made["id"], "elapsed": 900}
            for _ in range(2):
                assert post(two, "/v1/events", taken).status_code == 200
            assert total(two, "completions_accepted_total") == 1
            never = post(two, "/v1/events", taken | {"completion_id": new_id("cmpl")})
            assert never.status_code == 404


def test_what_users_keep_becomes_data_where_they_agreed(own: Stack, tmp_path) -> None:
    """Ada agreed, Bob did not; what Ada has changed is there as she changed it, without the key that she pasted."""
    tokens = tmp_path / "tokens"
    made = {}
    for name, options in (("ada", ["--trains"]), ("bob", [])):
        result = CliRunner().invoke(write_tokens, ["add", name, "--file", str(tokens), *options])
        made[name] = {"Authorization": f"Bearer {result.output.strip()}"}
    key = "AKIA" + "IOSFODNN7EXAMPL3"
    texts = {"ada": f"return a + b  # {key}", "bob": "return a - b"}
    with server(own), serving_process(own, MODEL, tmp_path / "one", SERVING_TOKENS_FILE=str(tokens)) as service:
        service.wait_for_version("1")
        service.headers = made["ada"]
        for name, headers in made.items():
            asked = {"prompt": f"# {name}\ndef add(a, b):\n    ", "suffix": "\n\n", "max_tokens": 4, "path": "add.py"}
            answer = requests.post(f"{service.url}/v1/completions", json=asked, headers=headers, timeout=60).json()
            told = {"completion_id": answer["id"]}
            events = [{"type": "select", "elapsed": 900}]
            events += [{"type": "kept", "after_s": 30, "characters": 1, "text": texts[name]}]
            for event in events:
                said = requests.post(f"{service.url}/v1/events", json=told | event, headers=headers, timeout=60)
                assert said.status_code == 200, said.text
        all_sent(service)
        mlflow.set_tracking_uri(own.url)
        [row] = feedback.rows(TRACES, "data.source")
        assert row.values["completion"].startswith("return a + b  # ")
        assert key not in json.dumps(row.values)
        assert fim.read(row.values["prompt"]) == fim.Context("# ada\ndef add(a, b):\n    ", "\n\n", "add.py")
        arguments = ["delete", "--yes", "--tracking-uri", own.url, "--user", "ada"]
        assert CliRunner().invoke(delete_traces, arguments).exit_code == 0
        assert list(feedback.rows(TRACES, "data.source")) == []


def test_traces_are_deleted_by_user_age_and_size(own: Stack, tmp_path) -> None:
    store = Store(tmp_path / "events", "here", 1 << 20)
    now = time.time_ns()
    for number, user in enumerate(["ada", "bob", "ada", "bob", "bob"]):
        began = now - number * 86_400 * 10**9
        texts = {"inputs": "x" * 10_000, "outputs": ""}
        store.completed(completion(user=user, began_ns=began, ended_ns=began + 1, texts=texts, model="deleted"))
    arguments = ["delete", "--yes", "--tracking-uri", own.url]

    def left() -> Counter[str]:
        return Counter(trace.info.tags["user"] for trace in traces(own) if trace.info.tags["model"] == "deleted")

    with server(own):
        with Sender(ServingSettings(mlflow_tracking_uri=own.url), store, tmp_path / "lock") as sender:
            while sender.send():
                pass
        assert left() == {"ada": 2, "bob": 3}
        dry = CliRunner().invoke(delete_traces, [*arguments, "--user", "ada", "--dry-run"])
        assert (dry.exit_code, dry.output.startswith("2 of "), left()["ada"]) == (0, True, 2)
        assert CliRunner().invoke(delete_traces, [*arguments, "--user", "ada"]).exit_code == 0
        assert left() == {"bob": 3}
        assert CliRunner().invoke(delete_traces, [*arguments, "--older-than", "3.5"]).exit_code == 0
        assert left() == {"bob": 2}
        assert CliRunner().invoke(delete_traces, [*arguments, "--keep-mb", "0"]).exit_code == 0
        assert traces(own) == []
        nothing = CliRunner().invoke(delete_traces, ["delete", "--tracking-uri", own.url])
        assert (nothing.exit_code, "Expected --user" in nothing.output) == (2, True)
        odd = CliRunner().invoke(delete_traces, [*arguments, "--keep-mb", "nan"])
        assert (odd.exit_code, "--keep-mb is nan" in odd.output) == (2, True)
