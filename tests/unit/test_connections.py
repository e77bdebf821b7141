"""Raw sockets at the gateway's connections: nobody is waited for, and every whole request gets its answer."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from serving.gateway import connections


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and the body."""
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    body += message.get("body", b"")
    await asyncio.sleep(0.05)
    text = f"{scope['type']} {scope['path']} {body.decode()}".encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text if scope["method"] != "HEAD" else b""})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    loop = asyncio.new_event_loop()
    config = Config()
    config.set("keepalive", 1)
    config.set("asgi_disconnect_grace_period", 0)
    worker = SimpleNamespace(
        cfg=config, log=Logger(config), asgi=application, loop=loop, nr_conns=0, nr=0, max_requests=10**9, alive=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "HEAD_S", 0.5)
        patch.setattr(connections, "BODY_S", 0.7)
        server = loop.run_until_complete(loop.create_server(lambda: connections.Connection(worker), "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        yield server.sockets[0].getsockname()[1]
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()


def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """(all that comes until the server closes, seconds until then)."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        began = time.monotonic()
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found, time.monotonic() - began


POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: "


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ((b"",), b""),
        ((b"GET /a HT",), b"HTTP/1.1 408 "),
        ((b"GET /a HTTP/1.1\r\nHost: x\r\nX: ",), b"HTTP/1.1 408 "),
        ((POST + b"5\r\n\r\nab",), b"HTTP/1.1 408 "),
        ((b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",), b"HTTP/1.1 408 "),
    ],
)
def test_nobody_is_waited_for(port: int, pieces: tuple[bytes, ...], answer: bytes) -> None:
    found, seconds = talk(port, *pieces)
    assert found.startswith(answer)
    assert bool(found) is bool(answer)
    assert seconds < 5


def test_a_byte_now_and_then_keeps_nothing_open(port: int) -> None:
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        talk(port, *[b"GET /"] + [b"a"] * 50, pause_s=0.1)


def test_an_idle_connection_is_closed_behind_its_answer(port: int) -> None:
    found, seconds = talk(port, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    assert found.endswith(b"http /a ")
    assert 0.8 < seconds < 5


@pytest.mark.parametrize("cut", [None, 3, 40, 70, 100])
def test_pipelined_requests_are_answered_in_order(port: int, cut: int | None) -> None:
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    sent = POST + b"3\r\n\r\nabc" + b"HEAD /b HTTP/1.1\r\nHost: x\r\n\r\n" + POST + b"1\r\n\r\nd" + last
    found, _ = talk(port, *([sent] if cut is None else [sent[:cut], sent[cut:]]), pause_s=0.02)
    assert found.count(b"HTTP/1.1 200") == 4
    texts = [found.index(text) for text in (b"http /a abc", b"http /a d", b"http /last ")]
    assert texts == sorted(texts)


@pytest.mark.parametrize("length", [b"+3", b"-3", b"3_0", b"0x3", b"3, 3", b"", b"\xb3", b"3\r\nContent-Length: 3"])
def test_a_length_is_digits(port: int, length: bytes) -> None:
    found, _ = talk(port, POST + length + b"\r\n\r\nabc")
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1 ") == 1


def test_what_is_in_a_body_is_no_request(port: int) -> None:
    inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"HEAD /a HTTP/1.1\r\nHost: x\r\nContent-Length: " + str(len(inner)).encode() + b"\r\n\r\n"
    found, _ = talk(port, head + inner)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"inner" not in found


def test_an_upgrade_is_answered_as_the_request_that_it_is(port: int) -> None:
    asked = b"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    found, _ = talk(port, asked + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 ")
    assert found.endswith(b"http /a ")
