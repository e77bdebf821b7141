"""The one-shot that makes the bucket for artifacts: `python -m services.bucket --help`."""
