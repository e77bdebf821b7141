"""Which failures of MLflow's are the request's fault: 400 ends a client's work, 500 is repeated by it for minutes."""

import asyncio
import errno
from typing import Any

import pytest
from sqlalchemy.exc import DataError, OperationalError

from services.tracking.bad_input import is_at_fault, named

AWAY = (
    "(psycopg2.OperationalError) server closed the connection unexpectedly [SQL: INSERT INTO tags VALUES (%(value)s)] "
    "[parameters: {'value': 'object has no attribute, int too large to convert'}]"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Python int too large to convert to SQLite INTEGER", True),
        ("(psycopg2.errors.NumericValueOutOfRange) integer out of range [SQL: SELECT 1]", True),
        ("A string literal cannot contain NUL (0x00) characters.", True),
        (OSError(errno.ENAMETOOLONG, "File name too long"), True),
        (TypeError("int() argument must be a string, not 'list'"), True),
        (DataError("SELECT 1", {}, ValueError("integer out of range")), True),
        (AWAY, False),
        (OperationalError("SELECT 'invalid literal for'", {}, ValueError("the connection is gone")), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ConnectionResetError(), False),
        ("the registry broke", False),
    ],
)
def test_who_is_at_fault(error: Any, expected: bool) -> None:
    assert is_at_fault(error) == expected


def test_what_followed_from_a_lost_connection_is_the_servers() -> None:
    lost = TypeError("object is not iterable in a way")
    lost.__cause__ = OperationalError("SELECT 1", {}, ValueError("the connection is gone"))
    lost.args = ("'NoneType' has no rows",)
    assert not is_at_fault(lost)


@pytest.mark.parametrize(
    ("fails", "status"),
    [(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), 400), (OSError(5), 500)],
)
def test_every_failure_is_an_answer_in_mlflows_form(fails: Exception, status: int) -> None:
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})
        raise ExceptionGroup("of anyio", [fails])

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/x"}
    asyncio.run(named(inner)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    assert b'"error_code"' in sent[1]["body"]
    assert len(sent) == 2
