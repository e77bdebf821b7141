"""The loop's rounds, as both sides know them, and what people say to the loop by tags of the registered model.

The loop writes rounds (services/loop), the promoter LOOP_FROZEN and LOOP_RUN_NOW; each reads what the other wrote.
"""

import json
from typing import TYPE_CHECKING

from contract.errors import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Tags of a round.
ROUND, MODEL = "round", "model"  # `true`: other runs of the experiment are claims and jobs; and of which model
TRIGGER, CANDIDATE, TRAINED_S, END, WHY = "trigger", "candidate", "trained_s", "end", "why"


def rounds_of(model: str) -> str:
    """MLflow's filter for a model's rounds, in the experiment ROUNDS."""
    return f"tags.{MODEL} = '{model}' AND tags.{ROUND} = 'true'"


def tags(client: "MlflowClient", model: str) -> dict[str, str]:
    """The registered model's; empty before anybody has trained one."""
    found = client.search_registered_models(f"name = '{model}'")
    return dict(found[0].tags) if found else {}


def written(by: str, reason: str, at: float) -> str:
    """A tag. `at`: seconds since 1970."""
    return json.dumps({"by": by, "reason": reason, "at": round(at)})


def said(tag: str | None) -> str:
    """Why, and who, for one line of a terminal; empty without a tag."""
    if not tag:
        return ""
    try:
        values = json.loads(tag)
        return printable(f"{values['reason']} ({values['by']})")
    except (ValueError, KeyError, TypeError):
        return "somebody has written the tag by hand"
