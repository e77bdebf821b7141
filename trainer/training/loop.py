"""Fine-tuning with transformers.Trainer and peft: one process of it, alone or one of several.

`train` takes a model and leaves in the job's folder `result/`: an adapter, or all weights, and the run's totals. Called
again with the same folder after whatever ended it, it goes on from the last whole checkpoint there, and what it leaves
is the same.
"""

import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import DistributedType, PartialState
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from contract.errors import InputError
from trainer.config import Config
from trainer.training import checkpoints
from trainer.training.adapter import add_adapter
from trainer.training.batches import Batches, Examples, TrainingData, split
from trainer.training.collator import EncodedExample, collate, collate_flat
from trainer.training.divergence import check_finite
from trainer.training.kernels import flops, fused_lora, head_loss, padding_free
from trainer.training.recorder import Recorder

RESULT = "result"


class _Trainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with our order of examples, our loss, and the loss of every step."""

    recorder: Recorder | None  # of the first process
    control: Any
    cost: flops.Cost
    batches: Batches

    def begin(self, recorder: Recorder | None, loss: head_loss.HeadLoss | None) -> None:
        self.recorder, self.head_loss = recorder, loss
        self.cost = flops.cost_of(self.model)
        self.step_losses: dict[int, torch.Tensor] = {}  # since the last record, by step
        self.counted = [0, 0, 0]  # tokens, tokens that bear loss, pairs in attention; of this process
        self.total_counted = np.zeros(3)  # of all processes in this session
        self.last_time = time.monotonic()

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not accelerate's: at the end of an epoch it repeats examples where they do not come out even.
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy per token in nats, over the tokens of the whole step where their number is given."""
        targets = inputs["shift_labels"].flatten()
        passed = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels", "lengths")}
        outputs = model(**passed, use_cache=False)
        logits = outputs.logits.flatten(0, 1)  # (places, vocab), or (places, width)
        if self.head_loss is not None:
            loss = self.head_loss(logits, targets)
        else:
            loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        if num_items_in_batch is None:  # validation
            loss = loss / (targets != -100).sum().clamp(min=1)
        else:  # of all processes, whose gradients are averaged
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss per token over all validation examples; transformers' own is a mean of batches' means."""
        dataset, arguments = self.eval_dataset, self.args
        batches = Batches(
            dataset.lengths, arguments.eval_batch_size, 1, 0, arguments.process_index, arguments.world_size
        )
        sums = torch.zeros(2, dtype=torch.float64)  # nats, tokens
        self.model_wrapped.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for inputs in DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator):
                count = int((inputs["shift_labels"] != -100).sum())
                loss = self.compute_loss(self.model_wrapped, self._prepare_inputs(inputs))
                sums += torch.tensor([float(loss) * count, count])
        nats, tokens = self.accelerator.gather(sums.to(arguments.device)[None]).sum(dim=0).tolist()
        metrics = {f"{metric_key_prefix}_loss": nats / tokens}
        self.log(metrics)
        check_finite({self.state.global_step: nats / tokens}, "validation loss", arguments.learning_rate)
        self.control = self.callback_handler.on_evaluate(arguments, self.state, self.control, metrics)
        return metrics

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        for length, prompt in inputs.pop("lengths"):
            self.counted[0] += length
            self.counted[1] += length - prompt
            self.counted[2] += length * (length + 1) // 2
        loss = super().training_step(model, inputs, num_items_in_batch)
        step = self.state.global_step + 1
        self.step_losses[step] = self.step_losses.get(step, 0.0) + loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" not in logs or not self.step_losses:
            return
        first = min(self.step_losses)
        mine = torch.stack([*self.step_losses.values()]).double()
        counted = torch.tensor(self.counted, dtype=torch.float64, device=mine.device)
        everyones = self.accelerator.gather(torch.cat([mine, counted])[None])  # (processes, steps + 3)
        losses, counts = everyones[:, :-3].mean(dim=0).tolist(), everyones[:, -3:].sum(dim=0).cpu().numpy()
        self.step_losses, self.counted = {}, [0, 0, 0]
        self.total_counted += counts
        now = time.monotonic()
        values = {
            "train/learning_rate": float(logs["learning_rate"]),
            "train/grad_norm": float(logs.get("grad_norm", 0.0)),
            "train/epoch": float(self.state.epoch or 0.0),
            "train/tokens_per_second": counts[0] / max(now - self.last_time, 1e-9),
        }
        self.last_time = now
        if self.recorder is not None:
            self.recorder.record(first, losses, values)
        check_finite(dict(enumerate(losses, first)), "loss", self.args.learning_rate)
        check_finite({first + len(losses) - 1: values["train/grad_norm"]}, "gradient's norm", self.args.learning_rate)


class _Course(TrainerCallback):  # type: ignore[misc]
    """What happens between steps: the order of an epoch, a request to stop, marks on checkpoints."""

    def __init__(
        self, trainer: _Trainer, folder: Path, upload: checkpoints.Upload | None, before: "_Before", strategy: str
    ) -> None:
        self.trainer, self.stop, self.upload, self.before = trainer, folder / "stop", upload, before
        self.strategy = strategy
        self.stopped = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batches.epoch = int(state.epoch or 0)
        self.before.clock = self.before.clock or time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:  # on another machine, or in a folder that was moved, it has another path
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._asked_to_stop(args, state):
            self.stopped = control.should_save = control.should_training_stop = True
        if control.should_save:
            control.should_log = True  # first the losses up to here, then the checkpoint

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # each process writes a file of its own there
        if self.trainer.recorder is None:
            return
        self.trainer.recorder.spool.to_disk()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        facts = {"processes": args.world_size, "strategy": self.strategy, "ended": self._ended(state, control)}
        checkpoints.mark_whole(checkpoint, **facts, **self.totals())
        if self.upload is not None:
            self.upload.add(checkpoint)

    def totals(self) -> dict[str, Any]:
        """Of this session and those before it."""
        seconds = time.monotonic() - (self.before.clock or time.monotonic())
        counted = (self.before.counted + self.trainer.total_counted).tolist()
        return {"seconds": self.before.seconds + seconds, "counted": counted}

    def _ended(self, state: Any, control: Any) -> bool:
        """Whether nothing is left to train: all steps are done, or the validation loss has stopped falling."""
        return bool(state.global_step >= state.max_steps or (control.should_training_stop and not self.stopped))

    def _asked_to_stop(self, args: Any, state: Any) -> bool:
        asked = self.stop.exists()
        if args.world_size == 1:
            return asked
        # All processes have to leave at the same step. On a GPU asking means waiting for it: not at each step.
        if args.device.type == "cuda" and state.global_step % args.logging_steps:
            return False
        flag = torch.tensor(int(asked), device=args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())


class _Before:
    """What earlier sessions of the run have spent, by the checkpoint that we go on from."""

    def __init__(self, checkpoint: Path | None) -> None:
        facts: dict[str, Any] = {"seconds": 0.0, "counted": [0, 0, 0]}
        if checkpoint is not None:
            facts = checkpoints.facts_of(checkpoint)
        self.seconds, self.counted = float(facts["seconds"]), np.array(facts["counted"], dtype=float)
        self.ended = bool(facts.get("ended"))
        self.clock: float | None = None  # when this session's first epoch began


class _ProgressBar(ProgressCallback):  # type: ignore[misc]
    """transformers' progress bar with the loss in it, instead of a dict printed below it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def chooses_padding_free(model: Any, config: Config) -> bool:
    """Whether batches are padding-free. Raises InputError where they are asked for and the model cannot."""
    wanted = config.trainer.batching
    if wanted == "padded":
        return False
    exact = padding_free.is_exact(model, config.trainer.max_length)
    if not exact and wanted == "padding_free":
        raise InputError(
            f"trainer.batching is padding_free, and {config.model.name} gives other results so: examples would see "
            "each other. Expected padded, or auto."
        )
    return exact


