"""What the page's figures and charts are made of, and who is whose."""

import base64
import math

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from contract.actions import Action
from contract.errors import InputError
from contract.tokens import Owner, Tokens, line_of, parse
from serving.gateway.events.store import STEP, STEP_RATIO, Event, Store, step_of
from serving.gateway.page import access, charts, figures
from tests.support.events import completion


def test_figures_by_hand(tmp_path) -> None:
    """Ten completions of version 1, five of version 2; what was shown for less than 750 ms counts nowhere."""
    store = Store(tmp_path, "here", 1 << 28)
    for number in range(15):
        version = "1" if number < 10 else "2"
        made = completion(version=version, choices=[number], first_token_s=0.1, cut_off=number == 3)
        store.completed(made)
        shown_ms = 749 if number in (1, 11) else 750
        store.told(Event(made.id, viewed=True, shown_ms=shown_ms, accepted=number % 2 == 1))
        store.told(Event(made.id, kept=(30, number // 2)))
    rows = store.days(1)
    assert list(figures.by_version(rows)) == ["2", "1"]
    one, two = figures.by_version(rows)["1"], figures.by_version(rows)["2"]
    assert (one.completions, one.shown, two.shown) == (10, 9, 4)
    assert one.acceptance == 4 / 9  # 3, 5, 7, 9
    assert one.acceptance_by_characters == (3 + 5 + 7 + 9) / (45 - 1)
    assert one.persistence == [pytest.approx((0 + 1 + 2 + 3 + 4) / (1 + 3 + 5 + 7 + 9)), None, None]
    assert (one.empty, one.cut_off, two.empty) == (0.1, 0.1, 0.0)
    assert one.quantile("first_token", 0.5) == pytest.approx(0.1, rel=0.05)
    whole, before = figures.months(rows)
    assert (whole.shown, before.shown, before.acceptance, before.quantile("seconds", 0.5)) == (13, 0, None, None)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.01, 0.33, 7.0, 60.0])
def test_a_step_is_near_its_duration(seconds: float) -> None:
    assert 0.01 * STEP_RATIO ** step_of(seconds) == pytest.approx(max(seconds, 0.001), rel=0.05)


def test_quantiles_of_steps() -> None:
    counts = {f"seconds{STEP}{step_of(0.1)}": 94.0, f"seconds{STEP}{step_of(1.0)}": 6.0}
    found = figures.Figures(counts)
    assert found.quantile("seconds", 0.5) == pytest.approx(0.1, rel=0.05)
    assert found.quantile("seconds", 0.95) == pytest.approx(1.0, rel=0.05)


def test_a_version_keeps_its_colour_when_the_next_one_comes() -> None:
    before, after = charts.colours(["9", "7", "2"]), charts.colours(["12", "9", "7", "2"])
    assert {version: after[version] for version in before} == before
    assert len(set(after.values())) == 4
    assert charts.colours(["15", "12", "9", "7", "2"])["2"] == charts.COLOURS  # grey


def test_a_chart_escapes_what_it_is_told_and_leaves_gaps() -> None:
    days = [f"2026-01-{day:02d}" for day in range(1, 31)]
    line = charts.Line("version <b>", 0, {days[0]: 0.1, days[1]: 0.2, days[20]: 0.3, days[21]: 0.3})
    drawn = charts.chart('"Acceptance"', [line], days, str, str)
    assert "<b>" not in drawn
    assert 'aria-label="&quot;Acceptance&quot;"' in drawn
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 4
    assert ">0.5<" in drawn  # the scale ends at a round number
    assert math.isfinite(sum(map(float, (part.partition('"')[0] for part in drawn.split('cy="')[1:]))))


@pytest.mark.parametrize(
    ("name", "version", "value"),
    [
        ("accepted", "1", -5.0),
        ("accepted", "1", math.inf),
        ("accepted", "1", None),
        ("accepted", "1", "many"),
        (f"seconds{STEP}x", "1", 1.0),
        (f"seconds{STEP}99999", "1", 1.0),
        ("shown", b"1", 1.0),
        ("shown", None, 1.0),
        ("shown", "9" * 5000, 1.0),
    ],
)
def test_rows_that_no_count_can_have_are_left_out(name: str, version: object, value: object) -> None:
    good = ("2026-01-01", "shown", "1", 20.0)
    assert figures.sound([good, ("2026-01-01", name, version, value)]) == [good]


@pytest.mark.parametrize("said", ["x", "[" * 3000, '[true, "\\ud800"]', "[]", "3"])
def test_a_cookie_that_says_nothing_is_ignored(said: str) -> None:
    value = base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")
    headers = [(b"cookie", f"{access.SAID}={value}".encode())]
    assert access.to_say(Request({"type": "http", "headers": headers})) is None


@pytest.mark.parametrize("text", ["a" * 2500, '"' * 2400, "a" + "\x01" * 2000, "é" * 3000, "fine"])
def test_what_is_said_fits_into_a_cookie(text: str) -> None:
    scope = {"type": "http", "headers": [], "path": "/", "scheme": "http", "server": ("localhost", 80)}
    response = Response()
    access.say(Request(scope), response, True, text)
    cookie = response.headers["set-cookie"]
    assert len(cookie) < 4096
    headers = [(b"cookie", cookie.partition(";")[0].encode())]
    found = access.to_say(Request({"type": "http", "headers": headers}))
    assert found is not None
    assert found[0]
    assert text.endswith(found[1])


def test_tokens_of_administrators() -> None:
    one, two = "a" * 64, "b" * 64
    assert parse(f"ada:{one}\n# x\n\ngrace:{two}:admin\n") == {one: Owner("ada"), two: Owner("grace", admin=True)}
    text = f"ada:{one}:trains\ngrace:{two}:admin:trains\n"
    assert parse(text) == {one: Owner("ada", trains=True), two: Owner("grace", admin=True, trains=True)}
    assert "".join(line_of(digest, owner) for digest, owner in parse(text).items()) == text
    assert parse(f"ada:{one}:admin\nada:{two}\n") == {two: Owner("ada")}  # the last one counts
    for line in (f"ada:{one}:root", f"ada:{one}:", f"ada:{one}:admin:x"):
        with pytest.raises(InputError, match="Line 1 is not a token"):
            parse(line)
    assert Tokens(None).owner("x") is None


@pytest.mark.parametrize("text", ["a\x00b", "a\x1bb", ""])
def test_a_reason_holds_no_control_characters(text: str) -> None:
    with pytest.raises(ValidationError):
        Action(action="freeze", model="m", reason=text)


def test_no_value_of_an_action_is_taken_for_an_option() -> None:
    action = Action(action="approve", model="--force", reason="--stage=Production", version="3")
    assert action.command("--help")[3:] == [
        *("approve", "--model-name=--force", "--by=--help", "--reason=--stage=Production", "--version=3", "--wait=30")
    ]
