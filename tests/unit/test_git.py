"""Nothing that a repository names is run, whatever git would run of it: hooks, filters, drivers, helpers, aliases."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.data import write_tree
from trainer import git
from trainer.data.sources.history import last_changed

HOOKS = (
    *("applypatch-msg", "pre-applypatch", "post-applypatch", "pre-commit", "pre-merge-commit", "prepare-commit-msg"),
    *("commit-msg", "post-commit", "pre-rebase", "post-checkout", "post-merge", "pre-push", "pre-receive"),
    *("update", "proc-receive", "post-receive", "post-update", "reference-transaction", "push-to-checkout"),
    *("pre-auto-gc", "post-rewrite", "sendemail-validate", "fsmonitor-watchman", "post-index-change"),
)
COMMANDS = (
    "describe",
    "diff",
    "log",
    "ls-files",
    "rev-parse",
    "status",
    "cat-file",
    "check-attr",
    "read-tree",
    "config",
)
SETTINGS = (
    *("core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.askPass", "core.gitProxy"),
    *("core.alternateRefsCommand", "gpg.program", "gpg.ssh.program", "credential.helper", "diff.external"),
    *("interactive.diffFilter", "sequence.editor", "uploadpack.packObjectsHook", "pager.log", "pager.diff"),
    *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.command", "diff.evil.textconv"),
    *("merge.evil.driver", "difftool.evil.cmd", "mergetool.evil.cmd", "browser.evil.cmd", "web.browser"),
    *("man.evil.cmd", "trailer.evil.command", "remote.origin.vcs", "receive.procReceiveRefs", "tar.evil.command"),
    *("submodule.inner.update", "core.hooksPath"),
)


class Repository:
    """A repository in which everything that git may run notes that it has been run."""

    def __init__(self, folder: Path) -> None:
        self.root, self.marks = folder / "repository", folder / "marks"
        self.program = folder / "evil"
        self.program.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.marks}\ncat\n')
        self.program.chmod(0o755)
        self.root.mkdir()
        self.run("init", "--quiet")
        write_tree(self.root, files=3)
        self.run("add", ".")
        self.run("commit", "--quiet", "-m", "one")

    def run(self, *arguments: str, cwd: Path | None = None) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always")
        subprocess.run(["git", "-C", str(cwd or self.root), *who, *arguments], check=True, capture_output=True)

    def ask_everything(self) -> list[str]:
        """Ask what the trainer asks of git; returns what the repository has run meanwhile."""
        alpha = self.root / "alpha.py"
        alpha.write_text(alpha.read_text() + "# changed\n")
        (self.root / "untracked.py").write_text("x = 1\n")
        self.marks.unlink(missing_ok=True)
        whether_dirty = git.without_filters(self.root) is not None
        assert (git.commit(self.root) or "").endswith("-dirty") is whether_dirty
        assert last_changed(self.root)
        load(str(self.root))
        load(f"git:{self.root}")
        return self.marks.read_text().splitlines() if self.marks.exists() else []


def load(source: str) -> None:
    from tests.unit.test_data import load_from

    assert load_from(source).train


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def attributes(repository: Repository) -> None:
    (repository.root / ".git" / "info").mkdir(exist_ok=True)
    (repository.root / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil merge=evil\n")


def hooks(repository: Repository) -> None:
    folder = repository.root / ".git" / "hooks"
    for name in HOOKS:
        (folder / name).write_text(repository.program.read_text())
        (folder / name).chmod(0o755)
    repository.run("config", "core.fsmonitor", str(folder / "fsmonitor-watchman"))


def settings(repository: Repository) -> None:
    for name in SETTINGS:
        repository.run("config", name, str(repository.program))
    repository.run("config", "log.showSignature", "true")
    repository.run("config", "filter.evil.required", "true")
    repository.run("config", "remote.origin.url", f"ext::{repository.program}")
    attributes(repository)


def aliases(repository: Repository) -> None:
    for name in COMMANDS:
        repository.run("config", f"alias.{name}", f"!{repository.program}")


def included(repository: Repository) -> None:
    """By `include`, and by `includeIf` of a branch and of a folder."""
    (other := repository.root / ".git" / "other").write_text(
        f'[filter "evil"]\n\tclean = {repository.program}\n[core]\n\tfsmonitor = {repository.program}\n'
    )
    for name in ("include.path", "includeIf.onbranch:**.path", f"includeIf.gitdir:{repository.root}/.path"):
        repository.run("config", name, str(other))
    attributes(repository)


def odd_filter(repository: Repository) -> None:
    """A filter that no `-c` can switch off, since there is an equals sign in its name."""
    with (repository.root / ".git" / "config").open("a") as file:
        file.write(f'[filter "a=b"]\n\tclean = {repository.program}\n\trequired\n')
    (repository.root / ".gitattributes").write_text("* filter=a=b\n")


def submodule(repository: Repository) -> None:
    """A submodule with settings of its own, which git's own processes would read."""
    inner = repository.root.parent / "inner"
    inner.mkdir()
    repository.run("init", "--quiet", cwd=inner)
    (inner / "a.py").write_text("x = 1\n")
    repository.run("add", ".", cwd=inner)
    repository.run("commit", "--quiet", "-m", "one", cwd=inner)
    repository.run("submodule", "--quiet", "add", str(inner), "inner")
    repository.run("commit", "--quiet", "-m", "two")
    work = repository.root / "inner"
    for name in ("core.fsmonitor", "filter.evil.clean", "diff.external"):
        repository.run("config", name, str(repository.program), cwd=work)
    (repository.root / ".git" / "modules" / "inner" / "info").mkdir(exist_ok=True)
    (repository.root / ".git" / "modules" / "inner" / "info" / "attributes").write_text("* filter=evil\n")
    (work / "a.py").write_text("x = 22\n")


def partial_clone(repository: Repository) -> None:
    """What lacks an object would have it fetched from a remote of the repository's choice."""
    repository.run("config", "extensions.partialClone", "origin")
    repository.run("config", "remote.origin.promisor", "true")
    repository.run("config", "remote.origin.url", f"ext::{repository.program} %S")
    repository.run("config", "protocol.ext.allow", "always")
    repository.run("config", "core.repositoryFormatVersion", "1")


KINDS = (hooks, settings, aliases, included, odd_filter, submodule, partial_clone)


@pytest.mark.parametrize("prepare", KINDS, ids=lambda kind: kind.__name__)
def test_nothing_of_a_repository_is_run(repository: Repository, prepare: Callable[[Repository], None]) -> None:
    prepare(repository)
    assert repository.ask_everything() == []


@pytest.mark.parametrize("prepare", [hooks, settings, included, submodule], ids=lambda kind: kind.__name__)
def test_git_itself_would_have_run_it(repository: Repository, prepare: Callable[[Repository], None]) -> None:
    """Or the test above would show nothing."""
    prepare(repository)
    (repository.root / "alpha.py").write_text("x = 3\n")
    repository.marks.unlink(missing_ok=True)
    subprocess.run(["git", "-C", str(repository.root), "status"], capture_output=True)
    subprocess.run(["git", "-C", str(repository.root), "diff"], capture_output=True)
    assert repository.marks.read_text()


def test_a_work_tree_elsewhere_gives_nothing(repository: Repository) -> None:
    private = repository.root.parent / "private"
    private.mkdir()
    (private / "secret.py").write_text('def secret(a):\n    """Secret."""\n    return a + 4711\n')
    repository.run("config", "core.worktree", str(private))
    from tests.unit.test_data import load_from

    found = load_from(str(repository.root))
    assert not any("4711" in item.prompt + item.completion for item in [*found.train, *found.held_out])
