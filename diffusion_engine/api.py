"""What other packages may know of the draft engine: messages, settings and errors. Imports no torch.

Error tree:
* DraftError                 something about drafting went wrong
  - DraftRejected            this request can never be served (bad option)
    - DraftTooLong           prompt and answer don't fit the model's context
  - DraftOverloaded          the queue is full; try again after `retry_after_s`
  - DraftDeadline            the request's deadline passed before its draft was finished
  - DraftEngineClosed        the engine is not started, or is shutting down
  - DraftFailed              the engine broke while working on this request
"""

from typing import Any, Literal

from msgspec import Struct

from engine_core.upstream.settings import Upstream


class DraftError(Exception):
    """Base of every error that the draft engine raises on purpose."""


class DraftRejected(DraftError):
    """The request can never be served. The message says expected and got."""


class DraftTooLong(DraftRejected):
    """Prompt and answer together don't fit the model's context."""


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
    upstream: Upstream = Upstream()  # where it runs instead, if it has a base_url
    max_steps: int = 0  # most denoising steps per canvas, up to what the checkpoint says; 0: that
    max_tokens: int = 1024  # most tokens in one draft, also the default
    max_running: int = 16  # canvases denoised together; a request needs one for each candidate
    max_waiting: int = 256  # requests queued before DraftOverloaded
    encode_tokens: int = (
        512  # most prompt tokens encoded beside a step; fewer keep steps short, more shorten long prompts
    )
    cache_tokens: int = 0  # positions in the prefix cache; 0: four of the longest on a CPU, what memory allows on a GPU
    quantize: bool = True  # on a GPU, experts of a plain checkpoint to NVFP4 as they are loaded
    threads: int = 0  # torch intra-op threads on CPU; 0: one for a small model, else torch's own choice


class DraftRequest(Struct, frozen=True, kw_only=True):
    """One conversation to draft an answer for. A None stands for what settings and checkpoint say."""

    request_id: str
    messages: tuple[dict[str, Any], ...]  # as chat templates take them: {"role", "content"}
    max_tokens: int | None = None
    seed: int = 0  # same seed, same text, whatever else runs
    max_steps: int | None = None  # for each canvas
    t_min: float | None = None  # temperature of the last step ...
    t_max: float | None = None  # ... and before the first; linear between them
    entropy_bound: float | None = None  # nats: how much uncertainty a step may take at once
    confidence: float | None = None  # nats: the mean entropy below which a canvas may be done ...
    stability: int | None = None  # ... after its most likely tokens have stayed the same over so many steps
    stop_token_ids: tuple[int, ...] = ()  # end the answer, besides the checkpoint's own
    give_up: bool = True  # stop at a canvas that won't settle, and say so
    candidates: int = 1  # drafted together; results come best first
    template: tuple[str | int, ...] = ()  # infilling: text that is given, and gaps of so many tokens to be filled
    prefix_key: str | None = ""  # equal prefixes share their work under an equal key only; None: never
    priority: int = 0  # 0 first; each level lets at most 1,000 later requests of the one above pass; background from 2
    updates: bool = False  # yield a CanvasUpdate after every step
    deadline_s: float | None = None  # seconds from submission; then what is finished is the result


class CanvasUpdate(Struct, frozen=True, kw_only=True):
    """The canvas as it stands after one denoising step."""

    candidate: int  # 0 for the first
    canvas: int  # 0 for the first block of the answer
    step: int  # 1 for the first denoising step of this canvas
    text: str  # the most likely text of the canvas now, up to its end-of-turn
    token_ids: tuple[int, ...]  # of the text
    settled: tuple[bool, ...]  # which of them the step took; the others are still noise to the next one


class DraftSignals(Struct, frozen=True, kw_only=True):
    """What the denoiser says of its own draft."""

    steps: tuple[int, ...]  # denoising steps, per canvas
    converged: tuple[bool, ...]  # stable and confident before the step limit, per canvas
    token_entropy: tuple[float, ...]  # nats, last step of its canvas, one per token of the draft
    mean_entropy: tuple[float, ...] = ()  # nats, over all steps of its canvas, one per token
    late_flips: int  # tokens whose most likely id changed in the last third of the steps
    agreement: float | None = None  # mean share of tokens that the other candidates have too; None: there are none
    forwards: int = 0  # forward passes it took part in, encoding included
    reused_tokens: int = 0  # prompt tokens that another request or candidate had encoded


class DraftResult(Struct, frozen=True, kw_only=True):
    """A finished draft."""

    text: str
    token_ids: tuple[int, ...]  # without the end-of-turn token
    token_logprobs: tuple[float, ...]  # natural log, last step, one per token
    tokenizer_fingerprint: str  # equal fingerprints: the refiner may use token_ids as they are
    finish_reason: Literal["stop", "length", "unsettled", "deadline"]
    prompt_tokens: int
    filled: tuple[str, ...] = ()  # infilling: the text of each gap
    signals: DraftSignals
    candidate: int = 0
    elapsed_s: float  # on the engine, without queueing


DraftEvent = CanvasUpdate | DraftResult


class DraftLoad(Struct, frozen=True, kw_only=True):
    """The engine's load at this moment, read without a lock."""

    state: Literal["loading", "ready", "failed", "closed"]
    running: int
    waiting: int
    capacity: int  # canvases that can run at once; a request takes one for each candidate
    context_tokens: int  # longest prompt plus answer; 0 until loaded
    canvas_tokens: int = 0  # positions of a canvas, which a template has to fit; 0 until loaded, and of an upstream
    step_s: float = 0.0  # seconds that a step takes, a moving average; 0: none was made yet, or an upstream
    background: int = 0  # of running and waiting, those of priority 2 and up; of an upstream, nobody knows
    background_waiting: int = 0  # of waiting, likewise
    detail: str = ""  # why it failed
