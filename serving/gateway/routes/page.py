"""The page at `/`, its login, and what an administrator does on it."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import jinja2
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from contract import actions
from contract.actions import Action, Result
from contract.errors import shortened
from contract.names import NO_DRIFT
from contract.outcomes import ROLLBACK
from contract.versions import RELEASE
from serving.gateway.errors import Refusal
from serving.gateway.page import access, charts, figures
from serving.gateway.page.access import Visitor
from serving.gateway.page.facts import Facts, Registry
from serving.gateway.worker import Gateway, gateway_of

log = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False)
PATIENCE_S = 5.0  # with the tracking server; the page says then that it does not answer
AT_ONCE = 2  # pages that are made, in each worker; a third waits
PASSED = "  ✓"  # how the promoter's text begins a check that passed: its report has them all
LEAST_DISK, BACKUP_S = 2e9, 2 * 86_400  # bytes free, and the age of a backup, at which the page warns as the alarms do
_pages = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "page"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_pages.filters["utc"] = lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))


class Page:
    """What the page needs, for one worker."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.registry = Registry(gateway.settings)
        # Of its own: a tracking server that does not answer keeps no completion from being written down.
        self.pool, self.counting = ThreadPoolExecutor(AT_ONCE, "page"), ThreadPoolExecutor(1, "page-counts")
        self.turn = asyncio.Semaphore(AT_ONCE)

    async def facts(self) -> Facts:
        """What the tracking server says, or why it says nothing."""
        work = asyncio.get_running_loop().run_in_executor(self.pool, self.registry.facts)
        try:
            return await asyncio.wait_for(work, PATIENCE_S)
        except TimeoutError:
            return Facts(trouble=f"It has not answered within {PATIENCE_S:.0f} s.")
        except Exception as error:
            return Facts(trouble=shortened(str(error), 300))

    async def counted(self) -> list[figures.Row]:
        """What was counted in the days that are shown; nothing of a file that cannot be read."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self.counting, self.gateway.store.days, figures.DAYS)
            return figures.sound(await work)
        except Exception as error:
            log.warning("The counts by day cannot be read: %s", error)
            return []

    async def promoter(self) -> str | None:
        """Why the promoter's server cannot be asked; empty if it can, None if none is configured."""
        url = self.gateway.settings.serving_promoter_url
        if not url:
            return None
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"{url.rstrip('/')}/health") as answer,
            ):
                return "" if answer.ok else f"It answers {answer.status}."
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"It does not answer ({type(error).__name__})."

    async def act(self, action: Action, who: Visitor) -> Result:
        """Have the promoter do it. Raises aiohttp.ClientError, TimeoutError."""
        settings = self.gateway.settings
        if not settings.serving_promoter_url:
            environment = {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri}
            # The sender's own are for requests that are sent again anyway.
            environment |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
            return await actions.run(action, who.name, environment)
        timeout = aiohttp.ClientTimeout(total=actions.LONGEST_S + 30, sock_connect=5)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {who.token}"}) as session,
            session.post(settings.serving_promoter_url.rstrip("/") + actions.PATH, json=action.model_dump()) as answer,
        ):
            said = await answer.json()
            if answer.status != 200:
                return Result(1, f"The promoter's server refuses it ({answer.status}): {said.get('detail', said)}")
            return Result(int(said["exit_code"]), str(said["output"]))


@router.api_route("/", methods=["GET", "HEAD"])
async def look(request: Request) -> Response:
    """The page, or its login."""
    gateway = gateway_of(request)
    who = access.visitor(request, gateway)
    if who is None:
        return _login(request)
    page: Page = request.app.state.page
    began = time.monotonic()
    async with page.turn:
        facts, rows, promoter, stats = await asyncio.gather(
            page.facts(), page.counted(), page.promoter(), gateway.engine.stats()
        )
        waiting, free = await asyncio.to_thread(lambda: (gateway.store.length(), gateway.store.free_bytes()))
    state = gateway.engine.state
    parts = [
        ("model", state.status == "serving", state.message if state.status != "serving" else _load(stats)),
        ("tracking server", not facts.trouble, facts.trouble or f"answers in {1000 * facts.seconds:.0f} ms"),
        ("events", waiting < 1000, f"{waiting} traces and events on their way to MLflow"),
        ("disk", free > LEAST_DISK, f"{free / 1e9:.1f} GB free for models and events"),
    ]
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(state.backed_up_at))
    recent = time.time() - state.backed_up_at < BACKUP_S
    parts.append(("backup", recent, f"the last one: {at}" if state.backed_up_at else "none is known"))
    if state.drift:
        parts.append(("drift", state.drift == NO_DRIFT, state.drift))
    if promoter is not None:
        parts.append(("promoter", not promoter, promoter or "answers"))
    response = _html(
        "page.html",
        who=who,
        model=gateway.settings.serving_model,
        alias=gateway.settings.serving_alias,
        state=state,
        facts=facts,
        parts=parts,
        to_say=access.to_say(request),
        now=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        release=RELEASE,
        **await asyncio.to_thread(_drawn, rows, state.live.version if state.live else None),
    )
    access.said(request, response)
    response.headers["Server-Timing"] = f"page;dur={1000 * (time.monotonic() - began):.0f}"
    return response


