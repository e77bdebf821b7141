"""Tokens at the cut: wherever a prompt ends, the completion goes on as the model has learnt it, and repeats nothing."""

import asyncio.events
import inspect
import random
import socket
import threading
from types import SimpleNamespace

import mlflow.pyfunc
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from code_model import fim, params, text
from code_model import healing as ours
from code_model.engine import Engine, Limits
from code_model.healing import BROKEN, Rest, Start, continuations, losses, starts, take_back, vocabulary
from code_model.params import GenerationParams
from code_model.text import TextStream, decode, encode_completions, encode_prompt, encode_prompts, gives_back
from code_model.whole_batch import generate
from promoter.validation_worker import Version
from tests import models
from tests.models import tokenizers
from trainer.config import EvalConfig
from trainer.data.example import Example
from trainer.evaluation import version_worker
from trainer.evaluation.models import LoadedModel
from trainer.evaluation.table import evaluate
from trainer.evaluation.version_process import VersionProcess
from trainer.training.collator import collate, encode, encode_all, token_counts

SOURCE = inspect.getsource(asyncio.events)[5000:5400] + "\n\n\tx = 'é 漢 🙂'\n        \n    return  re.sub(a,  b)\n"
CUTS = range(1, len(SOURCE))
PROMPTS = [
    "def add(a, b):\n        ",
    "    retu",
    "class A:\n    def f(self):\n",
    "for item in sel",
    "# é",
    "x = (a ",
    "d",
]


