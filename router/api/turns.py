"""The messages of a request, checked and in the form that engines take."""

from collections.abc import Sequence
from typing import Any

from router.api.schemas.chat import (
    AssistantMessage,
    AssistantToolCall,
    ImagePart,
    Message,
    RefusalPart,
    TextPart,
    ToolMessage,
)
from router.errors import BadRequest


def to_turns(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Messages as OpenAI's API has them, without what says nothing: content is one text unless there are images.

    Raises:
        BadRequest: an assistant's turn says nothing, or a tool answers no call.
    """
    called: set[str] = set()
    return tuple(_turn(f"messages[{at}]", message, called) for at, message in enumerate(messages))


def has_images(turns: Sequence[dict[str, Any]]) -> bool:
    """Whether any part is an image."""
    return any(isinstance(turn["content"], list) for turn in turns)


def has_calls(turns: Sequence[dict[str, Any]]) -> bool:
    """Whether tools were called."""
    return any("tool_calls" in turn or turn["role"] == "tool" for turn in turns)


def _turn(where: str, message: Message, called: set[str]) -> dict[str, Any]:
    """One message; the ids of its calls are added to those `called`."""
    match message:
        case AssistantMessage():
            turn = _said(where, message)
            called |= {call.id for call in message.tool_calls or ()}
        case ToolMessage():
            if message.tool_call_id not in called:
                raise BadRequest(
                    f"{where}: expected the tool_call_id of a call in a message before it.",
                    param=f"{where}.tool_call_id",
                )
            turn = {"role": "tool", "content": _content(message.content), "tool_call_id": message.tool_call_id}
        case _:
            role = message.__struct_config__.tag
            turn = {"role": "system" if role == "developer" else role, "content": _content(message.content)}
    return turn | ({"name": message.name} if message.name else {})


def _said(where: str, message: AssistantMessage) -> dict[str, Any]:
    content = message.refusal if message.content is None else _content(message.content)
    if content is None and not message.tool_calls:
        raise BadRequest(
            f"{where}.content: expected a text, as there are no tool_calls, got null.", param=f"{where}.content"
        )
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if reasoning := message.reasoning_content or message.reasoning:
        turn["reasoning_content"] = reasoning
    return turn


def _call(call: AssistantToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _content(content: str | Sequence[TextPart | ImagePart | RefusalPart]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if any(isinstance(part, ImagePart) for part in content):
        return [_part(part) for part in content]
    return "\n".join(_text(part) for part in content)


def _part(part: TextPart | ImagePart | RefusalPart) -> dict[str, Any]:
    if not isinstance(part, ImagePart):
        return {"type": "text", "text": _text(part)}
    image = {"url": part.image_url.url}
    if part.image_url.detail:
        image["detail"] = part.image_url.detail
    return {"type": "image_url", "image_url": image}


def _text(part: TextPart | ImagePart | RefusalPart) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case ImagePart():
            raise AssertionError("an image has no text")
