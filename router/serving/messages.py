"""What goes into the pipeline and what comes out of it: no HTTP, no engine objects."""

from typing import Any, Literal

from msgspec import Struct

from ar_engine.api import RefineMode, TokenLogprob, ToolCall
from diffusion_engine.api import DraftResult
from router.policy import Route, Wanted

FinishReason = Literal["stop", "length", "tool_calls"]
BACKGROUND = 2  # the engines' class of requests that nobody waits for


class Limits(Struct, frozen=True, kw_only=True):
    """What a key may use; None: as much as there is."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None  # read and written
    concurrency: int | None = None  # requests under way at once
    budget_tokens: int | None = None  # read and written, for good


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks: the holder of a key, or anybody where no key is needed."""

    key_id: str = ""  # "": no key
    tenant: str = ""  # whose cached answers, files and batches are seen
    models: tuple[str, ...] = ()  # that may be asked for; empty: all
    limits: Limits = Limits()


class Ask(Struct, frozen=True, kw_only=True):
    """One request, checked and in the gateway's own words."""

    request_id: str
    model: str  # as the client named it
    messages: tuple[dict[str, Any], ...]  # as OpenAI's API has them: {"role", "content", ...}, content a text or parts
    tenant: str = ""
    conversation: str = ""  # equal for all requests of a conversation, as far as can be told; a hash
    wanted: Wanted = "auto"
    needs: tuple[str, ...] = ()  # what only the refiner can do: "tools", "images", "logprobs"; sorted
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None  # None: none; else so many alternatives for each token
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None  # json_object or json_schema; None: text
    reasoning: bool = False  # the refiner thinks first, if it can
    template: tuple[
        str | int, ...
    ] = ()  # infilling, by the draft engine: text that is given, and gaps of so many tokens
    max_steps: int | None = None  # denoising steps per canvas
    candidates: int | None = None  # drafts, of which the best is judged; None: the policy's number
    quality_target: float | None = None  # most that may be bad of accepted drafts, 0 to 1; None: the policy's threshold
    refine_mode: RefineMode | None = None
    cache: bool | None = None  # None: if the same request would get the same answer again; True: anyway; False: never
    provisional: bool = False  # show the draft as it settles
    priority: int = 0  # as the engines have it
    timeout_s: float | None = None  # None: the server's

    @property
    def deterministic(self) -> bool:
        """Would the same request get the same answer again?"""
        return self.temperature == 0.0 or self.seed is not None

    @property
    def prompt_chars(self) -> int:
        """Length of all texts in the messages together; images and calls not counted."""
        return sum(len(text_of(message.get("content"))) for message in self.messages)


class Decision(Struct, frozen=True, kw_only=True):
    """The route an answer took and why, as the client sees it."""

    route: Route
    reason: str
    arm: str = ""  # of the experiment the request takes part in
    complexity: float | None = None  # None: not scored
    quality: float | None = None  # None: no draft was checked
    cached_route: Route | None = None  # the route that first made a cached answer


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int  # of the answer, all choices together
    cached_tokens: int = 0  # of the prompt, those another request had encoded
    reasoning_tokens: int = 0
    draft_tokens: int = 0  # written by the draft engine, shown or not
    refine_tokens: int = 0  # written by the refiner
    kept_tokens: int | None = None  # draft tokens in a refined answer; None: nothing was refined
    dropped_tokens: int | None = None  # draft tokens thrown away by the refiner
    sketched_tokens: int | None = None  # of a direct answer, those that a sketch had right; None: there was no sketch
    steps: int | None = None  # denoising steps of the draft; None: no draft was made


class Admitted(Struct, frozen=True):
    """Comes first, once: the request is let in."""

    headers: dict[str, str]  # what is left of the caller's limits


class Provisional(Struct, frozen=True, kw_only=True):
    """The draft as it stands, if that was asked for. It replaces the one before; nothing of it is promised."""

    text: str  # of the first candidate's canvas
    canvas: int  # 0 for the first block
    step: int  # denoising steps so far, of this canvas
    settled: tuple[int, int]  # tokens that were taken so far, and tokens in all


class Decided(Struct, frozen=True):
    """Comes next, once: from here on the route is final."""

    decision: Decision


class Delta(Struct, frozen=True, kw_only=True):
    """More of an answer."""

    choice: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class ChoiceEnd(Struct, frozen=True, kw_only=True):
    """Comes once for each choice: there is no more of it."""

    choice: int = 0
    finish_reason: FinishReason


class Finished(Struct, frozen=True, kw_only=True):
    """Comes last, once."""

    usage: Usage
    decision: Decision


Event = Admitted | Provisional | Decided | Delta | ChoiceEnd | Finished


class AnswerChoice(Struct, frozen=True, kw_only=True):
    """One whole answer of those asked for."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason


class Answer(Struct, frozen=True, kw_only=True):
    """All choices, as the cache keeps them."""

    choices: tuple[AnswerChoice, ...]
    usage: Usage
    decision: Decision | None = None  # None: it was not told yet


class Kept(Struct, frozen=True, kw_only=True):
    """All that a request found out, as the cache keeps it: another threshold judges it anew, and what is missing is made then."""

    request_id: str  # of the request that found it out
    complexity: float | None  # None: not scored
    complexity_version: str  # of the classifier
    drafts: tuple[DraftResult, ...] = ()  # for each choice the best candidate; empty: none was made
    quality: float | None = None  # None: no draft was checked
    failed_checks: tuple[str, ...] = ()
    quality_version: str = ""
    refined: Answer | None = None  # None: the refiner was not asked


class Texts(Struct, frozen=True):
    """What was said, for those who keep it: the last turn and the first choice of its answer."""

    asked: str
    answered: str


def text_of(content: Any) -> str:
    """The text of a message's content, that of parts joined by line breaks."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part.get("text"))
