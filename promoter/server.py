"""The promoter's server: runs what administrators do on serving's page, under the promoter's own account.

Serving, which anybody may ask and which runs models' code, has no right to move an alias. It passes on an
administrator's request with their token, and this server believes nothing but the token.
"""

import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from contract import actions, logs
from contract.errors import InputError
from contract.files import why_not_free
from contract.tokens import Tokens, bearer

log = logging.getLogger(__name__)


def create(tokens: Tokens, tracking_uri: str, public_url: str | None) -> FastAPI:
    """The application. `tokens`: administrators' among them may ask."""
    app = FastAPI(title="Ratchet promoter", openapi_url=None)
    environment = {"MLFLOW_TRACKING_URI": tracking_uri, **({"TRACKING_PUBLIC_URL": public_url} if public_url else {})}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post(actions.PATH)
    async def act(request: Request) -> Any:
        owner = tokens.owner(bearer(request.headers.get("authorization", "")))
        if owner is None or not owner.admin:
            return JSONResponse({"detail": "Expected the token of an administrator."}, 401 if owner is None else 403)
        try:  # after the token: nobody else learns what is wrong
            action = actions.Action.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            return JSONResponse({"detail": f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}."}, 422)
        log.info("%s of %s by %s: %r", action.action, action.model, owner.name, action.reason)
        result = await actions.run(action, owner.name, environment)
        log.info("%s of %s by %s: exit code %d", action.action, action.model, owner.name, result.exit_code)
        return asdict(result)

    return app


def serve(tokens_file: Path, host: str, port: int, tracking_uri: str, public_url: str | None) -> None:
    """Listen until SIGTERM. Raises InputError where that cannot be."""
    if not tokens_file.is_file():
        raise InputError(
            f"--tokens-file is '{tokens_file}', which is no file. `python -m serving.gateway.tokens add NAME --admin "
            f"--file {tokens_file}` makes one."
        )
    if why := why_not_free(host, port):
        raise InputError(f"Cannot listen on {host}:{port}: {why}. Stop what runs there, or name another with --port.")
    logs.set_up("promoter")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn ends, and then passes the signal on
    config: Mapping[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 30}
    uvicorn.run(create(Tokens(tokens_file), tracking_uri, public_url), host=host, port=port, **config)
