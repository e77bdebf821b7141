"""What clients see of serving: OpenAI's own client, MLflow's forms, tokens, limits, feedback, metrics."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import requests
from click.testing import CliRunner
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException

from services.tracking.readiness import wait_until
from serving.gateway.feedback import new_id
from serving.gateway.tokens import main as access
from serving.supervisor.state import StateFile
from tests.support import doses, fuzz
from tests.support.serving import PROMPT, Serving, register, serving_process
from tests.support.tracking import Stack

pytestmark = pytest.mark.integration

MODEL = "served"
# Small limits, so that they are reached.
LIMITS = {
    "SERVING_MAX_PROMPT_TOKENS": "300",
    "SERVING_MAX_NEW_TOKENS": "400",
    "SERVING_MAX_BODY_BYTES": "20000",
    "SERVING_MAX_BATCH": "4",
    "SERVING_MAX_QUEUE": "2",
}


def tokens(*arguments: str) -> str:
    result = CliRunner().invoke(access, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output.strip()


@pytest.fixture(scope="module")
def service(stack: Stack, tiny, tmp_path_factory) -> Iterator[Serving]:
    endless = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(tiny.folder, endless)
    generation = endless / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"eos_token_id": 100_000}))  # never chosen
    number = register(stack, MODEL, endless)
    stack.client.set_registered_model_alias(MODEL, "production", number)
    home = tmp_path_factory.mktemp("serving")
    (home / "ada").write_text(tokens("add", "ada", "--file", str(home / "tokens")))
    (home / "token").write_text(tokens("add", "bob", "--file", str(home / "tokens")))
    with serving_process(stack, MODEL, home, SERVING_TOKENS_FILE=str(home / "tokens"), **LIMITS) as service:
        service.headers = {"Authorization": f"Bearer {(home / 'token').read_text()}"}
        service.wait_for_version(number)
        yield service


@pytest.fixture(scope="module")
def client(service: Serving) -> openai.OpenAI:
    token = service.headers["Authorization"].removeprefix("Bearer ")
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=token, max_retries=0)


def post(service: Serving, path: str, body: object, **headers: str) -> requests.Response:
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return requests.post(
        service.url + path,
        data=data,
        headers={"Content-Type": "application/json", **service.headers, **headers},
        timeout=60,
    )


def test_the_openai_client_completes(client: openai.OpenAI, service: Serving) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "ratchet"
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=12, extra_headers={"X-Request-ID": "mine-1"}
    )
    assert raw.headers["X-Model-Version"] == "1"
    assert raw.headers["X-Request-ID"] == "mine-1"
    answer = raw.parse()
    assert answer.choices[0].text == service.ask(max_new_tokens=12).json()["predictions"][0]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 12)  # one token for each byte
    assert answer.system_fingerprint == "version-1"


def test_the_openai_client_streams_the_same(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40)
    chunks = list(
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == whole.choices[0].text
    assert sum(bool(text) for text in texts) > 5
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage


def test_the_openai_client_fills_in_the_middle(client: openai.OpenAI) -> None:
    filled = client.completions.create(model=MODEL, prompt="def f(", suffix="):\n    pass\n", max_tokens=8)
    asked = "<fim_prefix>def f(<fim_suffix>):\n    pass\n<fim_middle>"  # this model has no markers of its own
    assert filled.choices[0].text == client.completions.create(model=MODEL, prompt=asked, max_tokens=8).choices[0].text
    assert filled.usage is not None
    assert filled.usage.prompt_tokens == len("<fim_suffix>):\n    pass\n<fim_middle>def f(")  # a byte is a token


def test_what_an_editor_knows_becomes_a_prompt_as_in_training(client: openai.OpenAI, service: Serving) -> None:
    """By fields of ours, by llama.cpp's form, and by the neutral text, all the same."""
    extra = [{"filename": "shop/tax.py", "text": "RATE = 2\n"}]
    around = {"path": "shop/total.py", "input_extra": extra}
    asked = {"prompt": "import tax\nx = ", "suffix": " + 1\n"}
    answer = client.completions.create(model=MODEL, max_tokens=8, extra_body=around, **asked)
    expected = "# shop/tax.py\nRATE = 2\n<fim_suffix> + 1\n<fim_middle># shop/total.py\nimport tax\nx = "
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected)
    neutral = "<file_sep>shop/tax.py\nRATE = 2\n<file_sep>shop/total.py\n<fim_prefix>import tax\nx = "
    neutral += "<fim_suffix> + 1\n<fim_middle>"
    again = client.completions.create(model=MODEL, prompt=neutral, max_tokens=8)
    assert again.choices[0].text == answer.choices[0].text
    body = {"input_prefix": "import tax\n", "prompt": "x = ", "input_suffix": " + 1\n", "n_predict": 8, **around}
    reply = post(service, "/infill", {**body, "samplers": ["top_k"], "cache_prompt": True, "t_max_predict_ms": 500})
    assert reply.status_code == 200
    infill = reply.json()
    assert infill["content"] == answer.choices[0].text
    assert (infill["tokens_evaluated"], infill["stop"]) == (len(expected), True)
    assert infill["tokens_predicted"] == answer.usage.completion_tokens
    refused = post(service, "/infill", {"prompt": "x", "stream": True})
    assert refused.status_code == 422
    assert "/v1/completions" in refused.text
    assert post(service, "/infill", {"input_extra": "x"}).status_code == 422


