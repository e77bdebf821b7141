"""The command lines of promoter and trainer: where options may stand, and what is said of a slip."""

import http.server
import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import click
import pytest
import urllib3
from click.testing import CliRunner

from contract.errors import InputError
from contract.tracking import check_url, say_when_waiting
from promoter.cli import main as promoter
from promoter.tables import Columns, decision_text, fitted, history_table, render
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
        (["help"], "No such command 'help'. Expected train, prepare, evaluate, changes, export, try, or a setting."),
        (["trainer.lr"], "'trainer.lr' is not an override"),
    ],
)
def test_a_slip_on_trainers_command_line_is_named(arguments: list[str], expected: str) -> None:
    found = CliRunner().invoke(trainer, arguments)
    assert (found.exit_code, expected in found.output) == (2, True)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (Columns(metrics=("eval/edit_similarty",)), "--metric is 'eval/edit_similarty', .* eval/edit_similarity"),
        (Columns(params=("trainer.learning",)), "--param is 'trainer.learning', .* trainer.lr"),
        (Columns(metrics=("nonsense",)), "There are: eval/edit_similarity, train/loss"),
    ],
)
def test_a_metric_or_param_that_no_run_has_is_named(columns: Columns, expected: str) -> None:
    data = SimpleNamespace(metrics={"eval/edit_similarity": 1.0, "train/loss": 2.0}, params={"trainer.lr": "1"})
    runs: Any = [SimpleNamespace(data=data)]
    with pytest.raises(InputError, match=expected):
        columns.check(runs)
    columns.check([])
    Columns(tags=("gate",)).check(runs)  # one that only some have, and the metrics that are shown by default


@pytest.mark.parametrize(
    ("setting", "code", "expected"),
    [
        ("data.source=/nowhere", 2, "data.source is '/nowhere'"),
        ("data.source=tests", 3, "No tracking server at"),
        ("data.include=[]x", 2, "data.include"),
    ],
)
def test_what_a_second_shows_is_said_before_torch_is_imported(root, setting: str, code: int, expected: str) -> None:
    program = "import sys\nfrom trainer.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    settings = ["data.source=tests", f"tracking.uri={NOWHERE}", setting]
    command = [sys.executable, "-c", program, "train", *settings]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (code, "False"), done.stderr
    assert expected in done.stderr


def test_a_history_fits_a_terminal() -> None:
    tags = {
        "action": "auto-promote",
        "outcome": "promoted",
        "version": "12",
        "moved_from": "Staging",
        "by": "ada@laptop",
    }
    tags |= {"stage": "Production", "replaces": "11", "why": "eval/nll_per_token 1.2345 → 1.1234, and much more " * 9}
    runs = [SimpleNamespace(info=SimpleNamespace(start_time=0, run_id="ab" * 16), data=SimpleNamespace(tags=tags))] * 2
    table = history_table(runs)
    lines = render(fitted(table), "text").splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 120
    assert "eval/nll_per_token 1." in lines[1]
    assert "ab" * 16 in render(table, "json")
    assert render(fitted(history_table([])), "text") == "(nothing)"


def test_the_headline_of_a_refusal_says_which_checks() -> None:
    reasons = [
        SimpleNamespace(group="gate", check=name, passed=passed, detail="why")
        for name, passed in (("primary", True), ("floor eval/syntax_ok", False), ("guard eval/fim/stops", False))
    ]
    [headline, *rest] = decision_text(SimpleNamespace(passed=False, reasons=reasons)).splitlines()
    assert click.unstyle(headline) == "Gate: NOT passed (floor eval/syntax_ok, guard eval/fim/stops)"
    assert len(rest) == 3


@pytest.mark.parametrize("uri", ["127.0.0.1:5201", "http://[::1", "http://127.0.0.1:99999", "http:///x", "ftp://x", ""])
def test_what_is_no_url_is_no_absent_server(uri: str) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is '.*'\. Expected a URL such as"):
        check_url(uri, "tracking.uri")
    for good in ("http://127.0.0.1:5000", "https://user:word@host/path", "sqlite:///x.db", "http://[::1]:5000"):
        check_url(good, "tracking.uri")


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "MLFLOW_TRACKING_USERNAME"), (404, "is no MLflow tracking server")]
)
def test_a_server_that_lets_nobody_in_or_is_another_is_told_at_once(status: int, expected: str) -> None:
    """By every command, before any work."""

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else status)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = CliRunner().invoke(
            promoter, ["history"], env={"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}"}
        )
        server.shutdown()
    assert found.exit_code == 2, found.output
    assert expected in found.output


def test_what_nobody_foresaw_is_one_message_and_a_file(tmp_path, monkeypatch) -> None:
    """The traceback is for whoever mends it."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("trainer.data.prepare.check_sources", fail)
    result = CliRunner().invoke(trainer, ["train", "data.source=package:email"])
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert "A mistake of Ratchet's own: ZeroDivisionError: nobody thought of it." in result.output
    [log] = tmp_path.glob("ratchet-*.log")
    assert str(log) in result.output
    assert "in fail" in log.read_text()


class Full(http.server.BaseHTTPRequestHandler):
    """A server whose disk is full."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_who_waits_for_the_server_says_so(capsys, monkeypatch) -> None:
    """MLflow's client asks again for minutes, and is silent."""
    monkeypatch.setattr(logging.getLogger("urllib3.util.retry"), "handlers", [])  # which another test may have set
    with http.server.HTTPServer(("127.0.0.1", 0), Full) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        say_when_waiting()
        say_when_waiting()
        retries = urllib3.Retry(total=3, backoff_factor=0, status_forcelist=[503], raise_on_status=False)
        with urllib3.PoolManager() as pool:
            pool.request("GET", f"http://127.0.0.1:{server.server_port}/", retries=retries)
        server.shutdown()
    assert capsys.readouterr().err == "The tracking server answers 503: asking it again …\n"
