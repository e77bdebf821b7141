"""The engine: what runs together is what would run alone, and nobody waits for what cannot come."""

import threading
import time
from concurrent.futures import Future

import pytest
import torch
from mlflow.exceptions import MlflowException
from transformers import AutoModelForCausalLM, AutoTokenizer

from code_model import fim
from code_model.decoding import Completion, Decoder, Sampling, choose, gives_numbers, pack_linear_layers
from code_model.engine import Engine, Limits, Request
from code_model.params import GenerationParams
from code_model.pyfunc import generate
from code_model.text import TextStream, encode_prompt
from services.tracking.readiness import wait_until

PROMPTS = ["def add(a, b):\n", "x", "class A:\n    def f(self):\n        ", "# " + "long " * 20, "import os\n", "é"]


@pytest.fixture(scope="module")
def parts(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny.folder)


def engine_of(parts, **limits) -> Engine:
    model, tokenizer = parts
    return Engine(model, tokenizer, Limits(**limits), lambda *rest: generate(model, tokenizer, *rest))


@pytest.fixture
def engine(parts) -> Engine:
    return engine_of(parts)


def texts(requests: list[Request]) -> list[str]:
    return [request.future.result(60).text for request in requests]


def slow(engine: Engine, monkeypatch, seconds: float = 0.02) -> None:
    step = engine.decoder.step
    monkeypatch.setattr(engine.decoder, "step", lambda: (time.sleep(seconds), step()))


def test_completions_together_are_those_of_each_alone(parts, engine: Engine) -> None:
    rows = [(prompt, GenerationParams(max_new_tokens=5 + 7 * number)) for number, prompt in enumerate(PROMPTS)]
    alone = [generate(*parts, [prompt], params)[0] for prompt, params in rows]
    assert texts(engine.submit(rows)) == alone  # as transformers' own `generate` makes them
    joined = []
    for row in rows * 3:  # they join while others are under way
        joined += engine.submit([row])
        time.sleep(0.005)
    assert texts(joined) == alone * 3


def test_the_buffer_moves_and_grows_without_a_trace(parts) -> None:
    """Long and short ones that come and go, over several lengths of the buffer."""
    model, _ = parts
    torch.manual_seed(0)
    prompts = [torch.randint(3, model.config.vocab_size, (n,)).tolist() for n in (3, 120, 40, 200, 7)]
    lengths = [150, 30, 90, 10, 200]

    def alone(prompt: list[int], length: int) -> list[int]:
        decoder, only = Decoder(model, 0), Completion(prompt)
        decoder.add([only])
        for _ in range(length - 1):
            decoder.step()
        return only.new

    decoder, done = Decoder(model, 0), {}
    waiting, running = list(range(len(prompts))), {}
    turn = 0
    while waiting or running:
        if waiting and turn % 20 == 0:
            number = waiting.pop(0)
            running[number] = Completion(prompts[number])
            decoder.add([running[number]])
        else:
            decoder.step()
        for number, completion in list(running.items()):
            if len(completion.new) == lengths[number]:
                decoder.remove(completion)
                done[number] = running.pop(number).new
        turn += 1
    for number, prompt in enumerate(prompts):
        assert done[number] == alone(prompt, lengths[number])
    assert decoder.real.numel() == 0  # nothing is kept for nobody


def test_a_prompt_read_in_pieces_is_the_prompt(parts, monkeypatch) -> None:
    """Others get tokens between the pieces, and what all say is what each says alone."""
    monkeypatch.setattr("code_model.engine.PIECE_S", 0.0)  # so that pieces are as small as may be
    engine = engine_of(parts)
    assert engine.in_pieces
    rows = [("x = 1\n" * 60, GenerationParams(max_new_tokens=9)), ("y" * 50, GenerationParams(max_new_tokens=12))]
    alone = [generate(*parts, [prompt], params)[0] for prompt, params in rows]
    seen: list[int] = []  # tokens of the first completion, at each piece of the others
    reads = engine.decoder.read
    slow(engine, monkeypatch, 0.01)
    [first] = engine.submit([("def f(", GenerationParams(max_new_tokens=300))])
    wait_until(lambda: first.completion is not None and len(first.completion.new) > 2, 30, lambda: True)
    monkeypatch.setattr(engine.decoder, "read", lambda *item: (seen.append(len(first.completion.new)), reads(*item))[1])
    assert texts(engine.submit(rows)) == alone
    first.cancel()
    assert len(seen) > 5
    assert sorted(set(seen)) == seen  # one more, at least, after each


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(parts, monkeypatch) -> None:
    engine = engine_of(parts)
    encoded: list[str] = []
    monkeypatch.setattr(
        "code_model.engine.encode_prompt",
        lambda tokenizer, text: (encoded.append(text), encode_prompt(tokenizer, text))[1],
    )
    [most] = engine.submit([("é" * engine.positions * engine.longest_token, GenerationParams(max_new_tokens=1))])
    with pytest.raises(MlflowException, match=r"A prompt has \d+ characters. Expected \d+ tokens at most"):
        most.future.result(30)
    assert not encoded
    assert texts(engine.submit([("x", GenerationParams(max_new_tokens=1))]))
    assert encoded == ["x"]


