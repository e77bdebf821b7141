"""Takes credentials out of a text before it goes where others read it: MLflow's params, tags and artifacts, a log."""

import os
import re

REDACTED = "REDACTED"
# https://user:password@host, and what signs a URL.
IN_URL = re.compile(r"(?<=://)([^\s/:@?#]*:)[^\s/]+(?=@)")
SIGNATURE = re.compile(r"([?&](?:X-Amz-(?:Signature|Credential)|sig(?:nature)?|(?:access_)?token)=)[^\s&#'\"]+", re.I)
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)
NOT_SECRET = re.compile(r"_FILE$|_PATH$|_DIR$|_URL$|TOKENS?_PER|MAX_", re.IGNORECASE)  # where one is, or how many
SHORTEST = 8  # characters of a value: a shorter one would be found in much that is no secret


def redact(text: str) -> str:
    """The text without passwords in URLs, signatures, and the values of environment variables named as secrets are."""
    text = SIGNATURE.sub(rf"\1{REDACTED}", IN_URL.sub(rf"\1{REDACTED}", text))
    for value in _values():
        text = text.replace(value, REDACTED)
    return text


def _values() -> list[str]:
    """Of secret environment variables, the longest first."""
    found = {
        value.strip()
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and not NOT_SECRET.search(name) and len(value.strip()) >= SHORTEST
    }
    return sorted((value for value in found if not value.isdigit()), key=len, reverse=True)
