"""Who may ask: API keys, and without them nobody but this machine's own programs.

Nothing that a client says of itself but its key has a part in it: not `X-Forwarded-*`, and `Host` only where no key is needed.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.openapi.spec import Components, SecurityRequirement, SecurityScheme

from router.api.document import errors
from router.errors import Forbidden, Overloaded, Unauthorized, UnknownModel
from router.serving.messages import Caller
from router.state.keys import Keys

OPEN = "/health/"  # balancers and orchestrators bring no key
DENIED = errors(401, 403, 503)  # for the `responses` of every other handler
SECURITY: list[SecurityRequirement] = [{"bearer": []}, {"api_key": []}, {}]  # the last: where there are no keys
SCHEMES = Components(
    security_schemes={
        "bearer": SecurityScheme(type="http", scheme="bearer"),
        "api_key": SecurityScheme(type="apiKey", name="X-Api-Key", security_scheme_in="header"),
    }
)

LOCAL = rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?"
LOCAL_HOST = re.compile(LOCAL, re.IGNORECASE)
LOCAL_ORIGIN = re.compile(rb"https?://" + LOCAL, re.IGNORECASE)
BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)

Connection = ASGIConnection[Any, Any, Any, Any]


def guard(keys: Keys) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """What stands before every handler; those below OPEN let everybody in."""

    async def admit(connection: Connection, handler: BaseRouteHandler) -> None:
        if all(path.startswith(OPEN) for path in handler.paths):
            return
        connection.scope["state"]["caller"] = identify(keys, list(connection.scope["headers"]))

    return admit


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    """The dependency `caller` of handlers: whom the guard let in."""
    return request.scope["state"]["caller"]


def identify(keys: Keys, headers: list[tuple[bytes, bytes]]) -> Caller:
    """Tell who sends a request with these headers.

    Raises:
        Unauthorized: no key, or one that isn't known.
        Forbidden: no key is needed, but a web page of elsewhere may be asking.
        Overloaded: the keys can't be read yet.
    """
    token = _token(headers)
    if token and (caller := keys.find(token)):
        return caller
    if not keys.loaded:  # whether a key is needed is not known either
        raise Overloaded("The API keys can't be read now; try again shortly.", retry_after_s=5.0)
    if keys.required:
        raise Unauthorized("Unknown API key." if token else "An API key is needed: `Authorization: Bearer KEY`.")
    _check_local(headers)
    return Caller()


def check_model(caller: Caller, model: str) -> None:
    """Raises UnknownModel, as for one that isn't there: a model that the caller's key is not for."""
    if caller.models and model not in caller.models:
        raise UnknownModel(f"No such model for this key; it may ask for: {', '.join(caller.models)}.", param="model")


def _token(headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization" and (bearer := BEARER.fullmatch(value)):
            return bearer[1]
    return next((value for name, value in headers if name == b"x-api-key"), b"")


def _check_local(headers: list[tuple[bytes, bytes]]) -> None:
    """Without keys only this machine connects, but its browser does so for any page.

    A page whose name was made to resolve to this machine still says that name in `Host`; one that sends a form here says where it is from in `Origin`.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not LOCAL_HOST.fullmatch(hosts[0]):
        raise Forbidden("Without API keys only localhost is served; the request's Host is another.")
    if not all(LOCAL_ORIGIN.fullmatch(value) for name, value in headers if name == b"origin"):
        raise Forbidden("Without API keys no web page but localhost's is served; the request's Origin is another.")