def train(
    model: Any,
    tokenizer: Any,
    data: TrainingData,
    config: Config,
    folder: Path,
    recorder: Recorder | None,
    checkpoint: Path | None,
) -> bool:
    """Train in this process. False where it was asked to stop before the end, and a checkpoint is there.

    `folder` is the job's, `checkpoint` the one to go on from; `recorder` is None in all processes but the first.
    Alone, it leaves the model as it was before, but for full fine-tuning. Raises InputError for what cannot be.
    """
    untrained, attention = model, model.config._attn_implementation
    lora = config.trainer.method == "lora"
    flat = chooses_padding_free(model, config)
    if flat:
        model.set_attn_implementation(padding_free.NAME)
    half = model.dtype == torch.bfloat16
    transformers.set_seed(config.seed)  # here, so that what was evaluated before makes no difference
    if lora:
        model = add_adapter(model, config)
    else:
        model.float().requires_grad_(True)  # in bfloat16 small updates would be lost
    fused = lora and fused_lora.fuse(model) > 0
    trainer = _make_trainer(model, tokenizer, data, config, folder, flat, autocast=half and not fused)
    _check_same_processes(checkpoint, trainer.args.world_size, config.distributed.strategy)
    # FSDP has the output layer's weights together only while the model runs.
    loss = head_loss.install(model) if lora and not trainer.args.fsdp else None
    trainer.begin(recorder, loss)
    upload = None
    if recorder is not None and config.checkpoint.to_tracking:
        spool = recorder.spool
        upload = checkpoints.Upload(
            spool.client, spool.run_id, folder / "upload", config.checkpoint.save_total_limit, spool.wait
        )
    before = _Before(checkpoint)
    course = _Course(trainer, folder, upload, before, config.distributed.strategy)
    if recorder is not None:
        trainer.add_callback(recorder)
        if checkpoint is not None:
            print(f"Going on from step {checkpoints.step_of(checkpoint)}", flush=True)
    trainer.add_callback(course)
    rate = 0.0
    if recorder is not None:
        rate = flops.matmul_flops(model, torch.bfloat16 if half else torch.float32)
        if untrained.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    if not before.ended:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if upload is not None and not upload.close(60.0):
        print("The last checkpoint did not get to the tracking server; it is on this machine.", flush=True)
    if recorder is not None and not course.stopped:
        _save_result(trainer, folder, course, rate)
    if loss is not None:
        loss.remove()
    if lora and trainer.args.world_size == 1:
        trainer.model.unload()
        untrained.set_attn_implementation(attention)
    return not course.stopped


