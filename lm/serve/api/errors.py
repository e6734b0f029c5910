"""Errors of the API in OpenAI's form: {"error": {"message", "type", "param", "code"}}, and a status code."""

import json
from typing import Any

from starlette.responses import Response

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    414: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer other than 200. retry: seconds after which the client may ask again, for the header Retry-After."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: float = 0.0):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    def body(self) -> dict[str, Any]:
        type_ = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": type_, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {"Retry-After": str(max(1, round(self.retry)))} if self.retry else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response(self.body(), self.status, headers)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encoded(value), status, headers, media_type="application/json")


def encoded(value: Any) -> bytes:
    """Return JSON in UTF-8. Lone surrogates, which a client may send, become question marks. Raises: ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
