"""What README and docs tell a reader to type: found in the Markdown, and run as it stands.

A block is named by its page and heading, `docs/data.md: Sources`; the second in its language there ends with ` (2)`.
"""

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import requests

from services.tracking.readiness import wait_until
from tests.support.images import ROOT

PAGES = ("README.md", "docs/*.md", "infra/*/README.md")
PART = re.compile(
    r"^#+ (?P<heading>.+)$"
    r"|^```(?P<language>\w+)\n(?P<fenced>(?:.*\n)*?)```$"
    r"|(?<=\n\n)(?P<indented>(?: {4}.+\n)+)",
    re.MULTILINE,
)
# A `#` starts a comment at the start of a word, outside quotes.
LINE = re.compile(r"""(?P<command>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?<=\S)#|[^'"\\#])*)(?:#\s*(?P<comment>.*))?""")


@dataclass(frozen=True)
class Command:
    text: str
    comment: str

    @property
    def runs_on(self) -> bool:
        """Whether it is a server, to be left running while the next commands are typed elsewhere."""
        return "in a terminal of its own" in self.comment


@dataclass(frozen=True)
class Block:
    name: str
    line: int  # of the page, where its text begins
    language: str
    text: str

    @property
    def commands(self) -> list[Command]:
        """In their order, one a line; a line that ends with a backslash goes on in the next."""
        found = []
        for line in re.sub(r"\\\n\s*", "", self.text).splitlines():
            match = LINE.fullmatch(line)
            assert match, f"{self.name}, from line {self.line} on: quotes are left open in {line}"
            if text := match["command"].strip():
                found.append(Command(text, match["comment"] or ""))
        return found


def blocks(page: str, text: str) -> Iterator[Block]:
    """A page's code blocks; one that is indented, and not fenced, counts as bash."""
    heading, seen = "", Counter[tuple[str, str]]()
    for part in PART.finditer(text):
        if part["heading"]:
            heading = part["heading"]
            continue
        language, group = part["language"] or "bash", "fenced" if part["language"] else "indented"
        seen[heading, language] += 1
        number = seen[heading, language]
        name = f"{page}: {heading}" + (f" ({number})" if number > 1 else "")
        yield Block(name, text.count("\n", 0, part.start(group)) + 1, language, part[group])


def all_blocks(language: str) -> dict[str, Block]:
    """The blocks of every page in one language, by name."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    found = [block for path in pages for block in blocks(str(path.relative_to(ROOT)), path.read_text())]
    return {block.name: block for block in found if block.language == language}


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Put this machine's paths, ports and ids in place of those that the text gives as examples."""
    for example, value in values.items():
        text = text.replace(example, value)
    return text


@dataclass
class Shell:
    """Runs commands one after another in a folder; servers that it left running end with it."""

    cwd: Path
    env: Mapping[str, str]
    values: Mapping[str, str] = field(default_factory=dict)  # for `fill_in`
    # By a part of a command: what a reader waits for behind it, before going on.
    wait_for: Mapping[str, Callable[[], bool]] = field(default_factory=dict)
    _servers: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *exception: object) -> None:
        self._servers.close()

    def run_all(self, block: Block) -> list[str]:
        return [self.run(command) for command in block.commands]

    def run(self, command: Command, expected: int = 0) -> str:
        """What it printed to stdout; of a server nothing."""
        shell = ("bash", "-c", fill_in(command.text, self.values))
        options: dict[str, Any] = {"cwd": self.cwd, "env": self.env, "stdin": subprocess.DEVNULL, "text": True}
        if command.runs_on:
            log = self._servers.enter_context(TemporaryFile("w+"))  # noqa: SIM115 (ends with the shell)
            server = subprocess.Popen(shell, stdout=log, stderr=log, start_new_session=True, **options)
            self._servers.callback(_stop, server)
            self._wait(command, lambda: server.poll() is None, log)
            return ""
        done = subprocess.run(shell, capture_output=True, **options)
        said = f"$ {shell[-1]}\n{done.stdout}{done.stderr}"
        assert done.returncode == expected, f"{said}exit code {done.returncode}"
        self._wait(command, lambda: True, StringIO(said))
        return str(done.stdout)

    def _wait(self, command: Command, alive: Callable[[], bool], said: IO[str]) -> None:
        for part, condition in self.wait_for.items():
            if part in command.text and not wait_until(condition, 300, alive):
                said.seek(0)
                raise AssertionError(f"What follows `{command.text}` did not come:\n{said.read()}")


def _stop(server: "subprocess.Popen[str]") -> None:
    """End it with all that it has started, as closing the terminal does."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(90)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def answers(url: str, path: str = "/ping") -> bool:
    """Whether a server is well at `url`; by `/ping`, whether serving has a model."""
    try:
        return requests.get(url + path, timeout=5).status_code == 200
    except requests.RequestException:
        return False
