"""A registered version that is judged: in its own process, with its own code and nothing of ours before it.

    with open_version(version, "auto", "auto") as model:  # a JudgedModel
        …

The version's files are fetched, and version_worker.py is started on them; the two speak JSON lines over a socket. What
is judged is what serving serves. Here only data are read: the tokenizer and the configuration.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import mlflow
from mlflow.entities.model_registry import ModelVersion

from code_model.params import GenerationParams
from contract import versions
from contract.errors import InputError, RatchetError
from contract.versions import UnknownVersion
from trainer.evaluation.models import LOOK_EVERY, Ended
from trainer.training.collator import EncodedExample, collate

WORKER = Path(__file__).with_name("version_worker.py")


class VersionProcess:
    """A JudgedModel whose model is in another process."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        """Raises InputError where the version does not load."""
        from transformers import AutoTokenizer

        try:
            code = versions.code_of(folder)
        except UnknownVersion as error:
            raise InputError(error.message) from error
        ours, theirs = socket.socketpair()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        with theirs:
            self._process = subprocess.Popen(
                # -P: the worker's own folder is no place to import from.
                [
                    *(sys.executable, "-P", str(WORKER), str(theirs.fileno()), str(folder)),
                    *(code.generate, code.params, device, dtype),
                ],
                env=os.environ | code.environment(),
                cwd=code.folder,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
            )
        with ours:
            self._stream = ours.makefile("rwb")
        try:
            ready = self._receive()
            if "error" in ready:
                raise InputError(ready["error"])
            self.dtype: str = ready["dtype"]
            self.positions: int | None = ready["positions"]
            self.embeddings: int = ready["embeddings"]
            self.tokenizer: Any = AutoTokenizer.from_pretrained(ready["folder"], trust_remote_code=False)
        except BaseException:
            self.close()
            raise

    def likelihoods(self, batch: Sequence[EncodedExample]) -> list[float]:
        """As JudgedModel says."""
        inputs = {name: tensor.tolist() for name, tensor in collate(batch, self.tokenizer.pad_token_id).items()}
        del inputs["labels"]
        return [float(value) for value in self._ask({"likelihoods": inputs})["likelihoods"]]

    def complete(self, prompts: Sequence[str], params: GenerationParams, ended: Ended) -> list[str]:
        """As JudgedModel says."""
        answer = self._ask({"complete": list(prompts), "params": asdict(params), "look_every": LOOK_EVERY})
        while "new" in answer:
            answer = self._ask({"ended": [bool(value) for value in ended(answer["new"])]})
        return [str(text) for text in answer["texts"]]

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._stream.close()
        self._process.kill()  # it keeps nothing
        self._process.wait()
        self._errors.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with suppress(OSError):  # `_receive` says why
            self._stream.write(json.dumps(message).encode() + b"\n")
            self._stream.flush()
        answer = self._receive()
        if "error" in answer:
            raise RatchetError(f"The version's own code failed: {answer['error']}")
        return answer

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except OSError:
            line = b""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise RatchetError(f"The version's process ended with {code}: {said[-1] if said else 'it said nothing'}")


@contextmanager
def open_version(version: ModelVersion, device: str, dtype: str) -> Iterator[VersionProcess]:
    """A registered version, loaded as serving loads it. Raises InputError where it does not load."""
    with tempfile.TemporaryDirectory(prefix="ratchet-version-") as temporary:
        uri = f"models:/{version.name}/{version.version}"
        process = VersionProcess(Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary)), device, dtype)
        try:
            yield process
        finally:
            process.close()
