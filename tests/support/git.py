"""Repositories for tests."""

import os
import shutil
import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str, when: int = 1_700_000_000) -> str:
    """Run git in a folder, its commits at a time in seconds since 1970; returns what it printed."""
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"@{when} +0000")
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | dates)
    return done.stdout.strip()


def repository_of(root: Path, code: Path) -> Path:
    """A new repository in a folder, with the code of a package below `app`, as its first commit."""
    git(root, "init", "--quiet", "--initial-branch", "main")
    shutil.copytree(code, root / "app", ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "one")
    return root
