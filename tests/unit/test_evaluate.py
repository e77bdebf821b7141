"""Evaluation: the likelihoods are right, the table has its columns, code is judged as it would be used."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from code_model import fim
from contract import manifest
from contract.errors import InputError
from contract.metrics import pass_at_k
from trainer.config import EvalConfig
from trainer.data.example import Example
from trainer.evaluation.models import LoadedModel
from trainer.evaluation.runs import Evaluation
from trainer.evaluation.summary import summarise
from trainer.evaluation.syntax import is_valid
from trainer.evaluation.table import evaluate, steps, to_generate
from trainer.evaluation.truncation import cut, first_function
from trainer.evaluation.version_process import VersionProcess
from trainer.training.collator import EncodedExample, collate, encode

EXAMPLES = [
    Example('def f(a):\n    """F."""\n', "    return a\n", "x", "function", "python"),
    Example("def a_longer_name(a, b):\n", "    c = a\n    return c + b\n", "x", "next_block", "python"),
    Example("", "first line\nsecond line\n", "y"),
]


@pytest.fixture(scope="module")
def model(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny.folder)


def test_prompt_and_completion_are_tokenised_apart_and_end(tokenizer) -> None:
    item = encode(tokenizer, Example("ab\n", "    c"))
    assert item.input_ids == tokenizer("ab\n").input_ids + tokenizer("    c").input_ids + [tokenizer.eos_token_id]
    assert item.prompt_length == 3
    assert encode(tokenizer, Example("", "c")).prompt_length == 1  # something to predict the first token from


def test_loss_is_on_the_completion_only() -> None:
    batch = collate([EncodedExample([5, 6, 7], 1), EncodedExample([5, 6, 7, 8, 9], 3)], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["logits_to_keep"].tolist() == [0, 1, 2, 3]  # what is asked there is the token after
    assert batch["shift_labels"].tolist() == [[6, 7, -100, -100], [-100, -100, 8, 9]]


def test_nll_is_that_of_each_example_by_itself(model, tokenizer) -> None:
    table = evaluate(LoadedModel(model, tokenizer), EXAMPLES, EvalConfig(max_new_tokens=4, batch_size=3), 0)
    for example, row in zip(EXAMPLES, table.to_dict("records"), strict=True):
        item = encode(tokenizer, example)
        with torch.inference_mode():
            scores = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        expected = -sum(
            float(scores[position - 1, item.input_ids[position]])
            for position in range(item.prompt_length, len(item.input_ids))
        )
        assert row["nll"] == pytest.approx(expected, rel=1e-4)
        assert row["tokens"] == len(item.input_ids) - item.prompt_length


def test_table_and_summary(model, tokenizer) -> None:
    done = []
    config = EvalConfig(max_new_tokens=4, batch_size=2)
    table = evaluate(LoadedModel(model, tokenizer), EXAMPLES, config, 0, done.append)
    assert sum(done) == 2 * len(EXAMPLES) == steps(EXAMPLES, config)
    assert list(table) == [
        *("example_id", "group", "repository", "kind", "cursor", "language"),
        *("prompt", "reference", "function", "completion"),
        *("nll", "tokens", "first_token_nll", "first_line_nll", "ends"),
        *("syntax_ok", "exact_match", "edit_similarity", "first_line_match", "stops"),
    ]
    assert (table["first_token_nll"] <= table["first_line_nll"] + 1e-6).all()
    assert (table["first_line_nll"] < table["nll"]).all()
    assert list(table["example_id"]) == [item.example_id for item in EXAMPLES]
    assert list(table["reference"]) == [item.completion for item in EXAMPLES]
    assert list(table["group"]) == ["x", "x", "y"]
    metrics = summarise(table, config)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(table["nll"].sum() / table["tokens"].sum()))
    assert metrics["eval/examples"] == 3
    by_kind = [metrics[f"eval/{kind}/nll_per_token"] for kind in ("function", "next_block", "row")]
    assert min(by_kind) < metrics["eval/nll_per_token"] < max(by_kind)


def test_gaps_are_told_apart_by_their_cursor(model, tokenizer) -> None:
    prompts = {"line_start": "a\n", "indented": "a\n  ", "midline": "a = ", "midtoken": "re"}
    gaps = [
        Example(fim.prompt(prefix, "\nb\n"), "turn\n    x" if cursor == "midtoken" else "x", "g", "fim", "python")
        for cursor, prefix in prompts.items()
    ]
    config = EvalConfig(max_new_tokens=4)
    table = evaluate(LoadedModel(model, tokenizer), gaps, config, 0)
    assert list(table["cursor"]) == list(prompts)
    metrics = summarise(table, config)
    assert {name.split("/")[2] for name in metrics if name.startswith("eval/fim/") and name.count("/") == 3} == {
        *prompts
    }
    for number, cursor in enumerate(prompts):
        assert metrics[f"eval/fim/{cursor}/first_line_nll"] == pytest.approx(table["first_line_nll"][number])
    for name in ("first_token_nll", "first_line_nll", "first_line_match", "stops", "ends"):
        assert metrics[f"eval/{name}"] == pytest.approx(table[name].astype(float).mean())


def test_syntax_is_not_judged_where_it_is_text(model, tokenizer) -> None:
    table = evaluate(LoadedModel(model, tokenizer), EXAMPLES[2:], EvalConfig(max_new_tokens=2), 0)
    assert "eval/syntax_ok" not in summarise(table, EvalConfig())


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    return 1\n\n\ndef g():\n    pass\n", "    return 1\n\n\n"),
        ("    return 1\n", "    return 1\n"),
        ("```\nnonsense", ""),
        ("    if x:\n\n        y\n", "    if x:\n\n        y\n"),
        ("", ""),
    ],
)
def test_a_function_ends_at_the_margin(completion: str, expected: str) -> None:
    assert first_function(completion, "python") == expected


@pytest.mark.parametrize(
    ("completion", "whole", "cut_off"),
    [
        ("    return 1\n", True, True),
        ("    return 1", True, True),
        ("    return 1\n    x = (2 +", False, True),
        ("    return (1", False, True),
        ("    x = f(\n        1,\n", False, True),
        ("    if x:\n", False, True),
        ('    """What it', False, True),
        ("    return 1\n    for i in", False, True),
        ("    return 'a", False, True),
        ("    return )\n    x = 1\n", False, False),
        ("    return )\n    x = (1", False, False),
        ("    x = (a b\n        c", False, False),
        ("  a\n b\n", False, False),
        ("\n", False, False),
    ],
)
def test_of_what_was_cut_off_only_the_end_may_be_unfinished(completion: str, whole: bool, cut_off: bool) -> None:
    example = Example("def f():\n", "    pass\n", language="python")
    assert is_valid(example, completion) is whole
    assert is_valid(example, completion, cut_off=True) is cut_off


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("  if (x) {\n    return 1", True), ("  return f({ a: 1,", True), ("  let = = 1\n  return 2\n", False)],
)
def test_what_was_cut_off_in_a_language_with_braces(completion: str, expected: bool) -> None:
    example = Example("function f(x) {\n", "  return x\n}\n", language="javascript")
    assert is_valid(example, completion, cut_off=True) is expected


