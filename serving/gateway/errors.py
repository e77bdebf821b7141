"""What the gateway answers when it cannot answer: in MLflow's form, or below /v1 in OpenAI's."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from contract.errors import shortened

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}
MLFLOW_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "INVALID_PARAMETER_VALUE",
    415: "INVALID_PARAMETER_VALUE",
    422: "INVALID_PARAMETER_VALUE",
    429: "RESOURCE_EXHAUSTED",
    503: "TEMPORARILY_UNAVAILABLE",
}


LONGEST = 1000  # characters of a message: what a client has sent may stand in it


class Refusal(Exception):
    """An answer that is an error: an HTTP status, and a message for whoever asked."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = shortened(message, LONGEST)
        self.status, self.code, self.param = status, code, param
        self.headers = {} if retry_after_s is None else {"Retry-After": f"{max(1, round(retry_after_s))}"}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's form."""
        kind = OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def mlflow(self) -> dict[str, Any]:
        """The body in MLflow's form."""
        code = MLFLOW_CODES.get(self.status, "BAD_REQUEST" if self.status < 500 else "INTERNAL_ERROR")
        return {"error_code": code, "message": self.message}

    def response(self, path: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The answer to a request of this path."""
        body = self.openai() if path.startswith("/v1/") else self.mlflow()
        return JSONResponse(body, self.status, {**self.headers, **(headers or {})})


def too_large(most: int) -> Refusal:
    """The refusal of a body of more bytes than that."""
    message = f"The body is larger than {most} bytes, the most that is taken here (SERVING_MAX_BODY_BYTES)."
    return Refusal(413, message)
