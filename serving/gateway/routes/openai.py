"""OpenAI's forms: completions, with `suffix` to fill in the middle, and chat, each whole or streamed."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from contract.messages import CompletionRequest
from serving.gateway.body import body_of, shown
from serving.gateway.errors import Refusal
from serving.gateway.routes.answer import Answer, Kind
from serving.gateway.routes.forms import MOST_COMPLETIONS, ChatRequest, CompletionsRequest, OpenAIRequest
from serving.gateway.worker import Gateway, gateway_of, until_gone

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served here."""
    gateway = gateway_of(request)
    return {"object": "list", "data": [_model(gateway)]}


@router.get("/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The one model that is served here, by its name."""
    gateway = gateway_of(request)
    _check_model(gateway, name)
    return _model(gateway)


@router.post("/completions")
async def completions(
    request: Request, body: Annotated[CompletionsRequest, Depends(body_of(CompletionsRequest))]
) -> Response:
    """Continue a prompt, or fill what stands between it and `suffix`."""
    return await _answer(request, body, body.inputs(), "text_completion")


@router.post("/chat/completions")
async def chat(request: Request, body: Annotated[ChatRequest, Depends(body_of(ChatRequest))]) -> Response:
    """Answer the last message, in the model's own chat template."""
    inputs = [CompletionRequest(messages=[message.plain() for message in body.messages])]
    return await _answer(request, body, inputs, "chat.completion")


async def _answer(request: Request, body: OpenAIRequest, inputs: list[CompletionRequest], kind: Kind) -> Response:
    gateway = gateway_of(request)
    _check_model(gateway, body.model)
    body.refuse_what_is_not_there()
    if len(inputs) * body.n > MOST_COMPLETIONS:
        raise Refusal(
            422, f"{len(inputs)} prompts, {body.n} times each. Expected {MOST_COMPLETIONS} completions at most."
        )
    work = Answer(request, gateway, body, inputs, kind)
    try:
        if body.stream:
            await until_gone(request, work.begin())
            return StreamingResponse(
                work.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        return Response(json.dumps(await until_gone(request, work.whole())), media_type="application/json")
    except BaseException:
        await work.close()
        raise


def _model(gateway: Gateway) -> dict[str, Any]:
    live = gateway.engine.state.live
    return {
        "id": gateway.settings.serving_model,
        "object": "model",
        "created": int(live.since) if live else 0,
        "owned_by": "ratchet",
    }


def _check_model(gateway: Gateway, name: str | None) -> None:
    served = gateway.settings.serving_model
    if name not in (None, "", served):
        raise Refusal(
            404,
            f"The model {shown(name)} is not served here. Expected '{served}'.",
            code="model_not_found",
            param="model",
        )