@pytest.mark.parametrize(("limit", "expected"), [(2, True), (200, False)])
def test_syntax_knows_what_the_limit_cut_off(model, tokenizer, monkeypatch, limit: int, expected: bool) -> None:
    monkeypatch.setattr("trainer.evaluation.table.completions", lambda *_: ["    return (1"])
    examples = [Example("def f(x):\n", "    return x\n", language="python")]
    table = evaluate(LoadedModel(model, tokenizer), examples, EvalConfig(max_new_tokens=limit), 0)
    assert list(table["syntax_ok"]) == [expected]


METHOD = "    def f(self, x):\n        if x:\n            return 1\n        return 2\n"
GO = "func f(x int) int {\n\ty := x\n\treturn y\n}\n"


@pytest.mark.parametrize(
    ("language", "function", "kind", "reference", "completion", "expected"),
    [
        ("python", METHOD, "fim", "            return 1\n", "            return x + (3)\n", True),
        ("python", METHOD, "fim", "            return 1\n", "            return x +\n", False),
        (
            "python",
            METHOD,
            "fim",
            "            return 1\n",
            "            return x",
            True,
        ),  # what follows has a line of its own
        (
            "python",
            METHOD,
            "fim",
            "            return 1\n",
            "            y = x\n            return (x +",
            False,
        ),  # as if the model had ended there
        ("python", METHOD, "fim", "            return 1\n", "  return 1\n", False),
        ("python", METHOD, "fim", "            return 1\n", "", False),
        ("python", METHOD, "next_block", "        return 2\n", "        return [2]\n", True),
        ("python", METHOD, "next_block", "        return 2\n", "        return 2]\n", False),
        ("python", METHOD, "fim", "what is not there\n", "            return 1\n", None),
        ("go", GO, "fim", "\ty := x\n", "\ty := x + 1\n", True),
        ("go", GO, "fim", "\ty := x\n", "\ty := := x\n", False),
        ("go", GO, "next_block", "\ty := x\n", "\ty := x + 1\n", None),  # braces that nobody has closed yet
        ("text", METHOD, "fim", "            return 1\n", "            return 1\n", None),
        ("python", METHOD, "fim", "(self, x)", "(self, x, y=1)", True),  # in the middle of a line
        ("python", METHOD, "fim", "(self, x)", "(self, x", False),
    ],
)
def test_a_gap_or_block_is_valid_within_its_function(
    language: str, function: str, kind: str, reference: str, completion: str, expected: bool | None
) -> None:
    example = Example("its surroundings", reference, kind=kind, language=language, function=function)
    assert is_valid(example, completion) is expected