def test_of_a_long_file_the_prompt_has_what_the_model_was_tuned_to_read(client: openai.OpenAI) -> None:
    before = "".join(f"line_{n} = {n}\n" for n in range(900))
    answer = client.completions.create(model=MODEL, prompt=before + "x = ", suffix="\ny\n" * 500, max_tokens=4)
    assert answer.usage is not None
    assert 270 < answer.usage.prompt_tokens <= 300  # no window is known of this one, but SERVING_MAX_PROMPT_TOKENS


def test_several_prompts_and_several_answers(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, temperature=1.0, seed=3, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text != answer.choices[1].text  # the second has a seed of its own
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
    again = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, temperature=1.0, seed=3, max_tokens=8)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_a_model_without_a_chat_template_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="no chat template"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": "other"}, openai.NotFoundError, "The model 'other' is not served here. Expected 'served'"),
        ({"max_tokens": 401}, openai.UnprocessableEntityError, "max_tokens is 401. Expected 400 at most here"),
        ({"max_tokens": 0}, openai.UnprocessableEntityError, "max_tokens is 0. Expected 1 or more"),
        ({"prompt": "x" * 301}, openai.UnprocessableEntityError, "A prompt has 301 tokens. Expected 300 at most here"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature is -1"),
        ({"n": 0}, openai.UnprocessableEntityError, "n is 0"),
        ({"prompt": [1, 2]}, openai.UnprocessableEntityError, "prompt"),
        ({"logprobs": 30}, openai.UnprocessableEntityError, "logprobs is 30. Expected a number from 0 to 20"),
        ({"prompt": "x" * 20_001}, openai.APIStatusError, "larger than 20000 bytes"),
    ],
)
def test_errors_have_openais_form_and_say_what_was_expected(client: openai.OpenAI, given, error, message) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**({"model": MODEL, "prompt": "x", "max_tokens": 4} | given))
    assert message in caught.value.body["message"]
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_mlflows_forms_are_answered_as_mlflow_does(service: Serving) -> None:
    for path, text in (("/ping", "\n"), ("/health", "\n")):
        assert requests.get(service.url + path, timeout=10).text == text
    assert requests.get(f"{service.url}/version", timeout=10).text.startswith("3.")
    split = {"dataframe_split": {"columns": ["prompt", "max_new_tokens"], "data": [["a", 2], ["b", 3]]}}
    assert len(post(service, "/invocations", split).json()["predictions"]) == 2
    for one in ({"prompt": "a"}, {"prompt": ["a"], "max_new_tokens": [2]}, [{"prompt": "a"}], ["a"]):
        assert len(post(service, "/invocations", {"inputs": one}).json()["predictions"]) == 1
    assert post(service, "/invocations", {"prompt": "a", "max_new_tokens": 2}).status_code == 200
    unknown = post(service, "/invocations", {"inputs": ["a"], "params": {"max_tokens": 3}})
    assert unknown.status_code == 400
    assert "Unknown generation parameter 'max_tokens'" in unknown.json()["message"]
    for body, words in (
        ({"inputs": ["a"], "parms": {}}, "There is 'parms', which is not known here. Did you mean params?"),
        ({"inputs": ["a"], "max_tokens": 3}, "Expected inputs and params."),
        ({"inputs": ["a"], "instances": ["a"]}, "There are inputs and instances. Expected one of"),
        ({"inputs": None}, "inputs is null. Expected prompts"),
        ({"inputs": "a"}, "inputs is 'a'. Expected a list of texts."),
        ({"inputs": ["a", 1]}, "inputs has 1 in place 1. Expected a text."),
        ({"inputs": {"prompt": ["a", 5]}}, "inputs has 5 in place 1. Expected a text."),
        ({"dataframe_split": {"columns": ["prompt", "prompt"], "data": [["a", "b"]]}}, "has a column twice"),
        ({"inputs": ["a"], "params": []}, "params is []. Expected an object."),
    ):
        wrong = post(service, "/invocations", body)
        assert wrong.status_code == 400
        assert words in wrong.json()["message"]
    for body in ("{nope", "[]", '{"x": 1}'):
        wrong = post(service, "/invocations", body)
        assert wrong.status_code == 400
        assert set(wrong.json()) == {"error_code", "message"}
    csv = post(service, "/invocations", "prompt\nabc\n", **{"Content-Type": "text/csv"})
    assert len(csv.json()["predictions"]) == 1
    assert post(service, "/invocations", "x", **{"Content-Type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("path", ["/invocations", "/v1/completions", "/status", "/metrics", "/feedback"])
def test_without_a_known_token_nothing_is_answered(service: Serving, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}):
        reply = requests.request(
            "GET" if path in ("/status", "/metrics") else "POST", service.url + path, headers=headers, timeout=10
        )
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert "token" in reply.text


def test_tokens_come_and_go_while_it_runs(service: Serving) -> None:
    file = service.log.parent / "tokens"
    token = tokens("add", "carol", "--file", str(file))
    assert token not in file.read_text()  # its hash alone is kept
    headers = {"Authorization": f"Bearer {token}"}

    def status() -> int:
        return requests.get(f"{service.url}/status", headers=headers, timeout=10).status_code

    assert status() == 200
    assert tokens("list", "--file", str(file)).split() == ["ada", "bob", "carol"]
    tokens("remove", "carol", "--file", str(file))
    assert status() == 401
    again = CliRunner().invoke(access, ["add", "bob", "--file", str(file)])
    assert again.exit_code == 2
    assert "'bob' has a token" in again.output


def test_a_full_queue_is_429_with_the_time_to_wait(service: Serving, client: openai.OpenAI) -> None:
    asked = {"max_tokens": 400, "temperature": 1.0, "stream": True}
    long = {"prompt": ["a", "b"], "max_tokens": 400}
    for _ in range(5):  # on a busy machine they may be done before the queue is full
        streams = [client.completions.create(model=MODEL, prompt="x", **asked) for _ in range(4)]
        threading.Thread(target=post, args=(service, "/v1/completions", long)).start()
        until = time.monotonic() + 2
        while service.status()["engine"]["waiting"] < 2 and time.monotonic() < until:
            pass
        reply, mlflows = (
            post(service, "/v1/completions", {"prompt": "x"}),
            post(service, "/invocations", {"inputs": ["x"]}),
        )
        if reply.status_code == mlflows.status_code == 429:
            break
        for stream in streams:
            stream.close()
        service.wait_for(lambda: service.status()["engine"]["active"] == 0, "it is idle", 30)
    assert reply.status_code == 429
    assert int(reply.headers["Retry-After"]) >= 1
    assert "the queue has 2 places" in reply.json()["error"]["message"]
    assert mlflows.status_code == 429
    assert mlflows.headers["Retry-After"]
    for stream in streams:
        stream.close()  # hangs up
    began = time.monotonic()
    service.wait_for(lambda: service.status()["engine"]["active"] == 0, "places are free", 30)
    assert time.monotonic() - began < 30


def test_who_hangs_up_frees_the_place(service: Serving, client: openai.OpenAI) -> None:
    def active() -> int:
        return int(service.status()["engine"]["active"])

    def spent(path: str, body: dict[str, Any]) -> int:
        """The tokens that are made for a client that is gone after a tenth of a second."""
        service.wait_for(lambda: active() == 0, "it is idle")
        before = service.status()["engine"]["tokens"]
        session = requests.Session()
        with pytest.raises(requests.exceptions.RequestException):  # noqa: PT012
            reply = session.post(
                service.url + path,
                json=body,
                headers=service.headers,
                timeout=(5, 0.1),
                stream=bool(body.get("stream")),
            )
            reply.close()
            raise requests.exceptions.RequestException
        session.close()
        service.wait_for(lambda: active() == 0, f"{path} is let go", 20)
        return int(service.status()["engine"]["tokens"] - before)

    for path, body in (
        ("/v1/completions", {"prompt": "x", "max_tokens": 400, "temperature": 1.0, "n": 4}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 400, "temperature": 1.0, "n": 4, "stream": True}),
        ("/invocations", {"inputs": ["x"] * 4, "params": {"max_new_tokens": 400, "temperature": 1.0}}),
    ):
        # Of three, since a quick machine may be done before it is noticed. All would be 1600.
        assert min(spent(path, body) for _ in range(3)) < 4 * 390, path


