"""What runs Ratchet on one machine: the demo, the doctor, background processes, env files."""

from contract.settings import set_library_defaults

set_library_defaults()
