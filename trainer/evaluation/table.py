"""The evaluation table, by which the promoter compares models, and its summary.

One row per example: example_id, kind, language, prompt, reference, function (of which a gap or block is
a part), completion, nll (nats, summed over the reference's
tokens and the end-of-text token), tokens (that count), syntax_ok, exact_match, edit_similarity (0..1); and where the
example has a test: test, passed (of the completion, which is greedy), outcome, detail, and of the drawn samples how
many there are (samples) and how many passed (samples_passed).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from rapidfuzz.distance import Levenshtein

from serving.model import generate
from serving.params import GenerationParams
from serving.text import decode_completion
from trainer.collator import EncodedExample, collate, encode, prompt_of
from trainer.config import EvalConfig
from trainer.data import other_languages, python
from trainer.data.example import ROW, Example
from trainer.errors import InputError
from trainer.evaluation.sandbox import Sandbox, Verdict

Progress = Callable[[int], object]  # called with the number of steps just done; steps() says how many there are

# Triple quotes; else what may hold some that are none: a string of one line, a comment.
STRINGS_AND_COMMENTS = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*')
LOOK_EVERY = 8  # generated tokens: whether a function has ended
MAX_BATCH_TOKENS = 8192  # of a forward pass, padding included: long examples go in smaller batches


def steps(examples: Sequence[Example], config: EvalConfig) -> int:
    """How many steps of progress an evaluation takes: likelihood and text of each example, samples and tests."""
    tested = sum(example.test is not None for example in examples)
    return 2 * len(examples) + tested * (1 + 2 * config.samples)


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    config: EvalConfig,
    seed: int,
    progress: Progress = lambda done: None,
) -> pd.DataFrame:
    """The evaluation table of a model, greedily decoded. Raises InputError where tests cannot be run safely."""
    model.eval()
    encoded = [encode(tokenizer, example) for example in examples]
    _check_vocabulary(model, encoded)
    nll = [math.nan] * len(examples)
    for batch in _batches(encoded, config.batch_size):
        for number, value in zip(batch, _nll(model, tokenizer, [encoded[n] for n in batch]), strict=True):
            nll[number] = value
        progress(len(batch))
    greedy = GenerationParams(max_new_tokens=config.max_new_tokens)
    completions = _complete(model, tokenizer, examples, encoded, greedy, config.batch_size, progress)
    rows = [
        _row(example, item, value, completion)
        for example, item, value, completion in zip(examples, encoded, nll, completions, strict=True)
    ]
    tested = [number for number, example in enumerate(examples) if example.test is not None]
    if tested:
        chosen = [examples[number] for number in tested]
        drawn = _draw(model, tokenizer, chosen, [encoded[n] for n in tested], config, seed, progress)
        with Sandbox(config.test_timeout_s, config.test_memory_mb) as sandbox:
            for number, example, samples in zip(tested, chosen, drawn, strict=True):
                verdict = run_test(sandbox, example, completions[number])
                rows[number] |= {"test": example.test} | verdict._asdict()
                passed = [run_test(sandbox, example, sample).passed for sample in samples]
                rows[number] |= {"samples": len(passed), "samples_passed": sum(passed)}
                progress(1 + len(passed))
    return pd.DataFrame(rows).drop(columns="seconds", errors="ignore")


def _check_vocabulary(model: Any, encoded: Sequence[EncodedExample]) -> None:
    """Raise InputError where the tokenizer makes tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max((max(item.input_ids) for item in encoded if item.input_ids), default=0)
    if highest >= rows:
        raise InputError(
            f"The tokenizer makes token {highest}, and the model's embedding has {rows} rows. Expected a row for each: "
            "were tokens added to the tokenizer without resize_token_embeddings?"
        )


def summarise(table: pd.DataFrame, config: EvalConfig, prefix: str = "eval") -> dict[str, float]:
    """Metrics of an evaluation table: over all, by kind where there are several, pass@k where there are tests."""
    metrics = _summary(table, prefix)
    if table["kind"].nunique() > 1:
        for kind, rows in table.groupby("kind"):
            metrics |= _summary(rows, f"{prefix}/{kind}")
    if "passed" in table:
        tested = table.dropna(subset="passed")
        metrics[f"{prefix}/passed"] = float(tested["passed"].astype(float).mean())
        if config.samples == 0:
            metrics[f"{prefix}/pass_at_1"] = metrics[f"{prefix}/passed"]
        for k in sorted({int(word) for word in config.pass_at.split(",")}):
            if k <= config.samples:
                values = [pass_at_k(config.samples, int(passed), k) for passed in tested["samples_passed"]]
                metrics[f"{prefix}/pass_at_{k}"] = sum(values) / len(values)
    return metrics


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that of k of the samples one passes: 1 − C(n−c, k) / C(n, k), unbiased (Chen et al. 2021)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def run_test(sandbox: Sandbox, example: Example, completion: str) -> Verdict:
    """Whether prompt, completion and test together run to their end."""
    return sandbox.run(f"{example.prompt}{completion}\n\n{example.test}\n")


def first_function(completion: str, language: str, prompt: str = "\n") -> str:
    """A function body up to where the function has ended: at the left margin, outside strings and comments."""
    lines = completion.split("\n")
    if language != "python":
        end = next((number + 1 for number, line in enumerate(lines) if line.startswith("}")), len(lines))
        return "\n".join(lines[:end]) + "\n" * (end < len(lines))
    open_string = _open_string(prompt, "")
    for number, line in enumerate(lines):
        begins = number > 0 or prompt.endswith("\n") or not prompt  # else it goes on with the prompt's last line
        if begins and not open_string and line.strip() and not line[0].isspace() and line[0] != "#":
            return "\n".join(lines[:number]) + "\n" * (number > 0)
        open_string = _open_string(line, open_string)
    return completion


