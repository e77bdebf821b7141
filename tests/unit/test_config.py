"""Configuration: what wins, and what is refused with which words."""

import pytest
from click.testing import CliRunner

from contract.errors import InputError
from trainer.cli import main
from trainer.config import CONFIGS, Config, flatten, load_config, to_yaml


def test_command_line_beats_file_beats_defaults(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {lr: 1e-3, batch_size: 2}\n")
    config = load_config(str(path), ["trainer.lr=2e-3"])
    assert (config.trainer.lr, config.trainer.batch_size) == (2e-3, 2)
    assert config.trainer.epochs == Config().trainer.epochs


def test_tracking_uri_comes_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert load_config(None, []).tracking.uri == "http://elsewhere:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert load_config(None, []).tracking.uri == "http://127.0.0.1:5000"


def test_resolved_yaml_reads_back(tmp_path) -> None:
    config = load_config("demo", ["seed=7"])
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config))
    assert load_config(str(path), []) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path) -> None:
    assert load_config(path.stem, []) == load_config(str(path), [])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.learning_rate=1", "Unknown key 'trainer.learning_rate'"),
        ("trainer.lrr=1", "Did you mean 'trainer.lr'?"),
        ("trainer.r=8", "Did you mean 'lora.r'?"),
        ("lr=1", "Did you mean 'trainer.lr'?"),
        ("zzz.qqq=1", "Unknown key 'zzz.qqq' in 'zzz.qqq=1'. `trainer train --help`"),
        ("trainer=1", "'trainer' in 'trainer=1' is a section"),
        ("trainer.lr=fast", "trainer.lr is 'fast'"),
        ("trainer.lr=0", "trainer.lr is 0.0. Expected above 0 and below 1."),
        ("trainer.batch_size=1.5", "1.5"),
        ("trainer.max_steps=0", "Expected at least 1"),
        ("trainer.batch_size=null", "trainer.batch_size"),
        ("model.device=gpu", "Expected one of auto, cpu, cuda."),
        ("data.eval_fraction=0.9", "Expected above 0 and at most 0.5."),
        ("trainer.lr", "is not an override"),
        ("trainer.lr=[", "Quote it: trainer.lr="),
        ("data.source=*.jsonl", "Quote it: data.source="),
        ("data.include=[a,:!b,:(glob,icase)c]", """data.include='["a",":!b",":(glob,icase)c"]'"""),
        ("seed=4294967296", "Expected at least 0 and below"),
        ("tracking.experiment_name=a/b", "tracking.experiment_name is 'a/b'. Expected letters"),
        ("tracking.experiment_name=it's", "Expected letters"),
        ("=3", "is not an override"),
    ],
)
def test_bad_override_says_what_and_what_instead(override: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "is not YAML"), ("- 1", "holds no mapping"), ("3", "is not YAML"), ("trainer: {lrr: 1}", "trainer.lr")],
)
def test_bad_file_is_refused(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(str(path), [])
    assert expected in caught.value.message


def test_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match=r"No configuration file 'nope'.*demo"):
        load_config("nope", [])


def test_help_explains_every_field() -> None:
    result = CliRunner().invoke(main, ["train", "--help"])
    assert result.exit_code == 0
    for key in flatten(Config()):
        assert key in result.output


def test_train_is_the_default_command_and_bad_input_exits_with_2() -> None:
    result = CliRunner().invoke(main, ["trainer.lrr=1"])
    assert result.exit_code == 2
    assert "Did you mean 'trainer.lr'?" in result.output


def test_prepare_does_not_write_over_its_source(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    before = rows.read_bytes()
    for source in ("train.jsonl", str(rows), f"[{rows}]"):
        result = CliRunner().invoke(main, ["prepare", "-o", ".", f"data.source={source}"])
        assert result.exit_code == 2
        assert "train.jsonl is the source" in result.output
    assert rows.read_bytes() == before


def test_prepare_leaves_no_empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["prepare", "-o", "out", "data.source=package:"])
    assert result.exit_code == 2
    assert "names the package ''" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.min_eval_files=1.5", "data.min_eval_files is '1.5'. Expected a whole number, at least 1."),
        ("trainer.lr=fast", "trainer.lr is 'fast'. Expected a number, above 0 and below 1."),
        ("trainer.max_length=[1, 2]", "trainer.max_length is '[1, 2]'. Expected a whole number, at least 8."),
        ("data.redact_secrets=maybe", "data.redact_secrets is 'maybe'. Expected true or false."),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_our_words(override: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    assert caught.value.message == expected
