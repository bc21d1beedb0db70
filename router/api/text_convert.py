"""Between completions and the gateway's own words: a prompt is a user's turn, a suffix makes it a gap to be filled."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ar_engine.api import TokenLogprob
from router.api.answers import finite, to_info, to_usage
from router.api.convert import check_length, common, conversation_of, deadline_s
from router.api.schemas.completions import TextChoice, TextCompletion, TextLogprobs, TextRequest
from router.api.schemas.shared import DraftgateInfo, TextFinish
from router.errors import BadRequest
from router.serving.messages import Answer, Ask, Caller, FinishReason

USUAL_TOKENS = 16  # as OpenAI has it
MOST_CHOICES = 128  # of all prompts together
USUAL_GAP = 64  # tokens
USUAL_CANVAS = 256  # positions, for the gap and the text around it
BYTES_PER_TOKEN = 2.5  # of the text around a gap, at least as a rule
MOST_CONTEXT = 300  # characters on either side of the gap
INFILL = "Fill in the gap in this text: {before}___{after}"  # so the answer is the whole text, as in the canvas


class Place(NamedTuple):
    """One prompt of a request."""

    prompt: str
    ask: Ask


def to_places(
    request: TextRequest,
    caller: Caller,
    *,
    request_id: str,
    max_prompt_chars: int,
    priority: int = 0,
    timeout_s: float | None = None,
) -> list[Place]:
    """Put a request in the gateway's own words, each prompt for itself. The arguments are those of `convert.to_ask`.

    Raises:
        BadRequest, PromptTooLong, UnknownModel: with the field's name.
    """
    n = request.n or 1
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    _check(request, n, len(prompts))
    needs = () if request.logprobs is None else ("logprobs",)
    shared = common(request, caller, needs)
    if request.suffix and shared["wanted"] == "refine":
        raise BadRequest("suffix: gaps are filled by drafts; expected another route or model.", param="suffix")
    conversation = request.draftgate and request.draftgate.conversation
    places: list[Place] = []
    for at, prompt in enumerate(prompts):
        ask = Ask(
            **shared,
            request_id=request_id if len(prompts) == 1 else f"{request_id}-{at}",
            messages=({"role": "user", "content": prompt},),
            tenant=caller.tenant,
            conversation=conversation_of(
                caller.tenant, {"conversation": conversation, "user": request.user}, [], prompt
            ),
            needs=needs,
            max_tokens=request.max_tokens or USUAL_TOKENS,
            logprobs=request.logprobs,
            priority=priority,
            timeout_s=deadline_s(request.draftgate, timeout_s),
        )
        if request.suffix:
            ask = to_infill(ask, prompt, request.suffix, request.max_tokens)
        check_length(ask, max_prompt_chars, "prompt")
        places.append(Place(prompt, ask))
    return places


def to_infill(ask: Ask, before: str, after: str, gap: int | None, canvas: int = USUAL_CANVAS) -> Ask:
    """Ask for the text between two parts.

    The draft engine fills a gap in one canvas, so of the parts only what is next to the gap stands there; the message has all.

    Args:
        ask: all else that is asked for.
        before: the text before the gap.
        after: the text behind it.
        gap: tokens to be filled, at most half of the canvas; None: USUAL_GAP.
        canvas: positions for gap and text.
    """
    gap = min(gap or USUAL_GAP, canvas // 2)
    room = int((canvas - gap) / 2 * BYTES_PER_TOKEN)
    template = (_tail(before, room), gap, _head(after, room))
    return replace(
        ask,
        messages=({"role": "user", "content": INFILL.format(before=before, after=after)},),
        wanted="draft",
        max_tokens=gap,
        template=tuple(part for part in template if part),
    )


def to_text_completion(
    completion_id: str,
    created: int,
    places: Sequence[Place],
    answers: Sequence[Answer],
    fingerprint: str | None,
    *,
    echo: bool,
) -> TextCompletion:
    """Whole answers to all prompts."""
    n = places[0].ask.n
    choices: list[TextChoice] = []
    infos: list[DraftgateInfo] = []
    for at, (place, answer) in enumerate(zip(places, answers, strict=True)):
        assert answer.decision is not None, "an answer that was told was decided"
        infos.append(to_info(place.ask.request_id, answer.decision, answer.usage))
        choices += [
            TextChoice(
                text=(place.prompt if echo else "") + choice.text,
                index=at * n + number,
                logprobs=to_text_logprobs(place.ask, choice.logprobs),
                finish_reason=to_finish(choice.finish_reason),
            )
            for number, choice in enumerate(answer.choices)
        ]
    return TextCompletion(
        id=completion_id,
        created=created,
        model=places[0].ask.model,
        system_fingerprint=fingerprint,
        choices=choices,
        usage=to_usage([answer.usage for answer in answers]),
        draftgate=infos,
    )


def to_finish(reason: FinishReason) -> TextFinish:
    """Why an answer ended; no tools are called here."""
    return "length" if reason == "length" else "stop"


def to_text_logprobs(ask: Ask, tokens: Sequence[TokenLogprob], offset: int = 0) -> TextLogprobs | None:
    """Log-probabilities in their older form, if they were asked for, `offset` characters into the answer."""
    if ask.logprobs is None:
        return None
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[finite(token.logprob) for token in tokens],
        top_logprobs=[
            {text: finite(logprob) for text, logprob in [*token.top, (token.token, token.logprob)]} for token in tokens
        ],
        text_offset=offsets,
    )


def _check(request: TextRequest, n: int, prompts: int) -> None:
    """Raise BadRequest for what no type can tell."""
    if prompts * n > MOST_CHOICES:
        raise BadRequest(
            f"n: expected at most {MOST_CHOICES} choices of all prompts together, got {prompts * n}.", param="n"
        )
    if request.best_of not in (None, n):
        raise BadRequest("best_of: expected the same as n; other numbers are not supported here.", param="best_of")
    if request.echo and request.logprobs is not None:
        raise BadRequest("logprobs: those of a prompt are not known here; leave out echo.", param="logprobs")
    if request.suffix and request.logprobs is not None:
        raise BadRequest("logprobs: those of a gap are not known here; leave out suffix.", param="logprobs")
    if request.draftgate and request.draftgate.provisional:
        raise BadRequest(
            "draftgate.provisional: only chat completions show a draft as it settles.", param="draftgate.provisional"
        )


def _tail(text: str, room: int) -> str:
    """The end of a text, of at most so many bytes and MOST_CONTEXT characters, cut between words."""
    kept = text.encode()[-room:].decode(errors="ignore")[-MOST_CONTEXT:]
    space = re.search(r"\s", kept) if len(kept) < len(text) else None
    return kept[space.start() :] if space else kept


def _head(text: str, room: int) -> str:
    """The beginning of a text, likewise."""
    kept = text.encode()[:room].decode(errors="ignore")[:MOST_CONTEXT]
    space = re.search(r"\s(?=\S*$)", kept) if len(kept) < len(text) else None
    return kept[: space.start()] if space else kept
