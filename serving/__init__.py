"""Serves the version in production: `python -m serving --help`."""

from contract.settings import set_library_defaults

set_library_defaults()
