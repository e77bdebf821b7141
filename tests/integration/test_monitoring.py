"""Prometheus on a real serving, and its rules; what the dashboard asks for is what serving has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from click.testing import CliRunner

from contract.files import free_port
from services.tracking.readiness import wait_until
from serving.gateway.tokens import main as tokens
from tests.support.images import ROOT
from tests.support.serving import Serving, register, serving_process
from tests.support.tracking import Stack

pytestmark = pytest.mark.integration
FOLDER = ROOT / "infra" / "monitoring"
MODEL = "watched"


@pytest.fixture(scope="module")
def programs() -> None:
    """Debian's package `prometheus`; in CI it is there."""
    if shutil.which("promtool") is None or shutil.which("prometheus") is None:
        pytest.skip("no prometheus on this machine: apt-get install prometheus")


@pytest.fixture(scope="module")
def service(stack: Stack, tiny, tmp_path_factory) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("watched")
    made = CliRunner().invoke(tokens, ["add", "monitoring", "--file", str(home / "tokens")])
    (home / "token").write_text(made.output.strip())
    stack.client.set_registered_model_alias(MODEL, "production", register(stack, MODEL, tiny.folder))
    with serving_process(stack, MODEL, home, SERVING_TOKENS_FILE=str(home / "tokens")) as service:
        service.headers["Authorization"] = f"Bearer {made.output.strip()}"
        service.wait_for_version("1")
        yield service


def test_the_rules_fire_when_they_are_to(programs: None) -> None:
    done = subprocess.run(["promtool", "test", "rules", str(FOLDER / "rules_test.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    names = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case.get("exp_alerts")}
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    assert {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule} == names


def test_prometheus_scrapes_serving_with_its_token(programs: None, service: Serving, tmp_path: Path) -> None:
    made = requests.post(
        f"{service.url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, headers=service.headers
    )
    event = {"type": "select", "completion_id": made.json()["id"], "elapsed": 900}
    assert requests.post(f"{service.url}/v1/events", json=event, headers=service.headers).status_code == 200
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "rules.yml")]
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]  # the stack's names
    job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
    job["authorization"]["credentials_file"] = str(service.log.parent / "token")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={url[7:]}"], stdout=log, stderr=log)
    try:

        def value(query: str) -> Any:
            try:
                found = requests.get(f"{url}/api/v1/query", params={"query": query}, timeout=5).json()["data"]["result"]
            except (requests.RequestException, KeyError):
                return None
            return found[0]["value"][1] if found else None

        accepted = 'sum(ratchet_completions_accepted_total{version="1", user="monitoring"})'
        there = wait_until(lambda: value(accepted) == "1", 60, lambda: process.poll() is None)
        assert there, (tmp_path / "log").read_text()[-2000:]
        assert value('up{job="serving"}') == "1"
        assert value(f'ratchet_live_version{{model="{MODEL}"}}') == "1"
        assert value('ALERTS{alertstate="firing"}') is None
    finally:
        process.terminate()
        process.wait(20)


def test_what_dashboard_and_rules_ask_for_is_there(service: Serving) -> None:
    text = requests.get(f"{service.url}/metrics", headers=service.headers, timeout=10).text
    known = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    source = (
        ROOT / "serving" / "gateway" / "metrics.py"
    ).read_text()  # what nothing was counted of yet stands in no page
    for path in (FOLDER / "rules.yml", FOLDER / "grafana" / "dashboards" / "ratchet.json"):
        for asked in re.findall(r"\bratchet_\w+", path.read_text()):
            family = re.sub(r"_(bucket|sum|count)$", "", asked)
            assert family in known or f'"{family.removesuffix("_total")}"' in source, asked
    dashboard = json.loads((FOLDER / "grafana" / "dashboards" / "ratchet.json").read_text())
    assert len({panel["title"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 8
    docs = (ROOT / "docs" / "monitoring.md").read_text()
    for alert in re.findall(r"alert: (\w+)", (FOLDER / "rules.yml").read_text()):
        assert f"`{alert}`" in docs, alert
