"""A registered version that is judged: in its own process, with its own code and nothing of ours before it.

    with open_version(version, "auto", "auto") as model:  # a JudgedModel
        …

The version's files are fetched, and version_worker.py is started on them; the two speak JSON lines over a socket. What
is judged is what serving serves. Here only data are read: the tokenizer and the configuration.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mlflow.entities.model_registry import ModelVersion

from code_model import healing
from code_model.params import GenerationParams
from contract import manifest, versions
from contract.errors import InputError, RatchetError
from contract.fetching import fetch
from contract.manifest import NotAsTrained
from contract.versions import UnknownVersion
from trainer.evaluation.models import LOOK_EVERY, Ended, Likelihood, summed
from trainer.training.collator import EncodedExample, collate

START_TIMEOUT_S = 600  # as long as serving waits (SERVING_START_TIMEOUT_S)
WORKER = Path(__file__).with_name("version_worker.py")


class VersionProcess:
    """A JudgedModel whose model is in another process."""

    def __init__(self, folder: Path, tags: Mapping[str, str], device: str, dtype: str) -> None:
        """Raises InputError for files that are not those of training, and where the version does not load."""
        from transformers import AutoTokenizer

        manifest.check(folder, tags)  # before any of its code runs: what serving refuses gives no evidence either
        try:
            code = versions.code_of(folder, tags)
        except UnknownVersion as error:
            raise InputError(error.message) from error
        ours, theirs = socket.socketpair()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        with theirs:
            self._process = subprocess.Popen(
                # -P: the worker's own folder is no place to import from.
                [
                    *(sys.executable, "-P", str(WORKER), str(theirs.fileno()), str(folder)),
                    *(code.generate, code.params, device, dtype, str(os.getpid())),
                ],
                env=os.environ | code.environment(),
                cwd=code.folder,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # so that whatever it starts ends with it
            )
        ours.settimeout(START_TIMEOUT_S)
        self._socket, self._stream = ours, ours.makefile("rwb")
        try:
            try:
                ready = self._receive()
            except RatchetError as error:
                raise InputError(error.message) from error
            ours.settimeout(None)
            if "error" in ready:
                raise InputError(ready["error"])
            self.dtype: str = ready["dtype"]
            self.positions: int | None = ready["positions"]
            self.window: int | None = ready["window"]
            self.embeddings: int = ready["embeddings"]
            self.tokenizer: Any = AutoTokenizer.from_pretrained(ready["folder"], trust_remote_code=False)
        except BaseException:
            self.close()
            raise

    def likelihoods(self, batch: Sequence[EncodedExample]) -> list[Likelihood]:
        """As JudgedModel says."""
        inputs = {name: tensor.tolist() for name, tensor in collate(batch, self.tokenizer.pad_token_id).items()}
        del inputs["labels"]
        # By our healing and not the version's: an old one that has none is judged like a new one.
        words = healing.vocabulary(self.tokenizer)
        allowed = [
            [ids.tolist() for ids in words.steps(item.held, item.input_ids[item.prompt_length :])] for item in batch
        ]
        answer = self._ask({"likelihoods": inputs, "allowed": allowed})
        return [
            summed(self.tokenizer, item, [float(value) for value in losses], bool(ends))
            for item, losses, ends in zip(batch, answer["likelihoods"], answer["ends"], strict=True)
        ]

    def complete(self, prompts: Sequence[str], params: GenerationParams, ended: Ended) -> list[str]:
        """As JudgedModel says."""
        answer = self._ask({"complete": list(prompts), "params": asdict(params), "look_every": LOOK_EVERY})
        while "new" in answer:
            answer = self._ask({"ended": [bool(value) for value in ended(answer["new"])]})
        texts = answer["texts"]
        if len(texts) != len(prompts) or not all(isinstance(text, str) for text in texts):
            raise RatchetError(f"The version's own code failed: {str(texts)[:100]} for {len(prompts)} prompts")
        return list(texts)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._stream.close()
            self._socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it keeps nothing
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
            if line:
                return dict(json.loads(line))
        except TimeoutError:
            raise RatchetError(f"it has not loaded within {START_TIMEOUT_S} s") from None
        except OSError:
            pass
        except (ValueError, TypeError) as error:  # its code has found the socket
            raise RatchetError(f"The version's own code says what is no answer: {error}") from error
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise RatchetError(f"its process ended with {code}: {said[-1] if said else 'it said nothing'}")


@contextmanager
def open_version(version: ModelVersion, device: str, dtype: str) -> Iterator[VersionProcess]:
    """A registered version, loaded as serving loads it. Raises InputError where it does not load."""
    with tempfile.TemporaryDirectory(prefix="ratchet-version-") as temporary:
        try:
            folder = fetch(version, Path(temporary))
            process = VersionProcess(folder, version.tags, device, dtype)
        except InputError as error:
            why = error.message.rstrip(".")
            lost = isinstance(error, NotAsTrained)
            hint = " Restore them in the artifact store, or delete the version: it is made anew." if lost else ""
            raise InputError(f"{version.name} version {version.version} does not load: {why}.{hint}") from error
        try:
            yield process
        finally:
            process.close()
