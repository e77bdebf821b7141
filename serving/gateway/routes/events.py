"""What editors tell of completions: Tabby's events, what is left of them later, and Continue's data."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.responses import JSONResponse, Response

from serving.gateway.body import body_of, refusal_of
from serving.gateway.errors import Refusal
from serving.gateway.events.store import AFTER_S, LONG_ENOUGH_MS, Event
from serving.gateway.feedback import Feedbacks
from serving.gateway.routes.forms import MOST_COMPLETIONS
from serving.gateway.worker import gateway_of

router = APIRouter()
LONGEST_SHOWN_MS = 24 * 3600 * 1000
MANY = 1000  # events of one request


class EditorEvent(BaseModel):
    """The body of /v1/events, as Tabby's clients send it; `kept` is ours."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["view", "select", "dismiss", "kept"]
    completion_id: str = Field(max_length=100)
    choice_index: int = Field(default=0, ge=0, lt=MOST_COMPLETIONS)
    view_id: str | None = Field(default=None, max_length=300)
    elapsed: float | None = Field(default=None, ge=0, le=LONGEST_SHOWN_MS)  # ms that it was shown
    select_kind: str | None = Field(default=None, max_length=50)  # `line` where a part was taken
    after_s: int | None = None  # `kept`: how long after the completion was accepted
    characters: int | None = Field(default=None, ge=0)  # `kept`: how many of it are left
    text: str | None = Field(default=None, max_length=20_000)  # `kept`: what stands there now

    @model_validator(mode="after")
    def _whole(self) -> "EditorEvent":
        if self.type == "kept" and (self.after_s not in AFTER_S or self.characters is None):
            raise ValueError(f"kept wants after_s ({', '.join(map(str, AFTER_S))}) and characters")
        return self

    def event(self) -> Event:
        """What it tells."""
        if self.type == "kept" and self.after_s is not None and self.characters is not None:
            kept = (self.after_s, self.characters)
            return Event(self.completion_id, kept=kept, choice=self.choice_index, text=self.text)
        if self.type == "view":
            return Event(self.completion_id, viewed=True)
        shown_ms = None if self.elapsed is None else round(self.elapsed)
        accepted = self.type == "select"
        return Event(self.completion_id, True, shown_ms, accepted, choice=self.choice_index)


class Events(BaseModel):
    """One event, or several as a list."""

    model_config = ConfigDict(extra="allow")

    events: list[EditorEvent] | None = Field(default=None, min_length=1, max_length=MANY)


class ContinueData(BaseModel):
    """The body of /ingest/continue: what Continue's `data` destinations are sent, `data` around it or not."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    data: dict[str, Any] | None = None


class Autocompletion(BaseModel):
    """Of Continue's event `autocomplete`, what is used."""

    model_config = ConfigDict(extra="ignore")

    accepted: bool
    prefix: str = ""
    suffix: str = ""
    prompt: str = ""
    completion: str
    time: float | None = None  # ms that the completion took


Form = TypeVar("Form", bound=BaseModel)


def _parsed(form: type[Form], found: dict[str, Any]) -> Form:
    """A part of a body as this form. Raises Refusal for any other."""
    try:
        return form.model_validate(found)
    except ValidationError as error:
        raise refusal_of(error.errors(include_url=False)) from error


@router.post("/v1/events")
@router.post("/tabby/v1/events", include_in_schema=False)
async def events(
    request: Request,
    body: Annotated[Events, Depends(body_of(Events))],
    select_kind: Annotated[str | None, Query(max_length=50)] = None,
) -> Response:
    """Tell what became of a completion: `view`, `select` or `dismiss` with `elapsed`, or `kept` later."""
    feedbacks: Feedbacks = request.app.state.feedbacks
    if body.events is None:
        await feedbacks.tell(request, gateway_of(request), _parsed(EditorEvent, body.model_extra or {}).event())
        return JSONResponse({"accepted": 1})
    refused = []
    for number, item in enumerate(body.events):  # one that is refused keeps none of the others out
        try:
            await feedbacks.tell(request, gateway_of(request), item.event())
        except Refusal as refusal:
            refused.append({"index": number, "status": refusal.status, "message": refusal.message})
    return JSONResponse({"accepted": len(body.events) - len(refused), "refused": refused})


@router.post("/ingest/continue")
async def from_continue(request: Request, body: Annotated[ContinueData, Depends(body_of(ContinueData))]) -> Response:
    """Take Continue's development data: its autocompletions, found again by their texts.

    It sends none that was hardly seen, and not for how long one was: all count as shown.
    """
    data = body.data if body.data is not None else body.model_extra or {}
    name = body.name or str(data.get("eventName", "autocomplete"))
    if name != "autocomplete":
        return JSONResponse({"accepted": 0})
    given = _parsed(Autocompletion, data)
    feedbacks: Feedbacks = request.app.state.feedbacks
    known = await feedbacks.find(request, gateway_of(request), [given.prompt, given.prefix], given.completion)
    if known is None:
        raise Refusal(404, "No completion of yours in the last hours has this prompt and this text.")
    event = Event(known.id, viewed=True, shown_ms=LONG_ENOUGH_MS, accepted=given.accepted)
    await feedbacks.tell(request, gateway_of(request), event)
    return JSONResponse({"accepted": 1, "completion_id": known.id})
