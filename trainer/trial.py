"""A trial of the whole job on two examples, before the work: what would fail in an hour fails now.

The adapter is attached and makes one forward and backward pass, the generation config is saved and read again, and
texts are completed as judging does it, by the logits that reading them gives.
"""

import tempfile
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from code_model.params import GenerationParams
from code_model.weights import first_line
from code_model.whole_batch import generate, reads_as_it_completes
from contract.errors import InputError
from trainer import base_model
from trainer.base_model import BaseModel
from trainer.config import Config
from trainer.data.example import Example
from trainer.training import adapter
from trainer.training.collator import EncodedExample, check_vocabulary, collate, collate_flat, encode_all
from trainer.training.kernels import fused_lora, head_loss, padding_free
from trainer.training.loop import chooses_padding_free

EXAMPLES = (Example(*base_model.SAMPLE), Example("total = 0\n", "for item in items:\n    total += item\n"))


def try_out(base: BaseModel, model: Any, tokenizer: Any, config: Config) -> str:
    """Try a model; leaves it as it was, and returns what people should know of its adapter ("" for nothing).

    Raises InputError where it cannot be trained, saved or completed with.
    """
    name = f"model.name is '{base.name}', a {type(model).__name__}"
    ids = [item.input_ids for item in encode_all(tokenizer, EXAMPLES)]
    check_vocabulary(model.get_input_embeddings().weight.shape[0], ids)
    _save_generation_config(model, tokenizer, name)
    _complete(model, tokenizer, name)
    about = _step(model, tokenizer, config, name)
    if model.device.type == "cuda":
        largest_batch(model, tokenizer, config, name)
    return about


def largest_batch(model: Any, tokenizer: Any, config: Config, name: str) -> None:
    """Train on the longest examples that may come, as many as a batch has, in training's own way.

    Raises InputError where the memory is too small for that. Not tried: what is trained in 4 bits, with gradient
    checkpointing, or with all its weights, which take memory otherwise.
    """
    options = config.trainer
    if options.method != "lora" or config.lora.load_in_4bit or options.gradient_checkpointing:
        return
    attention, training = model.config._attn_implementation, model.training
    count = model.get_input_embeddings().weight.shape[0]
    longest = EncodedExample([place % count for place in range(options.max_length)], 1)
    flat = chooses_padding_free(model, config)
    if flat:
        model.set_attn_implementation(padding_free.NAME)
    adapted = adapter.add_adapter(model, config)
    fused_lora.fuse(adapted)
    by_pieces = head_loss.install(adapted)
    try:
        examples = [longest] * options.batch_size
        batch = collate_flat(examples) if flat else collate(examples, tokenizer.pad_token_id)
        batch = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in batch.items()}
        targets = batch.pop("shift_labels").flatten()
        del batch["labels"]
        logits = adapted.train()(**batch, use_cache=False).logits.flatten(0, 1)
        loss = by_pieces(logits, targets) if by_pieces else cross_entropy(logits.float(), targets)
        torch.autograd.backward(loss)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{name} for which the memory is too small: {options.batch_size} examples of {options.max_length} tokens "
            "do not fit. Expected a smaller trainer.batch_size (with trainer.gradient_accumulation_steps) or "
            "trainer.max_length, trainer.gradient_checkpointing=true, or lora.load_in_4bit=true."
        ) from error
    finally:
        if by_pieces:
            by_pieces.remove()
        adapted.unload()
        model.set_attn_implementation(attention)
        model.requires_grad_(True).train(training)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _save_generation_config(model: Any, tokenizer: Any, name: str) -> None:
    from transformers import GenerationConfig

    greedy = base_model.greedy(model.generation_config, tokenizer)
    try:
        with tempfile.TemporaryDirectory() as folder:
            greedy.save_pretrained(folder)
            GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{name} whose generation config cannot be saved: {first_line(error)}") from error


def _complete(model: Any, tokenizer: Any, name: str) -> None:
    """Complete texts as judging does, in one go, also beyond a window that is short enough to be tried."""
    model.eval()
    window = padding_free.narrowest_window(model.config.get_text_config())
    lengths = [6] if window is None or window > padding_free.LONGEST_TRIED else [6, window + 6]
    try:
        generate(model, tokenizer, [example.prompt for example in EXAMPLES], GenerationParams(max_new_tokens=3))
        same = all(reads_as_it_completes(model, length) for length in lengths)
    except Exception as error:  # whatever the architecture's own code raises
        _unless_memory(error)
        raise InputError(f"{name} that cannot complete a text: {first_line(error)}") from error
    if not same:
        raise InputError(
            f"{name} that completes a text otherwise than it reads it (its cache gives other results): what is served "
            "would not be what was judged. Expected another architecture, or another version of transformers."
        )


def _step(model: Any, tokenizer: Any, config: Config, name: str) -> str:
    """One forward and backward pass, without a change to the weights; what people should know of the adapter."""
    lora = config.trainer.method == "lora" and not config.lora.load_in_4bit  # its 4-bit weights are loaded later
    training, wanted = model.training, [weight.requires_grad for weight in model.parameters()]
    trained = model
    try:
        if lora:
            everywhere = config.lora.target_modules == "all-linear"
            left = adapter.left_out(model) if everywhere else {}
            trained = adapter.add_adapter(model, config)
            about = adapter.in_words(left, trained) if everywhere else ""
        else:
            about = ""
            model.requires_grad_(True)
        batch = collate(encode_all(tokenizer, EXAMPLES), tokenizer.pad_token_id)
        batch = {key: tensor.to(model.device) for key, tensor in batch.items()}
        targets = batch.pop("shift_labels").flatten()
        del batch["labels"]
        logits = trained.train()(**batch, use_cache=False).logits.flatten(0, 1).float()
        if len(logits) != len(targets):
            raise ValueError(f"it gives {len(logits)} logits for {len(targets)} places (no logits_to_keep)")
        loss = cross_entropy(logits, targets)
        torch.autograd.backward(loss)
        gradients = [weight.grad for weight in trained.parameters() if weight.requires_grad and weight.grad is not None]
        if not any(bool(gradient.any()) for gradient in gradients):
            raise ValueError("its loss depends on none of the weights that would be trained")
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise ValueError("its gradients are not finite")
        return about
    except Exception as error:  # whatever PEFT, or the architecture's own code, raises
        _unless_memory(error)
        how = "Name other layers with lora.target_modules, or train all weights with trainer.method=full."
        if config.lora.use_dora or config.lora.lora_dropout:
            how = f"Drop lora.use_dora and lora.lora_dropout. {how}"
        what = f"cannot be trained with this adapter: {first_line(error).rstrip('.')}. {how}" if lora else ""
        raise InputError(f"{name} that {what or f'cannot be trained: {first_line(error)}'}") from error
    finally:
        if trained is not model:
            trained.unload()
        for weight, before in zip(model.parameters(), wanted, strict=False):  # after an error, PEFT's may be among them
            weight.grad = None
            weight.requires_grad_(before)
        model.train(training)


def _unless_memory(error: Exception) -> None:
    """Raise on what is not the model's fault."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in str(error).lower():
        raise error
