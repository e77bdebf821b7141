"""Tabby's form: its editor clients work unchanged, with this server's URL and `/tabby` behind it as their endpoint."""

import json
import platform
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from contract.versions import RELEASE
from serving.gateway.body import body_of
from serving.gateway.routes.answer import Answer
from serving.gateway.routes.forms import MOST_SNIPPETS, CompletionsRequest, Snippet, Where
from serving.gateway.worker import gateway_of, until_gone

router = APIRouter(prefix="/tabby")
MOST_TOKENS = 64  # its clients do not say how many they want


class TabbySnippet(BaseModel):
    """A declaration, or a piece of another file."""

    model_config = ConfigDict(extra="ignore")

    filepath: str = ""
    body: str


class Segments(BaseModel):
    """What stands around the cursor, and what the editor knows besides."""

    model_config = ConfigDict(extra="ignore")

    prefix: str
    suffix: str | None = None
    filepath: str | None = None
    git_url: str | None = None
    declarations: list[TabbySnippet] = []
    relevant_snippets_from_changed_files: list[TabbySnippet] = []
    relevant_snippets_from_recently_opened_files: list[TabbySnippet] = []


class TabbyRequest(BaseModel):
    """The body of Tabby's /v1/completions."""

    model_config = ConfigDict(extra="ignore")

    language: str = ""
    segments: Segments
    temperature: float | None = None
    seed: int | None = None

    def as_completions(self) -> CompletionsRequest:
        """The same in OpenAI's form."""
        given = self.segments
        pieces = (
            *given.declarations,
            *given.relevant_snippets_from_changed_files,
            *given.relevant_snippets_from_recently_opened_files,
        )
        return CompletionsRequest(
            prompt=given.prefix,
            suffix=given.suffix,
            path=given.filepath or "",
            input_extra=[Snippet(filename=piece.filepath, text=piece.body) for piece in pieces[:MOST_SNIPPETS]],
            max_tokens=MOST_TOKENS,
            temperature=self.temperature,
            seed=self.seed,
        )


@router.post("/v1/completions")
async def completions(request: Request, body: Annotated[TabbyRequest, Depends(body_of(TabbyRequest))]) -> Response:
    """Fill what stands between the segments before and after the cursor."""
    asked = body.as_completions()
    where = Where(language=body.language, repository=body.segments.git_url or "")
    work = Answer(request, gateway_of(request), asked, asked.inputs(), "text_completion", where)
    try:
        answer = await until_gone(request, work.whole())
    except BaseException:
        await work.close()
        raise
    choices = [{"index": 0, "text": answer["choices"][0]["text"]}]
    return Response(json.dumps({"id": answer["id"], "choices": choices}), media_type="application/json")


@router.api_route("/v1/health", methods=["GET", "POST"])
async def health(request: Request) -> dict[str, Any]:
    """What serves, as Tabby's clients ask it before all else."""
    live = gateway_of(request).engine.state.live
    return {
        "model": f"{live.model}/{live.version}" if live else "",
        "chat_model": None,
        "device": "cpu",
        "arch": platform.machine(),
        "cpu_info": "",
        "cpu_count": 0,
        "cuda_devices": [],
        "version": {"build_date": "", "build_timestamp": "", "git_sha": "", "git_describe": f"ratchet {RELEASE}"},
    }


@router.get("/v1beta/server_setting")
async def server_setting() -> dict[str, Any]:
    """What its clients ask besides."""
    return {"disable_client_side_telemetry": False}
