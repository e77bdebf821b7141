"""MLflow's forms: /invocations, /ping, /health and /version, as `mlflow models serve` answers them."""

import asyncio
import difflib
import importlib.metadata
import json
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from contract.errors import shortened
from contract.trials import FAILED, LEFT
from serving.gateway.body import EXPECTED, MOST_STOPS, loads, refuse_codings, shown
from serving.gateway.errors import LONGEST, MLFLOW_CODES, Refusal
from serving.gateway.feedback import new_id
from serving.gateway.worker import Answered, ClientGone, Gateway, gateway_of, until_gone
from serving.supervisor.state import WAITING, Live

router = APIRouter()
DATA = ("inputs", "instances", "dataframe_split", "dataframe_records")  # what MLflow takes prompts as: one of them
MLFLOW_VERSION = importlib.metadata.version("mlflow")


@router.api_route("/ping", methods=["GET", "HEAD"])
@router.api_route("/health", methods=["GET", "HEAD"])
async def ping(request: Request) -> Response:
    """Whether a model answers: MLflow's 200 with an empty line, or 503 with what is awaited."""
    now = gateway_of(request).engine.state
    if now.live is None:
        # To everybody: what is awaited, but not what has failed.
        message = now.message if now.status == WAITING else "see /status, or serving's log"
        return JSONResponse({"status": now.status, "message": message}, 503, {"Retry-After": "5"})
    request.state.live = now.live
    return Response("\n", media_type="application/json")


@router.get("/version")
async def version() -> Response:
    """MLflow's version, as `mlflow models serve` says it."""
    return Response(MLFLOW_VERSION, media_type="application/json")


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    """MLflow's form: the live model's answer, without a stack trace."""
    gateway, body, began_ns = gateway_of(request), await request.body(), time.time_ns()
    refuse_codings(request)
    content_type = request.headers.get("content-type", "application/json").lower()
    request_id = new_id("inv").removeprefix("inv-")  # the engine's: a client may send its own twice
    inputs, body = with_request_id(body, content_type, request_id)
    assigned = gateway.assign(request, f"inv-{request_id}")

    def chosen(live: Live) -> None:
        if assigned is None:  # else it counts where it was assigned
            request.state.live = live

    async def lost(outcome: str) -> None:
        """Keep what a trial has to know of a request without an answer."""
        if assigned is not None:
            nothing = Answered(f"inv-{request_id}", began_ns, inputs, {}, json.dumps(inputs), [], [], outcome=outcome)
            await gateway.record(request, nothing)

    async def ask() -> Any:
        return await gateway.engine.invoke(body, content_type, gateway.until(), chosen, assigned)

    try:
        answer = await until_gone(request, ask())
    except (ClientGone, asyncio.CancelledError):  # found out here, or by gunicorn
        if request.state.live is not None:
            gateway.later(gateway.engine.cancel(request.state.live, request_id))
        gateway.later(lost(LEFT))
        raise
    except Refusal:
        gateway.later(lost(FAILED))
        raise
    if answer.status != 200:
        status = answer.status if answer.status < 500 else 503  # MLflow's 500 is the model's failure
        headers = {"Retry-After": answer.retry_after or "2"} if status in (429, 503) else {}
        if assigned is not None:
            assigned.gone = assigned.gone or not headers  # the client's own mistake, as a rule
            gateway.later(lost(FAILED))
        return Response(without_trace(answer.body, status), status, headers, media_type="application/json")
    if inputs is not None:
        # Not as the response's background task: gunicorn's next request on the connection would wait for ever.
        gateway.later(_record_invocation(gateway, request, request_id, began_ns, inputs, answer.body))
    return Response(answer.body, 200, media_type=answer.content_type)


async def _record_invocation(
    gateway: Gateway, request: Request, request_id: str, began_ns: int, inputs: dict[str, Any], body: bytes
) -> None:
    usages = await gateway.engine.usage(request.state.live, request_id)
    found = json.loads(body)
    predictions = found.get("predictions") if isinstance(found, dict) else found  # a prompt by itself gets a bare list
    texts = [str(item) for item in predictions] if isinstance(predictions, list) else [str(predictions)]
    answered = Answered(
        id=f"inv-{request_id}",
        began_ns=began_ns,
        inputs=inputs,
        outputs={"predictions": predictions},
        prompt=json.dumps(inputs),
        completions=texts,
        usages=usages,
    )
    await gateway.record(request, answered)


