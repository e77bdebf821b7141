"""Fine-tunes a code model on your code and registers it: `trainer --help`."""

from contract.settings import set_library_defaults

set_library_defaults()
