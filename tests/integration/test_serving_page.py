"""Serving's page in a real browser: who may look, who may act, and that an act is the promoter's own."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import Browser, Page, sync_playwright

from contract.files import free_port
from infra.gate_demo import register, table
from services.tracking.readiness import wait_until
from serving.gateway.events.store import Event, Store
from serving.gateway.tokens import main as tokens
from tests.support import docs
from tests.support.events import completion
from tests.support.promoters import mark_validated
from tests.support.serving import Serving, serving_process
from tests.support.tracking import Stack

pytestmark = pytest.mark.integration
HOSTILE = "<script>alert(1)</script><b>&amp;'\""


class Model:
    """A registered model whose versions are better and better; the second is in production, the third awaits."""

    def __init__(self, stack: Stack, experiment: str) -> None:
        self.stack, self.experiment, self.name = stack, experiment, f"{experiment}_model"
        mlflow.set_tracking_uri(stack.url)
        for number in range(3):
            rows = table(-0.3 * number, 0.9, seed=number, examples=120)
            mark_validated(stack.client, register(stack.client, self.name, rows))
        force = ("--force", "--reason", HOSTILE)
        self.promoter("promote", "--version", "1", "--stage", "Production", "--by", "ada", *force)
        self.promoter("promote", "--version", "2", "--stage", "Production", "--by", "ada")
        self.promoter("promote", "--version", "3", "--stage", "Production", "--by", "ci", "--policy", "approval")

    def promoter(self, command: str, *arguments: str) -> None:
        result = self.stack.promoter(command, "--experiment-name", self.experiment, *arguments)
        assert result.exit_code == 0, result.output

    @property
    def production(self) -> str:
        return str(self.stack.client.get_registered_model(self.name).aliases["production"])

    def last(self) -> dict[str, str]:
        """The tags of the newest record."""
        experiment = self.stack.client.get_experiment_by_name("promotions")
        assert experiment is not None
        terms = f"tags.model = '{self.name}' and attributes.status = 'FINISHED'"
        return dict(self.stack.client.search_runs([experiment.experiment_id], terms, max_results=1)[0].data.tags)


@contextmanager
def promoter_server(stack: Stack, file: Path) -> Iterator[str]:
    """`promoter serve`, until the end; its URL."""
    port = free_port()
    arguments = ("serve", "--port", str(port), "--tokens-file", str(file))
    process = stack.popen("promoter", *arguments)
    url = f"http://127.0.0.1:{port}"

    try:
        assert wait_until(lambda: docs.answers(url, "/health"), 60, lambda: process.poll() is None)
        yield url
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def token(tmp_path_factory) -> dict[str, str]:
    """Tokens by name, and the file of their hashes."""
    file = tmp_path_factory.mktemp("secrets") / "tokens"
    found = {"file": str(file)}
    for name, more in (("editor", ()), ("boss", ("--admin",))):
        result = CliRunner().invoke(tokens, ["add", name, "--file", str(file), *more])
        assert result.exit_code == 0, result.output
        found[name] = result.output.strip()
    return found


@pytest.fixture(scope="module")
def model(stack: Stack) -> Model:
    return Model(stack, "looked_at")


@pytest.fixture(scope="module")
def service(stack: Stack, model: Model, token: dict[str, str], tmp_path_factory) -> Iterator[Serving]:
    """Serving with tokens; its models echo, so none of them goes live, which the page says."""
    home = tmp_path_factory.mktemp("serving")
    store = Store(home / "events", "here", 1 << 28)
    for number in range(30):
        made = completion(user="ada", version="2", model=model.name)
        store.completed(made)
        store.told(Event(made.id, viewed=True, shown_ms=900, accepted=number < 12))
    settings = {"SERVING_TOKENS_FILE": token["file"], "TRACKING_PUBLIC_URL": "https://ratchet.example"}
    with (
        promoter_server(stack, Path(token["file"])) as url,
        serving_process(stack, model.name, home, SERVING_PROMOTER_URL=url, **settings) as service,
    ):
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "this test wants Debian's chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])


def opened(browser: Browser, service: Serving, token: str, **options: Any) -> Page:
    """The page in a browser that has logged in; it may run no script."""
    page = browser.new_context(**options).new_page()
    page.goto(service.url)
    page.get_by_label("Your token").fill(token)
    page.get_by_role("button", name="Log in").click()
    return page


def act(service: Serving, token: str, fields: dict[str, str], **headers: str) -> requests.Response:
    """A form as a program sends it: with the cookie, and what the page's forms hold."""
    with requests.Session() as session:
        session.cookies.set("ratchet_token", token)
        text = session.get(service.url, timeout=30).text
        found = text.partition('name="form_token" value="')[2].partition('"')[0]
        fields = {"form_token": found, **fields}
        return session.post(f"{service.url}/act", fields, headers=headers, timeout=120, allow_redirects=False)