def traced(stack: Stack, trace: str, assessments: int = 0) -> Trace:
    """A trace, once it has come to the tracking server with what was told of it."""

    def there() -> bool:
        try:
            return len(stack.client.get_trace(trace).info.assessments) >= assessments
        except MlflowException:
            return False

    assert wait_until(there, 20, lambda: True)
    return stack.client.get_trace(trace)


def test_feedback_is_an_assessment_on_the_completions_trace(stack: Stack, service: Serving, client) -> None:
    answer = client.completions.create(model=MODEL, prompt="traced", max_tokens=4)
    reply = post(service, "/feedback", {"id": answer.id, "accepted": False, "comment": "no"})
    assert reply.status_code == 200, reply.text
    trace = traced(stack, reply.json()["trace_id"], assessments=1)
    [assessment] = trace.info.assessments
    assert (assessment.name, assessment.feedback.value, assessment.rationale) == ("accepted", False, "no")
    assert assessment.source.source_id == "bob"
    assert trace.info.tags["model_version"] == "1"
    span = trace.data.spans[0]
    assert span.inputs["inputs"][0]["prompt"] == "traced"
    assert span.outputs == {"completions": [answer.choices[0].text]}
    assert trace.info.token_usage["output_tokens"] == 4
    assert span.attributes["mlflow.llm.model"] == f"{MODEL}/1"
    assert trace.info.trace_metadata["mlflow.trace.user"] == "bob"
    assert trace.info.client_request_id == answer.id
    post(service, "/feedback", {"id": answer.id, "accepted": True})  # on second thoughts: not a second assessment
    accepted = lambda: [item.feedback.value for item in traced(stack, trace.info.trace_id).info.assessments]  # noqa: E731
    service.wait_for(lambda: accepted() == [True], "the verdict is changed")
    unknown = post(service, "/feedback", {"id": "cmpl-unknown", "accepted": True})
    assert unknown.status_code == 404
    assert "No completion 'cmpl-unknown' is known" in unknown.json()["message"]
    assert post(service, "/feedback", {"id": "x", "accept": True}).status_code == 422
    ada = {"Authorization": f"Bearer {(service.log.parent / 'ada').read_text()}"}
    theirs = requests.post(f"{service.url}/feedback", json={"id": answer.id, "accepted": True}, headers=ada, timeout=30)
    assert (theirs.status_code, theirs.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert len(stack.client.get_trace(reply.json()["trace_id"]).info.assessments) == 1


def test_floods_of_feedback_are_bounded(service: Serving) -> None:
    made_up = [new_id("cmpl") for _ in range(70)]
    with ThreadPoolExecutor(16) as pool:
        statuses = [
            answer.status_code
            for answer in pool.map(lambda id: post(service, "/feedback", {"id": id, "accepted": True}), made_up)
        ]
    assert set(statuses) == {404, 429}
    assert statuses.count(404) < 70 - 16


def test_metrics_and_status_tell_what_went_on(service: Serving) -> None:
    def value(line: str) -> float:
        return service.metric(line)

    before = value('ratchet_requests_total{path="/v1/completions",status="200",user="bob",version="1"}')
    tokens_before = value('ratchet_completion_tokens_total{version="1"}')
    for _ in range(6):  # both workers
        post(service, "/v1/completions", {"prompt": "x", "max_tokens": 3})
    post(service, "/invocations", {"inputs": ["x"], "params": {"max_new_tokens": 5}})
    assert value('ratchet_requests_total{path="/v1/completions",status="200",user="bob",version="1"}') == before + 6
    told = 'ratchet_completion_tokens_total{version="1"}'
    service.wait_for(lambda: value(told) == tokens_before + 23, "all tokens are counted", 10)
    assert value('ratchet_live_version{model="served",version="1"}') == 1
    for name in ("request_seconds", "queue_seconds", "first_token_seconds", "batch_size"):
        assert (
            f"ratchet_{name}_bucket" in requests.get(f"{service.url}/metrics", headers=service.headers, timeout=10).text
        )
    requests.get(f"{service.url}/no/such/path", headers=service.headers, timeout=10)
    assert value('ratchet_requests_total{path="other",status="404"') >= 1
    status = service.status()
    assert status["status"] == "serving"
    assert status["live"]["version"] == "1"
    assert status["live"]["since"] <= time.time()


def test_prompts_can_be_left_out_of_traces(stack: Stack, tiny, tmp_path) -> None:
    number = register(stack, "untold", tiny.folder)
    stack.client.set_registered_model_alias("untold", "production", number)
    with serving_process(stack, "untold", tmp_path / "serving", SERVING_TRACE_PROMPTS="false") as service:
        service.wait_for_version(number)
        answer = post(service, "/v1/completions", {"prompt": "secret", "max_tokens": 4}).json()
        trace = post(service, "/feedback", {"id": answer["id"], "accepted": True}).json()["trace_id"]
        found = traced(stack, trace, assessments=1)
        assert "secret" not in found.to_json()
        assert answer["choices"][0]["text"] not in str(found.data.spans[0].outputs)


def test_the_registrys_webhook_makes_it_quick(stack: Stack, tiny, tmp_path) -> None:
    numbers = [register(stack, "hooked", tiny.folder) for _ in range(2)]
    stack.client.set_registered_model_alias("hooked", "production", numbers[0])
    with serving_process(stack, "hooked", tmp_path / "serving", SERVING_POLL_S="3600") as service:
        service.wait_for_version(numbers[0])
        hook = stack.client.create_webhook("hook", f"{service.url}/webhook", ["model_version_alias.created"])
        try:
            stack.client.set_registered_model_alias("hooked", "production", numbers[1])
            service.wait_for_version(numbers[1])  # which it would ask for in an hour
        finally:
            stack.client.delete_webhook(hook.webhook_id)


def test_nothing_in_production_is_503_with_the_reason(stack: Stack, tmp_path) -> None:
    with serving_process(stack, "nothing", tmp_path / "serving") as service:
        service.wait_for(lambda: service.status()["message"] != "starting", "it has looked")
        for path, body in (("/ping", None), ("/v1/completions", {"prompt": "x"}), ("/invocations", {"inputs": ["x"]})):
            reply = post(service, path, body) if body else requests.get(service.url + path, timeout=10)
            assert reply.status_code == 503
            assert reply.headers["Retry-After"]
            assert "No version of 'nothing' has the alias 'production'" in reply.text
            assert "promoter promote" in reply.text


def test_the_state_is_read_again_when_it_changes(tmp_path) -> None:
    from serving.supervisor import state

    path = tmp_path / "state.json"
    file = StateFile(path)
    assert file.read().status == state.WAITING
    state.write(state.State(status=state.SERVING), path)
    assert wait_until(lambda: file.read().status == state.SERVING, 5, lambda: True)
    path.unlink()
    assert file.read().status == state.SERVING


def test_logprobs_and_echo_in_openais_forms(client: openai.OpenAI, service: Serving) -> None:
    prompt = "def add(a, b):\n"
    found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, logprobs=2, echo=True)
    [choice] = found.choices
    told = choice.logprobs
    assert choice.text.startswith(prompt)
    assert "".join(told.tokens) == choice.text
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    assert all(value <= 0 for value in told.token_logprobs[1:])
    assert all(
        len(top) in (2, 3) and value in top.values()
        for top, value in zip(told.top_logprobs[1:], told.token_logprobs[1:], strict=True)
    )
    assert told.token_logprobs[-1] == max(told.top_logprobs[-1].values())  # greedy: as lm-evaluation-harness asks
    assert told.text_offset[:2] == [0, len(told.tokens[0])]
    [only] = client.completions.create(model=MODEL, prompt=prompt, max_tokens=0, logprobs=0, echo=True).choices
    assert (only.text, only.logprobs.token_logprobs) == (prompt, told.token_logprobs[:-1])
    [plain] = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, logprobs=1).choices
    assert plain.logprobs.text_offset[0] == len(prompt)
    assert len(plain.logprobs.tokens) == 3
    message = [{"role": "user", "content": "x"}]
    body = {"messages": message, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
    answer = post(service, "/v1/chat/completions", body)
    if answer.status_code == 200:  # the tiny model has a chat template
        [token, _] = answer.json()["choices"][0]["logprobs"]["content"]
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]
        assert bytes(token["bytes"]).decode() == token["token"]
    for wrong, param in (
        ({"logprobs": 1, "stream": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        refused = post(service, "/v1/completions", {"prompt": "x", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)


def test_a_target_may_be_absolute(service: Serving) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    sent = f"GET http://elsewhere/ping HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert fuzz.exchange(host, int(port), sent, whole=True).startswith(b"HTTP/1.1 200 ")


def test_whatever_is_sent_there_is_an_answer(service: Serving) -> None:
    token = service.headers["Authorization"].removeprefix("Bearer ")
    found = fuzz.run(service.url, token, doses.FUZZED[0], seed=1)
    assert not found.wrong, found.wrong[:5]
    assert {"200", "400", "401", "404", "405", "413", "415", "422"} <= found.answers.keys()
    assert service.ask().status_code in (200, 429)


def test_the_gateway_is_as_its_openapi_document_says(service: Serving) -> None:
    command = ["schemathesis", "run", f"{service.url}/openapi.json", "--checks", "not_a_server_error", "--no-color"]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(doses.FUZZED[1]), "--seed", "1"]
    command += [word for name, value in service.headers.items() for word in ("--header", f"{name}: {value}")]
    done = subprocess.run([sys.executable, "-m", "schemathesis.cli", *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "Tested: 21" in done.stdout
