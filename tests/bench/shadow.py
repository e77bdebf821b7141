"""What a challenger in the shadow costs those who are answered: `python -m tests.bench.shadow`.

SmolLM2 serves people who type: each waits for a completion, and then a while. In turns
a challenger is in the shadow with copies of half of the requests, or is not. Printed are the times to an answer,
their ratio, and how many copies the challenger has answered.
"""

import random
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np
import requests

from contract.names import CHALLENGER_ALIAS, PRODUCTION, TRIAL, TRIAL_SHARE
from contract.trials import Trial
from tests.support.serving import Serving, register, serving_process
from tests.support.tracking import Stack, make_stack, server

MODEL = "shadowed"


def types(service: Serving, seconds: float, people: int, seed: int) -> list[float]:
    """Seconds of each answer."""
    source, took = Path(shutil.__file__).read_text(), list[float]()
    until = time.monotonic() + seconds

    def person(number: int) -> None:
        dice, session = random.Random(1000 * seed + number), requests.Session()
        while time.monotonic() < until:
            at = dice.randrange(len(source) - 400)
            asked = {"prompt": source[at : at + 300], "max_tokens": 12, "temperature": 0}
            began = time.monotonic()
            session.post(f"{service.url}/v1/completions", json=asked, timeout=60).raise_for_status()
            took.append(time.monotonic() - began)
            time.sleep(dice.expovariate(1 / 3.0))  # they read it, and type

    threads = [threading.Thread(target=person, args=(number,)) for number in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def shadow(stack: Stack, service: Serving, on: bool) -> None:
    """Let the challenger be in the shadow, or let it get as good as nothing; its process runs all the time."""
    stack.client.set_model_version_tag(MODEL, "2", TRIAL_SHARE, "0.5" if on else "0.001")
    trial = Trial(id="bench", until=time.time() + 7200, shadow=True)
    stack.client.set_model_version_tag(MODEL, "2", TRIAL, trial.model_dump_json())
    stack.client.set_registered_model_alias(MODEL, CHALLENGER_ALIAS, "2")
    wanted = 0.5 if on else 0.001
    service.wait_for(
        lambda: (found := service.status()["challenger"]) and found["live"] and found["share"] == wanted,
        "it follows",
        300,
    )


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Of each turn.")
@click.option("--turns", default=6, show_default=True, help="Of each kind.")
@click.option("--people", default=4, show_default=True)
def main(seconds: float, turns: int, people: int) -> None:
    """Print the table."""
    from trainer.base_model import SMOLLM2, resolve
    from trainer.config import ModelConfig

    base = resolve(ModelConfig(name=SMOLLM2, cache_dir=str(Path("var/models").absolute())))
    found: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "tracking").mkdir()
        stack = make_stack(Path(work) / "tracking")
        with server(stack):
            for _ in range(2):
                register(stack, MODEL, base.folder)
            stack.client.set_registered_model_alias(MODEL, PRODUCTION, "1")
            with serving_process(stack, MODEL, Path(work) / "serving") as service:
                service.wait_for(lambda: service.version() == "1", "it serves", 300)
                shadow(stack, service, False)
                types(service, 10, people, 0)  # warm
                for turn in range(turns):
                    for on in (turn % 2 == 0, turn % 2 == 1):
                        shadow(stack, service, on)
                        found[on] += types(service, seconds, people, turn)
                dropped = service.metric("ratchet_shadow_dropped_total")
    for name, of in (("median", statistics.median), ("p95", lambda took: float(np.quantile(took, 0.95)))):
        alone, beside = of(found[False]), of(found[True])
        dice = random.Random(0)
        again = [of(dice.choices(found[True], k=len(found[True]))) / of(dice.choices(found[False], k=len(found[False])))
                 for _ in range(2000)]  # fmt: skip
        low, high = np.quantile(again, (0.025, 0.975))
        click.echo(
            f"{name:7s} alone {alone * 1000:.0f} ms, with a shadow {beside * 1000:.0f} ms, ratio {beside / alone:.3f} "
            f"(surely between {low:.3f} and {high:.3f})"
        )
    click.echo(f"requests alone {len(found[False])}, with a shadow {len(found[True])}; copies left out {dropped:.0f}")


if __name__ == "__main__":
    main()
