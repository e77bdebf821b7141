"""llama.cpp's form for editors, /infill: what llama.vim and llama.vscode send."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from serving.gateway.body import MOST_STOPS, body_of
from serving.gateway.errors import Refusal
from serving.gateway.routes.answer import Answer
from serving.gateway.routes.forms import MOST_SNIPPETS, CompletionsRequest, Snippet
from serving.gateway.worker import gateway_of, until_gone

router = APIRouter()
NOTHING = {"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": 0, "tokens_evaluated": 0}


class InfillRequest(BaseModel):
    """The body: the text before the cursor's line, that line up to the cursor (`prompt`), and the text after it.

    Other fields of llama.cpp's are ignored: they are about its cache, its samplers and its time limits.
    """

    model_config = ConfigDict(extra="ignore")

    input_prefix: str = ""
    prompt: str = ""
    input_suffix: str = ""
    input_extra: list[Snippet] = Field(default=[], max_length=MOST_SNIPPETS)
    path: str = ""  # ours: the file's
    n_predict: int = Field(default=-1, ge=-1)
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    repeat_penalty: float | None = None
    stream: bool = False

    def as_completions(self) -> CompletionsRequest:
        """The same in OpenAI's form. Raises Refusal for a stream."""
        if not self.model_fields_set & {"input_prefix", "prompt", "input_suffix"}:
            raise Refusal(
                422, "input_prefix, prompt and input_suffix are missing. Expected one of them.", param="prompt"
            )
        if self.stream:
            raise Refusal(422, "stream is true. /infill answers whole: leave it out, or ask /v1/completions.")
        return CompletionsRequest(
            prompt=self.input_prefix + self.prompt,
            suffix=self.input_suffix,
            input_extra=self.input_extra,
            path=self.path,
            n_predict=self.n_predict if self.n_predict >= 0 else None,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed if self.seed != -1 else None,
            stop=self.stop,
            repeat_penalty=self.repeat_penalty,
        )


@router.post("/infill")
async def infill(request: Request, body: Annotated[InfillRequest, Depends(body_of(InfillRequest))]) -> Response:
    """Fill what stands between the texts before and after the cursor."""
    asked = body.as_completions()
    if body.n_predict == 0:  # llama.vim and llama.vscode warm up llama.cpp's cache so; we have no such cache
        return Response(json.dumps(NOTHING), media_type="application/json")
    work = Answer(request, gateway_of(request), asked, asked.inputs(), "text_completion")
    try:
        answer = await until_gone(request, work.whole())
    except BaseException:
        await work.close()
        raise
    return Response(json.dumps(_as_llama(answer)), media_type="application/json")


def _as_llama(answer: dict[str, Any]) -> dict[str, Any]:
    [choice] = answer["choices"]
    return {
        "content": choice["text"],
        "id": answer["id"],
        "model": answer["model"],
        "stop": True,
        "stop_type": "limit" if choice["finish_reason"] == "length" else "eos",
        "truncated": False,
        "tokens_predicted": answer["usage"]["completion_tokens"],
        "tokens_evaluated": answer["usage"]["prompt_tokens"],
    }
