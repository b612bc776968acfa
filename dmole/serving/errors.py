"""Errors of the server, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole.messages import one_line, shortened

SERVER = "server_error"
INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Args:
        status: HTTP status.
        message: One line for the client.
        param: The key of the request that is at fault.
        code: A fixed word for programs.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """Return the body of the response, an object ``error``."""
        kind = _KINDS.get(self.status, SERVER if self.status >= 500 else INVALID)
        message = shortened(one_line(self), 400)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return one error for those that pydantic found in a body: that of the deepest key.

    Args:
        errors: As ``ValidationError.errors()`` returns them, at least one.
    """
    error = max(errors, key=lambda found: len(found["loc"]))
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "it cannot be parsed")
        return ApiError(400, f"the body is no JSON: {reason}", code="invalid_json")
    keys = [str(key) for key in error["loc"] if key != "body"]
    name = ".".join(keys)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "this server knows no such key"
    text = f"{name}: {message}" if name else message
    return ApiError(400, text, param=name or None)
