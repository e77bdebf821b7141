"""Who may look at the page, who may act on it, and whether a form comes from the page itself.

The cookie holds the token. It opens this page and nothing else: the API takes tokens from the Authorization header
alone.
"""

import base64
import getpass
import hashlib
import hmac
import importlib.util
import ipaddress
import json
import re
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from contract.tokens import Owner, bearer
from serving.gateway.errors import Refusal
from serving.gateway.worker import Gateway

COOKIE, SAID = "ratchet_token", "ratchet_said"
COOKIE_S, SAID_S = 12 * 3600, 60
LONGEST_SAID = 3500  # bytes; a browser takes cookies of 4,096
PREFIX = re.compile(r"(/[A-Za-z0-9_-]+){0,4}")  # below which a proxy shows the page
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Visitor:
    """Who looks."""

    name: str
    token: str  # empty if none is needed
    why_not: str  # they may not act; empty if they may
    form_token: str  # that each form of theirs has to hold

    @property
    def may_act(self) -> bool:
        return not self.why_not


def visitor(request: Request, gateway: Gateway) -> Visitor | None:
    """Who looks; None for whom no token lets in."""
    if not gateway.tokens.needed:
        return _of_this_machine(request, gateway)
    token = bearer(request.headers.get("authorization", "")) or request.cookies.get(COOKIE, "")
    owner = gateway.tokens.owner(token) if token else None
    if owner is None:
        return None
    form_token = hmac.new(token.encode(), b"form", hashlib.sha256).hexdigest()
    return Visitor(owner.name, token, _why_not(owner, gateway), form_token)


def _why_not(owner: Owner, gateway: Gateway) -> str:
    if not owner.admin:
        return "Your token is not an administrator's."
    if not gateway.settings.serving_promoter_url and not _has_promoter():
        return "No promoter is installed here. Expected SERVING_PROMOTER_URL."
    return ""


def _of_this_machine(request: Request, gateway: Gateway) -> Visitor:
    """Without tokens: whoever is on this machine acts, as long as nobody else can reach the page."""
    why_not = ""
    if not (_is_loopback(gateway.settings.serving_host) and _is_loopback(request.url.hostname or "")):
        why_not = "Without tokens one acts from this machine alone: SERVING_TOKENS_FILE names administrators."
    elif gateway.settings.serving_promoter_url:
        why_not = "The promoter's server wants an administrator's token. Expected SERVING_TOKENS_FILE."
    elif not _has_promoter():
        why_not = "No promoter is installed here."
    # The folder's name is random, and known to this machine alone.
    form_token = hashlib.sha256(f"form {gateway.settings.serving_run_folder}".encode()).hexdigest()
    return Visitor(getpass.getuser(), "", why_not, form_token)


def _has_promoter() -> bool:
    return importlib.util.find_spec("promoter") is not None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def form(request: Request) -> dict[str, str]:
    """A form's fields. Raises Refusal for what this page has not sent."""
    site, origin = request.headers.get("sec-fetch-site", ""), request.headers.get("origin")
    sender = None if origin is None else origin.partition("://")[2].lower()
    if site not in ("", "same-origin", "none") or sender not in (None, request.headers.get("host", "").lower()):
        raise Refusal(403, "This form was sent by another site. Expected one of this page.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Refusal(415, f"Expected a form ({FORM}).")
    try:
        text = (await request.body()).decode()
        fields = parse_qs(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=20, errors="strict")
    except ValueError as error:
        raise Refusal(400, "This is no form. Expected fields as a browser sends them.") from error
    return {name: values[-1] for name, values in fields.items()}


def check(fields: dict[str, str], who: Visitor) -> None:
    """Raise Refusal for a form that was not made for this visitor."""
    if not hmac.compare_digest(fields.get("form_token", "").encode(), who.form_token.encode()):
        raise Refusal(403, "This form is not of your page, or of an old one. Open the page again.")


def prefix(request: Request) -> str:
    """The path below which a proxy shows the page; as a rule none."""
    given = request.headers.get("x-forwarded-prefix", "")
    return given if PREFIX.fullmatch(given) else ""


def remember(request: Request, response: Response, token: str) -> None:
    """Set the cookie that lets a browser in, or, without a token, take it away."""
    _set(request, response, COOKIE, token, COOKIE_S if token else 0)


def say(request: Request, response: Response, ok: bool, text: str) -> None:
    """Have the page that comes next say something, once."""
    while True:
        told = json.dumps([ok, text], ensure_ascii=False).encode(errors="replace")
        if len(value := base64.urlsafe_b64encode(told).decode().rstrip("=")) <= LONGEST_SAID:
            break
        text = text[len(text) // 4 + 1 :]  # the end says most
    _set(request, response, SAID, value, SAID_S)


def said(request: Request, response: Response) -> None:
    """What was to be said has been."""
    if SAID in request.cookies:
        _set(request, response, SAID, "", 0)


def to_say(request: Request) -> tuple[bool, str] | None:
    """The result of the last action, and whether it succeeded; None if there is nothing to show."""
    try:
        ok, text = json.loads(base64.urlsafe_b64decode(request.cookies.get(SAID, "") + "=="))
        str(text).encode()  # or it cannot be shown
        return bool(ok), str(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _set(request: Request, response: Response, name: str, value: str, max_age: int) -> None:
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
    response.set_cookie(
        name, value, max_age=max_age, path=f"{prefix(request)}/", secure=secure, httponly=True, samesite="strict"
    )
