"""Decision records as others read them: runs in the experiment `promotions`, one for each decision and each move.

The promoter writes them (promoter/records.py); serving's page shows them. Each has the tags `model`, `version`,
`stage`, `moved_from`, `replaces`, `action`, `outcome`, `by`, `why` and `decided_at`.
"""

NOTHING = "nothing"  # instead of a version, where there was none
ROLLBACK, FREEZE, UNFREEZE = "rollback", "freeze", "unfreeze"  # actions that ask no gate
PROMOTED, REFUSED, AWAITING = "promoted", "refused", "awaiting approval"  # outcomes
ARCHIVED, ROLLED_BACK, JUDGED = "archived", "rolled back", "passed the gate"
NOTHING_TO_DO, REFUSED_BEFORE = "nothing to do", "refused before"  # of a decision that had been made
APPROVED, WITHDRAWN = "approved", "withdrawn"  # of a decision that awaited approval
FROZEN, UNFROZEN = "frozen", "unfrozen"  # of the whole model
TRIAL = "trial"  # an action: a challenger gets a share of production's requests, until it is promoted or is not
ON_TRIAL, TRIAL_ROLLED_BACK, INCONCLUSIVE = "on trial", "trial rolled back", "inconclusive"
# What changes something.
MOVES = (PROMOTED, ARCHIVED, ROLLED_BACK, FROZEN, UNFROZEN, ON_TRIAL, TRIAL_ROLLED_BACK, INCONCLUSIVE)

PASSED, NOT_PASSED = "✓", "✗"  # how a line begins that tells of one of the promoter's checks


def link(experiment_id: str, run_id: str) -> str:
    """Where the MLflow UI shows a record's report; relative to the server, whatever its address."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}/artifacts/decision.html"
