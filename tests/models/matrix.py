"""Which models are trained right, and served as they were judged: a table, one row a model.

    python -m tests.models.matrix                        architectures, tokenizers, generation configs, settings
    python -m tests.models.matrix LlamaForCausalLM …     some architectures of transformers
    python -m tests.models.matrix --all                  every architecture that transformers names

Each is made here, tiny and with random weights, in float32. `loss` and `gradients` compare training's own way (packed
rows, fused LoRA, the loss by pieces) with a plain forward pass of transformers and PEFT over one example at a time;
`merge` the merged model with its adapter; `greedy` the engine's tokens with those of a plain forward pass over the
whole text at each token. `job` is the command `trainer`; `served` compares what the registered version answers with
what it was judged by. `rows`: padding-free (flat) or padded; `engine`: whether sequences join and leave (continuous).
"""

import argparse
import json
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import models
from tests.models import tokenizers

CODE_MODELS = (  # by what people use for code and chat, from old to new
    *("GPT2LMHeadModel", "GPTBigCodeForCausalLM", "GPTNeoXForCausalLM", "GPTJForCausalLM", "CodeGenForCausalLM"),
    *("BloomForCausalLM", "OPTForCausalLM", "MptForCausalLM", "XGLMForCausalLM", "LlamaForCausalLM"),
    *("MistralForCausalLM", "MinistralForCausalLM", "MixtralForCausalLM", "Starcoder2ForCausalLM", "PhiForCausalLM"),
    *("Phi3ForCausalLM", "PhimoeForCausalLM", "StableLmForCausalLM", "PersimmonForCausalLM", "NemotronForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "RecurrentGemmaForCausalLM", "CohereForCausalLM"),
    *("Cohere2ForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
    *("Qwen3NextForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM"),
    *("Olmo3ForCausalLM", "OlmoeForCausalLM", "GraniteForCausalLM", "GraniteMoeForCausalLM"),
    *("GraniteMoeHybridForCausalLM", "GlmForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "HeliumForCausalLM"),
    *("SmolLM3ForCausalLM", "SeedOssForCausalLM", "GptOssForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM"),
    *("HunYuanDenseV1ForCausalLM", "ApertusForCausalLM", "BitNetForCausalLM", "Llama4ForCausalLM"),
    *("MiniMaxForCausalLM", "Lfm2ForCausalLM", "BambaForCausalLM", "FalconH1ForCausalLM", "JambaForCausalLM"),
    *("MambaForCausalLM", "FalconMambaForCausalLM", "RwkvForCausalLM", "BertLMHeadModel", "BartForCausalLM"),
)
# What else the small ones need.
CHANGES: dict[str, dict[str, Any]] = {
    **{key: {"num_key_value_heads": 4} for key in ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")},
    "Qwen3NextForCausalLM": {"num_hidden_layers": 4},
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3},
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"]},
}
COLUMNS = ("job", "rows", "loss", "gradients", "merge", "engine", "greedy", "served")
ROWS = [{"prompt": f"def add_{n}(a, b):\n", "completion": f"    return a + b + {n}\n" * (1 + n % 3)} for n in range(24)]


@dataclass(frozen=True)
class Case:
    """A model to try; `changes` go to its configuration."""

    name: str
    architecture: str = "LlamaForCausalLM"
    tokenizer: str = "byte-level"
    generation: dict[str, Any] | None = None  # its generation_config.json
    changes: dict[str, Any] = field(default_factory=dict)


def _case(architecture: str) -> Case:
    return Case(architecture, architecture, changes=CHANGES.get(architecture, {}))


ARCHITECTURES = [_case(name) for name in CODE_MODELS]
TOKENIZERS = [Case(f"tokenizer: {name}", tokenizer=name) for name in [*tokenizers.FAMILIES, "WordPiece"]]
GENERATION = [
    Case(f"generation: {name}", "Qwen2ForCausalLM", generation=generation)
    for name, generation in {
        "sampling keys": models.SAMPLING,
        "repetition penalty": {"repetition_penalty": 1.8},
        "n-grams": {"no_repeat_ngram_size": 2},
        "beams": {"num_beams": 4},
        "ends": {"eos_token_id": [2, 40, 41, 42]},
        "end unknown": {"eos_token_id": None},
        "words": {"bad_words_ids": [[40], [41]], "suppress_tokens": [42, 43]},
        "lengths": {"min_new_tokens": 8, "max_length": 4},
        "forced": {"forced_bos_token_id": 40, "forced_eos_token_id": 41},
    }.items()
]
# Windows and chunks shorter than the examples, caps and factors of the logits.
SETTINGS = [
    Case("window: Mistral", "MistralForCausalLM", changes={"sliding_window": 8}),
    Case("window: Phimoe", "PhimoeForCausalLM", changes={"sliding_window": 8}),
    Case("window: Gemma 3", "Gemma3ForCausalLM", changes={"sliding_window": 8}),
    Case("window: GPT OSS", "GptOssForCausalLM", changes={"sliding_window": 8}),
    Case("chunks: Llama 4", "Llama4ForCausalLM", changes={"attention_chunk_size": 8}),
    Case("cap: Gemma 2", "Gemma2ForCausalLM", changes={"final_logit_softcapping": 300.0}),
    Case("factor: Cohere", "CohereForCausalLM", changes={"logit_scale": 0.0625}),
    Case("factor: Granite", "GraniteForCausalLM", changes={"logits_scaling": 8.0}),
]

CASES = [*ARCHITECTURES, *TOKENIZERS, *GENERATION, *SETTINGS]
# Each kind once, for every day: the rest is for the night.
EVERYDAY = (
    *("GPT2LMHeadModel", "Starcoder2ForCausalLM", "Qwen3ForCausalLM", "DeepseekV3ForCausalLM", "FalconH1ForCausalLM"),
    *("MambaForCausalLM", "RwkvForCausalLM", "BertLMHeadModel", "tokenizer: Llama 2", "generation: sampling keys"),
    *("generation: ends", "window: Phimoe", "chunks: Llama 4", "cap: Gemma 2"),
)


@dataclass
class Row:
    """What became of one model: a word for each column, or the reason why it was refused."""

    name: str
    found: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    wrong: list[str] = field(default_factory=list)

    def check(self, column: str, difference: float, most: float) -> None:
        """Note a difference, which is wrong where it exceeds `most`."""
        self.found[column] = f"{difference:.0e}" if difference else "same"
        if not difference <= most:
            self.wrong.append(f"{column}: {difference:.3g}")

    def __str__(self) -> str:
        verdict = f"refused: {self.refused}" if self.refused else "; ".join(self.wrong) or "right"
        return f"{self.name:30}" + "".join(f"{self.found.get(name, ''):>11}" for name in COLUMNS) + f"  {verdict}"


def try_out(case: Case, folder: Path, database: Path) -> Row:
    """The row of one model, made and trained in a folder; its runs go to an SQLite database."""
    row = Row(case.name)
    family = tokenizers.wordpiece if case.tokenizer == "WordPiece" else tokenizers.FAMILIES[case.tokenizer]
    made = models.make(folder / "model", tokenizers.wrap(family()), case.architecture, case.generation, **case.changes)
    (folder / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ROWS))
    experiment = re.sub(r"\W+", "_", case.name)
    if not _trains(row, made, folder, f"sqlite:///{database}", experiment):
        return row
    if case.generation is not None and json.loads((made / "generation_config.json").read_text()) != case.generation:
        row.wrong.append("job: the base model's generation_config.json is another")
    _numbers(row, made)
    _served(row, folder, experiment)
    return row


def _settings(model: Path, folder: Path, tracking: str, experiment: str) -> list[str]:
    return [
        *(f"model.name={model}", "model.dtype=float32", "model.device=cpu", f"data.source={folder / 'rows.jsonl'}"),
        *("data.eval_fraction=0.3", "eval.max_new_tokens=8", "trainer.max_steps=2", "trainer.lr=1e-2"),
        *("trainer.max_length=128", f"tracking.uri={tracking}"),
        *(f"tracking.experiment_name={experiment}", "tracking.system_metrics_interval_s=0"),
    ]


def _trains(row: Row, model: Path, folder: Path, tracking: str, experiment: str) -> bool:
    """Whether `trainer` trains and registers the model; else the row says why not."""
    import mlflow
    from click.testing import CliRunner

    from trainer.cli import main as trainer

    mlflow.set_tracking_uri(tracking)
    mlflow.create_experiment(experiment, artifact_location=str(folder / "artifacts"))
    settings = _settings(model, folder, tracking, experiment)
    result = CliRunner().invoke(trainer, settings, env={"CHECKPOINTS_DIR": str(folder / "checkpoints")})
    if result.exit_code == 2:
        row.found["job"] = "refused"
        row.refused = result.output.strip().splitlines()[-1].replace(str(folder), "…").removeprefix("Error: ")
        return False
    if result.exit_code:
        row.found["job"] = "failed"
        said = (result.output.strip().splitlines() or [""])[-1]
        raised = "".join(traceback.format_exception(result.exception)[-1:]).strip() if result.exception else ""
        row.wrong.append(f"job: exit {result.exit_code}: {said} {raised}"[:300])
        return False
    row.found["job"] = "done"
    return True


def _numbers(row: Row, folder: Path) -> None:
    """Loss, gradients and merge, by training's own way and by the plain one."""
    import torch
    from torch.nn.functional import cross_entropy

    from trainer import base_model
    from trainer.config import load_config
    from trainer.data.example import Example
    from trainer.training.adapter import add_adapter
    from trainer.training.collator import collate, collate_flat, encode_all
    from trainer.training.kernels import fused_lora, head_loss, padding_free
    from trainer.training.loop import chooses_padding_free

    config = load_config(None, [f"model.name={folder}", "model.dtype=float32", "model.device=cpu", "data.source=x"])
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    encoded = encode_all(tokenizer, [Example(**item) for item in ROWS[:5]])

    def adapted() -> Any:
        torch.manual_seed(1)
        model = add_adapter(base_model.load_model(base, config.model, tokenizer), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)  # else A would have no gradient, and the adapter no effect
        return model.eval()  # without dropout, which some configurations have

    plain = adapted()
    tokens, expected = 0, torch.zeros(())
    for ids, prompt_length, _ in encoded:
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, prompt_length - 1 : -1]
        expected = expected + cross_entropy(logits, torch.tensor(ids[prompt_length:]), reduction="sum")
        tokens += len(ids) - prompt_length
    expected = expected / tokens
    expected.backward()

    ours = adapted()
    flat = chooses_padding_free(ours.get_base_model(), config)
    if flat:
        ours.get_base_model().set_attn_implementation(padding_free.NAME)
    row.found["rows"] = "flat" if flat else "padded"
    fused_lora.fuse(ours)
    by_pieces = head_loss.install(ours)
    batch = collate_flat(encoded) if flat else collate(encoded, tokenizer.pad_token_id)
    targets = batch.pop("shift_labels").flatten()
    del batch["labels"]
    logits = ours(**batch, use_cache=False).logits.flatten(0, 1)
    loss = by_pieces(logits, targets) if by_pieces else cross_entropy(logits, targets, reduction="sum")
    loss = loss / tokens
    loss.backward()
    row.check("loss", abs(float(loss - expected)), 2e-5)
    gradients = {name: weight.grad for name, weight in ours.named_parameters() if weight.requires_grad}
    differences = [0.0]
    for name, weight in plain.named_parameters():
        if weight.requires_grad and weight.grad is not None:
            differences.append(float((weight.grad - gradients[name]).norm() / (weight.grad.norm() + 1e-6)))
    if all(value is None or not value.any() for value in gradients.values()):
        differences = [1.0]
    row.check("gradients", max(differences), 1e-3)

    ids = torch.tensor([encoded[0].input_ids])
    with torch.no_grad():
        before = plain.eval()(input_ids=ids, use_cache=False).logits
        merged = plain.merge_and_unload()(input_ids=ids, use_cache=False).logits
    row.check("merge", float((before - merged).abs().max() / before.std()), 1e-4)


def _served(row: Row, folder: Path, experiment: str) -> None:
    """Whether the registered versions answer as they were judged, and as a plain forward pass would."""
    import mlflow
    import pandas as pd
    import torch

    from code_model.healing import Rest, starts
    from code_model.text import TextStream

    served_wrong = greedy_wrong = 0
    name = f"{experiment}_model"
    for number in ("1", "2"):  # the base model, and the tuned one
        version = mlflow.MlflowClient().get_model_version(name, number)
        options = {"dtype": "float32", "device": "cpu"}
        loaded = mlflow.pyfunc.load_model(f"models:/{name}/{number}", model_config=options)
        own = loaded.unwrap_python_model()
        path = mlflow.artifacts.download_artifacts(
            f"runs:/{version.run_id}/eval/examples.parquet", dst_path=str(folder)
        )
        table = pd.read_parquet(path)
        answers = loaded.predict(table["prompt"].tolist(), params={"max_new_tokens": 8})
        served_wrong += sum(a != b for a, b in zip(answers, table["completion"], strict=True))
        model = own.model
        for prompt, answer in list(zip(table["prompt"], answers, strict=True))[:2]:
            [start] = starts(own.tokenizer, [prompt])
            ids, rest = list(start.ids), Rest.of(own.tokenizer, start.held)
            with torch.no_grad():
                for _ in range(8):
                    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                    token = int((rest.mask(logits) if rest else logits).argmax())
                    ids.append(token)
                    rest = rest.after(token) if rest else None
                    if token in own.engine.ends:
                        break
            stream = TextStream(own.tokenizer, start.ids, (), start.held)
            for token in ids[len(start.ids) :]:
                if token not in own.engine.ends:
                    stream.add(token)
            stream.finish()
            greedy_wrong += stream.all != answer
    row.found["engine"] = "whole" if own.engine.whole else "continuous"
    row.check("greedy", greedy_wrong, 0)
    row.check("served", served_wrong, 0)


def table(cases: Sequence[Case]) -> list[Row]:
    """Print a row of each model as it is done; returns them all."""
    print(f"{'model':30}" + "".join(f"{name:>11}" for name in COLUMNS) + "  verdict")
    rows = []
    with tempfile.TemporaryDirectory(prefix="ratchet-matrix-") as root:
        for number, case in enumerate(cases):
            folder = Path(root, str(number))
            folder.mkdir()
            try:
                row = try_out(case, folder, Path(root, "mlflow.db"))
            except Exception as error:
                row = Row(case.name, wrong=[f"{type(error).__name__}: {error}"[:300]])
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    from trainer import base_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE")
    parser.add_argument("--all", action="store_true", help="every causal language model that transformers names")
    options = parser.parse_args()
    base_model.quiet()
    every = list(dict.fromkeys(name if isinstance(name, str) else name[0] for name in KNOWN.values()))
    named = options.architectures or (every if options.all else ())
    rows = table([_case(name) for name in named] or CASES)
    wrong = sum(bool(row.wrong) for row in rows)
    refused = sum(bool(row.refused) for row in rows)
    print(f"{len(rows) - wrong - refused} right, {refused} refused, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
