"""The parts of training that need no server: batches, checkpoints on disk, the spool's file, counts, settings."""

import json
import math
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from code_model import fim
from contract.errors import InputError
from trainer import base_model
from trainer.base_model import BaseModel
from trainer.config import load_config
from trainer.data.example import Example, ExampleFile, to_line
from trainer.job import _check_unseen
from trainer.training import checkpoints
from trainer.training.batches import Batches, Examples, TrainingData, split
from trainer.training.collator import EncodedExample, collate, collate_flat, encode
from trainer.training.divergence import Diverged, check_figures, check_finite
from trainer.training.kernels import flops

BATCH = [EncodedExample([5, 6, 7], 1), EncodedExample([5, 6, 7, 8, 9], 3)]


def test_a_flat_batch_names_the_same_targets_as_a_padded_one() -> None:
    flat, padded = collate_flat(BATCH), collate(BATCH, pad_token_id=0)
    assert flat["input_ids"].tolist() == [[5, 6, 7, 5, 6, 7, 8, 9]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert flat["logits_to_keep"].tolist() == [0, 1, 5, 6]
    assert flat["shift_labels"].tolist() == [[6, 7, 8, 9]]
    assert padded["logits_to_keep"].tolist() == [0, 1, 2, 3]
    assert padded["shift_labels"].tolist() == [[6, 7, -100, -100], [-100, -100, 8, 9]]


def test_an_example_that_bears_no_loss_has_no_targets() -> None:
    assert collate_flat([EncodedExample([5, 6], 2)])["shift_labels"].shape == (1, 0)


@pytest.mark.parametrize(("kind", "only", "bears"), [("fim", False, True), ("fim", True, False), ("row", False, False)])
def test_prompts_of_code_bear_loss_unless_only_completions_do(tiny, kind: str, only: bool, bears: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    prompt = fim.prompt("x = ", " + 1\n") if kind == "fim" else "x = "
    data = TrainingData([Example(prompt, "y", kind=kind, language="python")], [1])
    encoded = Examples(data, tokenizer, [0], only)[0]
    assert encoded.input_ids == encode(tokenizer, data.examples[0]).input_ids
    assert (encoded.prompt_length == 1) is bears
    assert Examples(data, tokenizer, [0], only)[-1].prompt_length == len(encoded.input_ids)  # one to learn nothing from


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("steps", [0, 2])
def test_each_step_has_the_same_examples_whatever_the_number_of_processes(world: int, steps: int) -> None:
    lengths = [length % 9 + 1 for length in range(43)]
    alone = Batches(lengths, 6, steps, 7, 0, 1)
    shares = [Batches(lengths, 6 // world, steps, 7, rank, world) for rank in range(world)]
    for epoch in (0, 1):
        for batches in (alone, *shares):
            batches.epoch = epoch
        together = [list(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
        assert [[index for index in step if index >= 0] for step in together] == list(alone)
        assert sorted(chain.from_iterable(alone)) == list(range(43))
        assert len(alone) == len(shares[0]) == len(list(shares[0]))
        assert all(step for share in shares for step in share)  # nobody has nothing to do
    alone.epoch = 0
    first = list(alone)
    alone.epoch = 1
    assert list(alone) != first


def test_one_file_is_not_on_both_sides_of_the_validation_split() -> None:
    examples = [Example("a", "b", group=f"file{number % 10}") for number in range(100)]
    data = TrainingData(examples, [3] * 100)
    assert split(data, 0.0, 1) == (list(range(100)), [])
    train, validation = split(data, 0.3, 1)
    assert sorted(train + validation) == list(range(100))
    assert not {examples[number].group for number in train} & {examples[number].group for number in validation}
    with pytest.raises(InputError, match=r"trainer\.validation_fraction is 0\.3"):
        split(TrainingData(examples[:1], [3]), 0.3, 1)


def test_a_job_is_another_where_something_else_would_come_out() -> None:
    def key(*overrides: str, data: str = "digest") -> str:
        return checkpoints.job_key(load_config(None, overrides), "model", data)

    assert key() == key(
        "checkpoint.save_steps=7", "distributed.processes=2", "model.cache_dir=/x", "tracking.uri=http://x"
    )
    assert len({key(), key("trainer.lr=1e-3"), key("seed=1"), key("tracking.run_name=a"), key(data="other")}) == 5


def write_checkpoint(folder: Path, step: int, mark: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("12345")
    if mark:
        checkpoints.mark_whole(checkpoint, seconds=1.0)
    return checkpoint


def test_the_newest_whole_checkpoint_is_found_and_half_written_ones_go(tmp_path) -> None:
    assert checkpoints.newest(tmp_path) is None
    write_checkpoint(tmp_path, 5)
    ten = write_checkpoint(tmp_path, 10)
    cut = write_checkpoint(tmp_path, 20)
    (cut / "weights").write_text("123")
    unmarked = write_checkpoint(tmp_path, 30, mark=False)
    assert checkpoints.newest(tmp_path) == ten
    assert checkpoints.facts_of(ten)["seconds"] == 1.0
    assert not cut.exists()
    assert not unmarked.exists()


def test_a_jobs_folder_is_held_by_one_and_emptied_for_another_run(tmp_path) -> None:
    config = load_config(None, [f"checkpoint.folder={tmp_path}"])
    with checkpoints.job_folder(config, "key") as folder:
        with pytest.raises(InputError, match="is being trained already"), checkpoints.job_folder(config, "key"):
            pass
        checkpoints.belongs_to(folder, "run 1")
        write_checkpoint(folder / "checkpoints", 5)
        checkpoints.belongs_to(folder, "run 1")
        assert checkpoints.newest(folder / "checkpoints")
        checkpoints.belongs_to(folder, "run 2")
        assert not (folder / "checkpoints").exists()
        assert json.loads((folder / "run.json").read_text()) == "run 2"


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(InputError, match=r"checkpoint\.folder is '/dev/null/x'"):
        checkpoints.root(load_config(None, ["checkpoint.folder=/dev/null/x"]))


def test_a_prepared_file_is_read_again(tmp_path) -> None:
    examples = [Example("a", "é\n"), Example("", "c"), Example("d", "e", kind="fim")]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join(map(to_line, examples)))
    assert list(ExampleFile.open(path)) == examples


def test_flops_are_those_counted_by_hand(tiny) -> None:
    model = base_model.load_model(tiny, load_config(None, []).model, base_model.load_tokenizer(tiny))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128  # q, o; k, v; gate, up, down
    assert flops.cost_of(model.requires_grad_(False)).per_token == 2 * layer * 4
    assert flops.cost_of(model).per_loss_token == 64 * 257 * 4
    assert flops.cost_of(model).per_pair == 2 * 2 * 3 * 64 * 2
    assert flops.cost_of(model.requires_grad_(True)).per_token == 2 * layer * 6
    assert flops.Cost(2, 3, 5).of(10, 4, 7) == 20 + 12 + 35


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.method=full", "lora.use_dora=true"], "lora.use_dora is true with trainer.method=full"),
        (["trainer.early_stopping_patience=2"], "Expected trainer.validation_fraction above 0"),
        (["distributed.machines=2"], "Expected HOST:PORT of machine 0"),
        (["distributed.machine_rank=1"], "Expected 0 to 0"),
        (["distributed.machines=2", "distributed.rendezvous=nowhere"], "Expected HOST:PORT"),
        (["distributed.strategy=zero3"], "Expected one of ddp, fsdp"),
        (["lora.load_in_4bit=true", "distributed.strategy=fsdp"], "works with distributed.strategy=ddp only"),
        (["checkpoint.save_total_limit=1"], "Expected at least 2"),
    ],
)
def test_settings_that_contradict_each_other_are_named(overrides: list[str], expected: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(None, overrides)
    assert expected in error.value.message


def test_nothing_is_padded_where_lengths_differ() -> None:
    batch = [EncodedExample(list(range(3, 3 + length)), 1) for length in (2, 30, 7)]
    assert collate_flat(batch)["input_ids"].shape == (1, 39)
    assert torch.equal(collate_flat(batch)["input_ids"][0, 2:32], torch.arange(3, 33))


def test_a_model_is_not_judged_by_what_it_or_its_base_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"ratchet_train_digests": ["earlier", "seen"]}))
    base = BaseModel("tuned", tmp_path, "sha256:0")
    assert base.train_digests == ["earlier", "seen"]
    _check_unseen(base, SimpleNamespace(train_digest="new", held_out_digest="unseen"))
    with pytest.raises(InputError, match="are the same"):
        _check_unseen(base, SimpleNamespace(train_digest="new", held_out_digest="new"))
    with pytest.raises(InputError, match="itself tuned on the examples to judge by"):
        _check_unseen(base, SimpleNamespace(train_digest="new", held_out_digest="seen"))
    (tmp_path / "config.json").write_text(json.dumps({"ratchet_train_digests": "seen"}))
    with pytest.raises(InputError, match="Expected a list of digests"):
        print(base.train_digests)


def test_the_first_step_with_no_number_is_named() -> None:
    check_finite({1: 2.5, 2: 0.0}, "loss", 1e-3)
    with pytest.raises(Diverged, match=r"The loss is nan at step 3: .*now 0\.001"):
        check_finite({1: 2.5, 3: math.nan, 4: math.inf}, "loss", 1e-3)


def test_a_model_whose_likelihoods_are_no_numbers_is_not_registered() -> None:
    check_figures({"eval/nll_per_token": 2.0, "eval/syntax_ok": math.nan}, 1e-3)
    with pytest.raises(Diverged, match="eval/fim/nll_per_token of the trained model is nan"):
        check_figures({"eval/nll_per_token": 2.0, "eval/fim/nll_per_token": math.nan}, 1e-3)
