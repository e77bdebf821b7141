"""The first pass: sources are read, secrets redacted, files and rows kept, and the places in files found."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from code_model import fim
from contract.errors import InputError
from contract.secrets import Redactor, overwrite
from trainer.data import filters, languages
from trainer.data.candidates import Candidates
from trainer.data.changes import is_new, lines_at
from trainer.data.example import KINDS, Example
from trainer.data.files import StoredFile
from trainer.data.items import File
from trainer.data.limits import Limits
from trainer.data.pathspec import LEFT_OUT, Selection
from trainer.data.places import Place, places
from trainer.data.report import Report
from trainer.data.rows import continuation, usable
from trainer.data.settings import DataConfig
from trainer.data.sources import Source

BATCH = 256  # rows tokenised at a time
EVAL_SOURCE = "data.eval_source"
Progress = Callable[[int], object]  # called with the number of examples just read


class Reader:
    """Fills the candidates, and the report with what became of everything."""

    def __init__(
        self,
        config: DataConfig,
        limits: Limits,
        selection: Selection,
        candidates: Candidates,
        report: Report,
        progress: Progress,
    ) -> None:
        self.config, self.limits, self.selection, self.candidates = config, limits, selection, candidates
        self.report, self.progress = report, progress
        self.kinds = {kind for kind in KINDS if getattr(config, f"{kind}_weight") > 0}
        self._waiting: list[Example] = []  # rows to be tokenised
        self._known: set[int] | None = None  # lines of code that are none to judge by

    def read(self, source: Source, redactor: Redactor) -> None:
        """Read one source. Raises InputError where there is nothing in it."""
        made, read, dropped = len(self.candidates), 0, self.report.rows.copy()
        language = "text" if self.config.language == "auto" else self.config.language
        template, repository = self.limits.chat_template, source.repository or source.name
        since = self.config.eval_since if source.key == EVAL_SOURCE else None
        self._known = lines_at(source, since) if since is not None else None
        for found, where in usable(source.items, template, language, self.report.drop_row, self.selection.leaves_out):
            read += 1
            if not isinstance(found, File):
                found = found if found.repository else dataclasses.replace(found, repository=repository)
                self._read_row(found, redactor, where, source)
            elif found.dropped == LEFT_OUT:
                self.report.drop_file(found.path, f"left out: {LEFT_OUT}")
            else:
                self._read_file(found, redactor, repository)
        self._tokenise()
        self.selection.check()
        read += (self.report.rows - dropped).total()
        self.report.sources.append({"name": source.name, "location": source.location, "read": read})
        for line in self.report.warnings(dropped):
            click.echo(line, err=True)
        if len(self.candidates) == made and source.may_be_empty:
            click.echo(f"{source.key} is '{source.name}', where there is nothing to learn yet", err=True)
        elif len(self.candidates) == made:
            raise InputError(
                f"{source.key} is '{source.name}', where no example was found ({self.report.in_words()}). Expected "
                f"code in one of {', '.join(languages.NAMES)}, or rows."
            )

    def _read_row(self, example: Example, redactor: Redactor, where: str, source: Source) -> None:
        self.report.examples["read"] += 1
        if not example.completion and source.key == "data.source":
            self.report.examples["dropped: a test but no completion to learn"] += 1
            return
        if self.config.redact_secrets:
            # Together, since a secret may be recognised by what stands before it.
            cut = len(example.prompt)
            secrets = redactor.find(example.prompt + example.completion)
            if any(secret.start < cut < secret.end for secret in secrets):
                self.report.examples["dropped: a secret over the end of the prompt"] += 1
                return
            if secrets:
                self.report.add_secrets(where.replace(", line ", ":"), secrets)
                example = dataclasses.replace(
                    example,
                    prompt=overwrite(example.prompt, [item for item in secrets if item.end <= cut]),
                    completion=overwrite(example.completion, [item for item in secrets if item.start >= cut], cut),
                    function=overwrite(example.function, redactor.find(example.function)) if example.function else None,
                )
        self._waiting.append(continuation(example) if source.key == EVAL_SOURCE else example)
        if len(self._waiting) >= BATCH:
            self._tokenise()

    def _tokenise(self) -> None:
        lengths = self.limits.token_counts(self._waiting) if self._waiting else []
        for example, length in zip(self._waiting, lengths, strict=True):
            self.candidates.add_row(example, length)
        self.progress(len(self._waiting))
        self._waiting.clear()

    def _read_file(self, file: File, redactor: Redactor, repository: str) -> None:
        language = languages.language_of(file.path)
        dropped = file.dropped or filters.by_name(file.path)
        text = filters.decode(file.content) if dropped is None else None
        if dropped is None and language is None:
            dropped = "in another language"
        elif dropped is None and text is None:
            dropped = "no text"
        elif text is not None and language is not None:
            text = languages.text_of(file.path, text)
            dropped = "no code in it" if text is None else filters.by_content(text)
        if dropped is None and text is not None and fim.FILE in text:
            dropped = f"{fim.FILE} in it"
        if dropped is None and any(marker in file.path for marker in (fim.FILE, *fim.NEUTRAL)):
            dropped = "a marker in its name"
        if dropped is not None or text is None or language is None:
            self.report.drop_file(file.path, f"dropped: {dropped}")
            return
        if self.config.redact_secrets:
            secrets = redactor.find(text, Path(file.path).suffix)
            self.report.add_secrets(file.path, secrets)
            text = overwrite(text, secrets)
        code = languages.read(text, language)
        if code is None:
            self.report.drop_file(file.path, "dropped: does not parse")
            return
        sizes = self.limits.count([f"{line}\n" for line in text.split("\n")])
        found = places(text, code, sizes, self.limits.max_length, self.config.require_docstring)
        kinds = self.kinds if fim.may_hold_gaps(text) else self.kinds - {"fim"}
        wanted: Iterable[Place] = (place for place in found if place.kind in kinds)
        if (known := self._known) is not None:
            newer = [place for place in wanted if is_new(text, place.start, place.end, known)]
            if not newer:
                self.report.drop_file(file.path, "left out: nothing in it is newer than data.eval_since")
                return
            wanted = newer
        self.report.files["read"] += 1
        number = self.candidates.add_file(StoredFile(file.path, repository, language, text))
        count = self.candidates.add_places(number, wanted)
        self.report.examples["read"] += count
        self.progress(count)
