"""From a chat completion's request to an Ask: what types can't check is checked here."""

import hashlib
from typing import Any

import msgspec

from router.api.access import check_model
from router.api.schemas import MODELS
from router.api.schemas.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, NamedToolChoice, Tool
from router.api.schemas.completions import TextRequest
from router.api.schemas.shared import DraftgateOptions
from router.api.turns import has_calls, has_images, to_turns
from router.errors import BadRequest, PromptTooLong, UnknownModel
from router.policy import Wanted
from router.serving.messages import Ask, Caller

SEEDS = 2**63  # engines take non-negative 64-bit seeds
UNTHINKING = {None, "none", "minimal"}  # of reasoning_effort


def to_ask(
    request: ChatRequest,
    caller: Caller,
    *,
    request_id: str,
    max_prompt_chars: int,
    priority: int = 0,
    timeout_s: float | None = None,
) -> Ask:
    """Put a request in the gateway's own words.

    Args:
        request: the body.
        caller: who asks.
        request_id: of this request.
        max_prompt_chars: for messages, tools and schema together.
        priority: as the engines have it.
        timeout_s: the longest it may take, which the request may lower; None: the server's.

    Raises:
        BadRequest, PromptTooLong, UnknownModel: with the field's name.
    """
    _check(request)
    turns = to_turns(request.messages)
    called = has_calls(turns)
    tools = () if request.tool_choice == "none" else tuple(map(_tool, request.tools or ()))
    asks_for = {"images": has_images(turns), "logprobs": bool(request.logprobs), "tools": bool(tools) or called}
    needs = tuple(name for name, asked in sorted(asks_for.items()) if asked)
    ask = Ask(
        **common(request, caller, needs),
        request_id=request_id,
        messages=turns,
        tenant=caller.tenant,
        conversation=_conversation(request, caller.tenant, turns),
        needs=needs,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        tools=tools,
        tool_choice=_tool_choice(request) if tools else None,
        response_format=_response_format(request),
        reasoning=request.reasoning_effort not in UNTHINKING,
        priority=priority,
        timeout_s=deadline_s(request.draftgate, timeout_s),
    )
    check_length(ask, max_prompt_chars, "messages")
    return ask


