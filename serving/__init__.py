"""Serves the version in production: `python -m serving --help`."""
