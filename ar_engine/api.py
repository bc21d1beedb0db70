"""What other packages may know of the refine engine: messages, settings and errors. Imports no torch.

Error tree:
* RefineError                something about refining went wrong
  - RefineRejected           this request can never be served (bad option)
    - RefineTooLong          prompt and answer don't fit the model's context
  - RefineOverloaded         the queue is full; try again after `retry_after_s`
  - RefineDeadline           the request's deadline passed before its answer was finished; or, of an upstream, a timeout
  - RefineUnavailable        an upstream can't be reached, broke off, or is left alone for a while after many failures
  - RefineEngineClosed       the engine is not started, or is shutting down
  - RefineFailed             the engine broke while working on this request
"""

from typing import Any, Literal, get_args

from msgspec import Struct

from engine_core.upstream.settings import Upstream

RefineMode = Literal["exact", "typical", "polish", "fresh"]
"""What to do with a draft.

exact:   keep its longest prefix equal to the model's own choice, and go on: the text is the model's own
typical: keep its longest prefix that the model finds likely enough, and go on
polish:  show it to the model, which writes the answer anew
fresh:   ignore it
"""
MODES: tuple[RefineMode, ...] = get_args(RefineMode)


class RefineError(Exception):
    """Base of every error that the refine engine raises on purpose."""


class RefineRejected(RefineError):
    """The request can never be served. The message says expected and got."""


class RefineTooLong(RefineRejected):
    """Prompt and answer together don't fit the model's context."""


class RefineOverloaded(RefineError):
    """The bounded queue is full; `retry_after_s` estimates when a place is free."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefineDeadline(RefineError):
    """The deadline passed first."""


class RefineUnavailable(RefineError):
    """The upstream can't be reached, broke off, or is left alone after many failures; `retry_after_s` says for how long."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefineEngineClosed(RefineError):
    """The engine is not started, or is shutting down."""


class RefineFailed(RefineError):
    """The engine failed on this request; the cause is chained."""


class RefineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to load and run the refine model."""

    model: str = "demo"  # a checkpoint's name or folder; "demo" is the one shipped in demo_models
    upstream: Upstream = Upstream()  # where it runs instead, if it has a base_url
    mode: RefineMode = "exact"  # what to do with a rejected draft
    max_tokens: int = 1024  # most tokens in one answer, also the default
    max_running: int = 16  # answers written together; a request needs one for each choice
    max_waiting: int = 256  # requests queued before RefineOverloaded
    encode_tokens: int = 512  # most tokens of prompts and drafts read beside a step
    cache_tokens: int = (
        0  # positions in the key-value cache; 0: four of the longest on a CPU, what memory allows on a GPU
    )
    quantize: bool = False  # on a GPU, experts of a plain Gemma 4 to NVFP4 as they are loaded: a third of the memory, at some cost in quality
    speculate: int = 24  # most tokens of a draft's rest that are tried at once after a rejected one; 0: none are
    typical_floor: float = 0.1  # `typical` keeps a token at least this likely ...
    typical_share: float = 0.3  # ... or this share of exp(-entropy), whichever is less
    threads: int = 0  # torch intra-op threads on CPU; 0: one for a small model, else torch's own choice


class Draft(Struct, frozen=True, kw_only=True):
    """A draft as it crosses from the draft engine: text, and ids that hold for one tokenizer."""

    text: str
    token_ids: tuple[int, ...]
    tokenizer_fingerprint: str  # another fingerprint than the refiner's: the text is encoded anew


class RefineRequest(Struct, frozen=True, kw_only=True):
    """One conversation to answer, perhaps with a draft of the answer."""

    request_id: str
    messages: tuple[dict[str, Any], ...]  # as OpenAI's API has them: {"role", "content", ...}, content a text or parts
    draft: Draft | None = None
    mode: RefineMode | None = None  # None: the engine's own mode
    max_tokens: int | None = None  # None: the engine's own limit
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # same seed, same text, whatever else runs and whatever the draft was
    stop: tuple[str, ...] = ()  # the answer ends once it holds one of these; the caller cuts it off
    stop_token_ids: tuple[int, ...] = ()  # end the answer, besides the checkpoint's own
    logprobs: int | None = None  # None: none; else so many alternatives for each token, 0 to 20
    n: int = 1  # choices; the first is the one that it would be alone, the others have seeds of their own
    tools: tuple[dict[str, Any], ...] = ()  # as OpenAI's API has them
    tool_choice: str | dict[str, Any] | None = (
        None  # "none" and "auto" are for every model, others for upstreams that know them
    )
    response_format: dict[str, Any] | None = None  # for upstreams that know it; here {"type": "text"} is all
    reasoning: bool = False  # whether the model thinks before it answers, if it can
    prefix_key: str | None = ""  # equal prefixes share their work under an equal key only; None: never
    priority: int = 0  # 0 first; each level lets at most 1,000 later requests of the one above pass; background from 2
    deadline_s: float | None = None  # seconds from submission


class TokenLogprob(Struct, frozen=True, kw_only=True):
    """A token of the answer, and how likely the model found it before temperature, penalties and the rest."""

    token: str
    logprob: float  # natural log
    top: tuple[tuple[str, float], ...] = ()  # the most likely tokens there, as many as were asked for


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call of a tool, or in a RefineDelta a piece of one."""

    index: int  # 0 for the answer's first
    id: str = ""  # in a delta: with the first piece of a call
    name: str = ""  # likewise
    arguments: str = ""  # JSON; in a delta: what is new of it


