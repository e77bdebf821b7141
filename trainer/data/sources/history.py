"""When files were last changed, as git knows it."""

import os
from pathlib import Path

from trainer import git
from trainer.data.sources.base import printable


def last_changed(root: Path, commit: str | None = None) -> dict[str, int] | None:
    """Seconds since 1970 of the last commit that changed each file below `root`, up to a commit or the work tree's.

    Paths are relative to `root`. What is changed or untracked in a work tree is a second newer than all commits. None
    where git knows no history, as of a shallow clone it does not. One walk through it, so what only a merge changed is
    as old as the branch that it came from.
    """
    if git.output(root, "rev-parse", "--is-shallow-repository").strip() == b"true":
        return None
    # A user's settings change what `log` prints.
    settings = ("-c", "log.showSignature=false", "-c", "log.showRoot=true")
    arguments = ("--format=%x00%ct", "--name-only", "--no-renames", "-z", "--relative", commit or "HEAD")
    prefix = git.output(root, "rev-parse", "--show-prefix").strip()
    printed = git.output(root, *settings, "log", *arguments, *(("--", ".") if prefix else ()))
    found: dict[str, int] = {}
    time, first, is_time = 0, False, False
    for word in os.fsdecode(printed).split("\0"):
        if not word:  # before each time
            is_time = True
        elif is_time:
            time, first, is_time = int(word), True, False
        else:
            path = printable(word.removeprefix("\n") if first else word)
            found[path], first = max(time, found.get(path, 0)), False
    if not found:
        return None
    if commit is None:
        newest = max(found.values()) + 1
        found |= dict.fromkeys(_uncommitted(root), newest)
    return found


def _uncommitted(root: Path) -> list[str]:
    """What differs from HEAD in a work tree, and what is untracked; no filter that its configuration names is run."""
    off = git.without_filters(root)
    compare = ("--name-only", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all", "--relative")
    found = git.output(root, "ls-files", "-z", "--others", "--exclude-standard")
    if off is not None:
        found += git.output(root, "--no-optional-locks", *off, "diff", *compare, "-z", "HEAD")
    return [printable(name) for name in os.fsdecode(found).split("\0") if name]
