"""LoRA fine-tuning with transformers.Trainer and peft."""

import resource
import sys
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from trainer.collator import EncodedExample, collate, encode
from trainer.config import Config
from trainer.data.example import Example
from trainer.data.prepare import Dataset


class _Examples(TorchDataset[dict[str, Any]]):
    """Examples, read from disk and encoded when it is their turn."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any) -> None:
        self.examples, self.tokenizer = examples, tokenizer

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return encode(self.tokenizer, self.examples[index])._asdict()


class _Trainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer, told the lengths by which to group: it would encode every example to see them."""

    lengths: list[int]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        arguments = self.args
        return LengthGroupedSampler(
            arguments.train_batch_size * arguments.gradient_accumulation_steps, lengths=self.lengths
        )


class _ProgressBar(ProgressCallback):  # type: ignore[misc]
    """transformers' progress bar with the loss in it, instead of a dict printed below it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def add_adapter(model: Any, config: Config) -> Any:
    """The model with a LoRA adapter to train; the adapter is float32 whatever the base is."""
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=config.lora.r,
            lora_alpha=config.lora.lora_alpha,
            lora_dropout=config.lora.lora_dropout,
            target_modules=target_modules(config),
        ),
    )


def target_modules(config: Config) -> str | list[str]:
    """`all-linear`, or the names of the modules that get an adapter."""
    targets = config.lora.target_modules
    return targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]


def train(
    model: Any,
    tokenizer: Any,
    data: Dataset,
    config: Config,
    callback: TrainerCallback,
    folder: str,
) -> dict[str, float]:
    """Train the model in place. Returns the run's totals: seconds, tokens, tokens/s and peak memory."""
    options = config.trainer
    arguments = TrainingArguments(
        output_dir=folder,
        seed=config.seed,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.lr,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type=options.lr_scheduler_type,
        weight_decay=options.weight_decay,
        logging_steps=options.logging_steps,
        logging_first_step=True,
        include_num_input_tokens_seen="non_padding",
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=model.device.type == "cuda",
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=_Examples(data.train, tokenizer),
        data_collator=lambda batch: collate([EncodedExample(**item) for item in batch], tokenizer.pad_token_id),
        callbacks=[callback],
    )
    trainer.lengths = data.train_lengths.tolist()
    # Both print raw dicts. Ours: a bar in a terminal, the tracking callback's plain lines in a pipe.
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_ProgressBar)
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    seconds = float(result.metrics["train_runtime"])
    tokens = float(trainer.state.num_input_tokens_seen)
    return {
        "run/seconds": seconds,
        "run/tokens": tokens,
        "run/tokens_per_second": tokens / seconds,
        "run/mean_loss": float(result.metrics["train_loss"]),
        "run/peak_memory_mb": peak_memory_mb(model.device.type),
    }


def peak_memory_mb(device: str) -> float:
    """Highest memory use so far in MB (10^6 bytes): of the GPU's allocator, or of this process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
