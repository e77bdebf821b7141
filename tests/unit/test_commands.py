"""The command lines of promoter and trainer: where options may stand, and what is said of a slip."""

import pytest
from click.testing import CliRunner

from promoter.cli import main as promoter
from trainer.cli import main as trainer

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tracking-uri", NOWHERE, "history"],
        ["history", "--tracking-uri", NOWHERE],
        ["history", f"--tracking-uri={NOWHERE}"],
        ["promote", "--version", "3", "--tracking-uri", NOWHERE, "--stage", "production"],
        ["gate", "--stage", "STAGING", "--tracking-uri", NOWHERE],
    ],
)
def test_promoters_options_may_stand_behind_the_command(arguments: list[str]) -> None:
    found = CliRunner().invoke(promoter, arguments, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:19"})
    assert f"No tracking server at {NOWHERE}" in found.output
    assert found.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["history", "--tracking-uri"], "No such option"),
        (["promot"], "'promote'"),
        (["promote", "--stag", "Staging"], "'--stage'"),
        (["promote", "--stage", "nowhere"], "is not one of"),
    ],
)
def test_a_slip_on_promoters_command_line_is_named(arguments: list[str], expected: str) -> None:
    found = CliRunner().invoke(promoter, arguments)
    assert (found.exit_code, expected in found.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["help"], "No such command 'help'. Expected train, prepare, evaluate, export, try, or a setting."),
        (["trainer.lr"], "'trainer.lr' is not an override"),
    ],
)
def test_a_slip_on_trainers_command_line_is_named(arguments: list[str], expected: str) -> None:
    found = CliRunner().invoke(trainer, arguments)
    assert (found.exit_code, expected in found.output) == (2, True)
