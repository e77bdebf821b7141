"""The files of code that were read, on disk, by their numbers."""

from array import array
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class StoredFile(NamedTuple):
    """A file of code as examples are made of it: secrets are redacted."""

    path: str  # inside its source
    repository: str
    language: str
    text: str


class Files:
    """Files in the order in which they were added; some 50 bytes of memory for each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._starts = array("Q", [0])
        self._repositories: dict[str, int] = {}
        self._languages: dict[str, int] = {}
        self.characters = 0  # of all texts
        self.several = False  # whether there are several sources, whose files may have the same paths
        self._facts = array("I")  # repository and language of each
        self.get = lru_cache(maxsize=64)(self._get)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, file: StoredFile) -> int:
        """Keep a file; returns its number."""
        path, text = (value.encode("utf-8", "surrogatepass") for value in (file.path, file.text))
        self._file.seek(self._starts[-1])  # others may have been read since
        self._file.write(len(path).to_bytes(4) + path + text)
        self.characters += len(file.text)
        self._starts.append(self._starts[-1] + 4 + len(path) + len(text))
        self._facts.append(self._repositories.setdefault(file.repository, len(self._repositories)))
        self._facts.append(self._languages.setdefault(file.language, len(self._languages)))
        return len(self) - 1

    def path(self, number: int) -> str:
        """A file's path, without its text."""
        self._file.seek(self._starts[number])
        return self._file.read(int.from_bytes(self._file.read(4))).decode("utf-8", "surrogatepass")

    def group(self, number: int) -> str:
        """What a file is called among those of all sources."""
        path = self.path(number)
        return f"{self.repository(number)}/{path}" if self.several else path

    def repository(self, number: int) -> str:
        """The source that a file is from."""
        return list(self._repositories)[self._facts[2 * number]]

    def _get(self, number: int) -> StoredFile:
        self._file.seek(self._starts[number])
        content = self._file.read(self._starts[number + 1] - self._starts[number])
        end = 4 + int.from_bytes(content[:4])
        path, text = (part.decode("utf-8", "surrogatepass") for part in (content[4:end], content[end:]))
        repository, language = self._facts[2 * number], self._facts[2 * number + 1]
        return StoredFile(path, list(self._repositories)[repository], list(self._languages)[language], text)

    def close(self) -> None:
        self._file.close()
