"""`python -m promoter` is the command `promoter`."""

from promoter.cli import main

main(prog_name="promoter")
