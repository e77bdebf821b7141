"""Bearer tokens of people and their editors, of which a file holds only hashes.

One line for each, `name:sha256`; with `:admin` behind it for one that may approve, roll back and freeze on serving's
page too, and with `:trains` for one whose owner agrees that models are trained on what they accept. A token is 32
random bytes, so a plain hash cannot be turned back. `python -m serving.gateway.tokens` writes the file; the gateway and
the promoter's server read it.
"""

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from contract.errors import InputError

log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})(:admin)?(:trains)?")


@dataclass(frozen=True)
class Owner:
    """Whose a token is."""

    name: str
    admin: bool = False
    trains: bool = False  # models may be trained on what they accept


class Tokens:
    """The tokens of a file; None as its path lets everybody in, a file that is gone nobody."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._owners: dict[str, Owner] = {}

    @property
    def needed(self) -> bool:
        return self.path is not None

    def owner(self, token: str) -> Owner | None:
        """A token's owner, or None for a token that is not in the file."""
        self._read()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        found = [owner for known, owner in self._owners.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None

    def _read(self) -> None:
        if self.path is None:
            return
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen != self._seen:
                self._seen = seen
                self._owners = parse(self.path.read_text(encoding="utf-8"))
        except OSError:
            self._owners, self._seen = {}, None
        except (InputError, UnicodeDecodeError):
            # It is being written, or broken: what was known holds until it can be read.
            log.error("%s cannot be read as tokens: those that were known before go on", self.path)


def bearer(authorization: str) -> str:
    """The token in an Authorization header; empty if it holds none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def parse(text: str) -> dict[str, Owner]:
    """sha256 → owner of a file's text. Raises InputError for a line that is neither a token, empty nor a comment."""
    found: dict[str, Owner] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"Line {number} is not a token. Expected name:sha256, as `python -m serving.gateway.tokens add` writes"
            )
        found = {digest: owner for digest, owner in found.items() if owner.name != match[1]}  # the last one counts
        found[match[2]] = Owner(match[1], bool(match[3]), bool(match[4]))
    return found


def line_of(digest: str, owner: Owner) -> str:
    """A token's line in the file."""
    return f"{owner.name}:{digest}{':admin' * owner.admin}{':trains' * owner.trains}\n"
