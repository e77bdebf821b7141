"""The evaluation table, by which the promoter compares models.

One row per example: example_id, kind, language, prompt, reference, function (of which a gap or block is a part),
completion, nll (nats, summed over the reference's tokens and the end-of-text token), tokens (that count), syntax_ok,
exact_match, edit_similarity (0..1). Where the example has a test: test, passed (of the completion, which is greedy),
outcome, detail, and of the drawn samples how many there are (samples) and how many passed (samples_passed).
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rapidfuzz.distance import Levenshtein

from code_model.params import GenerationParams
from trainer.config import EvalConfig
from trainer.data.example import ROW, Example
from trainer.evaluation.generation import completions, samples
from trainer.evaluation.likelihood import likelihoods
from trainer.evaluation.models import JudgedModel
from trainer.evaluation.sandbox import Sandbox, Verdict
from trainer.evaluation.syntax import parses_cut
from trainer.training.collator import EncodedExample, check_vocabulary, encode_all

Progress = Callable[[int], object]  # called with the number of steps just done; steps() says how many there are


def steps(examples: Sequence[Example], config: EvalConfig) -> int:
    """How many steps of progress an evaluation takes: likelihood and text of each example, samples and tests."""
    tested = sum(example.test is not None for example in examples)
    return 2 * len(examples) + tested * (1 + 2 * config.samples)


def evaluate(
    model: JudgedModel,
    examples: Sequence[Example],
    config: EvalConfig,
    seed: int,
    progress: Progress = lambda done: None,
) -> pd.DataFrame:
    """The evaluation table of a model, greedily decoded. Raises InputError where tests cannot be run safely."""
    encoded = encode_all(model.tokenizer, examples)
    check_vocabulary(model.embeddings, [item.input_ids for item in encoded])
    nll = likelihoods(model, encoded, config.batch_size, progress)
    greedy = GenerationParams(max_new_tokens=config.max_new_tokens)
    texts = completions(model, examples, encoded, greedy, config.batch_size, progress)
    rows = [
        _row(example, item, value, completion)
        for example, item, value, completion in zip(examples, encoded, nll, texts, strict=True)
    ]
    tested = [number for number, example in enumerate(examples) if example.test is not None]
    if tested:
        chosen = [examples[number] for number in tested]
        drawn = samples(model, chosen, [encoded[n] for n in tested], config, seed, progress)
        with Sandbox(config.test_timeout_s, config.test_memory_mb) as sandbox:
            for number, example, tries in zip(tested, chosen, drawn, strict=True):
                verdict = run_test(sandbox, example, texts[number])
                rows[number] |= {"test": example.test} | verdict._asdict()
                passed = [run_test(sandbox, example, sample).passed for sample in tries]
                rows[number] |= {"samples": len(passed), "samples_passed": sum(passed)}
                progress(1 + len(passed))
    return pd.DataFrame(rows).drop(columns="seconds", errors="ignore")


def run_test(sandbox: Sandbox, example: Example, completion: str) -> Verdict:
    """Whether prompt, completion and test together run to their end."""
    return sandbox.run(f"{example.prompt}{completion}\n\n{example.test}\n")


def _row(example: Example, encoded: EncodedExample, nll: float, completion: str) -> dict[str, Any]:
    prompt, reference, language = example.prompt, example.completion, example.language
    syntax_ok = None
    # A gap or a block stands in code that begins and ends anywhere: by itself it does not parse.
    if language != "text" and example.kind in ("function", ROW):
        syntax_ok = bool(completion.strip()) and parses_cut(prompt, completion, language)
    has_reference = bool(reference)
    return {
        "example_id": example.example_id,
        "kind": example.kind,
        "language": language,
        "prompt": prompt,
        "reference": reference,
        "function": example.function,
        "completion": completion,
        "nll": nll if has_reference else None,
        "tokens": len(encoded.input_ids) - encoded.prompt_length if has_reference else 0,
        "syntax_ok": syntax_ok,
        "exact_match": completion.strip() == reference.strip() if has_reference else None,
        "edit_similarity": Levenshtein.normalized_similarity(completion.strip(), reference.strip())
        if has_reference
        else None,
    }