def test_nobody_looks_without_a_token(service: Serving, model: Model, token: dict[str, str]) -> None:
    page = requests.get(service.url, timeout=30)
    assert page.status_code == 200
    assert "Your token" in page.text
    assert "In production since" not in page.text
    wrong = requests.post(f"{service.url}/login", {"token": "rt-wrong"}, timeout=30)
    assert wrong.status_code == 401
    assert "not known" in wrong.text
    assert "ratchet_token" not in wrong.cookies
    assert requests.post(f"{service.url}/act", {"action": "rollback"}, timeout=30).status_code == 401
    bearer = {"Authorization": f"Bearer {token['editor']}"}
    assert "In production since" in requests.get(service.url, headers=bearer, timeout=30).text
    assert requests.head(service.url, timeout=30).status_code == 200


def test_the_cookie_opens_the_page_and_nothing_else(service: Serving, token: dict[str, str]) -> None:
    answer = requests.post(f"{service.url}/login", {"token": token["boss"]}, timeout=30, allow_redirects=False)
    assert answer.status_code == 303
    cookie = answer.headers["Set-Cookie"]
    for expected in ("HttpOnly", "SameSite=strict", "Path=/;"):
        assert expected in cookie
    behind = {"X-Forwarded-Prefix": "/production", "X-Forwarded-Proto": "https"}
    sent = {"token": token["boss"]}
    answer = requests.post(f"{service.url}/login", sent, headers=behind, timeout=30, allow_redirects=False)
    assert "Path=/production/;" in answer.headers["Set-Cookie"]
    assert "Secure" in answer.headers["Set-Cookie"]
    cookies = {"ratchet_token": token["boss"]}
    for path in ("/v1/models", "/status", "/metrics"):
        assert requests.get(service.url + path, cookies=cookies, timeout=30).status_code == 401