@pytest.fixture(scope="module", params=list(tokenizers.FAMILIES))
def folder(request, tmp_path_factory):
    tokenizer = tokenizers.wrap(tokenizers.FAMILIES[request.param]())
    return models.make(tmp_path_factory.mktemp("model"), tokenizer, "LlamaForCausalLM")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def parts(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():  # as they are initialised they make each token much like another
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model, tokenizer


def engine_of(parts, **limits) -> Engine:
    model, tokenizer = parts
    return Engine(model, tokenizer, Limits(**limits), lambda *rest: generate(model, tokenizer, *rest))


def test_wherever_a_text_is_cut_its_tokens_are_the_text(tokenizer) -> None:
    prompts, rests = [SOURCE[:cut] for cut in CUTS], [SOURCE[cut:] for cut in CUTS]
    begun = starts(tokenizer, prompts)
    found = continuations(tokenizer, begun, rests)
    texts = [start.held + rest for start, rest in zip(begun, rests, strict=True)]
    assert all(gives_back(tokenizer, [start.ids for start in begun], found, texts))
    for prompt, rest, start, ids in zip(prompts, rests, begun, found, strict=True):
        assert start.ids + start.taken == encode_prompt(tokenizer, prompt)
        assert prompt.endswith(start.held)
        assert decode(tokenizer, start.ids + ids) == SOURCE
        stream = TextStream(tokenizer, start.ids, (), start.held)
        for token in ids:
            stream.add(token)
        stream.finish()
        assert stream.all == rest
    assert sum(bool(start.held) for start in begun) > len(begun) / 2


def test_the_tokens_are_mostly_those_of_the_uncut_text(tokenizer) -> None:
    whole = encode_prompt(tokenizer, SOURCE)
    begun = starts(tokenizer, [SOURCE[:cut] for cut in CUTS])
    found = continuations(tokenizer, begun, [SOURCE[cut:] for cut in CUTS])
    healed = sum(start.ids + ids == whole for start, ids in zip(begun, found, strict=True))
    prompts = encode_prompts(tokenizer, [SOURCE[:cut] for cut in CUTS])
    apart = encode_completions(tokenizer, prompts, [SOURCE[cut:] for cut in CUTS])
    assert healed > 0.85 * len(CUTS)
    assert sum([*first, *second] == whole for first, second in zip(prompts, apart, strict=True)) < 0.5 * len(CUTS)


def test_every_token_of_a_reference_may_be_drawn(tokenizer) -> None:
    examples = [Example(SOURCE[:cut], SOURCE[cut : cut + 20]) for cut in CUTS]
    for item in encode_all(tokenizer, examples):
        rest = Rest.of(tokenizer, item.held)
        for token in item.input_ids[item.prompt_length :]:
            if rest is None:
                break
            assert token in rest.words.allowed(rest.text)
            rest = rest.after(token)
        assert rest is None


def test_only_tokens_that_spell_the_text_out_are_allowed(tokenizer) -> None:
    words = vocabulary(tokenizer)
    for start in starts(tokenizer, [SOURCE[:cut] for cut in CUTS]):
        if not start.held:
            continue
        allowed = [words.texts[token] for token in words.allowed(start.held)]
        assert allowed
        assert all(item.startswith(start.held) or start.held.startswith(item) for item in allowed)
        assert "" not in allowed
        assert words.after(start.held, tokenizer.eos_token_id) is None
        assert words.after(start.held, 10**6) is None


def test_a_beginning_that_nothing_goes_on_behind_is_not_allowed() -> None:
    words = vocabulary(tokenizers.wrap(tokenizers.byte_level()))
    assert " return" in {words.texts[token] for token in words.longer(" ret")}
    assert " " not in {words.texts[token] for token in words.shorter(" ret")}
    assert [words.texts[token] for token in words.shorter("    ")] == ["   "]  # its last space is that of the next word
    assert words.shorter("\n") == []


def test_what_is_left_where_it_is(tokenizer) -> None:
    bos = tokenizer.bos_token
    for prompt in ("", "x", f"{bos}[INST] hi{bos}", "# 漢"):
        ids = encode_prompt(tokenizer, prompt)
        start = take_back(tokenizer, ids, prompt)
        if prompt != "# 漢" or BROKEN in vocabulary(tokenizer).texts[ids[-1]]:
            assert start == Start(ids, "", [])
    one_a_byte = [token for token, item in enumerate(vocabulary(tokenizer).texts) if item == "\x7f"]
    assert len(one_a_byte) < 2  # nothing but this may stand there
    assert starts(tokenizer, ["x = \x7f"])[0].held == ""


def test_what_makes_one_token_with_the_last_one_is_taken_back_too() -> None:
    tokenizer = tokenizers.wrap(tokenizers.byte_level())
    words = vocabulary(tokenizer)
    several = [
        (item[:size], ids)
        for item in words.texts
        for size in range(3, len(item))
        if item[0].isalpha() and len(ids := tokenizer(item[:size])["input_ids"]) == 2
    ]
    assert several
    for item, ids in several:
        assert take_back(tokenizer, [*tokenizer("(")["input_ids"], *ids], f"({item}").taken == ids


@pytest.mark.parametrize("make", [tokenizers.llama, tokenizers.byte_level])
def test_a_gap_is_cut_at_the_end_of_its_first_part(make) -> None:
    own = fim.KNOWN[0]
    tokenizer = tokenizers.wrap(make())
    tokenizer.add_special_tokens({"additional_special_tokens": list(own)})
    prefix, suffix, middle = "def f(a):\n    retu", "\n\nx = f(1)\n", "rn a"
    prompt = fim.fill(prefix, suffix, own)
    whole = encode_prompt(tokenizer, prompt)
    [start] = starts(tokenizer, [prompt])
    place = whole.index(tokenizer.convert_tokens_to_ids(own[1]))
    assert start.held
    assert prefix.endswith(start.held)
    assert start.ids == whole[: place - len(start.taken)] + whole[place:]
    [ids] = continuations(tokenizer, [start], [middle])
    assert decode(tokenizer, start.ids + ids)[len(decode(tokenizer, start.ids)) :] == start.held + middle
    assert starts(tokenizer, [fim.fill("x", suffix, own)])[0].held == ""


def test_the_allowed_first_tokens_have_all_probability(tokenizer) -> None:
    words = vocabulary(tokenizer)
    torch.manual_seed(0)
    logits = torch.randn(1, 1, len(tokenizer))
    held = ["\n    ", " re", "se", ")"]
    for text_back in held:
        allowed = words.allowed(text_back).tolist()
        found = [float(losses(tokenizer, logits, torch.tensor([[token]]), [text_back])) for token in allowed]
        assert torch.tensor(found).neg().exp().sum() == pytest.approx(1, rel=1e-4)
        unconditioned = float(losses(tokenizer, logits, torch.tensor([[allowed[0]]]), [""]))
        assert unconditioned > found[0]


def test_completions_spell_out_what_was_taken_back_and_are_the_greedy_ones(parts) -> None:
    model, tokenizer = parts
    params_of = GenerationParams(max_new_tokens=9)
    for prompt, answer in zip(PROMPTS, generate(model, tokenizer, PROMPTS, params_of), strict=True):
        [start] = starts(tokenizer, [prompt])
        ids, rest = list(start.ids), start.held
        while len(ids) < len(start.ids) + 9:
            logits = model(torch.tensor([ids])).logits[0, -1].tolist()
            allowed = vocabulary(tokenizer).allowed(rest).tolist() if rest else list(range(len(logits)))
            token = max(allowed, key=logits.__getitem__)
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
            rest = rest[len(vocabulary(tokenizer).texts[token]) :] if rest else ""
        assert rest == ""
        new = text.decode_completion(tokenizer, start.ids, ids[len(start.ids) :])
        if BROKEN not in new:  # bytes that are no character take those before with them
            assert new == start.held + answer


def test_together_is_as_alone_whoever_generates(parts) -> None:
    rows = [(prompt, GenerationParams(max_new_tokens=5 + number)) for number, prompt in enumerate(PROMPTS)]
    alone = [generate(*parts, [prompt], item)[0] for prompt, item in rows]
    engine = engine_of(parts)
    pieces: list[str] = []
    assert [request.future.result(60).text for request in engine.submit(rows)] == alone
    [streamed] = engine.submit(rows[:1], on_text=pieces.append)
    assert streamed.future.result(60).text == "".join(pieces) == alone[0]
    same = GenerationParams(max_new_tokens=7)
    expected = [generate(*parts, [prompt], same)[0] for prompt in PROMPTS]
    assert generate(*parts, PROMPTS, same) == expected
    engine.whole = lambda *rest: generate(*parts, *rest)
    assert [item.future.result(60).text for item in engine.submit([(prompt, same) for prompt in PROMPTS])] == expected
    usages = [request.future.result().usage for request in engine.submit([(PROMPTS[0], same)])]
    assert usages[0].prompt_tokens == len(encode_prompt(parts[1], PROMPTS[0]))


@pytest.mark.parametrize("changes", [{"temperature": 0.9}, {"temperature": 0.9, "top_k": 5, "top_p": 0.8}])
def test_a_seed_gives_the_same_and_samples_begin_with_what_was_taken_back(parts, changes) -> None:
    engine = engine_of(parts)
    rows = [(prompt, GenerationParams(max_new_tokens=8, seed=3, **changes)) for prompt in PROMPTS]
    requests = engine.submit(rows)
    first = [request.future.result(60).text for request in requests]
    assert first == [engine.submit([row])[0].future.result(60).text for row in rows]
    assert len(set(first)) > 1
    for request in requests:
        assert request.completion is not None
        assert request.completion.rest is None
        new = text.decode_completion(engine.tokenizer, request.completion.prompt, request.completion.new)
        assert new.startswith(request.held) or BROKEN in new
    penalised = GenerationParams(max_new_tokens=8, repetition_penalty=1.3)
    alone = [generate(*parts, [prompt], penalised)[0] for prompt in PROMPTS]
    assert [item.future.result(60).text for item in engine.submit([(prompt, penalised) for prompt in PROMPTS])] == alone


def test_a_stop_text_counts_behind_the_prompt_only(parts) -> None:
    prompt = next(prompt for prompt in PROMPTS if starts(parts[1], [prompt])[0].held)
    held = starts(parts[1], [prompt])[0].held
    [whole] = generate(*parts, [prompt], GenerationParams(max_new_tokens=12))
    for stop in (held, whole[3:5]):
        params_of = GenerationParams(max_new_tokens=12, stop=(stop,))
        [request] = engine_of(parts).submit([(prompt, params_of)])
        assert request.future.result(60).text == whole.partition(stop)[0] == generate(*parts, [prompt], params_of)[0]


def test_the_promoter_computes_the_likelihoods_that_the_trainer_does(parts) -> None:
    model, tokenizer = parts
    version = Version.__new__(Version)
    version.model, version.tokenizer, version.generate = model, tokenizer, generate
    version.text, version.fim, version.params, version.healing = text, fim, params, ours
    cuts = random.Random(0).sample(CUTS, 40)
    examples = [Example(SOURCE[:cut][-90:], SOURCE[cut : cut + 40]) for cut in cuts]
    judged = LoadedModel(model, tokenizer)
    encoded = encode_all(tokenizer, examples)
    assert any(item.held for item in encoded)
    table = evaluate(judged, examples, EvalConfig(max_new_tokens=6, batch_size=8), 0)
    for item, example, row in zip(encoded, examples, table.to_dict("records"), strict=True):
        asked = {"prompt": example.prompt, "reference": example.completion, "kind": example.kind}
        again = version.likelihood(asked)
        assert again["tokens"] == row["tokens"]
        assert again["nll"] == pytest.approx(row["nll"], rel=1e-4)
        [found] = judged.likelihoods([item])
        assert found.nll == pytest.approx(row["nll"], rel=1e-4)
        assert found.first_token <= found.first_line <= found.nll
        texts = version.completion(asked | {"completion": row["completion"]}, 6)
        assert texts["text"].startswith(row["completion"])
        other = version.completion(asked | {"completion": example.completion}, 6)  # far from greedy, and not impossible
        assert 0 < other["gap"] < 1000
        if "\n" in example.completion:
            behind = example.completion.partition("\n")[0]
            tokens = item.input_ids[item.prompt_length :][: found.first_line_tokens]
            line = text.decode_completion(tokenizer, item.input_ids[: item.prompt_length], tokens)
            assert line.startswith(f"{item.held}{behind}\n")
            assert (
                "\n"
                not in text.decode_completion(tokenizer, item.input_ids[: item.prompt_length], tokens[:-1])[
                    len(item.held) :
                ]
            )


def test_the_parts_of_a_likelihood(parts) -> None:
    model, tokenizer = parts
    item = encode(tokenizer, Example("def f(a):\n        ", "return a\nb = 2\n"))
    [found] = LoadedModel(model, tokenizer).likelihoods([item])
    batch = collate([item], tokenizer.pad_token_id)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], logits_to_keep=batch["logits_to_keep"]).logits
    single = losses(tokenizer, logits, batch["shift_labels"], [item.held])[0]
    first = next(
        number
        for number in range(1, 9)
        if len(
            text.decode_completion(
                tokenizer, item.input_ids[: item.prompt_length], item.input_ids[item.prompt_length :][:number]
            )
        )
        > len(item.held)
    )
    assert found.first_token == pytest.approx(float(single[:first].sum()), rel=1e-4)
    assert found.first_line == pytest.approx(float(single[: found.first_line_tokens].sum()), rel=1e-4)
    likeliest = int(logits[0, -1].argmax())
    assert found.ends == (likeliest == tokenizer.eos_token_id)
    [found] = LoadedModel(model, tokenizer).likelihoods([item._replace(input_ids=[*item.input_ids[:-1], likeliest])])
    assert found.ends
    one_line = encode(tokenizer, Example("x = (a ", "+ b)"))
    [found] = LoadedModel(model, tokenizer).likelihoods([one_line])
    assert found.first_line_tokens == len(one_line.input_ids) - one_line.prompt_length - 1  # all but the end of text


