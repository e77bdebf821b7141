"""What a version takes in the artifact store: once for both of its names, against a copy for each as 0.1.0 had it.

    python -m tests.bench.version_size [--billions 1.5]

Makes a model in the shape of Qwen2.5 1.5B with random weights in bfloat16, registers it as `trainer train` does, and
counts the bytes in the store; then logs it by `mlflow.transformers` too, which is what 0.1.0 did besides.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.models import tokenizers
from trainer import register
from trainer.config import load_config

# Qwen2.5-1.5B: 28 layers. The number of layers scales it.
SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LAYERS_PER_BILLION = 28 / 1.54


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def model_of(billions: float) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    layers = max(1, round(billions * LAYERS_PER_BILLION))
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_hidden_layers=layers))
    torch.set_default_dtype(torch.float32)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=1.5, help="parameters")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as temporary:
        folder, store = Path(temporary), Path(temporary, "store")
        model, tokenizer = model_of(options.billions), tokenizers.wrap(tokenizers.byte_level())
        count = sum(weight.numel() for weight in model.parameters())
        print(f"{count / 1e9:.2f} billion parameters, {2 * count / 1e9:.2f} GB in bfloat16")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("size", artifact_location=str(store))
        mlflow.set_experiment("size")
        config = load_config(None, ["data.source=x", "tracking.experiment_name=size"])
        saved = folder / "model"
        register.save_model(model, tokenizer, config, "a card", (), saved)
        began = time.monotonic()
        with mlflow.start_run() as run:
            client = mlflow.MlflowClient()
            logged = register.log_model(model, tokenizer, saved)
            registered = register.register(client, run.info.run_id, config, logged, "size", {}, "key")
        seconds = time.monotonic() - began
        now = bytes_below(store)
        names = f"{registered.pytorch.name} and {registered.pyfunc.name}"
        print(f"now: {now / 1e9:.2f} GB in the store for {names}, {seconds:.0f} s")
        with mlflow.start_run():
            mlflow.transformers.log_model(
                {"model": model, "tokenizer": tokenizer},
                name="pytorch_model",
                task="text-generation",
                pip_requirements=[],
            )
        before = bytes_below(store)
        print(f"as 0.1.0 had it: {before / 1e9:.2f} GB, {before / now:.2f} times as much")


if __name__ == "__main__":
    main()
