"""Speed of training on the CPU: Ratchet against TRL's SFTTrainer and LLaMA-Factory, same model, examples and seed.

    .venv/bin/python -m tests.bench.train                           # 80 examples, one epoch, all four
    .venv/bin/python -m tests.bench.train --examples 16 --only ratchet,trl
    .venv/bin/python -m tests.bench.train --only ratchet --profile  # where Ratchet's time goes

Each contestant trains LoRA (r=16 on all linear layers, lr 5e-4, batch 8, loss on the completion) in a process of its
own, one after another, on all cores. TRL and LLaMA-Factory each have a virtual environment, made once in var/bench.
Everything beyond those settings is as each has it by default, the course of the learning rate too; `trl, tuned` is
without gradient checkpointing and batches examples of like length. TRL tokenises prompt and completion as one text, in
which the newline between them may become a part of another token. Needs Linux (/proc) and pip.

useful tok/s   tokens of prompt, completion and end of text, without padding, as Ratchet counts them for all,
               over the seconds that training took (without imports, loading and saving)
peak MB        highest resident memory of the process (10^6 bytes)
held-out loss  of each adapter by one and the same code, in float32: nats per token of the held-out completions

Measured on two cores (AMD EPYC with AVX-512 bf16, shared: its speed varied by a third between runs), 80 examples, one
epoch, TRL 1.16.0, LLaMA-Factory 0.9.5:

                 useful tok/s  seconds  peak MB  held-out loss    speed  memory
ratchet                 260.4     36.9     3437         2.0441    2.91x   0.84x
trl                      89.4    107.5     4069         2.2018    1.00x   1.00x
llama-factory           134.2     71.7     2992         1.9985    1.50x   0.74x

Four times TRL is the aim, and not reached in a run of all. Profile: linear layers' matmuls 37%, head and loss 23%,
attention 18%, norms and elementwise 14%, LoRA 6%; 33% of what a bfloat16 matmul does.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import timeit
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

# Heavy packages are imported where they are used: this file runs in each contestant's environment, and those of TRL
# and LLaMA-Factory have no Ratchet in them.

ROOT = Path(__file__).parents[2]
TORCH = "torch==2.13.0"
# What pip gets. LLaMA-Factory wants an older transformers than ours.
ENVIRONMENTS = {
    "trl": ["-c", "constraints.txt", TORCH, "trl==1.16.*", "peft"],
    "llama-factory": [TORCH, "llamafactory==0.9.5"],
}
MODEL = "bundled:smollm2-135m"
SOURCES = "[package:email,package:asyncio]"
SEED, RANK, ALPHA, LR, BATCH, MAX_LENGTH = 42, 16, 32, 5e-4, 8, 256
PROFILED_STEPS = 4
Settings = dict[str, Any]


def overrides(examples: int, epochs: float) -> list[str]:
    """Ratchet's configuration of this benchmark, for its data too."""
    data = f"source={SOURCES} fim_weight=0 next_block_weight=0 max_train_examples={examples}"
    trainer = f"lr={LR} batch_size={BATCH} max_length={MAX_LENGTH} epochs={epochs}"
    sections = {"model": f"name={MODEL} device=cpu", "data": data, "trainer": trainer}
    sections["lora"] = f"r={RANK} lora_alpha={ALPHA}"
    return [f"seed={SEED}", *(f"{key}.{item}" for key, items in sections.items() for item in items.split())]


def training_arguments(settings: Settings) -> dict[str, Any]:
    """What TRL and LLaMA-Factory both take from transformers' TrainingArguments; quiet, and on the CPU."""
    length = {"per_device_train_batch_size": BATCH, "num_train_epochs": settings["epochs"]}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return {"seed": SEED, "learning_rate": LR} | length | quiet


# The contestants: each trains on train.jsonl, saves its adapter in `folder` and returns the seconds of training.


def ratchet(settings: Settings, folder: Path, watch: Any = None, more: Sequence[str] = ()) -> float:
    """Ratchet as trainer/job.py calls it, tracking included (MLflow on SQLite); `watch` is entered for the training."""
    from mlflow import MlflowClient
    from trainer.recorder import Recorder

    from trainer import base_model
    from trainer.config import load_config
    from trainer.job import quiet
    from trainer.training import checkpoints
    from trainer.training.batches import TrainingData
    from trainer.training.collator import token_counts
    from trainer.training.loop import RESULT, train

    quiet()
    config = load_config(None, [*settings["overrides"], *more])
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    rows = read_examples(Path(settings["train"]))
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    recorder = Recorder(client, client.create_run("0").info.run_id, folder / "spool", 10.0)
    model = base_model.load_model(base, config.model, tokenizer)
    data = TrainingData(rows, token_counts(tokenizer, rows))
    with watch or contextlib.nullcontext():
        train(model, tokenizer, data, config, folder, recorder, None)
    recorder.close()
    totals = checkpoints.facts_of(folder / RESULT)["totals"]
    print(f"tracking: {totals['run/tracking_share']:.3%} of the time of training")
    for file in (folder / RESULT).glob("adapter*"):
        file.rename(folder / file.name)
    return float(totals["run/seconds"])


