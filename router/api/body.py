"""Request bodies: JSON that may be hostile, decoded without good will."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import msgspec
from litestar.dto import AbstractDTO
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from router.api.document import describe_request
from router.errors import BadRequest, InvalidType, MissingParameter, UnknownParameter

T = TypeVar("T")

MOST_DEPTH = 64  # of lists and objects inside each other
MOST_SHOWN = 200  # characters of a message that may quote the request

# What to say of a field, its indices left out, instead of what msgspec says.
WORDS = {
    "messages[].role": "expected system, developer, user, assistant or tool",
    "messages[].content[].type": "expected text, or in a user's message image_url; other parts are not supported here",
    "tools[].type": "expected function; other tools are not supported here",
    "prompt[]": "expected a text; token ids are not supported here",
    "functions": "not supported here; use tools",
    "function_call": "not supported here; use tool_choice",
    "messages[].function_call": "not supported here; use tool_calls",
    "messages[].audio": "audio is not supported here",
    "audio": "audio is not supported here",
    "modalities[]": "expected text; other modalities are not supported here",
    "logit_bias": "not supported here; leave it out",
    "web_search_options": "not supported here; leave it out",
    "moderation": "not supported here; leave it out",
    "service_tier": "expected auto or default; other tiers are not supported here",
}


def strictly(body: Any, kind: type[T]) -> T:
    """Make a `kind` of decoded JSON; "5" is not taken for 5.

    Raises:
        BadRequest: the body nests too deeply, lacks a field, or has one that is wrong or unknown.
    """
    _check_depth(body)
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


class StrictBody(AbstractDTO[T]):
    """Decodes a handler's `data` in place of Litestar, which takes "5" for 5 and skips unknown fields."""

    def decode_bytes(self, value: bytes) -> T:
        """Decode a body. Raises BadRequest."""
        try:
            body = msgspec.json.decode(value)
        except RecursionError:
            raise BadRequest(_TOO_DEEP) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BadRequest("The body must be a JSON object; got something that is not valid JSON.") from None
        return strictly(body, self.model_type)

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Prepare nothing: there is no model to transfer to."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Reference | Schema:
        """Describe the type as it is; called by Litestar."""
        schema = schema_creator.for_field_definition(field_definition)
        describe_request(schema_creator, cls.model_type)
        return schema


_TOO_DEEP = f"The JSON is nested too deeply: expected at most {MOST_DEPTH} levels."


def _check_depth(body: Any) -> None:
    level = [body]
    for _ in range(MOST_DEPTH + 1):
        level = [inner for value in level for inner in inside(value)]
        if not level:
            return
    raise BadRequest(_TOO_DEEP)


def inside(value: Any) -> Iterable[Any]:
    """The values of an object, or those of a list; nothing for all else."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def _explained(error: str) -> BadRequest:
    """The error that msgspec words as "Expected `int`, got `str` - at `$.n`"."""
    message, _, path = error.partition(" - at `$")
    path = path.removesuffix("`").removeprefix(".")
    if found := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", message, re.DOTALL):
        param = f"{path}.{found[2]}".removeprefix(".")[:MOST_SHOWN]
        if found[1] == "missing required":
            return MissingParameter(f"Missing required parameter: '{param}'.", param=param)
        return UnknownParameter(f"Unknown parameter: '{param}'.", param=param)
    if not path:
        return InvalidType(f"The body must be a JSON object. {message[:MOST_SHOWN]}.")
    words = WORDS.get(re.sub(r"\[\d+\]", "[]", path), message[:MOST_SHOWN])
    kind = InvalidType if ", got `" in message else BadRequest
    return kind(f"{path}: {words}.", param=path)
