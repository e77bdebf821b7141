"""The generation parameters that a request may set."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


@dataclass(frozen=True)
class GenerationParams:
    """The parameters that `predict` takes, with their defaults. Each may also stand in an input row."""

    max_new_tokens: int = 64  # tokens
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 0 to 1: sample from the smallest set of tokens with this probability
    top_k: int = 0  # sample from so many tokens; 0: from all
    repetition_penalty: float = 1.0  # 1: none
    seed: int = -1  # of sampling; -1: a new one each time
    stop: tuple[str, ...] = ()  # the completion ends before the first of these texts

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature == 0 or 0.001 <= self.temperature <= 10, "0, or 0.001 to 10"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "0.01 to 100"),
            ("seed", -1 <= self.seed < 2**63, "-1 or more, below 2^63"),
        ):
            if not ok:
                raise invalid(f"{name} is {getattr(self, name)}. Expected {expected}.")

    def updated(self, changes: Mapping[str, Any]) -> "GenerationParams":
        """A copy with some values changed. Raises MlflowException for an unknown name or a wrong type."""
        refuse_unknown(changes)
        values: dict[str, Any] = {}
        for name, value in changes.items():
            default = getattr(GenerationParams(), name)
            try:
                if name == "stop":
                    stop = [value] if isinstance(value, str) else list(value)
                    if not all(isinstance(item, str) and item for item in stop):
                        raise ValueError
                    values[name] = tuple(stop)
                elif isinstance(value, (bool, str)) or (isinstance(default, int) and int(value) != value):
                    raise ValueError
                else:
                    values[name] = type(default)(value)
            except (TypeError, ValueError, OverflowError):
                kind = "a list of texts" if name == "stop" else "a " + type(default).__name__
                raise invalid(f"{name} is {value!r}. Expected {kind}.") from None
        return replace(self, **values)


PARAM_NAMES = tuple(item.name for item in fields(GenerationParams))
REQUEST_ID = "request_id"  # a parameter more, of a request and not of a row: by it the gateway knows it again


def refuse_unknown(params: Mapping[str, Any]) -> None:
    """Raise MlflowException (INVALID_PARAMETER_VALUE) naming the parameters that do not exist."""
    unknown = sorted(str(name) for name in params if name not in PARAM_NAMES)
    if unknown:
        raise invalid(
            f"Unknown generation parameter {', '.join(map(repr, unknown))}. Expected: {', '.join(PARAM_NAMES)}."
        )


def invalid(message: str) -> MlflowException:
    """The error for bad input: HTTP 400."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
