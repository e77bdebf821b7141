"""What is asked of a version, in a confined process (confined_process.py): its own code, and of ours this file alone.

The request:
    {"folder", "code": its folder of code, "package", "generate": module,
     "smoke": {"prompts", "max_new_tokens"} or null,
     "again": [{"dtype", "max_new_tokens", "likelihoods": [row], "completions": [row with "completion"]}]}
a row being {"prompt", "reference", "kind"}. The answer:
    {"checks": [{"name", "passed", "detail"}], "samples": [[prompt, completion]],
     "again": [{"likelihoods": [{"nll", "tokens"}], "completions": [{"text", "gap", "next_gap"}]} or {"error"}]}
`gap`, `next_gap`: how far, in logits, the completion of the table is from greedy where it is farthest, and where it is
next, given its own beginning.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

DEVICE = "auto"  # as serving loads it


class Version:
    """A version as loaded, with its own functions."""

    def __init__(self, folder: str, package: str, generate: str, dtype: str) -> None:
        import mlflow

        options = {"device": DEVICE, "dtype": dtype}
        self.pyfunc: Any = mlflow.pyfunc.load_model(folder, model_config=options)
        loaded: Any = self.pyfunc.unwrap_python_model()
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.text, self.fim, self.params = (
            importlib.import_module(f"{package}.{name}") for name in ("text", "fim", "params")
        )
        self.healing = _healing_of(package)
        self.generate = importlib.import_module(generate).generate

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def likelihood(self, row: dict[str, str]) -> dict[str, Any]:
        """Nats and tokens of a row's reference with its end of text, as the trainer counts them."""
        import torch

        prompt, reference, held = self._encoded(row, row["reference"])
        tokens = [*reference, self.tokenizer.eos_token_id]
        logits = self._logits(prompt, tokens)  # (T, vocab)
        targets = torch.tensor(tokens, device=logits.device)
        if self.healing is not None:
            losses = self.healing.losses(self.tokenizer, logits[None], targets[None], [held])
        else:
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return {"nll": float(losses.sum()), "tokens": len(tokens)}

    def completion(self, row: dict[str, str], max_new_tokens: int) -> dict[str, Any]:
        """The greedy text after a row's prompt, and how far from greedy the table's is."""
        params = self.params.GenerationParams(max_new_tokens=max_new_tokens)
        [text] = self.generate(self.model, self.tokenizer, [self._prompt(row)], params)
        prompt, tokens, held = self._encoded(row, row["completion"])
        tokens = tokens[:-1]  # it may have been cut in the middle of one
        if text.startswith(row["completion"]) or not tokens:
            return {"text": text, "gap": 0.0, "next_gap": 0.0}
        import torch

        logits = self._logits(prompt, tokens).clone()  # (T, vocab); what inference made cannot be changed
        rest = self.healing.Rest.of(self.tokenizer, held) if self.healing is not None else None
        for place, token in enumerate(tokens):
            if rest is None:
                break
            logits[place], rest = rest.mask(logits[place]), rest.after(token)
        chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
        gaps = (logits.max(dim=1).values - chosen).sort(descending=True).values.tolist()
        return {"text": text, "gap": gaps[0], "next_gap": gaps[1] if len(gaps) > 1 else 0.0}

    def _prompt(self, row: dict[str, str]) -> str:
        # Rows as they came may have a marker in them that is their own.
        return str(self.fim.render(row["prompt"], self.tokenizer)) if row["kind"] != "row" else row["prompt"]

    def _encoded(self, row: dict[str, str], text: str) -> tuple[list[int], list[int], str]:
        """Token ids of a row's prompt, and of a text that goes on with it; what the latter begin with of the prompt."""
        if self.healing is not None:
            begun = self.healing.starts(self.tokenizer, [self._prompt(row)])
            [tokens] = self.healing.continuations(self.tokenizer, begun, [text])
            return list(begun[0].ids), list(tokens), str(begun[0].held)
        prompt = list(self.text.encode_prompt(self.tokenizer, self._prompt(row)))  # Ratchet 0.1
        if not hasattr(self.text, "encode_completions"):
            return prompt, list(self.tokenizer(text, add_special_tokens=False)["input_ids"]), ""
        [tokens] = self.text.encode_completions(self.tokenizer, [prompt], [text])
        return prompt, list(tokens), ""

    def _logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> Any:
        """The logits by which each token after the prompt is chosen: (T, vocab)."""
        import torch

        ids = torch.tensor([[*prompt, *tokens[:-1]]], device=self.model.device)
        kept = torch.arange(len(prompt) - 1, ids.shape[1], device=ids.device)
        with torch.inference_mode():
            output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=kept)
        return output.logits[0].float()


