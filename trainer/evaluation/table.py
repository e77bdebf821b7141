"""The evaluation table, by which the promoter compares models.

One row per example: example_id, group (the file that it is from, or what its row says: the unit that was held out),
repository (the source that this is from), kind, cursor (where in its line the completion begins; of code), language,
prompt, reference, function (of which the reference is a part), completion, nll (nats, summed over the reference's
tokens and the end-of-text token), tokens (that count), first_token_nll, first_line_nll (nats of what the reference
begins with, and of its first line), ends (whether behind the reference the end of text is the likeliest token),
syntax_ok, exact_match, edit_similarity (0..1), first_line_match, stops (whether a gap's completion has as many lines as
the reference). Where the example has a test: test, passed (of the completion, which is greedy), outcome, detail, and of
the drawn samples how many there are (samples) and how many passed (samples_passed).

Likelihood is cheap and text is not: completions are generated for some of the examples (`to_generate`), and the columns
that tell of them are empty in the other rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein

from code_model.params import GenerationParams
from contract import metrics
from contract.names import GROUP, REPOSITORY
from trainer.config import EvalConfig
from trainer.data.example import Example, hash64
from trainer.data.split import choose
from trainer.evaluation.generation import completions, samples
from trainer.evaluation.likelihood import likelihoods
from trainer.evaluation.models import JudgedModel, Likelihood
from trainer.evaluation.sandbox import Sandbox, Verdict
from trainer.evaluation.syntax import is_valid
from trainer.training.collator import EncodedExample, check_vocabulary, encode_all

Progress = Callable[[int], object]  # called with the number of steps just done; steps() says how many there are


def steps(examples: Sequence[Example], config: EvalConfig) -> int:
    """How many steps of progress an evaluation takes: likelihoods, completions, samples and tests."""
    tested = sum(example.test is not None for example in examples)
    return len(examples) + len(to_generate(examples, config)) + tested * (1 + 2 * config.samples)


def to_generate(examples: Sequence[Example], config: EvalConfig) -> list[int]:
    """The numbers of the examples to complete: all that have a test, and of the others some of each file."""
    others = np.array([number for number, example in enumerate(examples) if example.test is None], dtype=int)
    ids = np.array([examples[number].number for number in others], dtype=np.uint64)
    groups = np.array([hash64(examples[number].group) for number in others], dtype=np.uint64)
    chosen = set(others[choose(ids, config.max_generated, groups)].tolist())
    return [number for number, example in enumerate(examples) if example.test is not None or number in chosen]


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
    likely = likelihoods(model, encoded, config.batch_size, progress)
    greedy = GenerationParams(max_new_tokens=config.max_new_tokens)
    generated = to_generate(examples, config)
    to_complete, their_ids = [examples[n] for n in generated], [encoded[n] for n in generated]
    found = completions(model, to_complete, their_ids, greedy, config.batch_size, progress)
    texts = dict(zip(generated, found, strict=True))
    rows = [
        _row(example, item, value, texts.get(number), _is_cut_off(model.tokenizer, item, texts.get(number), config))
        for number, (example, item, value) in enumerate(zip(examples, encoded, likely, strict=True))
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


def _is_cut_off(tokenizer: Any, encoded: EncodedExample, completion: str | None, config: EvalConfig) -> bool:
    """Whether max_new_tokens ended a completion: as many tokens as it takes to write it, but for the last one."""
    if completion is None:
        return False
    ids = tokenizer(encoded.held + completion, add_special_tokens=False).input_ids
    return len(ids) >= config.max_new_tokens - 1


def _row(
    example: Example, encoded: EncodedExample, likely: Likelihood, completion: str | None, cut_off: bool
) -> dict[str, Any]:
    prompt, reference, language = example.prompt, example.completion, example.language
    syntax_ok = is_valid(example, completion, cut_off) if completion is not None else None
    has_reference = bool(reference)
    exact_match = edit_similarity = first_line_match = stops = None
    if completion is not None and has_reference:
        exact_match = completion.strip() == reference.strip()
        edit_similarity = Levenshtein.normalized_similarity(completion.strip(), reference.strip())
        first_line_match = metrics.first_lines_match(completion, reference)
        if example.kind == "fim":
            stops = metrics.stops(completion, reference)
    return {
        "example_id": example.example_id,
        GROUP: example.group or example.example_id,
        REPOSITORY: example.repository,
        "kind": example.kind,
        "cursor": example.cursor or None,
        "language": language,
        "prompt": prompt,
        "reference": reference,
        "function": example.function,
        "completion": completion,
        "nll": likely.nll if has_reference else None,
        "tokens": len(encoded.input_ids) - encoded.prompt_length if has_reference else 0,
        "first_token_nll": likely.first_token if has_reference else None,
        "first_line_nll": likely.first_line if has_reference else None,
        "ends": likely.ends if has_reference else None,
        "syntax_ok": syntax_ok,
        "exact_match": exact_match,
        "edit_similarity": edit_similarity,
        "first_line_match": first_line_match,
        "stops": stops,
    }