@router.post("/login")
async def login(request: Request) -> Response:
    """Let a browser in by a token."""
    return await _for_people(request, _log_in)


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Forget the browser."""
    return await _for_people(request, _log_out)


@router.post("/act")
async def act(request: Request) -> Response:
    """Approve, roll back, freeze or unfreeze, as the promoter's command does."""
    return await _for_people(request, _act)


async def _for_people(request: Request, answer: Callable[[Request, dict[str, str]], Awaitable[Response]]) -> Response:
    """The answer to a form, and a refusal of it, as a page."""
    try:
        return await answer(request, await access.form(request))
    except Refusal as refusal:
        return _plain(request, refusal.message, refusal.status)


async def _log_in(request: Request, fields: dict[str, str]) -> Response:
    token = fields.get("token", "").strip()
    if gateway_of(request).tokens.owner(token) is None:
        return _login(request, "The token is not known here.", 401)
    response = RedirectResponse("./", 303)
    access.remember(request, response, token)
    return response


async def _log_out(request: Request, fields: dict[str, str]) -> Response:
    response = RedirectResponse("./", 303)
    access.remember(request, response, "")
    return response


async def _act(request: Request, fields: dict[str, str]) -> Response:
    gateway = gateway_of(request)
    who = access.visitor(request, gateway)
    if who is None:
        return _login(request, "Log in first: nothing was done.", 401)
    if not who.may_act:
        raise Refusal(403, who.why_not)
    access.check(fields, who)
    ok, text = await _done(request.app.state.page, fields, who)
    response = RedirectResponse("./", 303)
    access.say(request, response, ok, text)
    return response


async def _done(page: Page, fields: dict[str, str], who: Visitor) -> tuple[bool, str]:
    """Whether it went well, and what the promoter says."""
    try:
        action = Action(
            action=fields.get("action"),
            model=page.gateway.settings.serving_model,
            reason=fields.get("reason", "").strip(),
            version=fields.get("version") or None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(422, f"{first['loc'][0]}: {first['msg']}.") from error
    if action.action == ROLLBACK and action.version is None:  # the promoter looks whether it is still in production
        raise Refusal(422, "version: Expected the one that the page has shown as in production.")
    try:
        result = await page.act(action, who)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
        return False, f"The promoter did not answer ({type(error).__name__}). Look at the last decisions."
    lines = [line for line in result.output.splitlines() if line.strip() and not line.startswith(PASSED)]
    return result.exit_code == 0, "\n".join(lines) or f"It has ended with exit code {result.exit_code}."


def _load(stats: Any) -> str:
    if not stats:
        return "answers"
    return f"answers; {stats['active']} completions under way, {stats['waiting']} waiting"


def _drawn(rows: list[figures.Row], live: str | None) -> dict[str, Any]:
    """The figures as the page shows them."""
    days = figures.last_days()
    versions = figures.by_version(rows)
    colours = charts.colours(list(versions))
    acceptance: dict[str, dict[str, float]] = {version: {} for version in versions}
    halves: dict[str, dict[str, float]] = {version: {} for version in versions}
    slowest: dict[str, dict[str, float]] = {version: {} for version in versions}
    for (version, day), of_day in figures.by_day(rows).items():
        if of_day.shown >= figures.LEAST and of_day.acceptance is not None:
            acceptance[version][day] = of_day.acceptance
        half, slow = of_day.quantile("seconds", 0.5), of_day.quantile("seconds", 0.95)
        if half is not None and slow is not None:
            halves[version][day], slowest[version][day] = half, slow

    def lines(points: dict[str, dict[str, float]], what: str, dashed: bool = False) -> list[charts.Line]:
        return [
            charts.Line(f"version {version}{what}", colours[version], of_version, dashed)
            for version, of_version in points.items()
            if of_version
        ]

    drawn = lines(acceptance, "")
    this_month, month_before = figures.months(rows)
    return {
        "this_month": this_month,
        "month_before": month_before,
        "versions": dict(list(versions.items())[: charts.COLOURS * 2]),
        "live_version": live,
        "colours": colours,
        "acceptance_chart": charts.chart("Acceptance by day", drawn, days, _percent, "{:.0%}".format) if drawn else "",
        "latency_chart": charts.chart(
            "Seconds to an answer by day",
            [*lines(slowest, ", p95", dashed=True), *lines(halves, ", p50")],
            days,
            _seconds,
            _seconds,
        )
        if any(halves.values())
        else "",
        "percent": _percent,
        "seconds": _seconds,
        "least": figures.LEAST,
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _seconds(value: float | None) -> str:
    return "–" if value is None else "0" if not value else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.3g} s"


def _login(request: Request, wrong: str = "", status: int = 200) -> Response:
    return _plain(request, wrong, status, asks=True)


def _plain(request: Request, wrong: str, status: int, asks: bool = False) -> Response:
    model = gateway_of(request).settings.serving_model
    return _html("login.html", status=status, wrong=wrong, model=model, asks=asks)


def _html(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page that runs no script, loads nothing, and is shown in nobody's frame."""
    nonce = secrets.token_urlsafe(16)
    return HTMLResponse(
        _pages.get_template(template).render(nonce=nonce, **values),
        status,
        {
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        },
    )
