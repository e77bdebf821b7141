"""Compares, gates and promotes model versions, and rolls back: `promoter --help`."""

from contract.settings import set_library_defaults

set_library_defaults()
