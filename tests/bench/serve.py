"""Serving under load on this machine: stock `mlflow models serve`, transformers' own server, and Ratchet.

    .venv/bin/python -m tests.bench.serve                      # all, at 1, 8 and 32 clients: about ten minutes
    .venv/bin/python -m tests.bench.serve --clients 8 --only ratchet
    .venv/bin/python -m tests.bench.serve --only ratchet --neighbours 0 1   # quiet, and with one core taken

Each contestant serves SmolLM2-135M in bfloat16, one after another, on all cores. Clients ask one after another for
completions of 24, 48 or 72 tokens of pieces of Python's own source, the same ones in the same order for all, greedily;
a completion that ends early is one that the model ended. `stock` is a PyFunc whose `predict` is `model.generate`;
`transformers` is `transformers serve --continuous-batching`, asked by its chat form, since it has no other: the few
tokens of the chat template come on top. Ratchet is whole: gateway, tokens, traces to a tracking server, engine.

tok/s          tokens of completions, counted by the model's own tokenizer, from first request to last answer
p50, p99       seconds of a request
first          seconds to the first piece of a stream, median; one request in four is streamed (stock does not stream)
errors         requests without a 200, or without an answer in 120 s

`--neighbours 1` measures beside a process that keeps one core busy, as a build or a training run does; the share of the
quiet figure that is left stands at the end.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

CONTESTANTS = ("stock", "transformers", "ratchet")
TOKENS = (24, 48, 72)
STREAMED = 4  # every so many requests one is streamed, by those that stream
ASKED = {1: 8, 8: 32, 32: 96}  # requests in all, by clients
STOCK = """
import mlflow, torch
from mlflow.pyfunc.model import PythonModel
from transformers import AutoModelForCausalLM, AutoTokenizer

class Plain(PythonModel):
    def load_context(self, context):
        folder = context.artifacts["model"]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def predict(self, context, model_input, params=None):
        texts = []
        for prompt in list(model_input):
            ids = self.tokenizer(prompt, return_tensors="pt")
            with torch.inference_mode():
                out = self.model.generate(**ids, max_new_tokens=params["max_new_tokens"], do_sample=False)
            texts.append(self.tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
        return texts

mlflow.models.set_model(Plain())
"""


@dataclass
class Server:
    """A running contestant, and how it is asked."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    headers: dict[str, str] = field(default_factory=dict)
    model: str = ""

    def ask(self, session: requests.Session, prompt: str, tokens: int, stream: bool) -> tuple[str, float | None]:
        """(the completion, seconds to its first piece where it is streamed)."""
        began = time.perf_counter()
        if self.name == "stock":
            body = {"inputs": [prompt], "params": {"max_new_tokens": tokens}}
            reply = session.post(f"{self.url}/invocations", json=body, timeout=120)
            reply.raise_for_status()
            return str(reply.json()["predictions"][0]), None
        chat = self.name == "transformers"
        asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {"model": self.model, "max_tokens": tokens, "temperature": 0, "stream": stream, **asked}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        text, first = "", None
        if not stream:
            reply = session.post(self.url + path, json=body, headers=self.headers, timeout=120)
            reply.raise_for_status()
            [choice] = reply.json()["choices"]
            return str(choice["message"]["content"] if chat else choice["text"]), None
        with session.post(self.url + path, json=body, headers=self.headers, timeout=120, stream=True) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                for choice in json.loads(line[6:]).get("choices", []):
                    piece = (choice.get("delta") or {}).get("content") if chat else choice.get("text")
                    if piece:
                        first = first or time.perf_counter() - began
                        text += piece
        return text, first


@contextmanager
def running(arguments: list[str], env: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, env=os.environ | env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 180
    while True:
        try:
            if requests.get(url, timeout=2).status_code < 500:
                return
        except requests.RequestException:
            pass
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"It did not start: {log.read_text()[-3000:]}")
        time.sleep(0.2)


@contextmanager
def contestant(name: str, folder: Path, work: Path) -> Iterator[Server]:
    """Serve the model's folder by one of the contestants."""
    from contract.files import free_port
    from tests.support.serving import register, serving_process
    from tests.support.tracking import make_stack, server

    port, log = free_port(), work / f"{name}.log"
    url = f"http://127.0.0.1:{port}"
    python = Path(sys.executable)
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    with ExitStack() as stack:
        if name == "stock":
            import mlflow

            from code_model.params import GenerationParams
            from code_model.pyfunc import signature

            (work / "plain.py").write_text(STOCK)
            mlflow.pyfunc.save_model(
                work / "stock",
                python_model=str(work / "plain.py"),
                artifacts={"model": str(folder)},
                pip_requirements=[],
                signature=signature(GenerationParams()),
            )
            arguments = [str(python), "-m", "mlflow", "models", "serve", "--model-uri", str(work / "stock")]
            arguments += ["--env-manager", "local", "--port", str(port), "--timeout", "120"]
            process = stack.enter_context(running(arguments, path, log))
            wait_for(f"{url}/ping", process, log)
            yield Server(name, url, process)
        elif name == "transformers":
            arguments = [str(python.parent / "transformers"), "serve", str(folder), "--continuous-batching"]
            arguments += ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "bfloat16"]
            process = stack.enter_context(running(arguments, path, log))
            wait_for(f"{url}/health", process, log)
            yield Server(name, url, process, model=str(folder))
        else:
            tracked = make_stack(work / "tracking")
            tracked.home.mkdir()
            stack.enter_context(server(tracked))
            number = register(tracked, "bench", folder)
            tracked.client.set_registered_model_alias("bench", "production", number)
            env = {"SERVING_TIMEOUT_S": "120"}
            service = stack.enter_context(serving_process(tracked, "bench", work / "home", **env))
            service.wait_for_version(number)
            yield Server(name, service.url, service.process, model="bench")  # type: ignore[arg-type]