def test_short_prompts_overtake_long_ones(parts, monkeypatch) -> None:
    engine = engine_of(parts)
    entered, go_on, order = threading.Event(), threading.Event(), []

    def encode(tokenizer, text: str) -> list[int]:
        entered.set()
        go_on.wait(30)
        order.append(len(text))
        return encode_prompt(tokenizer, text)

    monkeypatch.setattr("code_model.engine.encode_prompt", encode)
    params = GenerationParams(max_new_tokens=1)
    begun = engine.submit([("first", params)])
    entered.wait(30)
    asked = [*begun, *engine.submit([("long " * 20, params)] * 3), *engine.submit([("x", params)])]
    assert engine.stats()["waiting"] == 5
    go_on.set()
    texts(asked)
    assert order == [5, 1, 100, 100, 100]
    assert engine.stats()["waiting"] == 0


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_are_those_of_one_forward_pass(parts, monkeypatch, echo: bool) -> None:
    """Of several prompts together, read in pieces, beside one that wants none."""
    model, tokenizer = parts
    monkeypatch.setattr("code_model.engine.ECHOED", 5)
    engine = engine_of(parts)
    prompts = ["def f(a):\n    return ", "x = 1\ny", "a"]
    rows = [(prompt, GenerationParams(max_new_tokens=4)) for prompt in prompts]
    other = engine.submit([("z" * 30, GenerationParams(max_new_tokens=30))])
    for request, prompt in zip(engine.submit(rows, logprobs=3, echo=echo), prompts, strict=True):
        result = request.future.result(60)
        ids = encode_prompt(tokenizer, prompt)
        assert request.completion is not None
        whole = ids + request.completion.new
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        first = 0 if echo else len(ids)
        assert result.logprobs is not None
        assert len(result.logprobs) == len(whole) - first
        for place, item in enumerate(result.logprobs, first):
            if place == 0:
                assert (item["logprob"], item["top"]) == (None, {})
                continue
            assert item["logprob"] == pytest.approx(float(expected[place - 1, whole[place]]), abs=1e-4)
            likeliest = expected[place - 1].topk(3).values.tolist()
            top = sorted(item["top"].values(), reverse=True)  # some tokens have one text
            assert top[0] == pytest.approx(likeliest[0], abs=1e-4)
            assert all(any(abs(value - other) < 1e-4 for other in likeliest) for value in top)
        assert "".join(item["token"] for item in result.logprobs) == (prompt if echo else "") + result.text
    assert other[0].future.result(60).logprobs is None


def test_a_seed_gives_the_same_whatever_runs_beside_it(engine: Engine) -> None:
    row = ("def f(", GenerationParams(max_new_tokens=12, temperature=0.9, top_p=0.9, top_k=40, seed=7))
    other = ("y = ", GenerationParams(max_new_tokens=30, temperature=1.0, seed=1))
    [alone] = texts(engine.submit([row]))
    assert texts(engine.submit([other, row, other]))[1] == alone
    assert texts(engine.submit([(row[0], GenerationParams(max_new_tokens=12, temperature=0.9, seed=8))]))[0] != alone


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(), {2}),
        (Sampling(temperature=1.0, top_k=1), {2}),
        (Sampling(temperature=1.0, top_k=2), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.5), {2}),
        (Sampling(temperature=1.0, top_p=0.9), {1, 2}),
        (Sampling(repetition_penalty=4.0), {1}),  # 2 is in the prompt
    ],
)
def test_sampling_takes_from_the_tokens_that_it_may(sampling: Sampling, possible: set[int]) -> None:
    logits = torch.tensor([0.0, 2.0, 3.0])  # probabilities 0.04, 0.26, 0.71
    completion = Completion([2], sampling, torch.Generator().manual_seed(0))
    assert {choose(logits, completion) for _ in range(200)} == possible