def trl(settings: Settings, folder: Path, **options: Any) -> float:
    """TRL's SFTTrainer: prompt and completion are columns that it knows."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=settings["base"],
        args=SFTConfig(output_dir=str(folder / "trainer"), **training_arguments(settings), **options),
        train_dataset=load_dataset("json", data_files=settings["train"], split="train"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear"),
    )
    result = trainer.train()
    trainer.model.save_pretrained(folder)
    return float(result.metrics["train_runtime"])


def trl_tuned(settings: Settings, folder: Path) -> float:
    """TRL with what its user would set on a CPU; bfloat16 is its default already."""
    return trl(settings, folder, gradient_checkpointing=False, train_sampling_strategy="group_by_length")


def llama_factory(settings: Settings, folder: Path) -> float:
    """LLaMA-Factory's supervised fine-tuning in bfloat16, as its examples set it."""
    # It imports torchaudio whether there is audio or not, and PyPI's does not load without CUDA.
    sys.modules["torchaudio"] = importlib.util.module_from_spec(ModuleSpec("torchaudio", None))
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    # Its template `empty` joins prompt and completion as they are, and adds no end of text.
    end = AutoTokenizer.from_pretrained(settings["base"]).eos_token
    rows = [json.loads(line) for line in Path(settings["train"]).read_bytes().splitlines()]
    rows = [{"instruction": row["prompt"], "input": "", "output": row["completion"] + end} for row in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    model = {"model_name_or_path": settings["base"], "finetuning_type": "lora", "lora_target": "all", "bf16": True}
    data = {"dataset": "rows", "dataset_dir": str(folder), "template": "empty"}
    job = {"stage": "sft", "do_train": True, "output_dir": str(folder), "lora_rank": RANK, "lora_alpha": ALPHA}
    run_exp(job | model | data | training_arguments(settings))
    return float(json.loads((folder / "train_results.json").read_text())["train_runtime"])


# Name on the command line: (name in the table, environment, what trains).
CONTESTANTS: dict[str, tuple[str, str | None, Callable[..., float]]] = {
    "ratchet": ("ratchet", None, ratchet),
    "trl": ("trl", "trl", trl),
    "trl-tuned": ("trl, tuned", "trl", trl_tuned),
    "llama-factory": ("llama-factory", "llama-factory", llama_factory),
}


def child(name: str, work: Path) -> None:
    """In the contestant's environment: train, and leave result.json in its folder."""
    settings, folder = json.loads((work / "settings.json").read_text()), work / name
    if name == "profile":
        result = profile(settings, folder)
    else:
        result = {"seconds": CONTESTANTS[name][2](settings, folder)}
        # Not getrusage: the peak that it tells starts at the parent's.
        peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]  # kB
        result["peak_mb"] = int(peak) * 1024 / 1e6
        found = {item.metadata["Name"].lower(): item.version for item in importlib.metadata.distributions()}
        packages = ("torch", "transformers", "peft", "trl", "llamafactory")
        result["versions"] = ", ".join(f"{package} {found[package]}" for package in packages if package in found)
    (folder / "result.json").write_text(json.dumps(result))


def profile(settings: Settings, folder: Path) -> dict[str, Any]:
    """Seconds by group of a few steps of Ratchet, and the machine's matmul limit."""
    from torch.profiler import ProfilerActivity, profile

    watch = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    seconds = ratchet(settings, folder, watch, [f"trainer.max_steps={PROFILED_STEPS}"])
    groups: dict[str, float] = defaultdict(float)
    for event in watch.events():  # type: ignore[no-untyped-call]
        groups[group_of(event, settings["vocabulary"])] += event.self_cpu_time_total / 1e6
    # Python between the operations belongs to none of them.
    groups["the rest"] += seconds - sum(groups.values())
    return {"seconds": seconds, "groups": groups, "matmul_gflops": matmul_gflops()}


