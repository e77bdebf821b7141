"""How the evaluator logs: a copy of contract/logs.py, which tests/unit/test_contract.py holds equal."""

import json
import logging
import os
import sys
from datetime import UTC, datetime


class Formatter(logging.Formatter):
    """A record as one line. For logging's `dictConfig`: {"()": "contract.logs.Formatter", "part": "tracking"}."""

    def __init__(self, part: str, kind: str | None = None) -> None:
        super().__init__()
        self.part, self.kind = part, kind or os.environ.get("LOG_FORMAT") or "plain"

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        when = datetime.fromtimestamp(record.created, UTC)
        more = {name: str(found) for name in ("version", "request_id") if (found := getattr(record, name, None))}
        if self.kind == "json":
            head = {"time": when.isoformat(timespec="milliseconds"), "level": record.levelname, "part": self.part}
            return json.dumps({**head, **more, "message": message}, ensure_ascii=False)
        about = f"{self.part}, version {more['version']}" if "version" in more else self.part
        end = f" (request {more['request_id']})" if "request_id" in more else ""
        return f"{when:%Y-%m-%d %H:%M:%S} {record.levelname} {about}: {message}{end}"


def set_up(part: str) -> None:
    """Have all of this process's log records go to standard error in our form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(part))
    level = os.environ.get("LOG_LEVEL", "").upper()
    logging.basicConfig(
        level=level if level in logging.getLevelNamesMapping() else "INFO", handlers=[handler], force=True
    )
    logging.captureWarnings(True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries; whoever asked says what came of it
    os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"  # else MLflow gives its records a form of its own