def measure(server: Server, clients: int, work: list[tuple[str, int]], tokenizer: Any) -> dict[str, float]:
    """Ask all of `work`, (prompt, tokens) each, by so many clients."""
    queue, lock = list(reversed(work)), threading.Lock()
    seconds: list[float] = []
    firsts: list[float] = []
    texts: list[str] = []
    errors = 0

    def client() -> None:
        nonlocal errors
        session = requests.Session()
        while True:
            with lock:
                if not queue:
                    return
                prompt, tokens = queue.pop()
                stream = len(queue) % STREAMED == 0
            began = time.perf_counter()
            try:
                text, first = server.ask(session, prompt, tokens, stream)
            except requests.RequestException:
                errors += 1
                continue
            seconds.append(time.perf_counter() - began)
            texts.append(text)
            if first is not None:
                firsts.append(first)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    count = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    ordered = sorted(seconds) or [float("nan")]
    return {
        "completions/s": len(texts) / took,
        "tok/s": count / took,
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "first": statistics.median(firsts) if firsts else float("nan"),
        "errors": errors,
    }


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes beside us, each of which keeps a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def bandwidth(folder: Path) -> float:
    """Tokens per second at which one sequence would need all that memory gives: weights read once for each token."""
    import torch

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    block = torch.ones(size // 4)
    block.sum()
    began = time.perf_counter()
    for _ in range(5):
        block.sum()
    return 5 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=list(ASKED), help="how many ask at once")
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, separated by commas")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0], help="processes that each keep a core busy")
    given = parser.parse_args()
    from transformers import AutoTokenizer

    from trainer.base_model import SMOLLM2, resolve
    from trainer.config import ModelConfig

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    base = resolve(ModelConfig(name=SMOLLM2, cache_dir=str(Path("var/models").absolute())))
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    source, chance = Path(argparse.__file__).read_text(), random.Random(0)
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory() as work, contestant(name, base.folder, Path(work)) as server:
            server.ask(requests.Session(), "def add(a, b):\n", 4, False)  # warm
            for clients, beside in itertools.product(given.clients, given.neighbours):
                chance.seed(clients)
                work_list = [
                    (source[(at := chance.randrange(len(source) - 400)) : at + chance.randint(60, 400)], tokens)
                    for _ in range(ASKED.get(clients, 3 * clients))
                    for tokens in [chance.choice(TOKENS)]
                ]
                with neighbours(beside):
                    found[name, clients, beside] = row = measure(server, clients, work_list, tokenizer)
                figures = "  ".join(f"{key} {row[key]:.2f}" for key in row)
                print(f"{name:<13}{clients:>3} clients  {beside} neighbours  {figures}", flush=True)
    print()
    quiet = min(given.neighbours)
    for name, clients in itertools.product(given.only.split(","), given.clients):
        rate = found[name, clients, quiet]["tok/s"]
        if name != "stock" and ("stock", clients, quiet) in found:
            ratio = rate / found["stock", clients, quiet]["tok/s"]
            print(f"{clients:>3} clients: {name} makes {ratio:.1f} times the tokens of stock")
        for beside in given.neighbours:
            if beside != quiet:
                share = found[name, clients, beside]["tok/s"] / rate
                print(f"{clients:>3} clients, {beside} neighbours: {name} keeps {share:.0%} of its {rate:.1f} tok/s")
    if ("ratchet", 1, 0) in found:
        limit = bandwidth(base.folder)
        share = found["ratchet", 1, 0]["tok/s"] / limit
        print(f"One sequence at this machine's memory bandwidth: {limit:.0f} tok/s; Ratchet is at {share:.0%} of it")


if __name__ == "__main__":
    main()
