"""Token ids of an answer become text, thoughts and tool calls, however they come in."""

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ar_engine.answers import Answer, AnswerFormat
from demo_models.tokenizer import make_tokenizer
from engine_core.chat import ChatTokenizer
from tests.unit.ar_engine.protocols import gemma_tokenizer, qwen_tokenizer

Q = '<|"|>'
LOADED = {"plain": make_tokenizer(samples=500), "gemma": gemma_tokenizer(), "qwen": qwen_tokenizer()}
TOKENIZERS = {name: ChatTokenizer(tokenizer) for name, tokenizer in LOADED.items()}
FORMATS = {name: AnswerFormat.of(tokenizer) for name, tokenizer in TOKENIZERS.items()}


class Read(NamedTuple):
    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, Any], ...] = ()


def read(kind: str, ids: list[int], cuts: list[int], tools: bool = True, prompt: list[int] | None = None) -> Read:
    """What comes of the ids, of which the answer is given first so many, then so many more; deltas are checked to add up."""
    answer = Answer(TOKENIZERS[kind], FORMATS[kind], tools, prompt or [])
    deltas = [answer.advance(ids[:cut], final=False) for cut in cuts]
    deltas += [answer.advance(ids, final=True), answer.advance(ids, final=True)]
    assert deltas[-1] is None
    said = [delta for delta in deltas if delta is not None]
    assert "".join(delta.text for delta in said) == answer.text
    assert "".join(delta.reasoning for delta in said) == answer.reasoning
    assert tuple(call for delta in said for call in delta.tool_calls) == answer.tool_calls
    assert [call.index for call in answer.tool_calls] == list(range(len(answer.tool_calls)))
    assert len({call.id for call in answer.tool_calls}) == len(answer.tool_calls)
    assert all(call.id.startswith("call_") for call in answer.tool_calls)
    assert answer.finish_reason == ("tool_calls" if answer.tool_calls else "stop")
    calls = tuple((call.name, json.loads(call.arguments)) for call in answer.tool_calls)
    return Read(answer.text, answer.reasoning, calls)


def written(kind: str, text: str, tools: bool = True, prompt: str = "") -> Read:
    """What comes of a text with markers, given at once, and token by token."""
    encode = TOKENIZERS[kind].encode
    ids = encode(text)
    whole = read(kind, ids, [], tools, encode(prompt))
    assert read(kind, ids, list(range(len(ids))), tools, encode(prompt)) == whole
    return whole


@given(kind=st.sampled_from(list(TOKENIZERS)), data=st.data())
def test_every_way_to_cut_any_ids_comes_to_the_same(kind, data):
    form = FORMATS[kind]
    marks = [form.think_open, form.think_close, form.call_open, form.call_close, form.call_quote]
    words = TOKENIZERS[kind].encode('thought\ncall:f{a:"b",c:1} {"name": "f", "arguments": {}} 日')
    token = st.sampled_from([*(mark for mark in marks if mark >= 0), *words])
    ids = data.draw(st.lists(token, max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=10)))
    tools = data.draw(st.booleans())
    whole = read(kind, ids, [], tools)
    assert read(kind, ids, cuts, tools) == whole
    assert read(kind, ids, list(range(len(ids))), tools) == whole


@given(text=st.text(max_size=40))
def test_an_answer_without_markers_is_its_text(text):
    for kind, tokenizer in TOKENIZERS.items():
        ids = tokenizer.encode(text)
        if not set(ids) & set(LOADED[kind].added_tokens_decoder):
            assert read(kind, ids, list(range(len(ids)))) == Read(tokenizer.decode(ids))


THOUGHTS = [
    pytest.param("gemma", "<|channel>thought\nThe fox.\n<channel|>Yes.", Read("Yes.", "The fox.\n"), id="gemma"),
    pytest.param("gemma", "<|channel>thought\n<channel|>Yes.", Read("Yes."), id="an empty one"),
    pytest.param("gemma", "<|channel>thou<channel|>Yes.", Read("Yes."), id="one that has only begun"),
    pytest.param("gemma", "<|channel>The fox.<channel|>Yes.", Read("Yes.", "The fox."), id="without a label"),
    pytest.param("gemma", "<|channel>thought\nThe f", Read("", "The f"), id="broken off"),
    pytest.param("gemma", "Yes<|channel>thought\nmaybe<channel|> no", Read("Yes no", "maybe"), id="in the middle"),
    pytest.param("gemma", "thought\nYes<channel|>, no", Read("thought\nYes, no"), id="closed but never opened"),
    pytest.param("qwen", "<think>\nThe fox.\n</think>\n\nYes.\n", Read("Yes.\n", "The fox.\n"), id="qwen"),
    pytest.param("qwen", "\n\nYes.", Read("\n\nYes."), id="newlines of the model's own"),
    pytest.param("plain", "<think>x</think>y", Read("<think>x</think>y"), id="a vocabulary without markers"),
]


