"""What a client sends: JSON in UTF-8, whatever its Content-Type says, as one of our forms."""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from contract.errors import json_type, shortened
from serving.gateway.errors import Refusal

Form = TypeVar("Form", bound=BaseModel)
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: an editor cuts a text by UTF-16's units
MOST_LOGPROBS = 20  # tokens in each place
MOST_STOPS = 64  # texts; they are looked for behind every token
SHOWN = 100  # characters of a value in a message
TYPES = ("body", "str", "int", "float")  # which pydantic has in the place of an error, where a field may be several
EXPECTED = {
    "prompt": "a text, or a list of texts: token ids are not taken",
    "logprobs": f"a number from 0 to {MOST_LOGPROBS} for completions, true or false for chat",
    "stop": f"a text, or a list of at most {MOST_STOPS} texts",
}


def body_of(form: type[Form]) -> Callable[[Request], Awaitable[Form]]:
    """A dependency: the request's body as this form. Raises Refusal for any other body."""

    async def parsed(request: Request) -> Form:
        refuse_codings(request)
        kind = request.headers.get("content-type", "")
        hint = "" if "json" in kind.lower() else f" Content-Type is {shown(kind)}."
        found = loads(await request.body(), nulls=False, hint=hint)
        if not isinstance(found, dict):
            raise Refusal(422, f"The body is of type {json_type(found)}. Expected a JSON object.")
        try:
            return form.model_validate(found)
        except ValidationError as error:
            raise refusal_of(error.errors(include_url=False)) from error

    return parsed


def refuse_codings(request: Request) -> None:
    """Raise Refusal for a body that is compressed."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(415, f"Content-Encoding is {shown(coding)}. Expected none: send the JSON as it is.")


def loads(body: bytes, nulls: bool = True, hint: str = "") -> Any:
    """A body's JSON, in it U+FFFD for half a surrogate pair; without `nulls`, what is null is not there.

    Raises Refusal for what is no JSON, with `hint` behind it.
    """
    try:
        return _cleaned(json.loads(body.decode("utf-8-sig"), parse_constant=_no_number), nulls)
    except UnicodeDecodeError as error:
        raise Refusal(
            400, f"The body is not UTF-8: {error.reason} at byte {error.start}. Expected JSON in UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise Refusal(400, f"The body is not JSON: {error.msg} at character {error.pos}.{hint}") from error
    except RecursionError as error:
        raise Refusal(400, "The body is nested too deeply to be read.") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise Refusal(400, f"The body has a number that cannot be read: {shown(error)}.") from error


def refusal_of(errors: Sequence[Any]) -> Refusal:
    """The first thing that is wrong with a body: which field, what is in it, what was expected."""
    first = errors[0]
    where = [part for part in first["loc"] if part not in TYPES and not str(part).endswith("]")]
    name = str(where[0]) if where else ""
    if first["type"] == "missing":
        return Refusal(422, f"{'.'.join(map(str, where))} is missing.", param=name or None)
    if name in EXPECTED:
        return Refusal(422, f"{name} is {shown(first['input'])}. Expected {EXPECTED[name]}.", param=name)
    path = ".".join(map(str, where)) or "The body"
    said = first["msg"].removeprefix("Value error, ")
    return Refusal(422, f"{path} is {shown(first['input'])}: {said}.", param=name or None)


def shown(value: Any) -> str:
    """A value in a message, on one line and not too long."""
    text = repr(str(value) if not isinstance(value, (str, int, float, bool, list, dict, type(None))) else value)
    return shortened(text, SHOWN)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _cleaned(value: Any, nulls: bool) -> Any:
    if isinstance(value, str):
        return HALF.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_cleaned(item, nulls) for item in value]
    if isinstance(value, dict):
        kept = ((key, item) for key, item in value.items() if nulls or item is not None)
        return {_cleaned(key, nulls): _cleaned(item, nulls) for key, item in kept}
    return value
