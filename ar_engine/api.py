"""What other packages may know of the refine engine: messages, settings and errors. Imports no torch.

Error tree:
* RefineError                something about refining went wrong
  - RefineRejected           this request can never be served (prompt too long, bad option)
  - RefineOverloaded         the queue is full; try again after `retry_after_s`
  - RefineDeadline           the request's deadline passed before its answer was finished
  - RefineEngineClosed       the engine is not started, or is shutting down
  - RefineFailed             the engine broke while working on this request
"""

from typing import Any, Literal

from msgspec import Struct

RefineMode = Literal["exact", "fresh"]


class RefineError(Exception):
    """Base of every error that the refine engine raises on purpose."""


class RefineRejected(RefineError):
    """The request can never be served. The message says expected and got."""


class RefineOverloaded(RefineError):
    """The bounded queue is full; `retry_after_s` estimates when a place is free."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefineDeadline(RefineError):
    """The deadline passed first."""


class RefineEngineClosed(RefineError):
    """The engine is not started, or is shutting down."""


class RefineFailed(RefineError):
    """The engine failed on this request; the cause is chained."""


class RefineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to load and run the refine model."""

    model: str = "demo"  # a checkpoint's name or folder; "demo" is the one shipped in demo_models
    mode: RefineMode = "exact"  # what to do with a rejected draft
    max_tokens: int = 1024  # most tokens in one answer, also the default
    max_waiting: int = 256  # requests queued before RefineOverloaded
    threads: int = 0  # torch intra-op threads on CPU; 0: one for a small model, else torch's own choice


class Draft(Struct, frozen=True, kw_only=True):
    """A draft as it crosses from the draft engine: text, and ids that hold for one tokenizer."""

    text: str
    token_ids: tuple[int, ...]
    tokenizer_fingerprint: str  # another fingerprint than the refiner's: the text is encoded anew


class RefineRequest(Struct, frozen=True, kw_only=True):
    """One conversation to answer, perhaps with a draft of the answer."""

    request_id: str
    messages: tuple[dict[str, Any], ...]  # as chat templates take them: {"role", "content"}
    draft: Draft | None = None
    mode: RefineMode | None = None  # None: the engine's own mode
    max_tokens: int | None = None  # None: the engine's own limit
    temperature: float = 0.0  # 0: greedy. Sampling ignores the draft for now: only greedy is exact
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the answer ends once it holds one of these; the caller cuts it off
    deadline_s: float | None = None  # seconds from submission


class RefineDelta(Struct, frozen=True, kw_only=True):
    """More text of the answer."""

    text: str


class RefineResult(Struct, frozen=True, kw_only=True):
    """A finished answer; its text is the concatenation of all deltas."""

    text: str
    token_ids: tuple[int, ...]  # without the end-of-turn token
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    kept_tokens: int  # draft tokens kept: the longest prefix equal to the model's own choice
    forwards: int
    first_token_s: float  # from the start of work to the first token
    elapsed_s: float  # on the engine, without queueing


RefineEvent = RefineDelta | RefineResult


class ScoreRequest(Struct, frozen=True, kw_only=True):
    """A draft to be scored, not rewritten."""

    request_id: str
    messages: tuple[dict[str, Any], ...]
    draft: Draft
    deadline_s: float | None = None


class DraftScore(Struct, frozen=True, kw_only=True):
    """What the refine model thinks of a draft, from one prefill."""

    token_ids: tuple[int, ...]  # the draft in the refiner's tokens
    token_logprobs: tuple[float, ...]  # natural log, one per draft token
    greedy_tokens: tuple[int, ...]  # the model's own choice at each draft position
    agreeing_prefix: int  # leading draft tokens equal to the model's own choice


class RefineLoad(Struct, frozen=True, kw_only=True):
    """The engine's load at this moment, read without a lock."""

    state: Literal["loading", "ready", "failed", "closed"]
    running: int
    waiting: int
    capacity: int
    context_tokens: int  # longest prompt plus answer; 0 until loaded
    detail: str = ""
