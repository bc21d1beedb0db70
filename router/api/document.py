"""What the OpenAPI document says beyond what Litestar reads off the handlers: errors, streams, the limits of fields."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Schema
from litestar.typing import FieldDefinition

from router.errors import ErrorBody

ERRORS = {
    400: "The request is wrong; param names the field.",
    401: "No key, or one that isn't known.",
    403: "The request is not allowed.",
    404: "No such model, or none that the key may use.",
    408: "The body did not arrive in time, or no answer within deadline_ms.",
    413: "The body is too large.",
    422: "No model's answer had the response_format.",
    429: "A limit of the key is reached; see Retry-After.",
    500: "The answer could not be made.",
    503: "Busy or still starting; see Retry-After.",
    504: "The deadline passed.",
}


def errors(*statuses: int) -> dict[int, ResponseSpec]:
    """The `responses` of a handler with these errors; without any named, all that answering can end in."""
    return {
        status: ResponseSpec(ErrorBody, generate_examples=False, description=ERRORS[status])
        for status in statuses or ERRORS
    }


@dataclass
class StreamedOperation(Operation):
    """Adds the streamed form of the answer."""

    def __post_init__(self) -> None:
        response = (self.responses or {})["200"]
        data = Schema(type=OpenAPIType.STRING, description="A chunk as JSON, or at the end [DONE].")
        events = Schema(
            type=OpenAPIType.OBJECT,
            properties={"data": data},
            required=["data"],
            description="With stream: true, server-sent events.",
        )
        content: Any = getattr(response, "content", None) or {}
        content["text/event-stream"] = OpenAPIMediaType(schema=events)


def describe_request(schema_creator: Any, kind: type[Any]) -> None:
    """Describe a type as msgspec does, with all limits and the fields that objects don't take; Litestar leaves most out.

    Litestar has described it before, so the names of components are known.
    """
    _, found = msgspec.json.schema_components((kind,), ref_template="#/components/schemas/{name}")
    for struct in _structs(msgspec.inspect.type_info(kind)):
        schema = schema_creator.schema_registry.get_schema_for_field_definition(FieldDefinition.from_annotation(struct))
        described = found[struct.__name__]
        schema.description = described.get("description")
        schema.properties = described["properties"]
        schema.required = described["required"]
        schema.additional_properties = described.get("additionalProperties")


def _structs(info: msgspec.inspect.Type) -> Iterator[type[Any]]:
    """The structs in a type; none of those used here contains itself."""
    match info:
        case msgspec.inspect.StructType():
            yield info.cls
            inner = [field.type for field in info.fields]
        case msgspec.inspect.UnionType():
            inner = list(info.types)
        case msgspec.inspect.ListType():
            inner = [info.item_type]
        case msgspec.inspect.Metadata():
            inner = [info.type]
        case _:
            inner = []
    for one in inner:
        yield from _structs(one)
