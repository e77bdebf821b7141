"""Requests of every wrong kind, at a gateway that runs: `python -m tests.support.fuzz URL --requests 100000`.

    TOKEN=… python -m tests.support.fuzz http://127.0.0.1:8000 --requests 1000 --seed 7

Bodies are those of each form with fields of other types, sizes and encodings, or no JSON at all; heads are those of
HTTP with bytes changed, added, repeated and left out. Prints how many got which answer, and each that is wrong: a 5xx
but 503, a traceback, an error that is not in the form of its path, or none within 60 s. Exit code 1 where there is any.
"""

import argparse
import collections
import json
import os
import random
import socket
import sys
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
LONG = "x" * 30_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**18, 10**30, "", "x", "1", "\x00", "\ud800", "é☺", LONG),
    *([], [[]], {}, {"a": {}}, ["x"] * 70, [1, 2, 3], [None], [LONG], {"": ""}, [{"type": "text", "text": "x"}]),
)
MESSAGE = {"role": "user", "content": "x"}
FORMS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "def f(", "max_tokens": 1, "suffix": "\n", "path": "a.py", "input_extra": []},
    "/v1/chat/completions": {"messages": [MESSAGE], "max_tokens": 1},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": 1, "input_extra": []},
    "/invocations": {"inputs": ["x"], "params": {"max_new_tokens": 1}},
    "/v1/events": {"type": "select", "completion_id": "cmpl-x", "choice_index": 0, "elapsed": 900},
    "/ingest/continue": {"name": "autocomplete", "data": {"accepted": True, "prompt": "a", "completion": "b"}},
    "/tabby/v1/completions": {"language": "python", "segments": {"prefix": "a", "suffix": "b"}},
    "/feedback": {"id": "cmpl-x", "accepted": True, "comment": "x"},
    "/webhook": {},
}
FIELDS = (
    *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "stream"),
    *("stream_options", "logprobs", "echo", "best_of", "suffix", "prompt", "messages", "input_extra", "path", "user"),
    *("logit_bias", "tools", "response_format", "repeat_penalty", "inputs", "params", "dataframe_split", "\ud83d", ""),
)
TYPES = (
    "application/json",
    "text/plain",
    "",
    "application/json; charset=utf-16",
    "text/csv",
    "multipart/form-data",
    "é",
)
RAW = (
    b"",
    b"{",
    b"\xff\xfe{}",
    b"null",
    b"[]",
    b'{"prompt": NaN}',
    b'{"prompt": ' + b"[" * 8000 + b"]" * 8000 + b"}",
    b'{"seed": ' + b"9" * 9000 + b"}",
    b'{"prompt": "\\ud800"}',
    b'{"a": 1, "a": 2}',
    b"prompt=x",
    b"\x1f\x8b\x08",
    bytes(range(256)),
)
JUNK = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"HTTP/1.1",
    b"Content-Length: 3\r\n",
    b"\xff",
    b"GET / ",
    b";" * 200,
)


@dataclass
class Found:
    """Answers so far, and what is wrong with some."""

    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def body_of(chance: random.Random, path: str) -> bytes:
    """A body for a path: seldom a right one."""
    if chance.random() < 0.15:
        return chance.choice(RAW)
    body = dict(FORMS[path])
    for _ in range(chance.randint(0, 3)):
        name = chance.choice([*body, *FIELDS]) if body else chance.choice(FIELDS)
        body[name] = chance.choice(VALUES)
    if chance.random() < 0.1 and body:
        del body[chance.choice(list(body))]
    return json.dumps(body, ensure_ascii=chance.random() < 0.9).encode("utf-8", "surrogatepass")


def request_of(chance: random.Random, host: str, token: str) -> tuple[str, bytes, bool]:
    """(path, all bytes of a request, whether its head is as it should be)."""
    path = chance.choice(list(FORMS))
    method = "POST" if chance.random() < 0.9 else chance.choice(["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    if chance.random() < 0.05:
        path += chance.choice(["/", "/../status", "?a=%ff", "%00", "//", "/x" * 100])
    body = b"" if method in ("GET", "HEAD") else body_of(chance, path if path in FORMS else "/v1/completions")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {chance.choice(TYPES)}", "Connection: close"]
    if chance.random() < 0.98:
        lines.append(f"Authorization: Bearer {token}")
    if chance.random() < 0.03:
        lines.append(f"Content-Encoding: {chance.choice(['gzip', 'br', 'identity', 'x'])}")
    if chance.random() < 0.1 and body:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part) + b"0\r\n\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    whole = chance.random() < 0.85
    if not whole:
        head = spoilt(chance, head)
    return path, head + body, whole


def spoilt(chance: random.Random, head: bytes) -> bytes:
    """A head with some bytes changed, added, repeated or left out."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(head))
        what = chance.random()
        if what < 0.4:
            head = head[:at] + chance.choice(JUNK) + head[at:]
        elif what < 0.7:
            head = head[:at] + bytes([chance.randrange(256)]) + head[at + 1 :]
        elif what < 0.85:
            head = head[:at] + head[at + chance.randint(1, 20) :]
        else:
            head = head[:at] + head[max(0, at - 40) :]
        head = head or b"\r\n"
    return head


def exchange(host: str, port: int, sent: bytes, whole: bool) -> bytes:
    """What the server answers, until it closes; where a request is not whole, nothing comes behind it."""
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        try:
            connection.sendall(sent)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has refused already
        found = b""
        try:
            while piece := connection.recv(1 << 16):
                found += piece
        except ConnectionResetError:
            pass
        return found


def judged(path: str, sent: bytes, answer: bytes, whole: bool) -> tuple[str, str | None]:
    """(the status, or `nothing` if none came; the fault of the answer, None if it has none)."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.") else "nothing"
    if b"Traceback" in answer or b'File "' in answer:
        return status, "a traceback"
    if status.startswith("5") and status != "503":
        return status, f"status {status}"
    if status == "nothing" and whole:
        return status, "no answer"
    is_json = b"application/json" in head.lower()
    if whole and status.startswith("4") and is_json and not sent.startswith(b"HEAD"):
        try:
            found = json.loads(body)
        except ValueError:
            return status, "an error that is no JSON"
        if len(body) > 2000:
            return status, f"an error of {len(body)} bytes"
        message = (
            found["error"].get("message") if path.startswith("/v1/") and "error" in found else found.get("message")
        )
        if not message:
            return status, "an error without a message"
    return status, None


def run(url: str, token: str, requests: int, seed: int, threads: int = 8) -> Found:
    """Send so many requests, and judge the answers."""
    parts, found = urlsplit(url), Found()
    host, port = parts.hostname or "", parts.port or 80

    def work(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        for _ in range(requests // threads):
            path, sent, whole = request_of(chance, f"{host}:{port}", token)
            try:
                status, wrong = judged(path, sent, exchange(host, port, sent, whole), whole)
            except TimeoutError:
                status, wrong = "timeout", f"nothing within {TIMEOUT_S:.0f} s"
            with found.lock:
                found.answers[status] += 1
                if wrong:
                    found.wrong.append(f"{wrong}: {sent[:1000]!r}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the gateway's")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = run(given.url, os.environ.get("TOKEN", ""), given.requests, given.seed)
    for status, count in sorted(found.answers.items()):
        print(f"{status:>8} {count:>8}")
    for wrong in found.wrong[:20]:
        print(wrong)
    print(f"{sum(found.answers.values())} requests, {len(found.wrong)} answers that are wrong")
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