@pytest.mark.parametrize(
    ("prompt", "reference", "completion", "expected"),
    [
        ("def f(x):\n    return ", "", "x + 1\n", "x + 1\n"),
        ("def f(x):\n    return x", " + 1", "+ 1\nprint(1)", "+ 1\n"),
        ("def f(x): ", "return 1", "return 1\n\nprint(1)", "return 1\n\n"),
        ("def f():\n", "    return 1\n", "    x = 'a\u2028b'\n    return x\ny", "    x = 'a\u2028b'\n    return x\n"),
        (
            "def f():\n",
            "    return 1\n",
            '    x = """\nmargin\n"""\n    return x\ny',
            '    x = """\nmargin\n"""\n    return x\n',
        ),
        ("def f():\n", "    return 1\n", "# why\n    return 1\ny", "# why\n    return 1\n"),
        (
            "# Two functions.\n",
            "def f():\n    return 1\n\n\ndef g():\n    return 2\n",
            "def f(): ...\nx",
            "def f(): ...\nx",
        ),
        ("def f():", "", "\n    return 1\n\ndef g(): ...", "\n    return 1\n\n"),
        (
            "def f():\n",
            "    x\n",
            "    q = '\"\"\"'  # it's\n    return q\ny",
            "    q = '\"\"\"'  # it's\n    return q\n",
        ),
        ('def f():\n    """Open', '.\n    """\n    x\n', '.\nmargin\n"""\n    x\ny', '.\nmargin\n"""\n    x\n'),
    ],
)
def test_completion_is_cut_where_its_function_ends(prompt: str, reference: str, completion: str, expected: str) -> None:
    assert cut(Example(prompt, reference, language="python"), completion) == expected


def test_text_is_not_cut() -> None:
    assert cut(Example("a", " b"), "c\nd") == "c\nd"


def test_function_in_braces_ends_with_its_brace() -> None:
    assert first_function("  return 1;\n}\n\nfunction g() {\n}\n", "javascript") == "  return 1;\n}\n"


