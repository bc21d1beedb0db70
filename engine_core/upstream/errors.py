"""What can go wrong with an upstream.

Error tree:
* UpstreamError              something about an upstream went wrong
  - UpstreamRejected         400, 404, 413, 422: this request can never be served, in the upstream's own words
  - UpstreamOverloaded       429, 503, or our own queue is full; try again after `retry_after_s`
  - UpstreamTimeout          408, 504, a first byte or a next one that did not come, or the caller's own deadline
  - UpstreamUnavailable      no connection, other 5xx, a stream that broke off, or an open circuit; `retry_after_s`
  - UpstreamFailed           401, 403, other statuses, or an answer that makes no sense
  - UpstreamClosed           the client is not started, or is shutting down

`failure` is what an error says of the upstream: True, it failed; False, it works; None, nothing. The circuit breaker
counts by it.

UpstreamRejected alone is shown to clients, who may not be meant to know where the upstream is: its words are cleaned.
"""

import re

# Addresses of machines and of memory, paths and reprs. Of words with a colon and a number, those that are no field's name.
REVEALING = re.compile(
    r"""[a-z][a-z0-9+.-]*://[^\s"'<>]*[\w/] | <[\w.]+(?:\sobject)?\sat\s0x[0-9a-f]+> | \b0x[0-9a-f]{6,}\b | \[[0-9a-f:]*:[0-9a-f:.]*\](?::\d+)?
    | \b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)? | (?<![\w.])[a-z0-9-]+(?:\.[a-z0-9-]+)*:\d{2,5}\b
    | (?<![\w.])~?(?:/[\w.@+-]+){2,}/? | (?<!\w)[a-z]:\\[^\s"']*\w""",
    re.IGNORECASE | re.VERBOSE,
)


class UpstreamError(Exception):
    """Base of all errors here."""

    def __init__(self, message: str, *, failure: bool | None) -> None:
        super().__init__(message)
        self.failure = failure


class UpstreamRejected(UpstreamError):
    """The request can never be served; the upstream's own words, bounded in length."""

    def __init__(self, message: str) -> None:
        super().__init__(message, failure=False)


class UpstreamOverloaded(UpstreamError):
    """Too many requests; `retry_after_s` is what the upstream says, or an estimate."""

    def __init__(self, message: str, retry_after_s: float, *, failure: bool | None = None) -> None:
        super().__init__(message, failure=failure)
        self.retry_after_s = retry_after_s


class UpstreamTimeout(UpstreamError):
    """Nothing came in time."""


class UpstreamUnavailable(UpstreamError):
    """It can't be reached, broke off, or is left alone for `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 5.0, *, failure: bool | None = True) -> None:
        super().__init__(message, failure=failure)
        self.retry_after_s = retry_after_s


class UpstreamFailed(UpstreamError):
    """It answers, but not with what was asked for."""

    def __init__(self, message: str, *, failure: bool = True) -> None:
        super().__init__(message, failure=failure)


class UpstreamClosed(UpstreamError):
    """The client is not started, or is shutting down."""

    def __init__(self, message: str) -> None:
        super().__init__(message, failure=None)


def cleaned(said: str) -> str:
    """The words of an upstream without what tells where it is or what it is made of."""
    return REVEALING.sub("[...]", said)


def of_status(status: int, said: str, where: str, retry_after_s: float, key: str) -> UpstreamError:
    """What a status other than 200 stands for.

    Args:
        status: of HTTP, or the code of an error within a stream.
        said: the upstream's own words.
        where: for the message, what answered.
        retry_after_s: what the upstream says, or a guess.
        key: for the message, where the key comes from; never the key.
    """
    words = f"expected status 200 from {where}, got {status}" + (f": {said}" if said else "")
    if status in (400, 404, 413, 422):
        return UpstreamRejected(cleaned(said) or f"the model's server refused this request with status {status}")
    if status in (401, 403):  # its words may repeat a part of the key
        return UpstreamFailed(f"expected status 200 from {where}, got {status}: look at {key}", failure=False)
    if status in (408, 504):
        return UpstreamTimeout(words, failure=True)
    if status in (429, 503):
        return UpstreamOverloaded(words, retry_after_s, failure=status == 503)
    return UpstreamUnavailable(words) if status >= 500 else UpstreamFailed(words, failure=False)
