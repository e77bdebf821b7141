"""The container's health check: `python -m serving.supervisor.health`.

Healthy is who serves, or waits for a first model.
"""

import json
import os
import sys
import urllib.error
import urllib.request

from serving.supervisor.state import WAITING


def health(url: str, timeout_s: float = 4.0) -> tuple[bool, str]:
    """Whether serving is well, and what it does: "serving", "waiting: …", "failing: …", or what is wrong."""
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=timeout_s):
            return True, "serving"
    except urllib.error.HTTPError as error:
        try:
            answer = json.load(error)
            return answer["status"] == WAITING, f"{answer['status']}: {answer['message']}"
        except (ValueError, KeyError, TypeError):
            return False, f"HTTP {error.code}"
    except OSError as error:
        return False, f"no answer: {error}"


if __name__ == "__main__":
    well, state = health(f"http://127.0.0.1:{os.environ.get('SERVING_PORT') or 8000}")
    print(state)
    sys.exit(0 if well else 1)
