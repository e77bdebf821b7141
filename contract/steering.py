"""What people say to the loop: a registered model's tags LOOP_FROZEN and LOOP_RUN_NOW, which the promoter writes."""

import json

from contract.errors import printable


def written(by: str, reason: str, at: float) -> str:
    """A tag. `at`: seconds since 1970."""
    return json.dumps({"by": by, "reason": reason, "at": round(at)})


def said(tag: str | None) -> str:
    """Why, and who, for one line of a terminal; empty where there is no tag."""
    if not tag:
        return ""
    try:
        values = json.loads(tag)
        return printable(f"{values['reason']} ({values['by']})")
    except (ValueError, KeyError, TypeError):
        return "somebody has written the tag by hand"