class RefineDelta(Struct, frozen=True, kw_only=True):
    """More of the answer."""

    choice: int = 0
    text: str = ""
    reasoning: str = ""  # what the model thinks, apart from its answer
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # if asked for: the tokens this text is made of


class RefineResult(Struct, frozen=True, kw_only=True):
    """A finished answer; its text is the concatenation of all deltas."""

    choice: int = 0
    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...]  # without the end-of-turn token; empty from an upstream
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    reasoning_tokens: int = 0  # of those written, the thought ones; an upstream's are not told apart
    completion_tokens: int  # that the model wrote, those of reasoning and of end-of-turn included
    kept_tokens: int = 0  # leading draft tokens kept
    reused_draft_tokens: int = 0  # further draft tokens that the model took after a rejected one
    tried_tokens: int = 0  # draft tokens put to the model, kept or not
    reused_tokens: int = 0  # prompt tokens that another request had encoded
    forwards: int  # the answer took part in, those that read the prompt included
    first_token_s: float  # from the start of work to the first token
    elapsed_s: float  # on the engine, without queueing


RefineEvent = RefineDelta | RefineResult


class ScoreRequest(Struct, frozen=True, kw_only=True):
    """A draft to be scored, not rewritten."""

    request_id: str
    messages: tuple[dict[str, Any], ...]
    draft: Draft
    prefix_key: str | None = ""
    priority: int = 0
    deadline_s: float | None = None


class DraftScore(Struct, frozen=True, kw_only=True):
    """What the refine model thinks of a draft, from one prefill."""

    token_ids: tuple[int, ...]  # the draft in the refiner's tokens
    token_logprobs: tuple[float, ...]  # natural log, one per draft token
    token_ranks: tuple[int, ...]  # 0: the most likely there
    greedy_tokens: tuple[int, ...]  # the model's own choice at each draft position
    agreeing_prefix: int  # leading draft tokens equal to the model's own choice


class RefineLoad(Struct, frozen=True, kw_only=True):
    """The engine's load at this moment, read without a lock."""

    state: Literal["loading", "ready", "failed", "closed"]
    running: int
    waiting: int
    capacity: int  # answers that can be written at once; a request takes one for each choice
    context_tokens: int  # longest prompt plus answer; 0 until loaded, or where an upstream doesn't say
    modes: tuple[RefineMode, ...] = ()  # what can be done with a draft; an upstream without scores can't do all
    images: bool = False  # whether messages may hold images
    formats: bool = False  # whether an answer can be held to a response_format
    step_s: float = 0.0  # seconds that a step takes, a moving average; 0: none was made yet, or an upstream
    background: int = 0  # of running and waiting, those of priority 2 and up; of an upstream, nobody knows
    background_waiting: int = 0  # of waiting, likewise
    detail: str = ""
