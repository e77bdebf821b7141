"""How long a bad request keeps others from their next token.

    .venv/bin/python -m tests.bench.hostile                 # every kind: about five minutes
    .venv/bin/python -m tests.bench.hostile "a prompt of 1 MB" "deep nesting"

Ratchet serves SmolLM2-135M, whole: gateway, engine, traces. One client streams completions, one after another; beside
it a second one sends requests of one kind, one after another. Printed is the time between two tokens of the first
client: its median, the 99th percentile and the longest. The fair share of a second client is measured by one that
behaves: a prompt as long as the model takes, and 16 tokens. `beyond it` is the longest wait beside a bad request, less
the longest wait beside that one; `answers` are the statuses that the bad requests got.
"""

import argparse
import collections
import json
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.bench.serve import Server, contestant

SECONDS = 12.0
COMPLETION = {"prompt": "def area(width, height):\n", "temperature": 0, "max_tokens": 160, "stream": True}
SOURCE = Path(argparse.__file__).read_text()
MEGABYTE = (1 << 20) - 1024  # of a body of 1 MiB
Bad = Callable[[Server, random.Random], Any]  # sends one request: its status, or what came instead


def post(path: str, body: dict[str, Any] | str) -> Bad:
    """Sends a body as JSON."""
    data = body if isinstance(body, str) else json.dumps(body)

    def send(server: Server, chance: random.Random) -> Any:
        kind = {"Content-Type": "application/json"}
        return requests.post(
            server.url + path, data=data.encode(), headers=server.headers | kind, timeout=120
        ).status_code

    return send


def completion(**fields: Any) -> Bad:
    """Sends a completion's body."""
    return post("/v1/completions", {"prompt": "def f(a):\n", "max_tokens": 16, "temperature": 0} | fields)


def leaving(server: Server, chance: random.Random) -> Any:
    """Asks for a long stream, and goes after its first bytes."""
    body = {"prompt": SOURCE[:2000], "max_tokens": 500, "stream": True}
    url = f"{server.url}/v1/completions"
    with requests.post(url, json=body, headers=server.headers, timeout=120, stream=True) as reply:
        next(reply.iter_content(16))
        return reply.status_code


def half_sent(server: Server, chance: random.Random) -> Any:
    """Opens a hundred connections, and sends the beginning of a request on each."""
    parts = urlsplit(server.url)
    begun = []
    for _ in range(100):
        connection = socket.create_connection((parts.hostname, parts.port or 80))
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\n{")
        begun.append(connection)
    time.sleep(0.5)
    for connection in begun:
        connection.close()
    return "closed"


def repeated(text: str, size: int) -> str:
    """A text again and again, up to so many bytes of JSON."""
    return text * (size // len(json.dumps(text)[1:-1]))


SOME = [SOURCE[at : at + 4000] for at in range(0, 40_000, 400)]
KINDS: dict[str, Bad] = {
    "a prompt of 1 MB": completion(prompt=repeated(SOURCE, MEGABYTE)),
    "1 MB of one letter": completion(prompt=repeated("a", MEGABYTE)),
    "1 MB of line ends": completion(prompt=repeated("\n", MEGABYTE)),
    "1 MB of emoji": completion(prompt=repeated("\N{GRINNING FACE}", MEGABYTE)),
    "1 MB around the cursor": completion(
        prompt=repeated(SOURCE, MEGABYTE // 2), suffix=repeated(SOURCE, MEGABYTE // 2), path="argparse.py"
    ),
    "1 MB of snippets": completion(
        prompt=SOURCE[:2000],
        path="a.py",
        input_extra=[{"filename": f"{n}.py", "text": text} for n, text in enumerate(SOME)] * 2,
    ),
    "64 times": completion(n=64, temperature=1),  # what the next one is beyond
    "64 long stop texts, 64 times": completion(n=64, temperature=1, stop=[f"{n}" + "x" * 10_000 for n in range(64)]),
    "64 long prompts": completion(prompt=[SOURCE[at : at + 6000] for at in range(0, 64_000, 1000)], max_tokens=1),
    "a chat of 10,000 messages": post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 5000},
    ),
    "deep nesting": post("/v1/completions", '{"prompt": ' + "[" * 500_000 + "]" * 500_000 + "}"),
    "a number of 1 MB": post("/v1/completions", '{"prompt": "a", "max_tokens": ' + "9" * MEGABYTE + "}"),
    "100,000 unknown fields": post("/v1/completions", {"prompt": "a"} | {f"f{n}": 0 for n in range(80_000)}),
    "clients that leave": leaving,
    "half-sent bodies": half_sent,
}
FAIR = completion(prompt=SOURCE[:5500], max_tokens=16)


def waits(server: Server, bad: Bad | None) -> tuple[list[float], collections.Counter[Any]]:
    """Seconds between the tokens of one client's streams, and the answers that another got beside it."""
    over, answers = threading.Event(), collections.Counter[Any]()
    chance = random.Random(0)

    def enemy() -> None:
        while not over.is_set() and bad is not None:
            try:
                answers[bad(server, chance)] += 1
            except (requests.RequestException, OSError) as error:
                answers[type(error).__name__] += 1
                time.sleep(0.1)

    thread = threading.Thread(target=enemy)
    thread.start()
    gaps: list[float] = []
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        url = f"{server.url}/v1/completions"
        with requests.post(url, json=COMPLETION, headers=server.headers, timeout=120, stream=True) as reply:
            last = None
            for line in reply.iter_lines(chunk_size=1):
                now = time.perf_counter()
                if line.startswith(b"data: {"):
                    gaps += [] if last is None else [now - last]
                    last = now
    over.set()
    thread.join()
    return gaps, answers


def main() -> None:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of: {', '.join(KINDS)}")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Expected some of: {', '.join(KINDS)}")
    from trainer.base_model import SMOLLM2, resolve
    from trainer.config import ModelConfig

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    base = resolve(ModelConfig(name=SMOLLM2, cache_dir=str(Path("var/models").absolute())))
    with tempfile.TemporaryDirectory() as work, contestant("ratchet", base.folder, Path(work)) as server:
        FAIR(server, random.Random(0))  # warm
        fair = None
        measured: dict[str, Bad | None] = {"nobody": None, "a client that behaves": FAIR}
        measured |= {kind: KINDS[kind] for kind in given.kinds or KINDS}
        print(f"{'beside':<30}{'median':>9}{'p99':>9}{'longest':>9}{'beyond it':>11}  answers", flush=True)
        for kind, bad in measured.items():
            gaps, answers = waits(server, bad)
            gaps.sort()
            figures = [statistics.median(gaps), gaps[int(0.99 * len(gaps))], gaps[-1]]
            if bad is FAIR:
                fair = gaps[-1]
            beyond = "" if fair is None or bad is FAIR else f"{1000 * (gaps[-1] - fair):+.0f} ms"
            said = ", ".join(f"{answer}: {count}" for answer, count in answers.most_common())
            print(
                f"{kind:<30}" + "".join(f"{1000 * item:>6.0f} ms" for item in figures) + f"{beyond:>11}  {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
