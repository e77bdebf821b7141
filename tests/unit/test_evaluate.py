"""Evaluation: the likelihoods are right, the table has its columns, code is judged as it would be used."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contract import manifest
from contract.errors import InputError
from contract.metrics import pass_at_k
from trainer.config import EvalConfig
from trainer.data.example import Example
from trainer.evaluation.models import LoadedModel
from trainer.evaluation.summary import summarise
from trainer.evaluation.syntax import parses_cut
from trainer.evaluation.table import evaluate, steps
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
        *("example_id", "kind", "language", "prompt", "reference", "function", "completion", "nll", "tokens"),
        *("syntax_ok", "exact_match", "edit_similarity"),
    ]
    assert list(table["example_id"]) == [item.example_id for item in EXAMPLES]
    assert list(table["reference"]) == [item.completion for item in EXAMPLES]
    metrics = summarise(table, config)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(table["nll"].sum() / table["tokens"].sum()))
    assert metrics["eval/examples"] == 3
    by_kind = [metrics[f"eval/{kind}/nll_per_token"] for kind in ("function", "next_block", "row")]
    assert min(by_kind) < metrics["eval/nll_per_token"] < max(by_kind)
    assert "eval/next_block/syntax_ok" not in metrics  # a block by itself does not parse


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
    ("completion", "expected"),
    [
        ("    return 1\n", True),
        ("    return 1", True),
        ("    return 1\n    x = (2 +", True),  # the last line was cut off
        ("    return (1", False),  # all there is was cut off
        ("    return )\n    x = 1\n", False),
        ("  a\n b\n", False),
    ],
)
def test_syntax_but_for_a_cut_last_line(completion: str, expected: bool) -> None:
    assert parses_cut("def f():\n", completion, "python") is expected


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
