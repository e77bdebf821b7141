"""Where what the trainer keeps for itself lies, whatever folder it is called from."""

import os
from pathlib import Path

from omegaconf import OmegaConf


def cache() -> str:
    """The folder for what can be had again: one for all that this user does. XDG_CACHE_HOME says where."""
    return _xdg("XDG_CACHE_HOME", "~/.cache")


def state() -> str:
    """The folder for what is not to be lost: RATCHET_HOME, or where XDG_STATE_HOME says."""
    return os.environ.get("RATCHET_HOME") or _xdg("XDG_STATE_HOME", "~/.local/state")


def _xdg(variable: str, default: str) -> str:
    """By the XDG Base Directory Specification, which ignores what is no absolute path."""
    folder = Path(os.environ.get(variable, ""))
    return str((folder if folder.is_absolute() else Path(default).expanduser()) / "ratchet")


# For defaults of settings: `${cache:}/models`.
OmegaConf.register_resolver("cache", cache, replace=True)
OmegaConf.register_resolver("state", state, replace=True)
