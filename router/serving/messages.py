"""What goes into the pipeline and what comes out of it: no HTTP, no engine objects."""

from typing import Any, Literal

from msgspec import Struct

from router.policy import Route, Wanted


class Ask(Struct, frozen=True, kw_only=True):
    """One request, checked and in the gateway's own words."""

    request_id: str
    model: str  # as the client named it
    messages: tuple[dict[str, Any], ...]
    wanted: Wanted = "auto"
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_steps: int | None = None
    use_cache: bool = True

    @property
    def deterministic(self) -> bool:
        """Would the same request get the same answer again?"""
        return self.temperature == 0.0 or self.seed is not None

    @property
    def prompt_chars(self) -> int:
        """Length of all messages together."""
        return sum(len(message["content"]) for message in self.messages)


class Decision(Struct, frozen=True, kw_only=True):
    """The route an answer took and why, as the client sees it."""

    route: Route
    reason: str
    complexity: float | None = None  # None: not scored
    quality: float | None = None  # None: no draft was checked
    cached_route: Route | None = None  # the route that first made a cached answer


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int | None = None  # draft tokens in a refined answer; None: nothing was refined
    dropped_tokens: int | None = None  # draft tokens thrown away by the refiner
    sketched_tokens: int | None = None  # of a direct answer, those that a sketch had right; None: there was no sketch
    steps: int | None = None  # denoising steps of the draft; None: no draft was made


class Decided(Struct, frozen=True):
    """Comes first, once: from here on the route is final."""

    decision: Decision


class TextDelta(Struct, frozen=True):
    """More text of the answer."""

    text: str


class Finished(Struct, frozen=True, kw_only=True):
    """Comes last, once."""

    finish_reason: Literal["stop", "length"]
    usage: Usage
    decision: Decision


Event = Decided | TextDelta | Finished


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer, as the cache keeps it."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    decision: Decision
