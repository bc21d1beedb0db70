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
"""


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
        return UpstreamRejected(said or words)
    if status in (401, 403):  # its words may repeat a part of the key
        return UpstreamFailed(f"expected status 200 from {where}, got {status}: look at {key}", failure=False)
    if status in (408, 504):
        return UpstreamTimeout(words, failure=True)
    if status in (429, 503):
        return UpstreamOverloaded(words, retry_after_s, failure=status == 503)
    return UpstreamUnavailable(words) if status >= 500 else UpstreamFailed(words, failure=False)
