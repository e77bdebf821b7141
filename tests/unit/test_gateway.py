"""What the gateway makes of a body: JSON of any kind, parameters that it has, and those that it has not."""

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request

from serving.gateway.body import body_of, loads
from serving.gateway.errors import Refusal
from serving.gateway.routes.answer import Answer
from serving.gateway.routes.forms import ChatRequest, CompletionsRequest
from serving.gateway.routes.infill import InfillRequest
from serving.gateway.routes.parameters import WITH_THESE


def read(body: bytes | dict[str, Any], form: Any = CompletionsRequest, **headers: str) -> Any:
    """A body as the gateway reads it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(body_of(form)(Request({"type": "http", "headers": sent}, receive)))


def asked(form: Any = CompletionsRequest, **fields: Any) -> dict[str, Any]:
    """The generation parameters of a request with some fields. Raises Refusal."""
    given = {"prompt": "x"} if form is CompletionsRequest else {"messages": [{"role": "user", "content": "x"}]}
    found = read(given | fields, form)
    found.refuse_what_is_not_there()
    return dict(found.params())


@pytest.mark.parametrize("kind", ["application/json", "", "application/x-www-form-urlencoded", "text/plain"])
def test_json_is_taken_whatever_the_content_type(kind: str) -> None:
    assert read({"prompt": "x"}, content_type=kind).prompt == "x"


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "The body is not JSON: Expecting value at character 0. Content-Type is ''."),
        (b"prompt=x", 400, "The body is not JSON"),
        (b'{"prompt": "x"', 400, "The body is not JSON"),
        (b'{"prompt": "\xe9"}', 400, "The body is not UTF-8: invalid continuation byte at byte 12."),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested too deeply"),
        (b'{"prompt": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}", 400, "nested too deeply"),
        (b'{"seed": ' + b"9" * 100_000 + b"}", 400, "a number that cannot be read"),
        (b'{"temperature": NaN}', 400, "NaN is no number in JSON"),
        (b'["x"]', 422, "The body is of type array. Expected a JSON object."),
        (b"null", 422, "The body is of type null"),
        ({}, 422, "prompt is missing."),
        ({"prompt": [1, 2, 3]}, 422, "prompt is [1, 2, 3]. Expected a text, or a list of texts: token ids are not"),
        ({"prompt": "x", "stop": 3}, 422, "stop is 3. Expected a text, or a list of at most 64 texts."),
        ({"prompt": "x", "stop": ["x"] * 100_000}, 422, "Expected a text, or a list of at most 64 texts."),
        ({"prompt": "x", "n": 0}, 422, "n is 0: Input should be greater than or equal to 1."),
        ({"prompt": "x", "max_tokens": "A" * 500_000}, 422, "max_tokens is 'AAAA"),
        ({"prompt": "x", "input_extra": [{"text": 3}]}, 422, "input_extra.0.text is 3"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: Any, status: int, expected: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(body)
    assert caught.value.status == status
    assert expected in caught.value.message
    assert len(caught.value.message) < 300


def test_an_encoded_body_is_refused_by_its_encoding() -> None:
    with pytest.raises(Refusal, match="Content-Encoding is 'gzip'") as caught:
        read(b"\x1f\x8b", content_encoding="gzip")
    assert caught.value.status == 415


def test_an_error_names_the_field_alone() -> None:
    for body, param in (({"prompt": [1]}, "prompt"), ({"messages": [{"role": "user", "content": 3}]}, "messages")):
        with pytest.raises(Refusal) as caught:
            read(body, ChatRequest if param == "messages" else CompletionsRequest)
        assert caught.value.param == param
        assert ".str" not in caught.value.message


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    assert read(b'{"prompt": "a\\ud83d", "suffix": "\\ude00b"}').prompt == "a\ufffd"
    assert read(b'{"prompt": "\\ud83d\\ude00"}').prompt == "😀"
    message = read(
        b'{"messages": [{"role": "\\ud800", "content": [{"type": "text", "text": "\\ud800"}]}]}', ChatRequest
    )
    assert message.messages[0].plain() == {"role": "\ufffd", "content": "\ufffd"}
    assert loads(b'{"\\ud800": [null]}') == {"\ufffd": [None]}


def test_what_is_null_is_not_there() -> None:
    form = read({"prompt": "x", "n": None, "stream": None, "logprobs": None, "stream_options": {"include_usage": None}})
    form.refuse_what_is_not_there()
    assert (form.n, form.stream, form.params()) == (1, False, {})
    assert loads(b'{"a": null}') == {"a": None}  # in MLflow's form a row may have one


@pytest.mark.parametrize("form", [CompletionsRequest, ChatRequest])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict"])
def test_each_name_of_max_tokens_is_taken(form: Any, name: str) -> None:
    assert asked(form, **{name: 3})["max_new_tokens"] == 3
    assert asked(form, **{name: 0})["max_new_tokens"] == 0  # which the engine refuses, by that name
    assert read({"prompt": "x", "messages": [{"role": "a"}], name: 0}, form).as_sent("max_new_tokens") == name


def test_two_names_that_say_different_things_are_refused() -> None:
    assert asked(max_tokens=3, n_predict=3)["max_new_tokens"] == 3
    with pytest.raises(Refusal, match=r"max_tokens is 3 and n_predict is 4\. Expected one"):
        asked(max_tokens=3, n_predict=4)
    assert asked(repeat_penalty=1.1) == asked(repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("min_p", 0.1), ("stop_token_ids", [2]), ("ignore_eos", True), ("min_tokens", 5), ("guided_json", {})),
        *(("grammar", "root ::= x"), ("length_penalty", 0.5), ("use_beam_search", True), ("prompt_logprobs", 0)),
        *(("top_logprobs", 1), ("top_logprobs", 21)),
        *(("include_stop_str_in_output", True), ("tool_choice", "required"), ("tools", [{}]), ("logit_bias", {"1": 2})),
        *(("modalities", ["text", "audio"]), ("audio", {}), ("prediction", {}), ("chat_template", "x")),
        *(("continue_final_message", True), ("add_generation_prompt", False), ("response_format", {"type": "json"})),
        *(("presence_penalty", 0.5), ("frequency_penalty", -1), ("best_of", 2), ("nonsense", 1)),
    ],
)
def test_what_would_change_the_answer_is_refused(name: str, value: Any) -> None:
    for form in (CompletionsRequest, ChatRequest):
        with pytest.raises(Refusal, match=name) as caught:
            asked(form, **{name: value})
        assert (caught.value.status, caught.value.param) == (422, name)


def test_what_changes_nothing_is_taken() -> None:
    for name, values in WITH_THESE.items():
        for value in values:
            assert asked(ChatRequest, **{name: value}) == {}
    others: dict[str, Any] = {"user": "ada", "store": True, "metadata": {"a": "b"}, "parallel_tool_calls": True}
    assert asked(**others, best_of=1, presence_penalty=0.0, tools=None) == {}


def test_a_message_with_a_tools_call_is_refused() -> None:
    for extra in ({"tool_calls": [{"id": "1"}]}, {"tool_call_id": "1"}):
        form = read({"messages": [{"role": "assistant", "content": None, **extra}]}, ChatRequest)
        with pytest.raises(Refusal, match=f"A message has {next(iter(extra))}"):
            form.messages[0].plain()
    form = read({"messages": [{"role": "user", "content": "x", "name": "ada", "tool_calls": []}]}, ChatRequest)
    assert form.messages[0].plain() == {"role": "user", "content": "x"}


def test_what_the_engine_refuses_is_told_by_the_clients_names() -> None:
    answer = object.__new__(Answer)
    answer.body, answer.kind = read({"prompt": "x", "n_predict": 0}), "text_completion"
    answer.params = answer.body.params()
    refusal = Refusal(422, "max_new_tokens is 0. Expected 1 or more.")
    answer._name_what_was_sent(refusal)
    assert (refusal.message, refusal.param) == ("n_predict is 0. Expected 1 or more.", "n_predict")
    refusal = Refusal(422, "A prompt has 301 tokens. Expected 300 at most here.")
    answer._name_what_was_sent(refusal)
    assert (refusal.code, refusal.param) == ("context_length_exceeded", "prompt")


def test_infill_takes_llama_cpps_other_fields() -> None:
    form = read({"prompt": "x", "samplers": ["top_k"], "n_predict": 3, "stop": ["a"], "t_max_ms": 500}, InfillRequest)
    assert form.as_completions().params() == {"max_new_tokens": 3, "stop": ["a"]}


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (CompletionsRequest, {"logprobs": True}),
        (CompletionsRequest, {"logprobs": 21}),
        (CompletionsRequest, {"logprobs": -1}),
        (CompletionsRequest, {"logprobs": 1, "stream": True}),
        (ChatRequest, {"logprobs": 0}),
        (ChatRequest, {"logprobs": 3}),
        (ChatRequest, {"logprobs": True, "stream": True}),
    ],
)
def test_logprobs_have_a_form_of_their_own_in_each(form: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="logprobs"):
        asked(form, **fields)
    assert read({"prompt": "x", "logprobs": False}).wanted_logprobs == -1
    assert read({"prompt": "x", "logprobs": 0}).wanted_logprobs == 0


def test_a_chat_has_no_echo() -> None:
    with pytest.raises(Refusal, match="echo is True"):
        asked(ChatRequest, echo=True)
