"""The trainer's jobs that a look needs: it reads code, and asks the version how well it knows it."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from contract.errors import InputError, RatchetError


class Unknown(Exception):
    """A question that cannot be answered, and why."""


def trainer(*arguments: str) -> Any:
    """What a command of the trainer's answers as JSON; it says on stderr how it goes on.

    Raises Unknown where it refuses its input, and RatchetError where it fails.
    """
    command = [sys.executable, "-m", "trainer", *arguments, "--format", "json"]
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        last = ""
        try:
            for line in process.stderr:
                last = line.strip() or last
                if not last.startswith("Error: "):
                    sys.stderr.write(line)
            process.wait()
        except BaseException:  # it does not go on without us
            process.terminate()
            raise
        output.seek(0)
        answer = output.read()
    if process.returncode == InputError.exit_code:
        raise Unknown(last.removeprefix("Error: "))
    if process.returncode:
        raise RatchetError(f"`trainer {arguments[0]}` ended with {process.returncode}: {last}")
    return json.loads(answer)
