"""Memory and time of preparing data, from 1,000 to 1,000,000 examples, against the plain way to do it.

    .venv/bin/python -m tests.bench.data_memory                 # to 100,000: four minutes
    .venv/bin/python -m tests.bench.data_memory 1000000         # further sizes; the plain way stops at 100,000
    .venv/bin/python -m tests.bench.data_memory --code          # so many functions, in files: ours alone

Each size runs in a process of its own. The plain way holds the rows in a list and datasketch's own MinHashLSH in
memory, and does less: it reads, deduplicates, and counts tokens.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

SIZES = (1_000, 10_000, 100_000)
PLAIN_MOST = 100_000
WORDS = [f"{verb}_{noun}" for verb in ("get", "set", "load", "send", "make") for noun in map(str, range(400))]


def write_rows(path: Path, count: int) -> None:
    """Rows like functions of 40 to 90 words; one in 20 is a copy, one in 20 nearly so, of a recent one."""
    draw = random.Random(0)
    recent: list[list[str]] = []
    with path.open("w") as file:
        for _ in range(count):
            chance = draw.random()
            if recent and chance < 0.1:
                body = list(draw.choice(recent))
                if chance < 0.05:
                    body[draw.randrange(len(body))] = "changed"
            else:
                body = draw.choices(WORDS, k=draw.randrange(40, 90))
            recent = [*recent[-99:], body]
            lines = [f"    {' '.join(body[n : n + 6])}\n" for n in range(0, len(body), 6)]
            file.write(json.dumps({"prompt": f"def {body[0]}():\n", "completion": "".join(lines)}) + "\n")


def write_files(path: Path, count: int) -> None:
    """Rows that hold files of twenty such functions: so many functions, in folders of a hundred files."""
    functions = path.with_name("functions.jsonl")
    write_rows(functions, count)
    with functions.open() as lines, path.open("w") as file:
        for number, rows in enumerate(iter(lambda: list(islice(lines, 20)), [])):
            found = [json.loads(row) for row in rows]
            text = "import os\n\n\n" + "\n\n".join(row["prompt"] + as_code(row["completion"]) for row in found)
            file.write(json.dumps({"content": text, "path": f"part{number // 100}/module{number}.py"}) + "\n")
    functions.unlink()


def as_code(body: str) -> str:
    """A body's words as statements."""
    return "".join(f"    {' = '.join(line.split())}\n" for line in body.splitlines())


def prepare_ours(path: Path) -> tuple[int, float]:
    """(examples kept, MB in use before)."""
    from trainer import base_model
    from trainer.config import load_config
    from trainer.preparation import prepare_data

    config = load_config(None, [f"data.source={path}", "trainer.max_length=1024"])
    tokenizer = base_model.load_tokenizer(base_model.resolve(config.model))
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(config, tokenizer, Path(folder), None)
        kept = sum(1 for _ in data.train) + len(data.held_out)  # read once, as an epoch does
    return kept, before


def prepare_plainly(path: Path) -> tuple[int, float]:
    """(examples kept, MB in use before)."""
    from datasketch import MinHash, MinHashLSH

    from trainer import base_model
    from trainer.config import ModelConfig, load_config

    config: ModelConfig = load_config(None, []).model
    tokenizer = base_model.load_tokenizer(base_model.resolve(config))
    before = peak_mb()
    rows = [json.loads(line) for line in path.open()]
    index, kept = MinHashLSH(threshold=0.8, num_perm=128), []
    for number, row in enumerate(rows):
        tokens = (row["prompt"] + row["completion"]).split()
        minhash = MinHash(num_perm=128)
        minhash.update_batch([" ".join(tokens[start : start + 5]).encode() for start in range(len(tokens))])
        if not index.query(minhash):
            index.insert(number, minhash)
            kept.append(row)
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) for row in kept]
    return len(lengths), before


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Run every size in its own process, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="numbers of examples")
    parser.add_argument("--code", action="store_true", help="functions in files of code, and not rows")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, path = options.one
        started = time.monotonic()
        kept, before = (prepare_ours if way == "ours" else prepare_plainly)(Path(path))
        print(json.dumps({"kept": kept, "seconds": time.monotonic() - started, "peak": peak_mb(), "before": before}))
        return
    print(f"{'examples':>10} {'way':<8}{'seconds':>9}{'peak MB':>9}{'above start':>13}{'kept':>10}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.jsonl")
            (write_files if options.code else write_rows)(path, size)
            found = {}
            for way in ("ours", "plain") if size <= PLAIN_MOST and not options.code else ("ours",):
                command = [sys.executable, "-m", "tests.bench.data_memory", "--one", way, str(path)]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                result = found[way] = json.loads(answer.splitlines()[-1])
                above = result["peak"] - result["before"]
                print(
                    f"{size:>10,} {way:<8}{result['seconds']:>9.1f}{result['peak']:>9.0f}{above:>13.0f}"
                    f"{result['kept']:>10,}",
                    flush=True,
                )
            if len(found) == 2:
                memory, seconds = (found["ours"][key] / found["plain"][key] for key in ("peak", "seconds"))
                print(f"{'':>10} ours / plain: memory {memory:.2f}, time {seconds:.2f}")


if __name__ == "__main__":
    main()