@pytest.mark.parametrize(("kind", "answer", "expected"), THOUGHTS)
@pytest.mark.parametrize("tools", [False, True])
def test_thoughts_stand_apart_from_text(kind, answer, expected, tools):
    assert written(kind, answer, tools) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|im_start|>assistant\n<think>\n", Read("Yes.", "The fox.")),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", Read("The fox.Yes.")),
        ("<|im_start|>assistant\n", Read("The fox.Yes.")),
    ],
)
def test_an_answer_begins_where_its_prompt_ends(prompt, expected):
    assert written("qwen", "The fox.</think>Yes.", prompt=prompt) == expected


CALLS = [
    pytest.param("", {}, id="nothing"),
    pytest.param(f"city:{Q}New York, {{NY}}: [a]{Q},days:3", {"city": "New York, {NY}: [a]", "days": 3}, id="flat"),
    pytest.param("a:true,b:false,c:null,d:-1.5e3,e:12345678901234567890", {"a": True, "b": False, "c": None, "d": -1500.0,
                 "e": 12345678901234567890}, id="scalars"),
    pytest.param(f"a:{{b:{{c:[1,{Q}x{Q},[],{{}}]}}}}", {"a": {"b": {"c": [1, "x", [], {}]}}}, id="nested"),
    pytest.param(f"{Q}a b{Q}:{Q}{Q}", {"a b": ""}, id="a quoted key and an empty string"),
    pytest.param("a:paris is nice,b:None,c:True,d:NaN", {"a": "paris is nice", "b": None, "c": True, "d": "NaN"}, id="bare"),
    pytest.param('a:"x, {y}",b: [ 1 , 2 ] ,', {"a": "x, {y}", "b": [1, 2]}, id="written as JSON, with spaces"),
    pytest.param(f"a:{Q}日本 🎉\n\"quoted\" \\ back{Q}", {"a": "日本 🎉\n\"quoted\" \\ back"}, id="what JSON escapes"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), CALLS)
def test_gemmas_arguments_become_json(arguments, expected):
    got = written("gemma", f"Let me see.<|tool_call>call:look_up{{{arguments}}}<tool_call|>")
    assert got == Read("Let me see.", "", (("look_up", expected),))


def gemma(value: Any) -> str:
    """A value in Gemma 4's syntax."""
    if isinstance(value, str):
        return Q + value + Q
    if isinstance(value, dict):
        return "{" + ",".join(f"{Q}{key}{Q}:{gemma(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(gemma, value)) + "]"
    return json.dumps(value)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"), max_size=8)
