"""Compares, gates and promotes model versions, and rolls back: `promoter --help`."""
