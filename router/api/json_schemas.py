"""Is a schema of a `response_format` one at all?"""

import functools
from typing import Any

import msgspec

from router.api.body import inside
from router.errors import BadRequest

MOST_PARTS = (
    1_000  # objects and lists in a schema: the check of each takes up to 1 ms, and more where all of a list must differ
)


def check_schema(response_format: dict[str, Any]) -> None:
    """Check a schema by its own dialect, 2020-12 where it names none that is known. Takes up to a second with a long one.

    Raises:
        BadRequest: it isn't valid, or too large to check.
    """
    if response_format["type"] != "json_schema":
        return
    schema, param = response_format["json_schema"]["schema"], "response_format.json_schema.schema"
    if (parts := _parts(schema)) > MOST_PARTS:
        raise BadRequest(f"{param}: expected at most {MOST_PARTS} objects and lists, got {parts}.", param=param)
    if not _valid(msgspec.json.encode(schema)):
        raise BadRequest(f"{param}: expected a valid JSON schema.", param=param)


def _parts(value: Any) -> int:
    """How many objects and lists there are in JSON that doesn't nest deeply, itself counted."""
    return isinstance(value, dict | list) + sum(map(_parts, inside(value)))


@functools.lru_cache(maxsize=256)  # applications send the same few again and again
def _valid(encoded: bytes) -> bool:
    # late, as few need it and it takes long to import
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    schema = msgspec.json.decode(encoded)
    if not isinstance(schema.get("$schema", ""), str):
        return False
    dialect: Any = validator_for(schema, default=Draft202012Validator)
    try:
        dialect.check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError:
        return False
    return True
