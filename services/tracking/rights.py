"""What each role may ask of the tracking server, as data: what is not listed is refused.

It comes on top of MLflow's own permissions, which say in which experiments and models. tests/fixtures/rights.txt shows
the whole matrix, each route of MLflow's with what every role may do there; a test keeps the two alike.
"""

import re
from enum import Enum

from contract import names

PARTS = ("trainer", "promoter", "serving")
PERSON = "person"  # the role of whoever has none of the parts'; MLflow's admins may do all

# A version's tags, by who writes them.
OF_TRAINER = frozenset(
    {
        *(names.ROLE, names.BASE_MODEL, names.EVALUATION_KEY, names.MANIFEST_SHA256, names.EVIDENCE),
        *(names.TRAIN_DIGESTS, names.PROTOCOL_TAG, names.IDEMPOTENCY_KEY, *names.GROUND),
    }
)
OF_PROMOTER = frozenset(
    {
        *(names.STAGE, names.GATE, names.PROMOTED_AT, names.PROMOTED_BY, names.PROMOTION_RUN, names.REPLACED_BY),
        *(names.VALIDATION, names.VALIDATED, names.TRIAL, names.TRIAL_SHARE),
    }
)
OF_SERVING = frozenset({names.REFUSED, names.TRIAL_STOPPED})
OF_MONITOR = frozenset({names.DRIFT})  # which has the trainer's account
OURS = OF_TRAINER | OF_PROMOTER | OF_SERVING | OF_MONITOR
# How the promoter's begin.
MODELS_TAGS = (names.LEDGER, names.LAST_PRODUCTION, names.BEST_GUARDS, names.FROZEN, names.TRIAL, names.LOOP)

# What a version may be made of: those whose owner MLflow looks up, for tracking reads any place in S3 that one names.
SOURCES = ("mlflow-artifacts:", "runs:", "models:")


class If(Enum):
    """What a request has to satisfy besides; services.tracking.authorization looks."""

    OPEN_RUN = "a run that is not evidence"
    OPEN_RUN_OR_BASE = "a run that is not evidence, or the tag evaluates of the base model's run, once"
    OPEN_FILE = "a file of a run that is not evidence, of a logged model that is not finished, or of a trace"
    FILE_OF_TRACE = "a file of a trace"
    PENDING_MODEL = "a logged model that is not finished"
    NEW_VERSION = "a version of a finished logged model and a run that is not evidence, with the trainer's tags alone"
    PLAIN_VERSION = "a version of what MLflow knows the owner of, without a part's tag"
    TAKEN_BACK = "a version without alias whose run is not evidence"
    TAG_OF_MONITOR = "the tag drift"
    TAG_OF_PROMOTER = "a tag that is not the trainer's, the monitor's or serving's"
    TAG_OF_SERVING = "the tags serving_refused and trial_stopped"
    PLAIN_TAG = "a tag that is no part's"
    PLAIN_MODEL_TAG = "a tag that is not the promoter's"
    BARE_MODEL = "a model without tags"
    DEFAULT_PLACE = "an experiment that does not say where its artifacts lie"
    PLAIN_EXPERIMENT = "an experiment that is no part's and holds no evidence"


def _may(text: str, condition: If | None = None) -> dict[str, If | None]:
    """Each line is a method and the routes on which it is allowed."""
    lines = (line.split() for line in text.strip().splitlines())
    return {f"{method} {route}": condition for method, *routes in lines for route in routes}


READ = _may("""
    GET users/get users/current /version server-info
    GET experiments/get experiments/get-by-name experiments/search
    POST experiments/search runs/search logged-models/search
    GET runs/get metrics/get-history metrics/get-history-bulk metrics/get-history-bulk-interval artifacts/list
    GET logged-models/* logged-models/*/artifacts/directories logged-models/*/artifacts/files
    GET mlflow-artifacts/artifacts mlflow-artifacts/artifacts/* mlflow-artifacts/presigned/*
    POST artifacts/presigned-download-url
    GET registered-models/get registered-models/search registered-models/alias registered-models/get-latest-versions
    POST registered-models/get-latest-versions
    GET model-versions/get model-versions/search model-versions/get-download-uri
""")
READ_TRACES = _may("""
    GET traces traces/get traces/batchGet traces/* traces/*/info traces/*/assessments/* get-trace-artifact
    POST traces/search traces/batchGetInfos traces/metrics traces/calculate-filter-correlation
""")
WRITE_TRACES = _may("""
    POST /v1/traces traces traces/*/assessments
    PATCH traces/* traces/*/tags traces/*/assessments/*
    DELETE traces/*/tags
""")
PAGES = _may("""
    GET / /build/* /static-files/* /health /get-artifact /model-versions/get-artifact /graphql ui-telemetry
    POST /graphql ui-telemetry experiments/search-datasets
    GET users/current/permissions users/permissions/get users/permissions/list users/roles/list users/list
    GET roles/get roles/list roles/permissions/list roles/users/list workspaces workspaces/* webhooks webhooks/*
    GET get-online-trace-details unified-traces jobs/* prompt-optimization/jobs/* prompt-optimization/jobs/search
    POST prompt-optimization/jobs/search
    GET datasets/search datasets/* datasets/*/records datasets/*/experiment-ids issues/*
    POST datasets/search issues/search
    GET label-schemas/get label-schemas/get-by-name label-schemas/list
    GET review-queues/get review-queues/get-by-name review-queues/list review-queues/items/list
    GET scorers/get scorers/list scorers/versions scorers/online-configs mcp-servers mcp-servers/*
    GET gateway/budgets/get gateway/budgets/list gateway/budgets/windows gateway/endpoints/get gateway/endpoints/list
    GET gateway/endpoints/bindings/list gateway/guardrails/get gateway/guardrails/list gateway/secrets/list
    GET gateway/guardrails/list-for-endpoint gateway/model-definitions/get gateway/model-definitions/list
    GET gateway/supported-models gateway/supported-providers gateway/provider-config gateway/secrets/config
""")
LABELS = _may("""
    POST datasets/create datasets/*/records datasets/*/add-experiments datasets/*/remove-experiments
    PATCH datasets/*/tags
    DELETE datasets/* datasets/*/records datasets/*/tags/*
    POST label-schemas/create issues
    PATCH label-schemas/update issues/*
    DELETE label-schemas/delete
    POST review-queues/create review-queues/update review-queues/delete review-queues/get-or-create-user
    POST review-queues/items/add review-queues/items/remove review-queues/items/set-status
    POST traces/delete-traces traces/link-prompts
    DELETE traces/*/assessments/*
""")
NEW_RUNS = _may("POST runs/create logged-models")
LOG = _may(
    """
    POST runs/log-batch runs/log-metric runs/log-parameter runs/log-inputs runs/outputs runs/log-model
    POST runs/set-tag runs/delete-tag runs/update
    """
)
UPLOAD = """
    PUT mlflow-artifacts/artifacts/*
    POST mlflow-artifacts/mpu/create/* mlflow-artifacts/mpu/complete/* mlflow-artifacts/mpu/abort/*
"""

