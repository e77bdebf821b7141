"""The only public port: MLflow's forms, OpenAI's, llama.cpp's, Tabby's, and what tells how things are.

    /invocations /ping /health /version                   routes/mlflow.py
    /v1/models /v1/completions /v1/chat/completions       routes/openai.py
    /infill                                               routes/infill.py
    /tabby/v1/…                                           routes/tabby.py
    /v1/events /ingest/continue                           routes/events.py
    /status /metrics /feedback /webhook                   routes/operations.py
    / /login /logout /act                                 routes/page.py: for people
    /openapi.json                                         what all but the page take

Run by the supervisor: gunicorn "serving.gateway.app:create()".
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from contract import logs
from contract.names import SERVING_SUPERVISOR
from contract.versions import RELEASE
from serving.gateway.body import refusal_of
from serving.gateway.errors import Refusal, too_large
from serving.gateway.feedback import Feedbacks
from serving.gateway.middleware import Edge
from serving.gateway.routes import events, forms, infill, mlflow, openai, operations, page, tabby
from serving.gateway.worker import Gateway
from serving.settings import RunSettings
from serving.supervisor.state import end_with

BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": forms.CompletionsRequest,
    "/v1/chat/completions": forms.ChatRequest,
    "/infill": infill.InfillRequest,
    "/tabby/v1/completions": tabby.TabbyRequest,
    "/v1/events": events.EditorEvent,
    "/ingest/continue": events.ContinueData,
    "/feedback": operations.Feedback,
}


def create() -> FastAPI:
    """The application, with its settings from the environment."""
    logs.set_up("gateway")
    gateway = Gateway(RunSettings())
    if supervisor := os.environ.get(SERVING_SUPERVISOR):
        end_with(int(supervisor), os.getppid())  # gunicorn's first process, and so all of its workers

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.engine.close()

    app = FastAPI(title="Ratchet serving", version=RELEASE, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.gateway, app.state.feedbacks, app.state.page = gateway, Feedbacks(), page.Page(gateway)
    for routes in (mlflow, openai, infill, tabby, events, operations, page):
        app.include_router(routes.router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Edge, gateway=gateway)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that `body_of` reads, which FastAPI does not know of."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path, form in BODIES.items():
            schema = form.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[form.__name__] = schema
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{form.__name__}"}}}
            document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        app.openapi_schema = document
    return app.openapi_schema


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response(request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal_of(error.errors()).response(request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.state.too_large:
        return too_large(request.app.state.gateway.settings.serving_max_body_bytes).response(request.url.path)
    if error.status_code == 404:
        return Refusal(404, f"There is nothing at {request.url.path}.").response(request.url.path)
    return Refusal(error.status_code, str(error.detail)).response(request.url.path, error.headers)