def _check_same_processes(checkpoint: Path | None, count: int, strategy: str) -> None:
    """Raise InputError where other processes wrote the checkpoint: with as many examples each, steps would differ."""
    if checkpoint is None:
        return
    facts = checkpoints.facts_of(checkpoint)
    was, now = (facts["processes"], facts["strategy"]), (count, strategy)
    if was[0] != now[0] or (count > 1 and was != now):
        raise InputError(
            f"The run to go on with was trained by {was[0]} processes ({was[1]}); now there are {count} ({strategy}). "
            "Expected as many: set distributed.processes, distributed.machines and distributed.strategy as they were, "
            "or start anew with checkpoint.resume=false."
        )


def _make_trainer(
    model: Any, tokenizer: Any, data: TrainingData, config: Config, folder: Path, flat: bool, autocast: bool
) -> _Trainer:
    options = config.trainer
    train_numbers, validation_numbers = split(data, options.validation_fraction, config.seed)
    examples = Examples(data, tokenizer, train_numbers, options.completion_only_loss)
    arguments = _arguments(config, model, folder / "checkpoints", autocast, bool(validation_numbers))

    def batch_of(items: Sequence[EncodedExample]) -> dict[str, Any]:
        batch = collate_flat(items) if flat else collate(items, tokenizer.pad_token_id)
        counted = [(len(ids), prompt) for ids, prompt, _ in items if prompt < len(ids)]
        return batch | {"lengths": counted}

    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=Examples(data, tokenizer, validation_numbers) if validation_numbers else None,
        data_collator=batch_of,
    )
    trainer.model_accepts_loss_kwargs = True  # the loss is ours: it takes the number of tokens of the whole step
    steps = options.gradient_accumulation_steps if options.group_by_length else 0
    rank, world = arguments.process_index, arguments.world_size
    trainer.batches = Batches(examples.lengths, options.batch_size, steps, config.seed, rank, world)
    # Both print raw dicts. Ours: a bar in a terminal, the recorder's plain lines in a pipe.
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_ProgressBar)
    trainer.remove_callback(PrinterCallback)
    if options.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping_patience))
    return trainer


def _arguments(config: Config, model: Any, folder: Path, autocast: bool, validates: bool) -> TrainingArguments:
    options, on_cpu = config.trainer, model.device.type == "cpu"
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=config.seed,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.lr,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type=options.lr_scheduler_type,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim=options.optim,
        bf16=autocast,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        full_determinism=options.full_determinism,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        use_cpu=on_cpu,
        save_strategy="steps",
        # The best weights are those of a checkpoint: with validation there is one at each.
        save_steps=options.eval_steps if validates else config.checkpoint.save_steps,
        save_total_limit=config.checkpoint.save_total_limit,
        eval_strategy="steps" if validates else "no",
        eval_steps=options.eval_steps if validates else None,
        prediction_loss_only=True,
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been patient
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        dataloader_num_workers=options.dataloader_num_workers,
        dataloader_pin_memory=not on_cpu,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False if together else None,
        fsdp=together and config.distributed.strategy == "fsdp",
    )
    if arguments.fsdp and on_cpu:
        # accelerate shards on GPUs alone; torch does so over gloo too, once accelerate no longer asks what it is on.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if not together:
        arguments._n_gpu = min(1, arguments.n_gpu)  # else one process would copy the model to each GPU (DataParallel)
    return arguments


def _save_result(trainer: _Trainer, folder: Path, course: _Course, rate: float) -> None:
    """The weights of the best checkpoint, or else the last, with the run's totals, as the job's result."""
    last = checkpoints.newest(folder / "checkpoints")
    assert last is not None  # one is saved at the end
    result = folder / RESULT
    shutil.rmtree(result, ignore_errors=True)
    shutil.copytree(
        checkpoints.best_of(last) or last,
        result,
        ignore=shutil.ignore_patterns("*.pt", "*.pth", "*.bin", "trainer_state.json", checkpoints.MARK),
    )
    spent = course.totals()
    tokens, loss_tokens, pairs = spent["counted"]
    seconds = spent["seconds"]
    needed = trainer.cost.of(tokens, loss_tokens, pairs) / seconds / trainer.args.world_size
    assert trainer.recorder is not None
    session = max(seconds - course.before.seconds, 1e-9)
    totals = {
        "run/seconds": seconds,
        "run/tokens": tokens,
        "run/tokens_per_second": tokens / seconds,
        "run/tflops": needed / 1e12,
        "run/matmul_tflops": rate / 1e12,
        "run/mfu": needed / rate,
        "run/tracking_share": trainer.recorder.seconds / session,
        "run/peak_memory_mb": peak_memory_mb(trainer.args.device.type),
    }
    checkpoints.mark_whole(result, totals=totals)


def peak_memory_mb(device: str) -> float:
    """Highest memory use so far in MB (10^6 bytes): of the GPU's allocator, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