MAY: dict[str, dict[str, If | None]] = {
    "trainer": {
        **READ,
        **READ_TRACES,
        "POST model-versions/set-tag": If.TAG_OF_MONITOR,
        **NEW_RUNS,
        **dict.fromkeys(LOG, If.OPEN_RUN),
        "POST runs/set-tag": If.OPEN_RUN_OR_BASE,
        **_may(UPLOAD, If.OPEN_FILE),
        "PATCH logged-models/*": If.PENDING_MODEL,
        "POST logged-models/*/params": If.PENDING_MODEL,
        "POST experiments/create": If.DEFAULT_PLACE,
        "POST registered-models/create": If.BARE_MODEL,
        "POST model-versions/create": If.NEW_VERSION,
        "DELETE model-versions/delete": If.TAKEN_BACK,
    },
    "promoter": {
        **READ,
        **NEW_RUNS,
        **LOG,
        **_may(UPLOAD),
        **_may("POST runs/delete experiments/restore traces/search"),
        "POST experiments/create": If.DEFAULT_PLACE,
        **_may("POST registered-models/alias registered-models/set-tag"),
        **_may("DELETE registered-models/alias registered-models/delete-tag"),
        "PATCH model-versions/update": None,
        "POST model-versions/set-tag": If.TAG_OF_PROMOTER,
        "DELETE model-versions/delete-tag": If.TAG_OF_PROMOTER,
    },
    "serving": {
        **READ,
        **READ_TRACES,
        **WRITE_TRACES,
        **_may(UPLOAD, If.FILE_OF_TRACE),
        "POST model-versions/set-tag": If.TAG_OF_SERVING,
        "DELETE model-versions/delete-tag": If.TAG_OF_SERVING,
    },
    PERSON: {
        **READ,
        **READ_TRACES,
        **WRITE_TRACES,
        **PAGES,
        **LABELS,
        **NEW_RUNS,
        **dict.fromkeys(LOG, If.OPEN_RUN),
        **_may("POST runs/delete runs/restore traces/link-to-run upload-artifact", If.OPEN_RUN),
        **_may(UPLOAD, If.OPEN_FILE),
        **_may("PATCH logged-models/* logged-models/*/tags", If.PENDING_MODEL),
        **_may("DELETE logged-models/* logged-models/*/tags/*", If.PENDING_MODEL),
        "POST logged-models/*/params": If.PENDING_MODEL,
        "POST experiments/create": If.DEFAULT_PLACE,
        **_may("POST experiments/restore experiments/set-experiment-tag experiments/delete-experiment-tag"),
        **_may("POST experiments/update experiments/delete", If.PLAIN_EXPERIMENT),
        **_may("PATCH registered-models/update model-versions/update users/update-password"),
        "POST registered-models/create": If.PLAIN_MODEL_TAG,
        "POST registered-models/set-tag": If.PLAIN_MODEL_TAG,
        "DELETE registered-models/delete-tag": If.PLAIN_MODEL_TAG,
        "POST model-versions/create": If.PLAIN_VERSION,
        "POST model-versions/set-tag": If.PLAIN_TAG,
        "DELETE model-versions/delete-tag": If.PLAIN_TAG,
        "DELETE model-versions/delete": If.TAKEN_BACK,
    },
}
# What FastAPI answers itself, so that Flask, whose routes all others are, knows nothing of it.
NATIVE = ("/v1/traces", "mcp-servers", "mcp-servers/*")

_PREFIX = re.compile(r"/(?:ajax-)?api/\d\.\d/(?:mlflow/|(?=mlflow-artifacts/))")
_PARAMETER = re.compile(r"<[^>]*>|\{[^}]*\}")


def name_of(rule: str) -> str:
    """How the tables name a route: without the API's prefix and version, `*` for a part that differs."""
    prefix = _PREFIX.match(rule)
    return _PARAMETER.sub("*", rule[prefix.end() :] if prefix else rule)


def native(path: str) -> str | None:
    """Which of NATIVE a path is; None for none of them."""
    name = name_of(path)
    return next((route for route in NATIVE if re.fullmatch(re.escape(route).replace(r"\*", ".+"), name)), None)