def test_it_answers_the_questions(service: Serving, model: Model, token: dict[str, str], browser: Browser) -> None:
    page = opened(browser, service, token["editor"])
    text = page.locator("main").inner_text()
    for expected in (
        "In production since",
        "promoted by ada; before it served version 1",
        "40.0%",  # accepted, of 30
        "Version 3 → Production",
        "asked for by ci",
        "Your token is not an administrator's",
        HOSTILE,  # as text
    ):
        assert expected in text, expected
    report = page.get_by_role("link", name="promoted").first.get_attribute("href")
    assert report is not None
    assert report.startswith("https://ratchet.example/#/experiments/")
    assert report.endswith("/artifacts/decision.html")
    assert page.locator("section svg[role=img]").count() == 2
    assert page.get_by_role("button", name="Approve").count() == 0
    assert page.locator("script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_anybody_can_read_it(
    service: Serving, token: dict[str, str], browser: Browser, scheme: Any, width: int
) -> None:
    """Of axe's rules none is broken, and nothing is wider than the screen."""
    viewport = {"width": width, "height": 800}
    page = opened(browser, service, token["boss"], color_scheme=scheme, viewport=viewport, bypass_csp=True)
    assert page.get_by_role("button", name="Roll back to version 1").is_visible()
    for url in (service.url, None):
        if url is None:
            page.context.clear_cookies()
            page.goto(service.url)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_editors_token_acts_not(service: Serving, model: Model, token: dict[str, str]) -> None:
    answer = act(service, token["editor"], {"action": "approve", "version": "3", "reason": "I would like to"})
    assert answer.status_code == 403
    assert "not an administrator" in answer.text
    assert model.production == "2"


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"form_token": ""}, {}, 403),
        ({"form_token": "0" * 64}, {}, 403),
        ({}, {"Origin": "https://elsewhere.example"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({}, {"Origin": "http://["}, 403),
        ({}, {"Sec-Fetch-Site": "cross-site"}, 403),
        ({}, {"Sec-Fetch-Site": "same-site"}, 403),
        ({}, {"Content-Type": "text/plain"}, 415),
        ({"action": "archive"}, {}, 422),
        ({"reason": ""}, {}, 422),
        ({"reason": "x" * 3000}, {}, 422),
        ({"version": "3; rm"}, {}, 422),
        ({"reason": "a\x00b"}, {}, 422),
        ({"action": "rollback", "version": ""}, {}, 422),
    ],
)
def test_a_form_of_another_page_is_refused(
    service: Serving,
    model: Model,
    token: dict[str, str],
    fields: dict[str, str],
    headers: dict[str, str],
    status: int,
) -> None:
    wanted = {"action": "approve", "version": "3", "reason": "read it"}
    answer = act(service, token["boss"], wanted | fields, **headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("text/html")
    assert model.production == "2"


def test_the_promoters_server_believes_the_token_alone(service: Serving, stack: Stack, token: dict[str, str]) -> None:
    with promoter_server(stack, Path(token["file"])) as url:
        body = {"action": "freeze", "model": "looked_at_model", "reason": "t"}
        for sent, status in ((None, 401), ("rt-x", 401), (token["editor"], 403)):
            headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
            assert requests.post(f"{url}/actions", json=body, headers=headers, timeout=30).status_code == status
        boss = {"Authorization": f"Bearer {token['boss']}"}
        assert requests.post(f"{url}/actions", json={}, timeout=30).status_code == 401  # before the body is read
        wrong = requests.post(f"{url}/actions", json=body | {"model": ""}, headers=boss, timeout=30)
        assert wrong.status_code == 422
        missing = requests.post(f"{url}/actions", json=body | {"model": "--help"}, headers=boss, timeout=60).json()
        assert missing["exit_code"] == 2
        assert "There is no registered model '--help'" in missing["output"]


def test_an_administrator_acts_as_the_promoter_does(
    stack: Stack, service: Serving, model: Model, token: dict[str, str], browser: Browser
) -> None:
    page = opened(browser, service, token["boss"])
    page.get_by_label("Why, for the record").first.fill("read the report")
    page.get_by_role("button", name="Approve version 3").click()
    assert "Done" in page.get_by_role("status").inner_text()
    assert "Version 3 of looked_at_model → Production instead of version 2: promoted." in page.inner_text("main")
    assert model.production == "3"
    ours = model.last()
    assert (ours["action"], ours["outcome"], ours["by"]) == ("approve", "promoted", "boss")
    assert ours["why"].startswith("read the report")
    page.reload()
    assert page.get_by_role("status").count() == 0  # it is said once

    page.get_by_label("Why, for the record").last.fill("a release is on its way")
    page.get_by_role("button", name="Freeze").click()
    assert "Frozen by boss" in page.inner_text("main")
    page.get_by_label("Why, for the record").last.fill("it is out")
    page.get_by_role("button", name="Let versions be promoted again").click()
    assert "Frozen by" not in page.locator("#serves ~ p").all_inner_texts()
    assert model.last()["outcome"] == "unfrozen"

    page.get_by_label("Why, for the record").first.fill("it writes nonsense")
    page.get_by_role("button", name="Roll back to version 2").click()
    assert model.production == "2"
    by_page = model.last()
    stale = act(service, token["boss"], {"action": "rollback", "version": "3", "reason": "an old page"})
    assert stale.status_code == 303
    assert model.production == "2"  # where 3 is no longer in production nothing is rolled back

    same = Model(stack, "by_hand")
    same.promoter("approve", "--version", "3", "--by", "boss", "--reason", "read the report")
    assert same.last().keys() == ours.keys()
    same.promoter("rollback", "--by", "boss", "--reason", "it writes nonsense")
    by_hand = same.last()
    assert by_hand.keys() == by_page.keys()
    told = {"action", "outcome", "by", "why", "version", "replaces", "stage", "moved_from"}
    assert {name: by_hand[name] for name in told} == {name: by_page[name] for name in told}


def test_without_tokens_this_machine_acts_and_no_other_name_does(stack: Stack, model: Model, tmp_path_factory) -> None:
    with serving_process(stack, model.name, tmp_path_factory.mktemp("open")) as service:
        answer = act(service, "", {"action": "freeze", "reason": "t"})
        assert answer.status_code == 303
        assert model.last()["outcome"] == "frozen"
        port = service.url.rpartition(":")[2]
        # A name that somebody else's DNS points here.
        other = {"Host": f"rebound.example:{port}", "Origin": f"http://rebound.example:{port}"}
        assert act(service, "", {"action": "unfreeze", "reason": "t"}, **other).status_code == 403
        assert model.last()["outcome"] == "frozen"
        model.promoter("unfreeze", "--reason", "t")


def test_without_the_tracking_server_it_says_so(stack: Stack, tmp_path_factory) -> None:
    home = tmp_path_factory.mktemp("alone")
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    with serving_process(stack, "looked_at_model", home, **away) as service:
        page = requests.get(service.url, timeout=20)
        assert page.status_code == 200
        assert "is not known at present. The tracking server:" in page.text
        assert "Not known at present" in page.text


def test_a_promoter_server_without_tokens_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "promoter", "serve", "--tokens-file", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "which is no file" in done.stderr