def common(request: ChatRequest | TextRequest, caller: Caller, needs: tuple[str, ...]) -> dict[str, Any]:
    """The fields of an Ask that both kinds of completion fill alike.

    Raises:
        BadRequest, UnknownModel: with the field's name.
    """
    by_model = route_of(caller, request.model)
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options: expected stream: true with it.", param="stream_options")
    options = request.draftgate or DraftgateOptions()
    return {
        "model": request.model,
        "wanted": _wanted(by_model, options.route, needs),
        "temperature": request.temperature or 0.0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "seed": None if request.seed is None else request.seed % SEEDS,
        "stop": (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        "n": request.n or 1,
        "max_steps": options.max_steps,
        "candidates": options.candidates,
        "quality_target": options.quality_target,
        "refine_mode": options.refine_mode,
        "cache": options.cache,
        "provisional": options.provisional,
    }


def route_of(caller: Caller, model: str) -> Wanted:
    """The route that a model's name asks for.

    Raises:
        UnknownModel: there is no such model, or the caller may not use it.
    """
    check_model(caller, model)
    if model not in MODELS:
        raise UnknownModel(f"No such model; served here: {', '.join(MODELS)}.", param="model")
    return MODELS[model]


def deadline_s(options: DraftgateOptions | None, timeout_s: float | None) -> float | None:
    """The time a request may take: what it asks for, but no more than `timeout_s`."""
    if options is None or options.deadline_ms is None:
        return timeout_s
    asked_s = options.deadline_ms / 1000
    return asked_s if timeout_s is None else min(asked_s, timeout_s)


def conversation_of(tenant: str, named: dict[str, str | None], told: Any, first: Any) -> str:
    """Equal for all requests of a conversation, as far as can be told: 16 hexadecimal digits of BLAKE2b.

    Args:
        tenant: whose conversation.
        named: by what the client may have named it; the first name counts.
        told: without a name, what the assistant is told ...
        first: ... and what it was asked first.
    """
    known = next(((kind, name) for kind, name in named.items() if name), ("messages", (told, first)))
    return hashlib.blake2b(msgspec.msgpack.encode((tenant, known)), digest_size=8).hexdigest()


def check_length(ask: Ask, max_prompt_chars: int, param: str) -> None:
    """Raise PromptTooLong for more text than the gateway takes; images don't count."""
    calls = [turn["tool_calls"] for turn in ask.messages if "tool_calls" in turn]
    free = [*ask.tools, *calls, *([ask.response_format] if ask.response_format else ())]
    beside = [turn.get(key, "") for turn in ask.messages for key in ("name", "reasoning_content", "tool_call_id")]
    chars = ask.prompt_chars + sum(len(msgspec.json.encode(part).decode()) for part in free)
    chars += sum(map(len, [*beside, *ask.stop]))
    if chars > max_prompt_chars:
        raise PromptTooLong(
            f"The prompt is too long: expected at most {max_prompt_chars} characters, got {chars}.", param=param
        )


def _check(request: ChatRequest) -> None:
    """Raise BadRequest for what no type can tell."""
    if request.store:
        raise BadRequest("store: answers are not stored here; leave it out.", param="store")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs: expected logprobs: true with it.", param="top_logprobs")
    if request.draftgate and request.draftgate.provisional and not request.stream:
        raise BadRequest("draftgate.provisional: expected stream: true with it.", param="draftgate.provisional")
    tools = [tool.function.name for tool in request.tools or ()]
    match request.tool_choice:
        case "required" if not tools:
            raise BadRequest("tool_choice: expected tools with it, got none.", param="tool_choice")
        case NamedToolChoice() as choice if choice.function.name not in tools:
            raise BadRequest("tool_choice: expected the name of one of the tools.", param="tool_choice")
        case _:
            pass


def _wanted(by_model: Wanted, by_option: Wanted, needs: tuple[str, ...]) -> Wanted:
    if by_model != "auto" and by_option not in {"auto", by_model}:
        raise BadRequest(
            f"The model asks for route {by_model}, draftgate.route for {by_option}.", param="draftgate.route"
        )
    wanted = by_option if by_model == "auto" else by_model
    if wanted == "draft" and needs:
        raise BadRequest(
            f"Drafts know no {needs[0]}: expected another route or model.",
            param="model" if by_model == "draft" else "draftgate.route",
        )
    return wanted


def _conversation(request: ChatRequest, tenant: str, turns: tuple[dict[str, Any], ...]) -> str:
    named = {
        "conversation": request.draftgate and request.draftgate.conversation,
        "prompt_cache_key": request.prompt_cache_key,
        "user": request.safety_identifier or request.user,
    }
    told = [turn["content"] for turn in turns if turn["role"] == "system"]
    first = next((turn["content"] for turn in turns if turn["role"] == "user"), "")
    return conversation_of(tenant, named, told, first)


def _tool(tool: Tool) -> dict[str, Any]:
    given = msgspec.to_builtins(tool.function)
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def _tool_choice(request: ChatRequest) -> str | dict[str, Any] | None:
    choice = request.tool_choice
    return msgspec.to_builtins(choice) if isinstance(choice, NamedToolChoice) else choice


def _response_format(request: ChatRequest) -> dict[str, Any] | None:
    match request.response_format:
        case JsonObjectFormat():
            return {"type": "json_object"}
        case JsonSchemaFormat(asked):
            given = {name: value for name, value in msgspec.to_builtins(asked).items() if value is not None}
            return {"type": "json_schema", "json_schema": given}
        case _:
            return None
