"""The services that are not packages of their own: `tracking`."""

from contract.settings import set_library_defaults

set_library_defaults()