def group_of(event: Any, vocabulary: int) -> str:
    """What an operation is a part of, by its name, those around it and the shapes that it works on."""
    name, around = event.name, event
    while around is not None:
        if around.name.startswith(("Optimizer.", "aten::_foreach_", "aten::_fused_adam")):
            return "optimizer"
        around = around.cpu_parent
    sizes = {size for shape in event.input_shapes or [] for size in shape if isinstance(size, int)}
    if not re.match(r"(aten|mkldnn|onednn)::", name):
        return "the rest"
    if re.search(r"scaled_dot_product|bmm|::_softmax", name):
        return "attention"
    if (vocabulary in sizes and "embedding" not in name) or re.search(r"nll_loss|log_softmax", name):
        return "lm_head and loss"
    if re.search(r"mm|matmul|linear|mkldnn|onednn", name):
        return "LoRA matmuls" if RANK in sizes else "linear layers' matmuls"
    return "norms, elementwise, copies"


def matmul_gflops(rows: int = 1500, inner: int = 576, columns: int = 1536) -> float:
    """GFLOP/s of a bfloat16 matmul of a layer's shape on all cores: the best of 30 tries."""
    import torch
    from torch.nn.functional import linear

    values, weight = (torch.randn(size, inner, dtype=torch.bfloat16) for size in (rows, columns))
    with torch.inference_mode():
        best = min(timeit.repeat(lambda: linear(values, weight), number=10, repeat=30)) / 10
    return 2 * rows * inner * columns / best / 1e9


def flops_of(base: str, tokens: int, completion_tokens: int) -> float:
    """The least work: each token takes 2 + 2 forward and backward at each frozen weight, 2 + 4 at the adapter's.

    The head's are needed for the completion only. Attention between tokens is little, and left out.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    *linear, head = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    frozen = sum(layer.weight.numel() for layer in linear)
    adapter = sum(RANK * (layer.in_features + layer.out_features) for layer in linear)
    return tokens * (4.0 * frozen + 6.0 * adapter) + completion_tokens * 4.0 * head.weight.numel()


def read_examples(path: Path) -> list[Any]:
    """The examples of a .jsonl file."""
    from trainer.data.example import from_line

    return [from_line(line) for line in path.read_bytes().splitlines()]


def prepare(work: Path, examples: int, epochs: float) -> Settings:
    """Write train.jsonl and held_out.jsonl (prompt, completion) and settings.json, which the children read."""
    from trainer import base_model
    from trainer.config import load_config
    from trainer.job import prepare_data, quiet
    from trainer.training.collator import encode

    quiet()
    config = load_config(None, overrides(examples, epochs))
    base = base_model.resolve(config.model)
    tokenizer = base_model.load_tokenizer(base)
    (work / "prepared").mkdir()
    data = prepare_data(config, tokenizer, work / "prepared", base_model.positions(base))
    for name, chosen in (("train", data.train), ("held_out", data.held_out)):
        rows = (json.dumps({"prompt": item.prompt, "completion": item.completion}) + "\n" for item in chosen)
        (work / f"{name}.jsonl").write_text("".join(rows))
    encoded = [encode(tokenizer, item) for item in data.train]
    tokens = sum(len(item.input_ids) for item in encoded)
    settings: Settings = {"overrides": overrides(examples, epochs), "base": str(base.folder), "epochs": epochs}
    settings |= {"vocabulary": len(tokenizer), "train": str(work / "train.jsonl"), "examples": len(encoded)}
    settings["tokens"] = tokens * epochs
    settings["completion_tokens"] = (tokens - sum(item.prompt_length for item in encoded)) * epochs
    (work / "settings.json").write_text(json.dumps(settings))
    return settings


def python_of(environment: str | None) -> str:
    """The interpreter of a contestant, whose environment is made once. Raises RuntimeError with pip's reason."""
    if environment is None:
        return sys.executable
    folder = ROOT / "var" / "bench" / environment
    wanted, marker = ENVIRONMENTS[environment], folder / ".ready"
    if not marker.is_file() or marker.read_text() != " ".join(wanted):
        print(f"Installing {environment} in {folder}: some minutes, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", *wanted]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"does not install: {last_line(done.stderr)}")
        # PyPI's are for CUDA and fail to load beside torch's CPU build; text needs neither.
        subprocess.run([*command[:3], "uninstall", "-qy", "torchvision", "torchaudio"], check=True, capture_output=True)
        marker.write_text(" ".join(wanted))  # after the last package, so that an interrupted install is taken up again
    return str(folder / "bin" / "python")


def run_child(name: str, environment: str | None, work: Path) -> dict[str, Any]:
    """What a contestant's process found. Raises RuntimeError with the last line of one that failed."""
    (work / name).mkdir()
    # -P: the folder of this file is no place to import from.
    command = [python_of(environment), "-P", __file__, "--child", name, str(work)]
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "HF_HOME": str(work / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"does not run: {last_line(done.stderr)}")
    return dict(json.loads((work / name / "result.json").read_text()))