def test_sampled_tokens_have_the_probabilities_of_the_softmax() -> None:
    completion = Completion([0], Sampling(temperature=2.0), torch.Generator().manual_seed(0))
    logits = torch.tensor([0.0, 1.0, 2.0])
    counts = torch.bincount(torch.tensor([choose(logits, completion) for _ in range(5000)]), minlength=3) / 5000
    assert torch.allclose(counts, (logits / 2).softmax(-1), atol=0.03)


def test_a_stop_text_ends_a_completion_and_never_shows(parts, engine: Engine) -> None:
    prompt, whole, at = next(
        (prompt, text, at)
        for prompt in PROMPTS
        for text in texts(engine.submit([(prompt, GenerationParams(max_new_tokens=40))]))
        for at in range(6, len(text) - 3)
        if text.index(text[at : at + 3]) == at  # a random model repeats itself
    )
    stop = whole[at : at + 3]
    pieces: list[str] = []
    params = GenerationParams(max_new_tokens=40, stop=(stop, "never"))
    [request] = engine.submit([(prompt, params)], on_text=pieces.append)
    result = request.future.result(60)
    assert result.text == whole[:at]
    assert result.finish_reason == "stop"
    assert "".join(pieces) == result.text
    assert len(pieces) > 1
    [full] = engine.submit([(prompt, GenerationParams(max_new_tokens=40))])
    assert full.future.result(60).finish_reason == "length"


def test_characters_of_several_tokens_come_whole(parts) -> None:
    _, tokenizer = parts
    ids = tokenizer("a é 漢 🙂 b", add_special_tokens=False)["input_ids"]
    stream, pieces = TextStream(tokenizer, [], ()), []
    for token in ids:
        stream.add(token)
        pieces.append(stream.take())
    stream.finish()
    assert "".join([*pieces, stream.take()]) == "a é 漢 🙂 b"
    assert not any("�" in piece for piece in pieces)


def test_who_hangs_up_frees_the_place(engine: Engine, monkeypatch) -> None:
    slow(engine, monkeypatch)
    [long] = engine.submit([("x", GenerationParams(max_new_tokens=900))], id="gone")
    assert wait_until(lambda: engine.stats()["active"], 10, lambda: True)
    engine.cancel("gone")
    with pytest.raises(MlflowException, match="client has gone"):
        long.future.result(5)
    assert texts(engine.submit([("x", GenerationParams(max_new_tokens=1))]))
    assert wait_until(lambda: engine.stats()["active"] == 0, 5, lambda: True)


def test_what_is_late_is_given_up(parts, monkeypatch) -> None:
    engine = engine_of(parts, deadline_s=0.3)
    slow(engine, monkeypatch)
    [late] = engine.submit([("x", GenerationParams(max_new_tokens=900))])
    with pytest.raises(MlflowException, match="No answer within") as caught:
        late.future.result(5)
    assert caught.value.error_code == "TEMPORARILY_UNAVAILABLE"


def test_a_full_queue_takes_no_more(parts, monkeypatch) -> None:
    engine = engine_of(parts, max_batch=1, max_queue=2)
    slow(engine, monkeypatch)
    row = ("x", GenerationParams(max_new_tokens=20))
    first = engine.submit([row])
    assert wait_until(lambda: engine.stats()["active"], 10, lambda: True)
    more = engine.submit([row, row])
    with pytest.raises(MlflowException, match="2 completions wait already") as caught:
        engine.submit([row])
    assert caught.value.error_code == "RESOURCE_EXHAUSTED"
    assert len(texts(first + more)) == 3


