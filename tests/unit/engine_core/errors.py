"""The errors of an engine that only tests know."""

from engine_core.loop import EngineErrors


class Wanted(Exception):
    pass


class Overloaded(Wanted):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Deadline(Wanted):
    pass


class Closed(Wanted):
    pass


class Failed(Wanted):
    pass


ERRORS = EngineErrors(Wanted, Overloaded, Deadline, Closed, Failed)