scalars = st.one_of(texts, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@given(arguments=st.dictionaries(texts, values, max_size=3))
def test_any_arguments_come_through_both_protocols(arguments):
    assert written("gemma", f"<|tool_call>call:f{gemma(arguments)}<tool_call|>").calls == (("f", arguments),)
    call = json.dumps({"name": "f", "arguments": arguments})
    assert written("qwen", f"<tool_call>\n{call}\n</tool_call>").calls == (("f", arguments),)


SEVERAL = [
    pytest.param(
        "gemma",
        "<|channel>thought\nhm<channel|><|tool_call>call:a{}<tool_call|><|tool_call>call:b{x:1}<tool_call|>",
        Read("", "hm", (("a", {}), ("b", {"x": 1}))),
        id="gemma, two behind a thought",
    ),
    pytest.param(
        "qwen",
        '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>\n'
        '{"name": "b", "arguments": "{\\"x\\": 1}"}\n</tool_call>\n\nDone.',
        Read("Done.", "hm\n", (("a", {}), ("b", {"x": 1}))),
        id="qwen, two and a text, arguments as a string",
    ),
    pytest.param("qwen", '<tool_call>{"name": "a"}</tool_call>', Read(calls=(("a", {}),)), id="without arguments"),
    pytest.param("gemma", "<|tool_call>call:a{x:1}", Read(calls=(("a", {"x": 1}),)), id="whole but for the last marker"),
    pytest.param("gemma", "<|channel>thought\nhm<|tool_call>call:a{}<tool_call|>",
                 Read("", "hm", (("a", {}),)), id="inside a thought, which it ends"),
    pytest.param("gemma", "<|tool_call>call:a{}<|tool_call>call:srv/b.c-d{}<tool_call|>",
                 Read(calls=(("a", {}), ("srv/b.c-d", {}))), id="one follows before the other's last marker"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "answer", "expected"), SEVERAL)
def test_calls_stand_apart_from_text_and_thoughts(kind, answer, expected):
    assert written(kind, answer) == expected


MALFORMED = [
    pytest.param("gemma", "<|tool_call>look_up{}<tool_call|>", id="no name"),
    pytest.param("gemma", "<|tool_call>call:f{a:1<tool_call|>", id="never closed"),
    pytest.param("gemma", "<|tool_call>call:f{a:1}}<tool_call|>", id="closed twice"),
    pytest.param("gemma", "<|tool_call>call:f{a}<tool_call|>", id="a key alone"),
    pytest.param("gemma", "<|tool_call>call:f{a:,b:1}<tool_call|>", id="no value"),
    pytest.param("gemma", "<|tool_call>call:f{:1}<tool_call|>", id="no key"),
    pytest.param("gemma", "<|tool_call>call:f{a:1 b:{}<tool_call|>", id="no comma"),
    pytest.param("gemma", "<|tool_call>call:f{a:1e999}<tool_call|>", id="a number JSON can't hold"),
    pytest.param("gemma", f"<|tool_call>call:f{{a:{Q}x}}<tool_call|>", id="a string without end"),
    pytest.param("gemma", f"<|tool_call>call:f{{a:{Q}x", id="broken off"),
    pytest.param("gemma", "<|tool_call>", id="broken off at once"),
    pytest.param("gemma", "<|tool_call><tool_call|>", id="empty"),
    pytest.param("gemma", f"<|tool_call>call:f{{a:{'[' * 3000}<tool_call|>", id="very deep"),
    pytest.param("qwen", "<tool_call>look up</tool_call>", id="no JSON"),
    pytest.param("qwen", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', id="no JSON number"),
    pytest.param("qwen", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', id="arguments without names"),
    pytest.param("qwen", '<tool_call>{"name": 5, "arguments": {}}</tool_call>', id="a name that is none"),
    pytest.param("qwen", '<tool_call>["name"]</tool_call>', id="no object"),
    pytest.param("qwen", '<tool_call>{"name": "f", "arg', id="JSON broken off"),
    pytest.param("qwen", f"<tool_call>{'[' * 3000}</tool_call>", id="JSON very deep"),
]


@pytest.mark.parametrize(("kind", "answer"), MALFORMED)
def test_what_is_no_call_is_the_text_it_was(kind, answer):
    assert written(kind, "Well: " + answer) == Read("Well: " + answer)


def test_a_thought_behind_a_call_that_broke_off_stays_out_of_the_text():
    got = written("gemma", "<|tool_call>call:f{<|channel>thought\nsecret<channel|>Yes.")
    assert got == Read("<|tool_call>call:f{Yes.", "secret")


@pytest.mark.parametrize(
    ("kind", "answer", "text"),
    [
        ("gemma", "See <|tool_call>call:f{a:1}<tool_call|>!", "See call:f{a:1}!"),
        ("qwen", '<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>'),
    ],
)
def test_without_tools_a_call_is_text(kind, answer, text):
    assert written(kind, answer, tools=False) == Read(text)


@pytest.mark.parametrize("kind", ["gemma", "qwen"])
def test_markers_spelt_in_letters_are_text(kind):
    letters = [
        token
        for name in ("<|tool_call>call:f{}<tool_call|>", "<think>x</think>", "<|channel>thought\n<channel|>")
        for letter in name
        for token in TOKENIZERS[kind].encode(letter)
    ]
    text = TOKENIZERS[kind].decode(letters)
    assert "<|tool_call>" in text
    assert read(kind, letters, list(range(len(letters)))) == Read(text)


def test_a_quote_token_spelt_in_letters_is_part_of_the_string():
    encode = TOKENIZERS["gemma"].encode
    letters = [token for letter in Q for token in encode(letter)]
    ids = [*encode(f"<|tool_call>call:f{{a:{Q}x"), *letters, *encode(f"y{Q}}}<tool_call|>")]
    assert read("gemma", ids, []).calls == (("f", {"a": f"x{Q}y"}),)


def test_a_tools_response_ends_gemmas_answer():
    assert FORMATS["gemma"].end_ids == {TOKENIZERS["gemma"].token_id("<|tool_response>")}
    assert FORMATS["qwen"].end_ids == FORMATS["plain"].end_ids == frozenset()
