"""What an administrator does from serving's page: one of the promoter's own commands, and so the very same record.

Where the promoter has an account of its own, its server (promoter/server.py) runs the command; else the gateway does.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.outcomes import ROLLBACK

APPROVE = "approve"
PATH = "/actions"  # of the promoter's server
PLAIN = r"^[^\x00-\x08\x0b-\x1f\x7f]*$"  # without control characters
LONGEST_S = 600.0  # of a command: an approval looks at all files of a version
LONGEST_OUTPUT = 4000  # characters of what it printed, from the end


class Action(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["approve", "rollback", "freeze", "unfreeze"]
    model: str = Field(min_length=1, max_length=500, pattern=PLAIN)
    reason: str = Field(min_length=1, max_length=2000, pattern=PLAIN)
    version: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,8}$")  # to approve, or to roll back from

    def command(self, by: str) -> list[str]:
        """The promoter's command line. Values are joined to their options: none is taken for an option itself."""
        name = {APPROVE: "--version", ROLLBACK: "--from"}.get(self.action)
        version = [f"{name}={self.version}"] if name and self.version else []
        options = [f"--model-name={self.model}", f"--by={by}", f"--reason={self.reason}", *version]
        return [sys.executable, "-m", "promoter", self.action, *options, "--wait=30"]


@dataclass(frozen=True)
class Result:
    """What came of it."""

    exit_code: int
    output: str


async def run(action: Action, by: str, environment: dict[str, str]) -> Result:
    """Run an action's command; `environment` comes on top of this process's own. Past LONGEST_S it is ended."""
    process = await asyncio.create_subprocess_exec(
        *action.command(by),
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is for the server, which answers what it has begun
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), LONGEST_S)
    except TimeoutError:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        return Result(1, f"It took more than {LONGEST_S:.0f} s and was ended. The next promoter settles what it began.")
    return Result(process.returncode or 0, printed.decode("utf-8", "replace").strip()[-LONGEST_OUTPUT:])
