"""How far a source has moved since a commit: functions, files and languages, with nothing checked out or run."""

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from contract.errors import InputError
from contract.secrets import REDACTED
from trainer import git
from trainer.data import filters, languages
from trainer.data.example import hash64
from trainer.data.items import File
from trainer.data.languages.code import moved
from trainer.data.pathspec import LEFT_OUT, Selection
from trainer.data.sources import Source, folders, open_source

MOST_COMMITS = 10_000
MOST_FILES = 20  # of those that have moved most, in a report
LEAST_LINE = 4  # characters of a line by which code is known again: a brace is no news


@dataclass
class Changes:
    """Between the commit that was trained on and now. Times are seconds since 1970."""

    source: str
    since: str
    head: str
    commits: list[str] = field(default_factory=list)  # subjects of those since then, the newest first
    functions: int = 0
    functions_then: int = 0
    new_functions: int = 0  # new, or changed
    files: int = 0
    files_then: int = 0
    added: int = 0
    deleted: int = 0
    changed: int = 0
    renamed: int = 0
    characters: dict[str, tuple[int, int]] = field(default_factory=dict)  # by language: then, now
    most: list[tuple[str, int, int]] = field(default_factory=list)  # file, new functions, all functions
    changed_at: dict[str, int] = field(default_factory=dict)  # of each file that is new or changed

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def changes(name: str, since: str, key: str, selection: Selection) -> Changes:
    """Of a source as configured, in the chosen files. Raises InputError where git does not know it, or the commit."""
    source = open_source(name, key, selection)
    root, commit = commit_of(source, since)

    def choose(path: str) -> str | None:
        return LEFT_OUT if selection.leaves_out(path) else filters.by_name(path)

    then = _Tree(folders.files_of_commit(root, commit, key, choose))
    now = _Tree(item for item in source.items if isinstance(item, File))
    if not then.files:
        raise InputError(f"{key} is '{name}', which had no code at {commit}. Expected a source that git tracked then.")
    span = ("log", f"--max-count={MOST_COMMITS}", "--format=%s", f"{commit}..{source.commit or 'HEAD'}", "--", ".")
    subjects = git.output(root, *span).decode(errors="replace").splitlines()
    of_then, of_now = then.functions.keys(), now.functions.keys()
    new = of_now - of_then
    found = Changes(name, commit, source.commit or git.commit(root) or "unknown")
    found.commits = subjects
    found.functions, found.functions_then = len(of_now), len(of_then)
    found.new_functions = len(new)
    found.files, found.files_then = len(now.files), len(then.files)
    gone = then.files.keys() - now.files.keys()
    left = Counter(then.files[path] for path in gone)
    added = [path for path in now.files if path not in then.files]
    for path in added:
        if left[now.files[path]] > 0:
            left[now.files[path]] -= 1
            found.renamed += 1
    found.added, found.deleted = len(added) - found.renamed, len(gone) - found.renamed
    altered = [path for path in now.files if path in then.files and now.files[path] != then.files[path]]
    found.changed = len(altered)
    found.characters = {
        language: (then.characters[language], now.characters[language])
        for language in sorted(then.characters | now.characters)
    }
    new_in, all_in = Counter(now.functions[item] for item in new), Counter(now.functions.values())
    found.most = [(path, count, all_in[path]) for path, count in new_in.most_common(MOST_FILES)]
    times = source.last_changed() or {}
    found.changed_at = {path: times[path] for path in (*added, *altered) if path in times}
    return found


def in_words(found: Changes) -> str:
    """For a terminal."""
    share = found.new_functions / max(found.functions, 1)
    lines = [
        f"{found.source}: {found.since[:12]} to {found.head[:12]}",
        f"  {found.new_functions} of {found.functions} functions are new or changed ({share:.0%})",
        f"  files: {found.files_then} then, {found.files} now; {found.added} added, {found.deleted} deleted, "
        f"{found.changed} changed, {found.renamed} renamed",
    ]
    for language, (then, now) in found.characters.items():
        lines.append(f"  {language}: {then:,} characters then, {now:,} now")
    for path, new, functions in found.most[:10]:
        lines.append(f"  {path}: {new} of {functions} functions")
    return "\n".join(lines)


def commit_of(source: Source, since: str) -> tuple[Any, str]:
    """The repository's folder, and the commit that `since` names there. Raises InputError."""
    if source.root is None or not git.output(source.root, "rev-parse", "--git-dir"):
        raise InputError(
            f"{source.key} is '{source.name}', where git knows nothing since '{since}'. Expected a folder in a git "
            "work tree, or git:PATH[@REVISION]."
        )
    if source.commit is None and git.output(source.root, "rev-parse", "--is-bare-repository").strip() == b"true":
        raise InputError(f"{source.key} is '{source.name}', a bare repository. Expected git:{source.name}.")
    asked = since.removesuffix("-dirty")
    commit = git.output(source.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{asked}^{{commit}}")
    if not commit.strip():
        raise InputError(
            f"{source.key} is '{source.name}', which has no commit '{asked}'. Expected a commit, tag or branch that "
            "`git rev-parse` knows there (of a shallow clone: git fetch --unshallow)."
        )
    return source.root, commit.decode().strip()


def lines_at(source: Source, since: str) -> set[int]:
    """Hashes of all lines of code that a source had at a commit, by which newer ones are told."""
    root, commit = commit_of(source, since)
    found: set[int] = set()
    for file in folders.files_of_commit(root, commit, source.key, filters.by_name):
        if file.dropped is None and (text := filters.decode(file.content)) is not None:
            found.update(_line(line) for line in text.split("\n"))
    if not found:
        raise InputError(
            f"{source.key} is '{source.name}', which had no code at {commit}. Expected a source that git tracked then."
        )
    return found


def is_new(text: str, start: int, end: int, known: set[int]) -> bool:
    """Whether `text` has a line from character `start` to `end` that is not among those known."""
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", end)
    lines = text[first : last if last >= 0 else len(text)].split("\n")
    return any(len(line.strip()) >= LEAST_LINE and REDACTED not in line and _line(line) not in known for line in lines)


def _line(line: str) -> int:
    return hash64(line.strip())


class _Tree:
    """Files of code, and the functions in them."""

    def __init__(self, items: Any) -> None:
        self.files: dict[str, str] = {}  # digest of the content, by path
        self.functions: dict[int, str] = {}  # a file that has it, by the hash of a function's text
        self.characters: Counter[str] = Counter()  # by language
        for item in items:
            language = languages.language_of(item.path)
            if item.dropped or language is None or (text := filters.decode(item.content)) is None:
                continue
            text = languages.text_of(item.path, text)
            code = languages.read(text, language) if text is not None and not filters.by_content(text) else None
            if text is None or code is None:
                continue
            self.files[item.path] = hashlib.sha256(item.content).hexdigest()
            self.characters[language] += len(text)
            lines = text.split("\n")
            for function in code.functions:
                self.functions.setdefault(hash64("\n".join(moved(lines[function.start : function.end]))), item.path)
