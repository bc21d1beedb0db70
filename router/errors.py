"""Errors and how they look on the wire. The one table from exception to HTTP is TABLE, below.

Error tree:
* RouterError                what the gateway itself refuses or gives up
  - BadRequest               400, the request is wrong; `param` names the field
    - UnknownParameter       400, code unknown_parameter
    - MissingParameter       400, code missing_required_parameter
    - InvalidType            400, code invalid_type
    - PromptTooLong          400, code context_length_exceeded
    - FormatUnmet            422, no model's answer had the asked-for format
  - Unauthorized             401, no key, or one that isn't known
  - Forbidden                403, the key is not for this
  - UnknownModel             404
  - NotFound                 404, no such file, batch or request
  - Conflict                 409, not in this state
  - BodyTimeout              408, the body did not arrive in time
  - DeadlinePassed           408, no answer within the time that the request itself allows
  - Refused                  not now; says when to come back
    - RateLimited            429, the key's limit for the minute or for requests at once
      - NeverFits            429, and it will never be otherwise
    - BudgetSpent            429, code insufficient_quota
    - Overloaded             503, the gateway has enough to do
  - ClientGone               499, nobody is left to read the answer
The engines' trees (DraftError, RefineError) are drawn in their api.py.
"""

import logging
import re
from http import HTTPStatus
from typing import ClassVar, cast

from litestar.exceptions import HTTPException, ValidationException
from msgspec import Struct

from ar_engine import api as refine
from diffusion_engine import api as draft

logger = logging.getLogger("draftgate")


class RouterError(Exception):
    """Base of the gateway's own errors. Its message is written for the client."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadRequest(RouterError):
    """The request is wrong and stays wrong when repeated."""


class UnknownParameter(BadRequest):
    """A field that OpenAI's API doesn't have either."""


class MissingParameter(BadRequest):
    """A field that must be there isn't."""


class InvalidType(BadRequest):
    """A field has another type than it should."""


class PromptTooLong(BadRequest):
    """More text than the gateway takes."""


class FormatUnmet(BadRequest):
    """The models' answers don't have the format that was asked for."""


class Unauthorized(RouterError):
    """No key, or one that isn't known."""

    headers: ClassVar = {"www-authenticate": "Bearer"}


class Forbidden(RouterError):
    """The key is good, but not for this."""


class UnknownModel(RouterError):
    """No model of that name is served."""


class NotFound(RouterError):
    """There is no such thing, or it is another tenant's."""


class Conflict(RouterError):
    """The thing is not in a state where this can be done."""


class BodyTimeout(RouterError):
    """The request's body did not arrive in time."""


class DeadlinePassed(RouterError):
    """There is no answer within the time that the request itself allows, which is less than the server does."""


class Refused(RouterError):
    """Not now. `headers` go with the response, `retry_after_s` says when to come back."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = headers or {}


class RateLimited(Refused):
    """A limit of the caller's key is reached."""


class NeverFits(RateLimited):
    """The request alone is more than the key's limit for a minute."""


class BudgetSpent(Refused):
    """The key's tokens are used up."""


class Overloaded(Refused):
    """The gateway has as many requests as it takes, or as can be answered in time."""


class ClientGone(RouterError):
    """The client closed the connection before its answer was ready."""


