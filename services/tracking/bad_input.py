"""What MLflow answers with 500 though the request is at fault: an id too large for the database, a malformed query.

MLflow's client repeats a 500 for minutes, and whoever watches the server takes it for trouble.
"""

import errno
import json
import logging
import re
from typing import TYPE_CHECKING, Any

from contract.errors import chain, shortened

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
# By the words of SQLite, PostgreSQL, Python and graphql-core: MLflow hands them on without the kind of error.
AT_FAULT = re.compile(
    r"Python int too large|int too (large|big) to convert|(integer|bigint|smallint|value) out of range"
    r"|cannot contain NUL|embedded null|invalid byte sequence|surrogates not allowed|value too long for type"
    r"|invalid input syntax for type|File name too long|Syntax Error|cannot convert float (NaN|infinity)"
    r"|invalid literal for|argument must be a|object is not|object has no|is not a valid|_ByNameMap",
    re.IGNORECASE,
)
NAMES = (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)  # of a path that none can be
# What MLflow's handlers raise where a field is of another type than they count on.
KINDS = (OverflowError, UnicodeError, RecursionError, json.JSONDecodeError, TypeError, AttributeError, KeyError)
# Of SQLAlchemy's errors these are never the request's, whatever stands in the statement that they show.
AWAY = re.compile(r"\((\w+\.)*(OperationalError|InterfaceError|InternalError|DatabaseError|TimeoutError)\)")
# Whatever follows a failure of these, it is the server's.
STORES = ("sqlalchemy", "psycopg2", "sqlite3", "botocore", "urllib3")


def is_at_fault(error: BaseException | str) -> bool:
    """Whether a failure, or what is said of one, comes from what the client sent."""
    said = str(error).partition("[SQL:")[0]
    if AWAY.search(said):
        return False
    if AT_FAULT.search(said):
        return True
    if isinstance(error, str) or any(_is_a_stores(one) for one in chain(error)):
        return False
    return isinstance(error, KINDS) or getattr(error, "errno", None) in NAMES


def _is_a_stores(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in STORES or isinstance(error, ConnectionError | TimeoutError)


def named(inner: "ASGIApp") -> "ASGIApp":
    """An application that answers 400 where the request is at fault, and every 500 in MLflow's form."""

    async def application(scope: "Scope", receive: "Receive", send: "Send") -> None:
        failed: list[Message] = []  # the messages of an answer with 500
        begun = False

        async def hold(message: "Message") -> None:
            nonlocal begun
            if failed or (message["type"] == "http.response.start" and message["status"] == 500):
                failed.append(message)
                return
            begun = True
            await send(message)

        try:
            await inner(scope, receive, hold)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:  # of anyio's
                error = error.exceptions[0]
            status = _answer(error).status_code
            level = logging.ERROR if status >= 500 else logging.WARNING  # it may be a mistake of the server's own
            log.log(level, "%s %s: %s", scope["method"], scope["path"], status, exc_info=error)
            await _answer(error)(scope, receive, send)
            return
        if failed:
            said = _message(b"".join(message.get("body", b"") for message in failed))
            if said is None or is_at_fault(said):
                await _answer(said or "The request failed")(scope, receive, send)
                return
            for message in failed:
                await send(message)

    return application


def _message(body: bytes) -> str | None:
    """What MLflow's answer says; None for one that is not in its form."""
    try:
        found: Any = json.loads(body)
        return str(found["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _answer(error: BaseException | str) -> "Response":
    """What a client gets for a failure, in MLflow's form."""
    from mlflow.exceptions import MlflowException
    from starlette.responses import JSONResponse, Response

    if isinstance(error, MlflowException) and not is_at_fault(str(error)):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        body: str = error.serialize_as_json()  # type: ignore[no-untyped-call]
        return Response(body, status, media_type="application/json")
    if is_at_fault(error):
        words = getattr(error, "strerror", None) or error  # without the path on this machine
        said = shortened(f"The request cannot be answered: {words}", 1000)
        return JSONResponse({"error_code": "INVALID_PARAMETER_VALUE", "message": said}, 400)
    return JSONResponse({"error_code": "INTERNAL_ERROR", "message": "The server failed; its log says why."}, 500)