def last_line(text: str) -> str:
    """The last line that names an error, or else says something, cut to what fits in a row."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if re.match(r"ERROR|[\w.]*Error\b", line)] or lines or ["nothing"])[-1][:160]


def held_out_loss(base: str, adapter: Path | None, examples: Sequence[Any]) -> float:
    """Nats per token of the completions, end of text included; in float32, whatever the model was trained in."""
    import torch
    from peft import PeftModel
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.training.collator import encode

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    total, count = 0.0, 0
    for item in (encode(tokenizer, example) for example in examples):
        ids, start = torch.tensor([item.input_ids]), item.prompt_length  # (1, T)
        with torch.inference_mode():
            logits = model(ids).logits[0, start - 1 : -1]  # (completion's tokens, vocab)
            total += float(cross_entropy(logits, ids[0, start:], reduction="sum"))
        count += len(logits)
    return total / count


def print_table(rows: Sequence[dict[str, Any]], settings: Settings, base_loss: float) -> None:
    """One line for each contestant, with its ratios to TRL's defaults where those ran too."""
    print(f"\n{settings['examples']} examples, {settings['epochs']:g} epochs: {settings['tokens']:,.0f} useful tokens")
    print(f"{os.cpu_count()} cores; held-out loss of the base model {base_loss:.4f}")
    print(f"{'':<16}{'useful tok/s':>13}{'seconds':>9}{'peak MB':>9}{'held-out loss':>15}{'speed':>9}{'memory':>8}")
    plain = next((row for row in rows if row["name"] == "trl" and "error" not in row), None)
    for row in rows:
        line = f"{row['name']:<16}"
        if "error" in row:
            line += str(row["error"])
        else:
            line += f"{row['tokens_per_second']:>13.1f}{row['seconds']:>9.1f}{row['peak_mb']:>9.0f}"
            line += f"{row['held_out_loss']:>15.4f}"
            if plain is not None:
                speed, memory = (row[key] / plain[key] for key in ("tokens_per_second", "peak_mb"))
                line += f"{speed:>8.2f}x{memory:>7.2f}x"
        print(line)
    print("".join(f"{row['name']}: {row['versions']}\n" for row in rows if "versions" in row), end="")


def print_profile(found: dict[str, Any], settings: Settings, seconds: float) -> None:
    """Shares of the profiled time, and how far the unprofiled training is from the machine's limit."""
    print(f"\nRatchet, {PROFILED_STEPS} steps in {found['seconds']:.1f} s under the profiler:")
    for group, value in sorted(found["groups"].items(), key=lambda item: -item[1]):
        print(f"  {group:<28}{value / found['seconds']:>7.1%}")
    reached = flops_of(settings["base"], settings["tokens"], settings["completion_tokens"]) / seconds / 1e9
    limit = found["matmul_gflops"]
    print(f"A bfloat16 matmul of (1500, 576) by (576, 1536) does {limit:.0f} GFLOP/s here.")
    print(f"Training, unprofiled, does {reached:.0f} GFLOP/s of needed work: {reached / limit:.0%} of it.")


def main() -> None:
    """Prepare the data, run the contestants one after another, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=80, help="train on at most so many (80)")
    parser.add_argument("--epochs", type=float, default=1, help="passes over them (1)")
    names = ",".join(CONTESTANTS)
    parser.add_argument("--only", default=names, help=f"some of {names}")
    parser.add_argument("--profile", action="store_true", help="then say where Ratchet's time goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there too")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
        return
    chosen = options.only.split(",")
    if not set(chosen) <= set(CONTESTANTS) or (options.profile and "ratchet" not in chosen):
        parser.error(f"--only is {options.only}. Expected some of {names}; with --profile, ratchet among them.")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        settings = prepare(work, options.examples, options.epochs)
        held_out = read_examples(work / "held_out.jsonl")
        rows: list[dict[str, Any]] = []
        for key in chosen:
            name, environment, _ = CONTESTANTS[key]
            print(f"Training: {name}", file=sys.stderr)
            row: dict[str, Any] = {"name": name}
            rows.append(row)
            try:
                row |= run_child(key, environment, work)
            except RuntimeError as error:
                row["error"] = str(error)
                continue
            row["tokens_per_second"] = settings["tokens"] / row["seconds"]
            row["held_out_loss"] = held_out_loss(settings["base"], work / key, held_out)
        base_loss = held_out_loss(settings["base"], None, held_out)
        print_table(rows, settings, base_loss)
        found: dict[str, Any] = {"settings": settings, "base_held_out_loss": base_loss, "rows": rows}
        own = next((row for row in rows if row["name"] == "ratchet" and "error" not in row), None)
        if options.profile and own is not None:
            found["profile"] = run_child("profile", None, work)
            print_profile(found["profile"], settings, own["seconds"])
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
