"""The MLflow tracking server: `python -m services.tracking --help`."""