@pytest.mark.parametrize(
    ("prompt", "new", "limits", "expected"),
    [
        ("x", 9, {"max_new_tokens": 8}, "max_new_tokens is 9. Expected 8 at most"),
        ("x" * 200, 1, {"max_prompt_tokens": 100}, "A prompt has 200 tokens. Expected 100 at most"),
        ("x" * 4090, 7, {}, "A prompt of 4090 tokens and max_new_tokens=7 exceed the model's 4096 positions"),
        ("x", 100_000, {"max_new_tokens": 10**6}, "exceed the model's"),
    ],
)
def test_what_exceeds_a_limit_is_refused_with_it(parts, prompt, new, limits, expected) -> None:
    engine = engine_of(parts, **limits)
    ok, bad = engine.submit([("x", GenerationParams(max_new_tokens=1)), (prompt, GenerationParams(max_new_tokens=new))])
    assert ok.future.result(30)
    with pytest.raises(MlflowException, match=expected) as caught:
        bad.future.result(30)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_tokens_under_way_stay_below_their_limit(parts) -> None:
    engine = engine_of(parts, max_batch_tokens=100)
    requests = engine.submit([("x" * 9, GenerationParams(max_new_tokens=41))] * 5)
    assert len(texts(requests)) == 5
    assert max(request.future.result().usage.batch for request in requests) == 2


def test_a_failing_model_fails_who_is_under_way_and_nobody_else(engine: Engine, monkeypatch) -> None:
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda **rest: (_ for _ in ()).throw(KeyError("x")))
    [failed] = engine.submit([("x", GenerationParams())])
    with pytest.raises(MlflowException, match="Generation failed: KeyError"):
        failed.future.result(30)
    monkeypatch.setattr(engine.model, "forward", forward)
    assert texts(engine.submit([("x", GenerationParams(max_new_tokens=2))]))


def test_a_model_that_keeps_more_than_keys_and_values_is_completed_whole(parts, monkeypatch) -> None:
    monkeypatch.setattr(Decoder, "suits", staticmethod(lambda model: False))
    engine = engine_of(parts)
    rows = [(prompt, GenerationParams(max_new_tokens=9)) for prompt in PROMPTS]
    pieces: list[str] = []
    assert texts(engine.submit(rows, on_text=pieces.append)) == generate(*parts, PROMPTS, rows[0][1])
    assert pieces
    late = engine_of(parts, deadline_s=0.05)
    with pytest.raises(MlflowException, match="No answer within"):
        late.submit([("x", GenerationParams(max_new_tokens=900))])[0].future.result(30)


def test_usage_is_told_by_the_requests_id(engine: Engine) -> None:
    texts(engine.submit([("abc", GenerationParams(max_new_tokens=4))] * 2, id="two"))
    usages = engine.usage("two")
    assert [(usage.prompt_tokens, usage.completion_tokens, usage.batch) for usage in usages] == [(3, 4, 2), (3, 4, 2)]
    assert engine.usage("other") == []


def test_an_idle_engine_holds_no_thread(parts, monkeypatch) -> None:
    monkeypatch.setattr("code_model.engine.IDLE_S", 0.05)
    engine = engine_of(parts)
    row = ("x", GenerationParams(max_new_tokens=1))
    texts(engine.submit([row]))
    until = time.monotonic() + 10
    while any(thread.name == "engine" and thread is engine._thread for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert texts(engine.submit([row]))


def test_a_model_that_gives_no_numbers_completes_nothing(tiny, parts) -> None:
    """NaN has a largest place too: without a check it is a token like another."""
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()
    engine = engine_of((model, parts[1]))
    assert gives_numbers(model)
    assert texts(engine.submit([("x", GenerationParams(max_new_tokens=2))]))
    model.model.norm.weight.data[3] = torch.nan
    assert not gives_numbers(model)
    for temperature in (0.0, 1.0):
        [asked] = engine.submit([("x", GenerationParams(max_new_tokens=2, temperature=temperature))])
        with pytest.raises(MlflowException, match="logits are NaN"):
            asked.future.result(30)


def test_packed_layers_compute_the_same(tiny) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        if not pack_linear_layers(model):
            pytest.skip("this CPU has no bfloat16 kernels")
        assert torch.allclose(model(input_ids=ids).logits.float(), before.float(), atol=0.05, rtol=0.05)


def test_a_gap_is_asked_in_the_models_own_markers() -> None:
    assert fim.fill("a", "b", fim.KNOWN[2]) == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"


def test_a_future_is_not_set_twice(engine: Engine) -> None:
    request = Request("x", GenerationParams(), deadline=0.0, future=Future())
    engine._fail(request, MlflowException("first"))
    engine._fail(request, MlflowException("second"))
    with pytest.raises(MlflowException, match="first"):
        request.future.result(0)
