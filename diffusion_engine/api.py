"""What other packages may know of the draft engine: messages, settings and errors. Imports no torch.

Error tree:
* DraftError                 something about drafting went wrong
  - DraftRejected            this request can never be served (prompt too long, bad option)
  - DraftOverloaded          the queue is full; try again after `retry_after_s`
  - DraftDeadline            the request's deadline passed before its draft was finished
  - DraftEngineClosed        the engine is not started, or is shutting down
  - DraftFailed              the engine broke while working on this request
"""

from typing import Any, Literal

from msgspec import Struct


class DraftError(Exception):
    """Base of every error that the draft engine raises on purpose."""


class DraftRejected(DraftError):
    """The request can never be served. The message says expected and got."""


class DraftOverloaded(DraftError):
    """The bounded queue is full; `retry_after_s` estimates when a place is free."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DraftDeadline(DraftError):
    """The deadline passed first."""


class DraftEngineClosed(DraftError):
    """The engine is not started, or is shutting down."""


class DraftFailed(DraftError):
    """The engine failed on this request; the cause is chained."""


class DraftSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to load and run the draft model."""

    model: str = "demo"  # a checkpoint's name or folder; "demo" is the one shipped in demo_models
    max_steps: int = 0  # most denoising steps per canvas; 0: what the checkpoint says
    max_tokens: int = 1024  # most tokens in one draft, also the default
    max_waiting: int = 256  # requests queued before DraftOverloaded
    threads: int = 0  # torch intra-op threads on CPU; 0 leaves torch's own choice


class DraftRequest(Struct, frozen=True, kw_only=True):
    """One conversation to draft an answer for."""

    request_id: str
    messages: tuple[dict[str, Any], ...]  # as chat templates take them: {"role", "content"}
    max_tokens: int | None = None  # None: the engine's own limit
    seed: int = 0  # same seed, same text
    max_steps: int | None = None  # None: the engine's own limit
    deadline_s: float | None = None  # seconds from submission


class CanvasUpdate(Struct, frozen=True, kw_only=True):
    """The canvas as it stands after one denoising step."""

    canvas: int  # 0 for the first block of the answer
    step: int  # 1 for the first denoising step of this canvas
    text: str  # the most likely text of the canvas now, up to its end-of-turn


class DraftSignals(Struct, frozen=True, kw_only=True):
    """What the denoiser says of its own draft."""

    steps: tuple[int, ...]  # denoising steps, per canvas
    converged: tuple[bool, ...]  # stable and confident before the step limit, per canvas
    token_entropy: tuple[float, ...]  # nats, last step of its canvas, one per token of the draft
    late_flips: int  # tokens whose most likely id changed in the last third of the steps


class DraftResult(Struct, frozen=True, kw_only=True):
    """A finished draft."""

    text: str
    token_ids: tuple[int, ...]  # without the end-of-turn token
    token_logprobs: tuple[float, ...]  # natural log, last step, one per token
    tokenizer_fingerprint: str  # equal fingerprints: the refiner may use token_ids as they are
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    signals: DraftSignals
    elapsed_s: float  # on the engine, without queueing


DraftEvent = CanvasUpdate | DraftResult


class DraftLoad(Struct, frozen=True, kw_only=True):
    """The engine's load at this moment, read without a lock."""

    state: Literal["loading", "ready", "failed", "closed"]
    running: int
    waiting: int
    capacity: int  # requests that can run at once
    context_tokens: int  # longest prompt plus answer; 0 until loaded
    detail: str = ""  # why it failed
