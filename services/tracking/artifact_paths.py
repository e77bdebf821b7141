"""Which artifact paths are let through to MLflow, which decodes them again and again and cuts them at `?` and `#`.

A path that is empty by then names the whole store: a DELETE of `%20` erased it.
"""

import re
from urllib.parse import parse_qs, unquote

ARTIFACTS = re.compile(r"/(?:ajax-)?api/\d+\.\d+/mlflow-artifacts/(?:artifacts|presigned|mpu/\w+)/(.*)", re.DOTALL)
LIST = re.compile(r"/(?:ajax-)?api/\d+\.\d+/mlflow-artifacts/artifacts/?")
MOST_DECODED = 10


def what_is_wrong(method: str, path: str, query: str) -> str | None:
    """Why a request does not name an artifact or a folder below the store's root; None where it does, or asks no such.

    `path`: decoded once, as servers pass it on. `query`: as it was sent.
    """
    if found := ARTIFACTS.fullmatch(path):
        name = found[1]
    elif LIST.fullmatch(path):
        name = next(iter(parse_qs(query).get("path", [])), "")
        if not name:
            return None if method in ("GET", "HEAD") else "the path is empty"
    else:
        return None
    for _ in range(MOST_DECODED):
        if re.search(r"[\x00-\x1f\x7f]", name):
            return "the path has a control character"
        segments = name.removesuffix("/").split("/")
        if any(segment.strip() in ("", ".", "..") for segment in segments):
            return "a part of the path is empty, `.` or `..`"
        if method == "DELETE" and ("?" in name or "#" in name):
            return "the path has `?` or `#`, where MLflow would cut it"
        if name.lstrip()[:1] in ("?", "#"):
            return "the path is empty before `?` or `#`"
        if (decoded := unquote(name)) == name:
            return None
        name = decoded
    return "the path is encoded too often"
