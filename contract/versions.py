"""What a version's folder tells about the code in it, and which protocols this release serves.

A version runs its own code: whoever loads one does so in a process of its own, with `VersionCode.environment`.
"""

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.errors import RatchetError
from contract.messages import PROTOCOL
from contract.names import PROTOCOL_TAG

KNOWN = (1,)  # protocols that this release serves
RELEASE = importlib.metadata.version("ratchet")
METADATA_PROTOCOL, METADATA_RELEASE = "ratchet_protocol", "ratchet_release"  # keys of MLmodel's metadata
# The package in a version's `code` folder → the module of its `generate`, and of its event loop.
PACKAGES = {
    "code_model": ("code_model.whole_batch", "code_model.event_loop"),
    "serving": ("serving.model", "serving.loop"),  # Ratchet 0.1
}


class UnknownVersion(RatchetError):
    """A version that this release cannot run; the message says which one can."""


@dataclass(frozen=True)
class VersionCode:
    """The code that was logged with a version.

    In protocol 1 it has `generate(model, tokenizer, prompts, params, stopping)`, and the package a module `params` with
    `GenerationParams`; the loaded PyFunc has `model` and `tokenizer`.
    """

    folder: Path  # to be first on sys.path
    package: str
    protocol: int

    @property
    def generate(self) -> str:
        """The module of `generate`."""
        return PACKAGES[self.package][0]

    @property
    def params(self) -> str:
        """The module of `GenerationParams`."""
        return f"{self.package}.params"

    @property
    def event_loop(self) -> str:
        """What uvicorn takes as its loop."""
        return f"{PACKAGES[self.package][1]}:create"

    def environment(self) -> dict[str, str]:
        """The variables of a process in which this code comes before anything that is installed.

        Its working directory has to be `folder` too, or one without packages: uvicorn puts that first of all.
        """
        paths = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def code_of(folder: Path, tags: Mapping[str, str]) -> VersionCode:
    """The code in the folder of a version with these tags. Raises UnknownVersion where this release cannot run it."""
    protocol = protocol_of(folder, tags)
    code = folder / "code"
    package = next((name for name in PACKAGES if (code / name / "__init__.py").is_file()), None)
    if package is None:
        raise UnknownVersion(
            f"its folder holds no code of Ratchet's ({' or '.join(f'code/{name}' for name in PACKAGES)}). Expected a "
            "version that `trainer train` registered"
        )
    return VersionCode(code, package, protocol)


def protocol_of(folder: Path, tags: Mapping[str, str]) -> int:
    """The protocol that a version speaks, by its MLmodel. Raises UnknownVersion where it, or the tag, is not known."""
    metadata = _metadata(folder)
    protocol = _number(metadata.get(METADATA_PROTOCOL, 1), f"MLmodel's metadata {METADATA_PROTOCOL}")  # 0.1 wrote none
    for number in (protocol, _number(tags.get(PROTOCOL_TAG, protocol), f"tag {PROTOCOL_TAG}")):
        refuse_unknown(number, metadata.get(METADATA_RELEASE))
    return protocol


def refuse_unknown(protocol: int, release: str | None) -> None:
    """Raise UnknownVersion for a protocol that this release does not know."""
    if protocol not in KNOWN:
        wanted = f"Ratchet {release}" if release else "the later release of Ratchet"
        raise UnknownVersion(
            f"it speaks protocol {protocol}, and Ratchet {RELEASE} knows {', '.join(map(str, KNOWN))}. Serve it with "
            f"{wanted}, which logged it"
        )


def _number(value: object, where: str) -> int:
    text = str(value)
    if not (text.isdecimal() and len(text) < 10):
        raise UnknownVersion(f"its {where} is {text[:40]!r}. Expected the number of a protocol")
    return int(text)


def metadata_of_release() -> dict[str, str]:
    """What to log as the MLmodel's metadata with a version."""
    return {METADATA_PROTOCOL: str(PROTOCOL), METADATA_RELEASE: RELEASE}


def _metadata(folder: Path) -> Mapping[str, str]:
    import yaml

    try:
        found = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        return dict(found.get("metadata") or {})
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UnknownVersion(f"its MLmodel file cannot be read: {' '.join(str(error).split())}") from error
