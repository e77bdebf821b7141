"""What may become examples: places in files, and rows. On disk, with what decides on each in arrays.

A unit is what duplicates are found by: a function, statements that stand together, or a row. Of one unit there may be
several candidates.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.duplicates import Fingerprints
from trainer.data.example import KINDS, Example, from_line, hash64, to_line
from trainer.data.file_twins import FileTwins
from trainer.data.files import Files, StoredFile
from trainer.data.places import Place
from trainer.data.twins import Twins

Numbers = npt.NDArray[Any]


class Candidates:
    """Some 50 bytes of memory for each, and as much for each unit."""

    def __init__(self, folder: Path, threshold: float) -> None:
        self.files = Files(folder / "files")
        self.whole_files = Fingerprints(folder / "prints-of-files", threshold)
        self.file_twins = FileTwins()
        self.prints = Fingerprints(folder / "prints-of-units", threshold)
        self.twins = Twins(folder / "twins")
        self._rows = (folder / "rows.jsonl").open("w+b")
        self._unit_of: dict[int, int] = {}  # of rows that are parts of one function
        self.file = array("i")  # -1: a row
        self.start, self.end = array("I"), array("I")  # characters of the file
        self.unit = array("I")
        self.unit_start, self.unit_end = array("I"), array("I")  # characters of the file
        self.kind = array("b")  # index in KINDS; -1: a row
        self.length = array("I")  # tokens of a row; of a place 1, since its prompt is made to fit
        self.number = array("Q")  # by which some are chosen
        self.group = array("Q")  # hash of the group's name
        self.written = array("I")  # characters of the completion
        self.by_model = array("i")  # of them by a model; -1: what no user kept of a completion

    def __len__(self) -> int:
        return len(self.file)

    def add_file(self, file: StoredFile) -> int:
        """Keep a file; returns its number."""
        self.whole_files.add(file.text)
        self.file_twins.add(file.path, file.text, file.language)
        return self.files.add(file)

    def add_places(self, number: int, places: Iterable[Place]) -> int:
        """Add the places in a file, those of a unit together; returns how many they are."""
        _, _, language, text = self.files.get(number)
        starts = [0]
        for line in text.split("\n"):
            starts.append(starts[-1] + len(line) + 1)
        unit, count, of_file = None, 0, hash64(self.files.group(number))
        unit_text = ""
        for place in places:
            if place.unit != unit:
                unit = place.unit
                unit_text = text[starts[unit[0]] : starts[unit[1]]]
                body = text[place.start : place.end] if place.kind == "function" else ""
                self._add_unit(unit_text, language, body)
            start, end = starts[place.unit[0]], min(starts[place.unit[1]], len(text))
            name = f"{unit_text}\0{place.start - start}\0{place.end - start}\0{place.kind}"
            self._add(number, len(self.prints) - 1, place.kind, 1, hash64(name), of_file)
            self.start[-1], self.end[-1] = place.start, min(place.end, len(text))
            self.unit_start[-1], self.unit_end[-1] = start, end
            self.written[-1] = self.end[-1] - self.start[-1]
            count += 1
        return count

    def add_row(self, row: Example, length: int) -> None:
        """Add a row that is so many tokens long."""
        unit = len(self.prints)
        if row.function is not None:  # parts of a function are no duplicates of each other
            unit = self._unit_of.setdefault(hash64(f"{row.group}\0{row.function}"), unit)
        if unit == len(self.prints):
            # Texts and answers may resemble each other as long as they are not near duplicates.
            code = row.compared if row.kind in KINDS else ""
            self._add_unit(row.compared, row.language, row.completion if row.kind == "function" else "", code)
        self._rows.write(to_line(row))
        self._add(-1, unit, row.kind, length, row.number, hash64(row.group))
        self.written[-1] = len(row.completion)
        self.by_model[-1] = -1 if row.by_model is None else min(row.by_model, len(row.completion))

    def _add_unit(self, text: str, language: str, body: str, code: str | None = None) -> None:
        self.prints.add(text)
        self.twins.add(text if code is None else code, language, body)

    def _add(self, file: int, unit: int, kind: str, length: int, number: int, group: int) -> None:
        for values, value in (
            *((self.file, file), (self.unit, unit), (self.length, length), (self.number, number), (self.group, group)),
            (self.kind, KINDS.index(kind) if kind in KINDS else -1),
            *((values, 0) for values in (self.start, self.end, self.unit_start, self.unit_end, self.written)),
            (self.by_model, -1),
        ):
            values.append(value)

    def of_units(self, units: Numbers) -> Numbers:
        """What is said of units (n_units,) as said of candidates: (len(self),)."""
        return units[np.asarray(self.unit)] if len(self) else np.zeros(0, dtype=units.dtype)

    def units(self, candidates: Numbers) -> Numbers:
        """Whether a unit has one of some candidates: bool (n_units,)."""
        found = np.zeros(len(self.prints), dtype=bool)
        found[np.asarray(self.unit)[candidates]] = True
        return found

    def rows(self) -> Iterator[Example]:
        """The rows in order."""
        self._rows.seek(0)
        for line in self._rows:
            yield from_line(line)

    def close(self) -> None:
        for item in (self.files, self.whole_files, self.prints, self.twins, self._rows):
            item.close()