def _healing_of(package: str) -> Any:
    """The version's own healing at a prompt's end; None for a release that had none."""
    name = f"{package}.healing"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def smoke(version: Version, prompts: list[str], max_new_tokens: int) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Ask a version something, and look at what comes out: (checks, samples)."""
    from mlflow.exceptions import MlflowException

    checks: list[dict[str, Any]] = []

    def check(name: str, passed: bool, detail: str) -> None:
        checks.append({"name": name, "passed": passed, "detail": detail})

    params = {"max_new_tokens": max_new_tokens}
    started = time.monotonic()
    try:
        completions = version.pyfunc.predict(prompts, params=params)
        again = version.pyfunc.predict(prompts, params=params)
    except Exception as error:
        check("generates", False, f"{type(error).__name__}: {error}")
        return checks, []
    check("generates", True, f"{len(prompts)} prompts twice in {time.monotonic() - started:.1f} s")
    texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
    answered = texts and len(completions) == len(prompts)
    check("answers one text per prompt", answered, f"a {type(completions).__name__}")
    if not answered:
        return checks, []
    filled = sum(bool(text.strip()) for text in completions)
    check("completions are not empty", filled == len(prompts), f"{filled} of {len(prompts)}")
    check("greedy decoding repeats itself", completions == again, "the same prompts asked twice")
    try:
        version.pyfunc.predict([prompts[0]], params={"no_such_parameter": 1})
        refused = False
    except MlflowException as error:
        refused = "no_such_parameter" in str(error)
    check("refuses an unknown parameter by name", refused, "asked with no_such_parameter")
    return checks, [[prompt, text] for prompt, text in zip(prompts, completions, strict=True)]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What comes of a request."""
    sys.path.insert(0, request["code"])
    parts = request["folder"], request["package"], request["generate"]
    found: dict[str, Any] = {"checks": [], "samples": [], "again": []}
    started = time.monotonic()
    asked = request["smoke"]
    try:
        version = Version(*parts, "auto" if asked or not request["again"] else request["again"][0]["dtype"])
    except BaseException as error:  # whatever a model's code raises while loading is the finding, SystemExit too
        found["checks"].append({"name": "loads", "passed": False, "detail": f"{type(error).__name__}: {error}"})
        return found
    detail = f"in {time.monotonic() - started:.1f} s"
    found["checks"].append({"name": "loads", "passed": True, "detail": detail})
    if asked:
        checks, found["samples"] = smoke(version, asked["prompts"], asked["max_new_tokens"])
        found["checks"] += checks
    for item in request["again"]:
        try:
            if item["dtype"] not in ("auto", version.dtype):
                version = Version(*parts, item["dtype"])
            found["again"].append(
                {
                    "likelihoods": [version.likelihood(row) for row in item["likelihoods"]],
                    "completions": [version.completion(row, item["max_new_tokens"]) for row in item["completions"]],
                }
            )
        except Exception as error:
            found["again"].append({"error": f"{type(error).__name__}: {error}"})
    return found


if __name__ == "__main__":
    with open("request.json", encoding="utf-8") as file:  # noqa: PTH123 (in the working directory)
        given = json.load(file)
    with os.fdopen(int(sys.argv[1]), "wb") as stream:
        stream.write(json.dumps(answer(given)).encode() + b"\n")
