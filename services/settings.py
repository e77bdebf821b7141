"""What the services' settings have in common: secrets from files, and errors that a person can act on."""

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from contract.errors import InputError

_SECRETS = Path("/run/secrets")  # where Compose lays a container's secrets, each in a file of its name
# A variable that is empty counts as not set; one that is not set is read from the file of its name, in lower case.
FROM_ENVIRONMENT_AND_SECRETS = SettingsConfigDict(
    env_ignore_empty=True, secrets_dir=_SECRETS if _SECRETS.is_dir() else None
)

Settings = TypeVar("Settings", bound=BaseSettings)


def read(kind: type[Settings], **given: Any) -> Settings:
    """The settings, with those of `given` that are not None before the environment's.

    Raises InputError for a value that is missing or wrong, and for a secret file that this user may not read.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name, found = str(first["loc"][0]).upper(), first["input"] if first["type"] != "missing" else "not set"
        raise InputError(f"{name} is {found!r}: {first['msg']}.") from error
    except SettingsError as error:
        raise InputError(_unreadable_secret(error)) from error


def _unreadable_secret(error: SettingsError) -> str:
    name = getattr(error.__cause__, "filename", None)
    if name is None:
        return str(error)
    return (
        f"The secret file {name} cannot be read by user {os.getuid()}. Make it readable to all (chmod 444), in a "
        "folder that only you may enter, as `make env` does."
    )