def test_examples_are_counted_as_they_are_encoded(tokenizer) -> None:
    examples = [Example(SOURCE[:cut][-50:], SOURCE[cut : cut + 30]) for cut in list(CUTS)[60::9]]
    assert token_counts(tokenizer, examples) == [len(item.input_ids) for item in encode_all(tokenizer, examples)]


def test_a_version_in_its_own_process_is_judged_as_a_loaded_model_is(parts, monkeypatch) -> None:
    """What is taken back from prompts counts there too: the worker has a part of its own in that."""
    model, tokenizer = parts
    loaded = SimpleNamespace(model=model, tokenizer=tokenizer)
    version = SimpleNamespace(unwrap_python_model=lambda: loaded)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda *_, **__: version)
    batch = [encode(tokenizer, Example(SOURCE[:cut], SOURCE[cut : cut + 60])) for cut in (5, 17, 40, 77, 103)]
    assert any(item.held for item in batch)
    here, there = socket.socketpair()
    with here, there, here.makefile("rwb") as stream, there.makefile("rwb") as other:
        names = ("x", "code_model.whole_batch", "code_model.params", "cpu", "float32")
        thread = threading.Thread(target=version_worker.main, args=(other, *names), daemon=True)
        thread.start()
        process = object.__new__(VersionProcess)
        process._stream, process.tokenizer = stream, tokenizer
        try:
            assert process._receive().get("error") is None
            found = process.likelihoods(batch)
        finally:
            here.shutdown(socket.SHUT_WR)  # which ends the worker
            thread.join(20)
    expected = LoadedModel(model, tokenizer).likelihoods(batch)
    for one, two in zip(found, expected, strict=True):
        assert one.nll == pytest.approx(two.nll, rel=1e-4)
        assert one.first_token == pytest.approx(two.first_token, rel=1e-4, abs=1e-5)
