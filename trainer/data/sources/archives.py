"""Archives of code, read like folders and member by member: nothing is written, so no member's path leads anywhere."""

import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO

from contract.errors import InputError
from trainer.data import filters
from trainer.data.items import File
from trainer.data.languages import language_of
from trainer.data.sources.base import Choose, first_line, printable

ZIP = (".zip", ".whl")
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A tar has to be unpacked to its end to know what is in it, however small it is itself.
MAX_MEMBERS, MAX_TOTAL = 500_000, 20 * 10**9
# What the two modules raise for broken ones.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error)
BROKEN_TOO = (EOFError, OSError, ValueError, NotImplementedError, OverflowError)


def is_archive(name: str) -> bool:
    """Whether a file's name says that it is an archive that can be read."""
    return name.lower().endswith((*ZIP, *TAR))


def files(file: BinaryIO, name: str, choose: Choose) -> Iterator[File]:
    """The files of code in an archive, but for a top folder that all are in. Raises InputError for a broken one."""
    try:
        yield from (_zip if name.lower().endswith(ZIP) else _tar)(file, name, choose)
    except (*BROKEN, *BROKEN_TOO) as error:
        raise InputError(
            f"'{name}' cannot be read as an archive: {first_line(error)}. Expected a whole {', '.join((*ZIP, *TAR))}."
        ) from error


def _zip(file: BinaryIO, name: str, choose: Choose) -> Iterator[File]:
    with zipfile.ZipFile(file) as archive:
        infos = [
            info for info in archive.infolist() if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
        ]
        _check_size(name, len(infos), sum(info.file_size for info in infos))
        top, members = _paths(info.filename for info in infos)
        for path, number in sorted(members.items()):
            if language_of(path) is None:
                continue
            path = path.removeprefix(top)
            if dropped := choose(path):
                yield File(path, dropped=dropped)
                continue
            info = infos[number]
            if info.flag_bits & 1:
                raise InputError(f"'{name}' is encrypted ({path}). Expected an archive without a password.")
            if info.file_size > filters.MAX_BYTES:
                yield File(path, dropped=filters.TOO_LARGE)
                continue
            with archive.open(info) as content:
                yield _read(content, path)


def _tar(file: BinaryIO, name: str, choose: Choose) -> Iterator[File]:
    names, total = [], 0
    for _, member in _members(file):
        names.append(member.name)
        total += member.size
        _check_size(name, len(names), total)
    top, members = _paths(names)
    last = {number: path for path, number in members.items() if language_of(path) is not None}
    for number, (archive, member) in enumerate(_members(file)):
        if (whole := last.get(number)) is None:
            continue
        path = whole.removeprefix(top)
        if dropped := choose(path):
            yield File(path, dropped=dropped)
        elif member.size > filters.MAX_BYTES:
            yield File(path, dropped=filters.TOO_LARGE)
        elif (content := archive.extractfile(member)) is not None:
            yield _read(content, path)


def _members(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members that are files, from the beginning on, with what reads them."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would remember them all
            if member.isfile():
                yield archive, member


def _read(content: IO[bytes], path: str) -> File:
    """A member, of which a header may say less than it holds."""
    read = content.read(filters.MAX_BYTES + 1)
    return File(path, dropped=filters.TOO_LARGE) if len(read) > filters.MAX_BYTES else File(path, read)


def _check_size(name: str, members: int, total: int) -> None:
    if members > MAX_MEMBERS or total > MAX_TOTAL:
        raise InputError(
            f"'{name}' holds {'more than ' if members > MAX_MEMBERS else ''}{members} files of {total / 10**9:.1f} GB. "
            f"Expected at most {MAX_MEMBERS} and {MAX_TOTAL // 10**9} GB: unpack it, and give the folder."
        )


def _paths(names: Iterable[str]) -> tuple[str, dict[str, int]]:
    """The top folder that all files are in, with its slash, or nothing; and each path with its last member's number."""
    found: dict[str, int] = {}
    for number, name in enumerate(names):
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        if path and not path.startswith("__MACOSX/"):
            found[printable(path)] = number
    tops = {path.partition("/")[0] for path in found}
    in_folder = len(tops) == 1 and all("/" in path for path in found)
    return f"{tops.pop()}/" if in_folder else "", found
