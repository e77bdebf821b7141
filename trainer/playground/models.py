"""The models to try: a registered version with its own code, and beside it the base model that it was tuned from."""

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from code_model.params import GenerationParams
from contract import names
from contract.errors import InputError
from trainer import base_model, tracking
from trainer.config import Config, ModelConfig
from trainer.data.example import Example
from trainer.evaluation.models import JudgedModel, LoadedModel
from trainer.evaluation.registered_version import find_version
from trainer.evaluation.version_process import open_version
from trainer.playground.cursor import Place, prompt_of
from trainer.training.collator import encode


class Tried(NamedTuple):
    """A model, and what to call it."""

    name: str
    model: JudgedModel


@dataclass(frozen=True)
class Answer:
    """What a model writes at a cursor."""

    name: str  # of the model
    text: str
    tokens: int
    seconds: float
    probability: float | None  # of a token of it, by the model itself: their geometric mean; None of no text
    ended: bool  # by itself: it is shorter than it might have been


@contextmanager
def opened(config: Config, model_uri: str, with_base: bool) -> Iterator[list[Tried]]:
    """The models, loaded: the base model first, where it is wanted and there. Raises InputError for what does not load.

    `model_uri`: models:/NAME/NUMBER, models:/NAME@ALIAS, or the folder of a model, which has no base model.
    """
    base_model.quiet()
    with ExitStack() as stack:
        if not model_uri.startswith("models:") and Path(model_uri).is_dir():
            yield [_from_folder(config.model, model_uri)]
            return
        client = tracking.connect(config.tracking.uri)
        version = find_version(client, model_uri)
        tried = []
        if with_base:
            try:
                tried.append(_base_of(client, version, config.model, stack))
            except InputError as error:
                note(f"Without a base model beside it: {error.message}")
        tried.append(_from_registry(version, "", config.model, stack))
        for item in tried:  # else the first one's time would have in it what is done once
            item.model.complete(["x = "], GenerationParams(max_new_tokens=1), lambda new: [False] * len(new))
        yield tried


def answer(tried: Tried, place: Place, params: GenerationParams) -> Answer:
    """What the model writes at the place. Raises InputError where there are no positions left to write at."""
    model = tried.model
    if model.positions is not None and model.positions <= params.max_new_tokens:
        raise InputError(
            f"max_new_tokens is {params.max_new_tokens}. Expected less than {model.positions}, the positions that "
            f"{tried.name} has."
        )
    prompt = prompt_of(model, place, params.max_new_tokens)
    started = time.perf_counter()
    [text] = model.complete([prompt], params, lambda new: [False] * len(new))
    seconds = time.perf_counter() - started
    item = encode(model.tokenizer, Example(prompt, text))
    tokens, probability = len(item.input_ids) - item.prompt_length - 1, None
    if text:
        [likely] = model.likelihoods([item])
        probability = math.exp(-likely.nll / (tokens + 1))
    return Answer(tried.name, text, tokens, seconds, probability, tokens < params.max_new_tokens)


def note(line: str) -> None:
    """Say something that is no answer."""
    print(line, file=sys.stderr, flush=True)


def _from_folder(config: ModelConfig, folder: str) -> Tried:
    try:
        return Tried(folder, _load(replace(config, name=folder, revision=None)))
    except InputError as error:
        raise InputError(error.message.replace("model.name", "--model-uri", 1)) from error


def _from_registry(version: ModelVersion, what: str, config: ModelConfig, stack: ExitStack) -> Tried:
    name = f"{version.name} version {version.version}{what}"
    with _progress(f"Loading {name}"):
        return Tried(name, stack.enter_context(open_version(version, config.device, config.dtype)))


def _base_of(client: MlflowClient, version: ModelVersion, config: ModelConfig, stack: ExitStack) -> Tried:
    """The base model that a version was tuned from. Raises InputError where it is not to be had.

    As the training registered it, so that it needs no network; else by its name, where that leads to the same weights.
    """
    identity = version.tags.get(names.BASE_MODEL, "")
    if version.tags.get(names.ROLE) == names.BASE:
        raise InputError(f"{version.name} version {version.version} is one itself ({identity}).")
    wanted = {names.ROLE: names.BASE, names.BASE_MODEL: identity}.items()
    found = client.search_model_versions(f"name = '{version.name}'")
    registered = next((item for item in found if wanted <= item.tags.items()), None)
    if registered is not None:
        return _from_registry(registered, ", the base model", config, stack)
    name, _, revision = identity.rpartition("@")
    if not name:
        raise InputError(f"the one that it was tuned from ({identity or 'unknown'}) is registered no more.")
    own = None if name.startswith("bundled:") else revision
    model = replace(config, name=name, revision=own, trust_remote_code=False)
    if (resolved := base_model.resolve(model)).identity != identity:
        raise InputError(f"it was tuned from {identity}, and here is {resolved.identity}.")
    return Tried(f"{name}, the base model", _load(model))


def _load(config: ModelConfig) -> LoadedModel:
    with _progress(f"Loading {config.name}"):
        base = base_model.resolve(config)
        tokenizer = base_model.load_tokenizer(base)
        return LoadedModel(base_model.load_model(base, config, tokenizer), tokenizer)


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Say what takes long, and how many seconds it has taken: each second at a terminal, else at the end."""
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            print(f"\r{what}: {time.monotonic() - started:.0f} s", end="", file=sys.stderr, flush=True)

    ticking = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        print(what, end="", file=sys.stderr, flush=True)
        ticking.start()
    ended = "failed after"
    try:
        yield
        ended = "took"
    finally:
        done.set()
        if ticking.is_alive():
            ticking.join()
        start = "\r" if sys.stderr.isatty() else ""
        print(f"{start}{what} {ended} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