def with_request_id(body: bytes, content_type: str, request_id: str) -> tuple[dict[str, Any] | None, bytes]:
    """(the JSON object, the body with the request's id among its params); (None, the body as it is) for other bodies.

    What is wrong with them, MLflow says itself. Raises Refusal for what it would leave out in silence, and for what is
    no JSON.
    """
    if not content_type.startswith("application/json"):
        return None, body
    asked = loads(body)
    if not isinstance(asked, dict):
        return None, body
    if not isinstance(asked.get("params", {}), (dict, type(None))):
        raise Refusal(400, f"params is {shown(asked['params'])}. Expected an object.")
    _check_stops(asked)
    if named := [name for name in DATA if name in asked]:
        _check(asked, named)
        sent = asked | {"params": {**(asked.get("params") or {}), "request_id": request_id}}
    else:
        sent = asked | {"request_id": request_id}
    return asked, json.dumps(sent).encode()


def _check_stops(asked: dict[str, Any]) -> None:
    stop = (asked.get("params") or {}).get("stop")
    if isinstance(stop, list) and len(stop) > MOST_STOPS:
        raise Refusal(400, f"stop has {len(stop)} texts. Expected {EXPECTED['stop']}.")


def _check(asked: dict[str, Any], named: list[str]) -> None:
    if len(named) > 1:
        raise Refusal(400, f"There are {' and '.join(named)}. Expected one of {', '.join(DATA)}.")
    if asked[named[0]] is None:
        raise Refusal(400, f"{named[0]} is null. Expected prompts, such as a list of texts.")
    known = (*named, "params", "signature_name")
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Expected {named[0]} and params."
            raise Refusal(400, f"There is {shown(name)}, which is not known here. {hint}")
    if "request_id" in (asked.get("params") or {}):
        raise Refusal(400, "params has request_id, which is given here. Leave it out.")
    _CHECKS[named[0]](named[0], asked[named[0]])


def _check_texts(name: str, given: Any) -> None:
    """Prompts: a list of texts or of objects with one each; an object with one or with a list. Raises Refusal."""
    prompts = given.get("prompt", []) if isinstance(given, dict) else given
    if isinstance(given, dict) and isinstance(prompts, str):
        return
    if not isinstance(prompts, list):
        raise Refusal(400, f"{name} is {shown(given)}. Expected a list of texts.")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, (str, dict, list)):
            raise Refusal(400, f"{name} has {shown(prompt)} in place {number}. Expected a text.")


def _check_split(name: str, given: Any) -> None:
    """A table as pandas splits it: its columns, its rows. Raises Refusal."""
    columns, rows = (given.get("columns"), given.get("data")) if isinstance(given, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise Refusal(400, f'{name} is {shown(given)}. Expected {{"columns": ["prompt"], "data": [["…"]]}}.')
    if len(set(map(str, columns))) < len(columns):
        raise Refusal(400, f"{name} has a column twice: {shown(columns)}.")
    if "index" in given and len(given["index"] if isinstance(given["index"], list) else ()) != len(rows):
        raise Refusal(400, f"{name} has {len(rows)} rows, and not as many in index.")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise Refusal(400, f"{name} has {shown(row)} as row {number}. Expected a list of {len(columns)}.")


def _check_records(name: str, given: Any) -> None:
    """A table as a list of objects. Raises Refusal."""
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise Refusal(400, f'{name} is {shown(given)}. Expected a list of objects such as {{"prompt": "…"}}.')


_CHECKS = {
    "inputs": _check_texts,
    "instances": _check_texts,
    "dataframe_split": _check_split,
    "dataframe_records": _check_records,
}


def without_trace(body: bytes, status: int) -> bytes:
    """MLflow's error without a stack trace; another text than JSON in MLflow's form."""
    try:
        error = json.loads(body)
        code, message = error["error_code"], str(error["message"])
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip().splitlines()
        code, message = "", text[0] if text and "Traceback" not in text[0] else "The model failed."
    if code in ("", "INTERNAL_ERROR"):
        code = MLFLOW_CODES.get(status, "INTERNAL_ERROR")
    return json.dumps({"error_code": code, "message": shortened(message, LONGEST)}).encode()
