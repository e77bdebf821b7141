"""MLflow's application, as its server's workers load it, without what would be a door into this machine."""

import os
from typing import TYPE_CHECKING

from services.tracking.access import CONFIG
from services.tracking.artifact_paths import what_is_wrong
from services.tracking.bad_input import named

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ASSISTANT = "/mlflow/assistant/"  # MLflow's assistant runs commands here, installs skills and writes its own settings


def create() -> "ASGIApp":
    """The application, with logins where TRACKING_AUTH is on."""
    from mlflow.server import app as flask_application
    from starlette.responses import JSONResponse

    flask_application.config["PROPAGATE_EXCEPTIONS"] = True  # to bad_input.named, and not into a page of HTML
    if os.environ.get(CONFIG):
        from mlflow.server.auth import create_app

        inner: ASGIApp = create_app()
    else:
        from mlflow.server.fastapi_app import app as inner

    async def application(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and ASSISTANT in f"{scope['path']}/":
            refusal = {"error_code": "ENDPOINT_NOT_FOUND", "message": "MLflow's assistant is off on this server."}
            await JSONResponse(refusal, 404)(scope, receive, send)
            return
        if scope["type"] == "http" and (
            why := what_is_wrong(scope["method"], scope["path"], scope["query_string"].decode("latin-1"))
        ):
            refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": f"Nothing was done: {why}."}
            await JSONResponse(refusal, 400)(scope, receive, send)
            return
        await inner(scope, receive, send)

    return named(application)
