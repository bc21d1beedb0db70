"""What chat completions and completions have in common."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from ar_engine.api import RefineMode
from router.api.schemas import MODELS
from router.policy import Route, Wanted

ModelName = Annotated[
    str, Meta(extra_json_schema={"enum": list(MODELS)})
]  # others are not found, which is not a bad request
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=16)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Meta(min_length=1)]
StopTexts = Annotated[list[StopText], Meta(max_length=4)]
Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
Never = Annotated[bool, Meta(extra_json_schema={"enum": [False]})]
NoBias = Annotated[dict[str, float], Meta(max_length=0)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # no padding is ever added


class DraftgateOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Draftgate's own options, under `draftgate` in the body (`extra_body` of the client)."""

    route: Wanted = "auto"
    quality_target: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None  # most that may be bad of accepted drafts
    max_steps: Tokens | None = None  # denoising steps per canvas
    candidates: Annotated[int, Meta(ge=1, le=8)] | None = None  # drafts, of which the best is judged
    deadline_ms: Tokens | None = None  # only less than the server's own deadline matters
    refine_mode: RefineMode | None = None  # what the refiner does with a rejected draft
    cache: bool | None = None  # null: if the same request would get the same answer again
    provisional: bool = False  # show the draft as it settles; only in a stream
    conversation: Annotated[str, Meta(max_length=200)] | None = None  # equal for all requests of one


class DraftgateInfo(Struct, frozen=True, kw_only=True):
    """The route an answer took and why."""

    request_id: str
    route: Route
    reason: str
    arm: str | None  # of the experiment the request takes part in
    complexity: float | None
    quality: float | None
    cached_route: Route | None
    steps: int | None  # denoising steps
    kept_tokens: int | None  # draft tokens in a refined answer
    sketched_tokens: int | None  # tokens of a direct answer that a sketch had right


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the tokens read."""

    cached_tokens: int  # those that another request had read


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the tokens written; draft tokens count as predictions of the refined answer."""

    accepted_prediction_tokens: int  # draft tokens that the refiner kept
    rejected_prediction_tokens: int  # and threw away
    reasoning_tokens: int
    draft_tokens: int  # written by the draft engine, shown or not
    refine_tokens: int  # written by the refiner


class WireUsage(Struct, frozen=True, kw_only=True):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


TextFinish = Literal["stop", "length"]