@pytest.mark.parametrize(
    ("samples", "passed", "k", "expected"),
    [(1, 0, 1, 0.0), (1, 1, 1, 1.0), (10, 3, 1, 0.3), (10, 3, 10, 1.0), (4, 2, 2, 5 / 6), (5, 0, 5, 0.0)],
)
def test_pass_at_k(samples: int, passed: int, k: int, expected: float) -> None:
    assert pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_completions_are_run_against_their_tests(model, tokenizer) -> None:
    """Random weights write nonsense, which is no code: one test looks at the prompt alone, the other fails."""
    examples = [
        Example("x = 1  # ", "", language="python", test="assert x == 1"),
        Example("y = 1\n#", "z", language="python", test="assert y == 2, 'not two'"),
        EXAMPLES[2],
    ]
    config = EvalConfig(max_new_tokens=2, samples=3, pass_at="1,2,9")
    table = evaluate(LoadedModel(model, tokenizer), examples, config, 0)
    assert table["passed"].isna().tolist() == [False, False, True]
    assert table["samples"].tolist()[:2] == [3, 3]
    assert table["nll"].isna().tolist() == [True, False, False]  # of nothing there is no likelihood
    metrics = summarise(table, config)
    assert {"eval/pass_at_1", "eval/pass_at_2", "eval/passed"} <= set(metrics)
    assert "eval/pass_at_9" not in metrics
    assert table["outcome"].tolist()[1] == "failed"


def test_a_version_whose_files_were_changed_is_not_run(tmp_path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {}")
    trained = manifest.write(tmp_path)
    (tmp_path / "code").mkdir()
    with pytest.raises(InputError, match="holds no code of Ratchet's"):  # as at training, and not ours
        VersionProcess(tmp_path, {"manifest_sha256": trained}, "cpu", "auto")
    (tmp_path / "code" / "sitecustomize.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"not those of its training: code/sitecustomize\.py was not there"):
        VersionProcess(tmp_path, {"manifest_sha256": trained}, "cpu", "auto")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(7)", "its process ended with 7"),
        ("raise ImportError('no such engine')", "ImportError: no such engine"),
        ("import os, sys; os.write(int(sys.argv[1]), b'nonsense\\n'); os._exit(0)", "says what is no answer"),
    ],
)
def test_a_version_whose_code_does_not_load_is_bad_input(tmp_path, code: str, why: str) -> None:
    package = tmp_path / "code" / "code_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "loader.py").write_text(code)
    flavor = "{python_function: {loader_module: code_model.loader, code: code, python_version: 3.11.0}}"
    (tmp_path / "MLmodel").write_text(f"flavors: {flavor}\n")
    with pytest.raises(InputError, match=why):
        VersionProcess(tmp_path, {}, "cpu", "auto")


def test_completions_are_of_some_examples_of_each_file_and_of_all_that_have_a_test(model, tokenizer) -> None:
    """Three files of six, two and one; a test in the largest."""
    names = ["x"] * 6 + ["y"] * 2 + ["z"]
    examples = [Example(f"a{n} = ", f"{n}\n", name, language="python") for n, name in enumerate(names)]
    examples.append(Example("b = 1  # ", "", "x", language="python", test="assert b == 1"))
    done = []
    config = EvalConfig(max_new_tokens=2, max_generated=4)
    table = evaluate(LoadedModel(model, tokenizer), examples, config, 0, done.append)
    assert sum(done) == steps(examples, config) == 10 + 5 + 1
    completed = table[table["completion"].notna()]
    assert (len(completed), set(completed["group"])) == (5, {"x", "y", "z"})
    assert completed["test"].notna().sum() == 1
    others = table[table["completion"].isna()]
    assert others[["syntax_ok", "exact_match", "edit_similarity", "passed"]].isna().all(axis=None)
    metrics = summarise(table, config)
    assert metrics["eval/nll_per_token"] == pytest.approx(table["nll"].sum() / table["tokens"].sum())
    assert metrics["eval/edit_similarity"] == pytest.approx(completed["edit_similarity"].astype(float).mean())
    assert to_generate(examples[::-1], config) == [9 - number for number in to_generate(examples, config)][::-1]
    assert len(to_generate(examples, EvalConfig(max_generated=None))) == 10


def test_evaluations_that_complete_other_examples_are_not_the_same(tokenizer) -> None:
    examples = [Example(f"a{n} = ", f"{n}\n", f"file{n % 3}") for n in range(9)]

    def settings(most: int | None) -> str:
        evaluation = Evaluation.of(EvalConfig(max_generated=most), 0, examples, "digest")
        return evaluation.tags("base", "x", "float32", tokenizer)["eval_settings"]

    assert settings(9) == settings(None)
    assert "completions of 4 (" in settings(4)
    assert len({settings(3), settings(4), settings(9)}) == 3
