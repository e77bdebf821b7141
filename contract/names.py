"""Names that more than one part uses: what one writes, another reads.

A version's tags are what somebody filters by or a rule protects; all else that is known of it stands in its
description, in its run's tags or in an artifact. Who writes each, and who reads it, is said beside it.
"""

import hashlib
from collections.abc import Mapping

# Experiments and registered models.
DEFAULT_EXPERIMENT = "code_model_fine_tuning"
PROMOTIONS = "promotions"  # the experiment of decision records
TRACES = "serving"  # the experiment of traces
MONITORING = "monitoring"  # the experiment of looks at production (services/monitor)
JOBS = "jobs"  # the experiment of what a worker has done for a loop (services/loop/worker.py)
ROUNDS = "rounds"  # the experiment of the loop's rounds (services/loop)


def pyfunc_model(experiment: str) -> str:
    """The registered PyFunc model of an experiment: the one that is gated and served."""
    return f"{experiment}_model"


def pytorch_model(experiment: str) -> str:
    """The registered model that holds the same weights in plain Transformers form."""
    return f"{experiment}_pytorch_model"


# Aliases: the promoter moves them, serving follows `production`. An alias is the truth, a stage says it in words.
STAGING, PRODUCTION, PREVIOUS = "staging", "production", "previous"
CHALLENGER_ALIAS = "challenger"  # a version that gets a share of production's requests: contract/trials.py
STAGES = {PRODUCTION: "Production", STAGING: "Staging", PREVIOUS: "Previous"}  # by alias, the highest first
ARCHIVED = "Archived"  # the stage of a version that was taken out

# Tags of a version, written by the trainer when it registers it.
ROLE = "role"  # filter; BASE or CANDIDATE. Of a run, EVALUATION too
BASE, CANDIDATE, EVALUATION = "base", "candidate", "evaluation"
BASE_MODEL = "base_model"  # rule (the base model's revision is recorded); filter: finds the base model's version
DATASET_DIGEST = "dataset_digest"  # filter: on which examples it was judged; a run has it too
EVALUATION_KEY = "evaluation_key"  # rule: only versions judged on the same examples in the same way are compared
MANIFEST_SHA256 = "manifest_sha256"  # rule (files as at training); tracking protects it with logins on
EVIDENCE = (
    "evaluation_sha256"  # rule: sha256 of the evaluation table of the version's own run; each evaluation's run has it
)
TRAIN_DIGESTS = (
    "train_digests"  # rule: no version is judged by what it was trained on; its base's too. A run has it too
)
PROTOCOL_TAG = "protocol"  # rule: serving refuses a protocol that it does not know
IDEMPOTENCY_KEY = "idempotency_key"  # filter: finds what an earlier try made; a run has it too

# Tags of a version, written by the promoter.
STAGE = "stage"  # filter; rule: no alias names an archived version
GATE = "gate"  # filter: the gate's last outcome
PROMOTED_AT, PROMOTED_BY, PROMOTION_RUN = "promoted_at", "promoted_by", "promotion_run_id"  # filter: the last move
REPLACED_BY = "replaced_by"  # rule: a version that was replaced comes back by hand alone
VALIDATION = "validation_status"  # rule: `passed` is wanted on the way to production
VALIDATED = "validated_tables"  # rule: first 16 digits of the sha256 of each table of it that was computed again

# Tags of a version on trial, written by the promoter: serving follows them. And by serving: why it stopped by itself.
TRIAL, TRIAL_SHARE = "trial", "trial_share"  # rule: JSON of contract.trials.Trial; a number between 0 and 1
TRIAL_STOPPED = "trial_stopped"  # rule: contract.trials.stopped

# A tag of a version, written by the monitor: serving shows and counts it.
DRIFT = "drift"  # what has drifted since it was trained; NO_DRIFT where somebody has looked and found nothing
NO_DRIFT = "none"

# A tag of the experiment of decision records, written once a backup is done (services/tracking/backups.py).
BACKED_UP_AT = "backed_up_at"  # seconds since 1970

# A tag of a version, written by serving.
REFUSED = "serving_refused"  # filter: why it could not go live

# Tags of a run alone, written by the trainer, by which evaluations are found comparable.
PROMPT_TEMPLATE, EVAL_SETTINGS = "prompt_template", "eval_settings"
GROUND = (DATASET_DIGEST, PROMPT_TEMPLATE, EVAL_SETTINGS)  # on what, and how, a run evaluated
EVALUATED_MANIFEST = "evaluated_manifest"  # sha256 of the manifest of the version whose files were judged


def evaluation_key(tags: Mapping[str, str]) -> str | None:
    """The same for versions that were judged on the same examples in the same way; None where one was not judged.

    From the tag, or from those of GROUND, which Ratchet 0.1 put on the version itself.
    """
    if EVALUATION_KEY in tags or DATASET_DIGEST not in tags:
        return tags.get(EVALUATION_KEY)
    return hashlib.sha256("\0".join(tags.get(name, "") for name in GROUND).encode()).hexdigest()[:12]


EVALUATES = "evaluates"  # NAME/VERSION, of a run that evaluates a version which it did not make

# Of a trace, written by serving: its user agrees that models are trained on it. An assessment: the text that they kept.
TRAINS, KEPT_TEXT = "trains", "kept_text"

# Tags of a registered model, written by the promoter: what was tried stays known though versions and runs are deleted.
LEDGER = (
    "tried_against_"  # and the incumbent's number: every version that was compared with it, with its share of alpha
)
LAST_PRODUCTION = "last_production"  # the version that the promoter put there last, whatever became of the alias
LOOP = "loop_"  # how the tags begin that steer the loop
LOOP_FROZEN, LOOP_RUN_NOW = "loop_frozen", "loop_run_now"  # JSON of who, when and why; the loop obeys
LOOP_LOOKED = "loop_looked"  # when the loop last had the monitor look: seconds since 1970
LOOP_RESUMED = "loop_resumed"  # when somebody last let the loop go on: seconds since 1970
FROZEN = "frozen"  # the run of the record by which promotions were stopped; there as long as they are
BEST_GUARDS = "best_on_"  # and the start of a data digest: the best that production had of each guard on these data

# Artifacts of a run, and two of the table's columns: the unit that was held out (its file), and where that is from.
EVALUATION_TABLE = "eval/examples.parquet"
GROUP, REPOSITORY = "group", "repository"
# A metric of a run: the share of held-out examples that have a near twin among those to train on.
HELD_OUT_TWINS = "data/held_out_twins"

# Environment variables that one of our processes sets for another.
SERVING_SUPERVISOR = "SERVING_SUPERVISOR"  # the supervisor's process id: gateway and model end with it
SERVING_CHANNEL = "SERVING_CHANNEL"  # path of the Unix socket on which the model's process answers (PROTOCOL 1)
EVALUATOR_DIR = "EVALUATOR_DIR"  # where trainer and evaluator meet
GOMP_SPINCOUNT = "GOMP_SPINCOUNT"  # OpenMP's: rounds that a thread waits for the others before it gives its core away
SPIN = "10000"  # some 30 µs, as long as the pauses between the products of one step; the default waits far longer
