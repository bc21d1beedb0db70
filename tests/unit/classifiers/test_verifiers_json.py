"""JSON that the request's response_format asks for."""

import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.api import DraftEvidence
from classifiers.verifiers.json_format import json_format, unverifiable
from classifiers.verifiers.problem import Problem

MUG = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "sizes": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name"],
    "additionalProperties": False,
}  # fmt: skip


def problem_of(text, schema=None, kind="json_schema"):
    response_format = {"type": kind} | ({} if schema is None else {"json_schema": {"name": "mug", "schema": schema}})
    return json_format(DraftEvidence(messages=(), text=text, response_format=response_format))


def fault(text, schema=None, kind="json_schema") -> Problem:
    problem = problem_of(text, schema, kind)
    assert problem is not None
    return problem


def test_without_a_response_format_nothing_is_checked():
    assert json_format(DraftEvidence(messages=(), text="no JSON")) is None
    assert problem_of("no JSON", kind="text") is None


@pytest.mark.parametrize("text", ["{}", ' {"a": [1, 2.5e3, null, true, "x"]}\n'])
def test_an_object_passes(text):
    assert problem_of(text, kind="json_object") is None


@pytest.mark.parametrize(
    ("text", "says", "span"),
    [
        ('{"a": 1', "',' delimiter in line 1", (6, 7)),
        ('```json\n{"a": 1}\n```', "Expecting value in line 1", (0, 1)),
        ('{"a": 1} Enjoy!', "Extra data in line 1", (9, 10)),
        ('{"a": 1,}', "property name", (8, 9)),
        ("", "Expecting value", (0, 0)),
        ('{"a": NaN}', "NaN, which is no JSON number", None),
        ("[1]", "a JSON object, got an array", None),
        ("null", "a JSON object, got null", None),
        ("true", "a JSON object, got a boolean", None),
        ("1", "a JSON object, got a number", None),
        ("9" * 5000, "a number of 5000 digits", None),
        ("[" * 100_000, "nesting beyond every limit", None),
        ('{"a":' * 100_000, "nesting beyond every limit", None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_anything_else_is_no_object(text, says, span):
    problem = fault(text, kind="json_object")
    assert says in problem.reason
    assert problem.span == span


def test_an_answer_that_meets_the_schema_passes():
    assert problem_of('{"name": "blue", "sizes": [1, 2]}', MUG) is None


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ('{"sizes": []}', "$", "'name' is a required property"),
        ('{"name": "blue", "sizes": [1, "x"]}', "$.sizes[1]", "'x' is not of type 'integer'"),
        ('{"name": "blue", "colour": 1}', "$", "'colour' was unexpected"),
        ('{"name": "BLUE"}', "$.name", "'BLUE' does not match '^[a-z]+$'"),
        ("[]", "$", "[] is not of type 'object'"),
    ],
)
def test_an_answer_that_does_not_meet_the_schema_fails_with_the_path(text, path, says):
    problem = fault(text, MUG)
    assert problem.reason.startswith(f"expected JSON of the asked schema, got at {path}: ")
    assert says in problem.reason


def test_a_reason_does_not_quote_a_long_answer_in_full():
    assert len(fault(json.dumps("x" * 10_000), MUG).reason) < 300


def test_the_dialect_is_the_schemas_own():
    tuple_of = {"items": [{"type": "string"}]}
    assert problem_of("[1]", {"$schema": "http://json-schema.org/draft-07/schema#", **tuple_of}) is not None
    assert problem_of("[1]", {"prefixItems": [{"type": "string"}]}) is not None
    assert problem_of("[1]", {"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [False]}) is None


def test_references_within_the_schema_are_followed():
    schema = {"$ref": "#/$defs/size", "$defs": {"size": {"type": "integer"}}}
    assert problem_of("1", schema) is None
    assert problem_of('"x"', schema) is not None


def test_no_reference_is_ever_fetched(monkeypatch):
    def no_network(*_arguments, **_more):
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert "within the schema" in fault("1", {"$ref": "http://example.org/schema.json"}).reason
    assert "within the schema" in fault("1", {"$ref": "file:///etc/hostname"}).reason


def doubling(depth):
    """A schema of linear size that applies 2^depth subschemas."""
    steps = {f"s{at}": {"allOf": [{"$ref": f"#/$defs/s{at + 1}"}] * 2} for at in range(depth)}
    return {"$ref": "#/$defs/s0", "$defs": {**steps, f"s{depth}": {"type": "integer"}}}


def dependent(depth):
    """As `doubling`, by the way that jsonschema takes for unevaluatedProperties."""
    steps = {
        f"s{at}": {"dependentSchemas": {name: {"$ref": f"#/$defs/s{at + 1}"} for name in "ab"}} for at in range(depth)
    }
    return {"unevaluatedProperties": False, "$ref": "#/$defs/s0", "$defs": {**steps, f"s{depth}": {}}}


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("1", {"type": "mug"}),
        ("1", {"type": 5}),
        ("1", {"$ref": 5}),
        ("1", {"pattern": "("}),
        ("1", {"$ref": "#"}),
        ("1", {"$ref": "#/$defs/none"}),
        ("1", {"$schema": "https://example.org/own", "type": "string"}),
        ("1", {"type": "string", "$defs": {"x": {"$schema": "http://json-schema.org/draft-07/schema#"}}}),
        ("1", True),
        ("1", None),
        ("1", "x"),
        ("1", doubling(40)),
        ('{"a": 1, "b": 1}', dependent(40)),
        ("1", nested(3000)),
        (json.dumps("a" * 40 + "b"), {"allOf": [{"pattern": "^(a|a)*$"}] * 50}),
        (json.dumps({"a" * 40 + "b": 1}), {"patternProperties": {"^(a|a)*$": {"type": "string"}}}),
        (json.dumps([1] * 100_000), {"type": "object"}),
    ],
    ids=["unknown type", "no type", "no reference", "no pattern", "endless", "dangling", "unknown dialect", "two dialects",
         "true", "no schema", "text", "doubling", "doubling by dependents", "nested", "slow pattern", "slow name",
         "too long"],
)  # fmt: skip
def test_what_can_not_be_checked_is_not_promised(text, schema):
    assert problem_of(text, schema) is not None


def test_a_format_that_no_answer_could_be_held_to_is_told_beforehand():
    def told(schema):
        return unverifiable({"type": "json_schema", "json_schema": {"name": "mug", "schema": schema}})

    assert unverifiable({"type": "json_object"}) is None
    assert (
        told({"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}) is None
    )
    assert "an object" in (told(True) or "")
    assert "JSON Schema" in (told({"type": "mug"}) or "")
    assert "nothing is fetched" in (told({"$ref": "http://example.org/schema.json"}) or "")
    assert "nested" in (told(nested(3000)) or "")


def test_many_items_are_compared_in_linear_work():
    items = [{"size": size} for size in range(5000)]
    assert problem_of(json.dumps(items), {"uniqueItems": True}) is None
    assert "non-unique" in fault(json.dumps([*items, items[0]]), {"uniqueItems": True}).reason
    assert problem_of(json.dumps([1, 1]), {"uniqueItems": False}) is None


def test_names_with_a_simple_pattern_are_checked():
    schema = {"patternProperties": {"^x": {"type": "string"}}}
    assert problem_of('{"x1": "a", "y": 1}', schema) is None
    assert "$.x1" in fault('{"x1": 1}', schema).reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYWORDS = st.sampled_from(
    ["type", "items", "properties", "enum", "$ref", "pattern", "allOf", "not", "$schema", "required"]
)


@settings(deadline=None, derandomize=True)
@given(value=JSON, schema=st.dictionaries(KEYWORDS, JSON, max_size=4))
def test_no_value_and_no_schema_breaks_it(value, schema):
    problem_of(json.dumps(value), schema)


@settings(deadline=None, derandomize=True)
@given(response_format=st.dictionaries(st.sampled_from(["type", "json_schema", "schema"]), JSON, max_size=3))
def test_no_response_format_breaks_it(response_format):
    json_format(DraftEvidence(messages=(), text="{}", response_format=response_format))