class ErrorDetail(Struct, frozen=True, kw_only=True):
    """What went wrong, as the OpenAI API words it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct, frozen=True):
    """The envelope of every error."""

    error: ErrorDetail


class Wire(Struct, frozen=True):
    """How one kind of exception is shown."""

    status: int
    type: str
    code: str
    message: str | None = None  # None: the exception's own words are fit for the client
    retry_after_s: float | None = None  # the exception's own, if it has one, is better


INVALID = "invalid_request_error"
SERVER = "server_error"
BUSY = "The server is busy; try again shortly."
LATE = "The request took longer than its deadline."
BROKEN = "The server failed to answer this request."
AWAY = "The model can't be reached now; try again shortly."
STARTING = "The model is not ready to serve."
INTERNAL = Wire(500, SERVER, "internal_error", BROKEN)

TABLE: dict[type[BaseException], Wire] = {
    BadRequest: Wire(400, INVALID, "invalid_value"),
    UnknownParameter: Wire(400, INVALID, "unknown_parameter"),
    MissingParameter: Wire(400, INVALID, "missing_required_parameter"),
    InvalidType: Wire(400, INVALID, "invalid_type"),
    PromptTooLong: Wire(400, INVALID, "context_length_exceeded"),
    FormatUnmet: Wire(422, INVALID, "response_format_unmet"),
    Unauthorized: Wire(401, "authentication_error", "invalid_api_key"),
    Forbidden: Wire(403, "permission_error", "forbidden"),
    UnknownModel: Wire(404, INVALID, "model_not_found"),
    NotFound: Wire(404, INVALID, "not_found"),
    Conflict: Wire(409, INVALID, "conflict"),
    BodyTimeout: Wire(408, INVALID, "request_timeout"),
    DeadlinePassed: Wire(408, INVALID, "deadline_passed"),
    RateLimited: Wire(429, "rate_limit_error", "rate_limit_exceeded", None, 1.0),
    NeverFits: Wire(429, "rate_limit_error", "rate_limit_exceeded", None, 60.0),
    BudgetSpent: Wire(429, "insufficient_quota", "insufficient_quota", None, 60.0),
    Refused: Wire(503, SERVER, "try_later", None, 1.0),
    Overloaded: Wire(503, SERVER, "server_is_overloaded", None, 1.0),
    ClientGone: Wire(499, SERVER, "client_closed_request"),
    draft.DraftError: INTERNAL,
    draft.DraftRejected: Wire(400, INVALID, "rejected"),
    draft.DraftTooLong: Wire(400, INVALID, "context_length_exceeded"),
    draft.DraftOverloaded: Wire(503, SERVER, "server_is_overloaded", BUSY, 1.0),
    draft.DraftDeadline: Wire(504, SERVER, "timeout", LATE),
    draft.DraftEngineClosed: Wire(503, SERVER, "not_ready", STARTING, 5.0),
    draft.DraftFailed: Wire(500, SERVER, "engine_error", BROKEN),
    refine.RefineError: INTERNAL,
    refine.RefineRejected: Wire(400, INVALID, "rejected"),
    refine.RefineTooLong: Wire(400, INVALID, "context_length_exceeded"),
    refine.RefineOverloaded: Wire(503, SERVER, "server_is_overloaded", BUSY, 1.0),
    refine.RefineDeadline: Wire(504, SERVER, "timeout", LATE),
    refine.RefineUnavailable: Wire(503, SERVER, "upstream_unavailable", AWAY, 5.0),
    refine.RefineEngineClosed: Wire(503, SERVER, "not_ready", STARTING, 5.0),
    refine.RefineFailed: Wire(500, SERVER, "engine_error", BROKEN),
}


def wire_of(error: BaseException) -> Wire:
    """The nearest entry of TABLE; unexpected exceptions are internal errors."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), INTERNAL)


def describe(error: Exception) -> tuple[Wire, ErrorBody, dict[str, str]]:
    """Status, body and headers for any exception. Logs those that are our fault."""
    if isinstance(error, HTTPException) and error.status_code < 500:
        wire, message, param = _of_framework(error)
        headers = dict(error.headers or {})
    else:
        wire, param = wire_of(error), getattr(error, "param", None)
        headers = dict(getattr(error, "headers", {}))
        message = wire.message or str(error)
    if wire.status == 500:
        logger.error("request failed: %s", wire.code, exc_info=error)
    elif wire.status == 504:  # where it comes from is known, and under overload there are many
        logger.warning("request failed: %s", wire.code)
    if wire.status in {429, 503}:
        wait_s = getattr(error, "retry_after_s", None) or wire.retry_after_s or 1.0
        headers["retry-after"] = str(min(60, max(1, round(wait_s))))
    detail = ErrorDetail(message=message, type=wire.type, param=param, code=wire.code)
    return wire, ErrorBody(detail), headers


def _of_framework(error: HTTPException) -> tuple[Wire, str, str | None]:
    """Litestar's own 4xx: bad JSON, wrong types, no such path, wrong method, body too large."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    if not isinstance(error, ValidationException):
        return Wire(error.status_code, INVALID, code), error.detail, None
    problems = cast("list[dict[str, str]]", error.extra or [{}])
    key, message = problems[0].get("key", "data"), problems[0].get("message", "")
    if key != "data":
        return Wire(400, INVALID, "invalid_type"), f"{key}: {message}", key
    if missing := re.search(r"missing required field `(\w+)`", message):
        return Wire(400, INVALID, "missing_required_parameter"), message, missing[1]
    if not message.startswith("Expected"):
        message = "Expected `object`, got nothing"
    return Wire(400, INVALID, "invalid_type"), f"The body must be a JSON object. {message}", None