def _open_string(text: str, before: str) -> str:
    """The triple quotes of the Python string that is open at the end of a text, or nothing; `before`: at its start."""
    position = 0
    while position < len(text):
        if before:
            end = text.find(before, position)
            if end < 0:
                return before
            position, before = end + 3, ""
            continue
        match = STRINGS_AND_COMMENTS.search(text, position)
        if match is None:
            return ""
        before = match[0] if match[0] in ('"""', "'''") else ""
        position = match.end()
    return before


def parses_cut(prompt: str, completion: str, language: str) -> bool:
    """Whether prompt and completion are valid code, but for a last line that max_new_tokens cut off."""
    return _parses(prompt + completion, language) or (
        "\n" in completion.rstrip("\n") and _parses(prompt + completion.rpartition("\n")[0], language)
    )


def cut(example: Example, completion: str) -> str:
    """A completion up to where the function that it completes, or stands in, has ended; models write on.

    Left whole where the reference would not be: it goes on behind a function itself.
    """
    if example.language == "text":
        return completion
    if example.completion:
        in_function = first_function(example.completion, example.language, example.prompt) == example.completion
    else:
        last_line = example.prompt.rstrip().rpartition("\n")[2]
        in_function = last_line[:1].isspace() or last_line.endswith((":", '"""', "'''"))
    return first_function(completion, example.language, example.prompt) if in_function else completion


def _parses(code: str, language: str) -> bool:
    return python.parses(code) if language == "python" else other_languages.parses(code, language)


def _batches(encoded: Sequence[EncodedExample], size: int, room: int = 0) -> Iterator[list[int]]:
    """Numbers of examples of similar length, which waste no time on padding, shortest first; `room`: tokens to come."""
    batch: list[int] = []
    for number in sorted(range(len(encoded)), key=lambda number: len(encoded[number].input_ids)):
        longest = len(encoded[number].input_ids) + room
        if batch and (len(batch) >= size or longest * (len(batch) + 1) > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _complete(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
    params: GenerationParams,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """The completions, each cut where its function has ended."""
    completions = [""] * len(examples)
    for batch in _batches(encoded, batch_size, params.max_new_tokens):
        chosen = [examples[number] for number in batch]
        prompts = [prompt_of(tokenizer, example) for example in chosen]
        ended = _function_has_ended(tokenizer, chosen, [encoded[number] for number in batch])
        texts = generate(model, tokenizer, prompts, params, ended)
        for number, text in zip(batch, texts, strict=True):
            completions[number] = cut(examples[number], text)
        progress(len(batch))
    return completions


def _function_has_ended(tokenizer: Any, examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> Any:
    """Stops a completion that writes on behind its function, which would be cut off; chat models do."""
    import torch
    from transformers import StoppingCriteria

    prompts = [item.input_ids[: item.prompt_length] for item in encoded]

    class Ended(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps = 0
            self.ended = [False] * len(examples)

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # (B, T) → (B,)
            self.steps += 1
            if self.steps % LOOK_EVERY == 0:
                for number, example in enumerate(examples):
                    text = decode_completion(tokenizer, prompts[number], input_ids[number, -self.steps :].tolist())
                    self.ended[number] = cut(example, text) != text
            return torch.tensor(self.ended, device=input_ids.device)

    return Ended()


def _draw(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
    config: EvalConfig,
    seed: int,
    progress: Progress,
) -> list[list[str]]:
    """The sampled completions of each example: (len(examples), config.samples)."""
    drawn: list[list[str]] = [[] for _ in examples]
    for sample in range(config.samples):
        params = GenerationParams(config.max_new_tokens, config.temperature, config.top_p, seed=(seed + sample) % 2**32)
        texts = _complete(model, tokenizer, examples, encoded, params, config.batch_size, progress)
        for texts_of_one, text in zip(drawn, texts, strict=True):
            texts_of_one.append(text)
    return drawn


def _nll(model: Any, tokenizer: Any, batch: Sequence[EncodedExample]) -> list[float]:
    """Negative log-likelihood of each completion in nats, summed over its tokens."""
    import torch
    from torch.nn.functional import cross_entropy

    inputs = {name: tensor.to(model.device) for name, tensor in collate(batch, tokenizer.pad_token_id).items()}
    targets = inputs.pop("shift_labels")  # (B, kept places), -100 on prompt and padding
    del inputs["labels"]
    with torch.inference_mode():
        logits = model(**inputs).logits.float()  # (B, kept places, vocab)
        losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return [float(value) for value in losses.sum(dim=1)]  # (B,)


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


def _summary(table: pd.DataFrame, prefix: str) -> dict[str, float]:
    metrics = {f"{prefix}/examples": float(len(table))}
    known = table[table["tokens"] > 0]
    if len(known):
        nll_per_token = float(known["nll"].sum() / known["tokens"].sum())
        metrics |= {
            f"{prefix}/nll_per_token": nll_per_token,
            f"{prefix}/nll_per_byte": float(
                known["nll"].sum() / sum(len(text.encode()) for text in known["reference"])
            ),
            f"{prefix}/perplexity": math.exp(min(nll_per_token, 700)),
            f"{prefix}/exact_match": float(known["exact_match"].astype(float).mean()),
            f"{prefix}/edit_similarity": float(known["edit_similarity"].astype(float).mean()),
        }
    checked = table.dropna(subset="syntax_ok")
    if len(checked):
        metrics[f"{prefix}/syntax_ok"] = float(checked["syntax_ok"].astype(float).mean())
    return metrics
