"""The client's mistakes and the server's refusals, in the OpenAI error form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class RequestError(ValueError):
    """A refusal. `param` names the field, `code` is a stable string; the status is HTTP's."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        detail = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": detail}

    def encoded(self) -> bytes:
        return msgspec.json.encode(self.body())


def unavailable(message: str, code: str, retry_after: int = 1) -> RequestError:
    """503 with Retry-After."""
    return RequestError(message, code=code, status=503, headers={"Retry-After": str(retry_after)})
