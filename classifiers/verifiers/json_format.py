"""The JSON that a request's `response_format` asks for."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from time import perf_counter
from typing import Any, cast

from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

LONGEST_CHARS = 200_000  # of the answer or of the schema; longer ones are not validated
MOST_DIGITS = 1000  # reading a number takes quadratic time
MOST_STEPS = 20_000  # keywords applied: references can make a small schema apply exponentially many
PATTERNS_S = 0.2  # for all regular expressions of one check together
SHOWN_CHARS = 160  # of a validator's message, which may quote the whole answer

_ONE_QUANTIFIER = re.compile(r"[^*+?{}()|]*(?:[*+?]|\{\d+,?\d*\})?[^*+?{}()|]*")


def json_format(evidence: DraftEvidence) -> Problem | None:
    """The whole answer is one JSON value (RFC 8259): an object for "json_object", a valid one for "json_schema".

    Validates with `jsonschema` by the schema's own dialect, 2020-12 where it names none; `format` is an annotation. A format is a
    promise, so what can't be checked fails: an invalid schema, an unknown dialect, a reference out of the schema (nothing is
    ever fetched), work beyond the limits above. Source: OpenAI API reference, `response_format`.
    """
    asked = evidence.response_format or {}
    if asked.get("type") not in ("json_object", "json_schema"):
        return None
    try:
        value = json.loads(evidence.text, parse_constant=_no_number, parse_int=_integer)
    except json.JSONDecodeError as error:
        at = min(error.pos, max(0, len(evidence.text) - 1))
        return Problem(f"expected JSON, got: {error.msg} in line {error.lineno}", (at, min(at + 1, len(evidence.text))))
    except ValueError as error:
        return Problem(f"expected JSON, got {error}")
    except RecursionError:
        return Problem("expected JSON, got nesting beyond every limit")
    if asked["type"] == "json_object":
        return None if isinstance(value, dict) else Problem(f"expected a JSON object, got {_kind(value)}")
    if len(evidence.text) > LONGEST_CHARS:
        return Problem(f"expected at most {LONGEST_CHARS} characters to check, got {len(evidence.text)}")
    if why := unverifiable(asked):
        return Problem(why)
    return _invalid(value, asked["json_schema"]["schema"])


def unverifiable(response_format: dict[str, Any]) -> str | None:
    """Why no answer could be held to a format; None when one can. Not all can be told beforehand: a check may still take too much."""
    if response_format.get("type") != "json_schema":
        return None
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        return "expected json_schema.schema, an object"
    try:
        encoded = json.dumps(schema)
        if len(encoded) > LONGEST_CHARS:
            return f"expected a schema of at most {LONGEST_CHARS} characters, got {len(encoded)}"
        if _dialect(encoded) is None:
            return "expected a valid JSON Schema of one known dialect, whose patterns can be checked in bounded time"
        outward = any(name in ("$ref", "$dynamicRef") and not to.startswith("#") for name, to in _named(schema))
    except RecursionError:
        return "expected a schema that isn't nested beyond every limit"
    return "expected references within the schema only: nothing is fetched" if outward else None


def _no_number(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _kind(value: object) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


class _TooMuch(Exception):
    """The work beyond which a check is given up."""


def _invalid(value: object, schema: dict[str, Any]) -> Problem | None:
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        dialect = _dialect(json.dumps(schema))
        bare = {
            name: part for name, part in schema.items() if name != "$schema"
        }  # by which jsonschema leaves the dialect
        validator = _bounded(dialect)(bare, registry=Registry())
        error = best_match(islice(validator.iter_errors(value), 20))
    except (_TooMuch, RecursionError, Unresolvable):
        return Problem("expected a schema that can be checked in bounded time, all its references within it")
    if error is None:
        return None
    message = error.message
    if len(message) > SHOWN_CHARS:
        message = f"{message[: SHOWN_CHARS // 2]}...{message[-SHOWN_CHARS // 2 :]}"
    return Problem(f"expected JSON of the asked schema, got at {error.json_path}: {message}")


@functools.lru_cache(maxsize=64)
def _dialect(encoded: str) -> Any:
    """The validator class of a schema's dialect; None when it is unknown, the schema invalid, or its work unbounded."""
    import regex
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    schema = json.loads(encoded)
    if not isinstance(schema.get("$schema", ""), str):
        return None
    dialect: Any = validator_for(schema, default=cast(Any, None)) if "$schema" in schema else Draft202012Validator
    if dialect is None or _is_unbounded(encoded, schema):
        return None
    try:
        dialect.check_schema(schema, format_checker=FormatChecker(formats=()))
        for name, pattern in _named(schema):
            if name == "pattern":
                regex.compile(pattern)
    except (SchemaError, regex.error):
        return None
    return dialect


def _is_unbounded(encoded: str, schema: dict[str, Any]) -> bool:
    """Does the schema use what `_bounded` can't bound: other dialects inside, or expensive names of properties?"""
    if '"unevaluated' in encoded and ('"dependentSchemas"' in encoded or '"$dynamicRef"' in encoded):
        return True
    if any(name == "$schema" for part in schema.values() for name, _ in _named(part)):
        return True
    return any(name == "patternProperties" and not _ONE_QUANTIFIER.fullmatch(text) for name, text in _named(schema))


def _named(schema: object) -> Iterator[tuple[str, str]]:
    """The strings of a schema by their keywords: patterns and dialects; of "patternProperties" the names."""
    if isinstance(schema, list):
        for part in schema:
            yield from _named(part)
    if isinstance(schema, dict):
        for name, part in schema.items():
            if isinstance(part, str):
                yield name, part
            elif name == "patternProperties" and isinstance(part, dict):
                yield from ((name, pattern) for pattern in part)
            yield from _named(part)


def _bounded(dialect: Any) -> Any:
    """The dialect with its steps counted, regular expressions under a time limit, and duplicates found in linear time."""
    import regex
    from jsonschema import validators
    from jsonschema.exceptions import ValidationError

    steps, left_s = 0, PATTERNS_S

    def counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > MOST_STEPS:
                raise _TooMuch
            return keyword(*arguments)

        return count

    def pattern(_validator: Any, expression: str, instance: object, _schema: object) -> Iterator[ValidationError]:
        nonlocal left_s
        if not isinstance(instance, str):
            return
        start = perf_counter()
        try:
            found = regex.search(expression, instance, timeout=left_s)
        except TimeoutError:
            raise _TooMuch from None
        left_s = max(1e-3, left_s - (perf_counter() - start))
        if not found:
            yield ValidationError(f"{instance!r} does not match {expression!r}")

    def unique(_validator: Any, asked: object, instance: object, _schema: object) -> Iterator[ValidationError]:
        if asked and isinstance(instance, list):
            items = {json.dumps(item, sort_keys=True) for item in instance}
            if len(items) < len(instance):
                yield ValidationError(f"{instance!r} has non-unique elements")

    own = {**dialect.VALIDATORS, "pattern": pattern, "uniqueItems": unique}
    return validators.extend(dialect, {name: counted(keyword) for name, keyword in own.items()})
