"""The process in which a version is judged: its own code, and of ours this file alone.

    python -P version_worker.py SOCKET_FD FOLDER GENERATE PARAMS DEVICE DTYPE PARENT     (started by version_process.py)

JSON lines over the socket. First it says what it has loaded, or why not:
    {"dtype", "positions", "window", "embeddings", "folder"} or {"error"}
Then it answers:
    {"likelihoods": collated batch, "allowed": [[token ids, one a step], one a row]}
                                                        → {"likelihoods": [[nats, one a token], one a row],
                                                           "ends": [bool, one a row]}
                                                          of the first steps among those that are allowed
    {"complete": prompts, "params": …, "look_every": n} → {"new": [[ids], one a row]} every n tokens, to be answered
                                                          with {"ended": [bool, one a row]}; at last {"texts": […]}
Whatever fails is {"error"}. Imports nothing of ours: `code_model` here is the version's.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
from typing import IO, Any

PR_SET_PDEATHSIG = 1


def main(stream: IO[bytes], folder: str, generate_module: str, params_module: str, device: str, dtype: str) -> None:
    """Serve one connection."""

    def send(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message).encode() + b"\n")
        stream.flush()

    try:
        import mlflow
        import torch
        from torch.nn.functional import cross_entropy
        from transformers import StoppingCriteria

        options = {"device": device, "dtype": dtype}
        loaded: Any = mlflow.pyfunc.load_model(folder, model_config=options)
        loaded = loaded.unwrap_python_model()
        model, tokenizer = loaded.model, loaded.tokenizer
        generate = importlib.import_module(generate_module).generate
        params_type = importlib.import_module(params_module).GenerationParams
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        send(
            {
                "dtype": str(model.dtype),
                "positions": positions if positions is not None and positions > 0 else None,
                "window": getattr(model.config, "ratchet_window", None),
                "embeddings": int(model.get_input_embeddings().weight.shape[0]),
                "folder": tokenizer.name_or_path,
            }
        )
    except BaseException as error:  # whatever the version's own code raises, SystemExit too
        send({"error": f"{type(error).__name__}: {error}"})
        return

    class Asking(StoppingCriteria):  # type: ignore[misc]
        """Asks every few tokens which rows have ended."""

        def __init__(self, look_every: int) -> None:
            self.look_every, self.steps = look_every, 0
            self.ended: list[bool] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # (B, T) → (B,)
            self.steps += 1
            if self.steps % self.look_every == 0:
                send({"new": input_ids[:, -self.steps :].tolist()})
                self.ended = json.loads(stream.readline())["ended"]
            return torch.tensor(self.ended or [False] * len(input_ids), device=input_ids.device)

    def likelihoods(inputs: dict[str, Any], allowed: list[Any]) -> dict[str, Any]:
        tensors = {name: torch.tensor(values, device=model.device) for name, values in inputs.items()}
        targets = tensors.pop("shift_labels")  # (B, kept places), -100 on prompt and padding
        with torch.inference_mode():
            logits = model(**tensors).logits.float()  # (B, kept places, vocab)
            losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
            likeliest = logits.argmax(-1)
            found: dict[str, Any] = {"likelihoods": [], "ends": []}
            for row in range(len(targets)):
                places = (targets[row] != -100).nonzero()[:, 0]
                for place, tokens in zip(places, allowed[row], strict=False):
                    among = logits[row, place, torch.tensor(tokens, device=model.device)].logsumexp(-1)
                    losses[row, place] = among - logits[row, place, targets[row, place]]
                found["likelihoods"].append(losses[row, places].tolist())
                found["ends"].append(bool(likeliest[row, places[-1]] == targets[row, places[-1]]))
        return found

    while line := stream.readline():
        message = json.loads(line)
        try:
            if "likelihoods" in message:
                send(likelihoods(message["likelihoods"], message["allowed"]))
            else:
                params = params_type(**message["params"] | {"stop": tuple(message["params"]["stop"])})
                asking = Asking(message["look_every"])
                send({"texts": generate(model, tokenizer, message["complete"], params, asking)})
        except Exception as error:  # whatever the version's own code raises
            send({"error": f"{type(error).__name__}: {error}"})


def _end_with(parent: int) -> None:
    """Have the kernel end this process with the trainer, also where the version's code blocks (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _end_with(int(sys.argv.pop()))
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connected = connection.makefile("rwb")
    with connected:
        main(connected, *sys.argv[2:])  # type: ignore[arg-type]
