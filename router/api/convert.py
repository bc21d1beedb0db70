"""Between the OpenAI wire format and the gateway's own words."""

from typing import Any

import msgspec

from router.api.schemas import (
    MODELS,
    AnswerMessage,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    Choice,
    CompletionTokensDetails,
    ContentPart,
    DraftgateInfo,
    DraftgateOptions,
    WireUsage,
)
from router.errors import BadRequest, PromptTooLong, UnknownModel
from router.policy import Wanted
from router.serving.messages import Answer, Ask, Decision, Usage

MOST_STOPS = 4
SEEDS = 2**63  # engines take non-negative 64-bit seeds

# What each unsupported field may say besides being absent or null.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}


def strictly(body: Any) -> ChatRequest:
    """Decode without good will: Litestar takes "5" for 5, OpenAI does not.

    Raises:
        BadRequest: a field has the wrong type.
    """
    try:
        return msgspec.convert(body, ChatRequest)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        param = path.removesuffix("`")
        raise BadRequest(f"{param}: {message}", param=param) from None


def to_ask(request: ChatRequest, request_id: str, max_prompt_chars: int) -> Ask:
    """Check what types can't and put the request in the gateway's own words.

    Raises:
        BadRequest, PromptTooLong, UnknownModel: with the field's name.
    """
    if request.model not in MODELS:
        names = ", ".join(MODELS)
        raise UnknownModel(f"No such model; served here: {names}.", param="model")
    for name, harmless in HARMLESS.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise BadRequest(f"{name} is not supported here; leave it out.", param=name)
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options needs stream: true.", param="stream_options")
    options = request.draftgate or DraftgateOptions()
    ask = Ask(
        request_id=request_id,
        model=request.model,
        messages=tuple(_message(i, message) for i, message in enumerate(request.messages)),
        wanted=_wanted(MODELS[request.model], options.route),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=None if request.seed is None else request.seed % SEEDS,
        stop=_stops(request.stop),
        max_steps=options.max_steps,
        use_cache=options.cache,
    )
    if ask.prompt_chars > max_prompt_chars:
        raise PromptTooLong(
            f"The messages are too long: expected at most {max_prompt_chars} characters, got {ask.prompt_chars}.",
            param="messages",
        )
    return ask


def to_usage(usage: Usage) -> WireUsage:
    """Tokens as OpenAI words them."""
    return WireUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        completion_tokens_details=CompletionTokensDetails(usage.kept_tokens or 0, usage.dropped_tokens or 0),
    )


def to_info(request_id: str, decision: Decision, usage: Usage) -> DraftgateInfo:
    """The `draftgate` object of the body."""
    return DraftgateInfo(
        request_id=request_id,
        route=decision.route,
        reason=decision.reason,
        complexity=decision.complexity,
        quality=decision.quality,
        cached_route=decision.cached_route,
        steps=usage.steps,
        kept_tokens=usage.kept_tokens,
        sketched_tokens=usage.sketched_tokens,
    )


def to_completion(ask: Ask, created: int, answer: Answer) -> ChatCompletion:
    """A whole answer."""
    return ChatCompletion(
        id=completion_id(ask),
        created=created,
        model=ask.model,
        choices=[Choice(AnswerMessage(answer.text), answer.finish_reason)],
        usage=to_usage(answer.usage),
        draftgate=to_info(ask.request_id, answer.decision, answer.usage),
    )


def completion_id(ask: Ask) -> str:
    """The id that a completion and all its chunks share."""
    return f"chatcmpl-{ask.request_id}"


def _wanted(by_model: Wanted, by_option: Wanted) -> Wanted:
    if by_model != "auto" and by_option not in {"auto", by_model}:
        raise BadRequest(
            f"The model asks for route {by_model}, draftgate.route for {by_option}.",
            param="draftgate.route",
        )
    return by_option if by_model == "auto" else by_model


def _message(index: int, message: ChatMessage) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role in {"tool", "function"} or message.tool_calls:
        raise BadRequest(f"{where}: tools are not supported here.", param=where)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": _text(f"{where}.content", message.content)}


def _text(where: str, content: str | list[ContentPart] | None) -> str:
    if content is None:
        raise BadRequest(f"{where}: expected text, got null.", param=where)
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type != "text":
            raise BadRequest(f"{where}[{i}]: only text parts are supported here.", param=f"{where}[{i}].type")
        if part.text is None:
            raise BadRequest(f"{where}[{i}]: a text part needs a text.", param=f"{where}[{i}].text")
    return "\n".join(part.text for part in content if part.text is not None)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS or "" in stops:
        raise BadRequest(f"stop: expected at most {MOST_STOPS} texts, none of them empty.", param="stop")
    return stops
