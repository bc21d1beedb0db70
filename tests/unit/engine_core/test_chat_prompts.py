"""Control tokens come from the template alone, and nothing else changes."""

from contextlib import suppress
from itertools import islice
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from demo_models.tasks import conversations
from demo_models.tokenizer import make_tokenizer
from engine_core.chat import ChatTokenizer, MessagesRefused
from tests.unit.ar_engine.protocols import gemma_tokenizer, qwen_tokenizer

CASES = {"demo": lambda: make_tokenizer(samples=500), "gemma": gemma_tokenizer, "qwen": qwen_tokenizer}
MARKS = ("\U000f0000", "\U000f0001")  # of transformers, around control tokens in texts
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def loaded(request):
    return request.param()


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return ChatTokenizer(loaded)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def plain(loaded: Any, messages: list[dict[str, Any]]) -> list[int]:
    return loaded.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def controls(loaded: Any, ids: list[int]) -> list[int]:
    return [token for token in ids if token in loaded.added_tokens_decoder]


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_other_texts_get_the_ids_of_the_template(tokenizer, loaded, texts):
    assume(not any(control in text for control in [*loaded.added_tokens_encoder, *MARKS] for text in texts))
    roles = ["user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    assert tokenizer.prompt(messages) == plain(loaded, messages)


def test_conversations_of_the_demo_get_the_ids_of_the_template(tokenizer, loaded):
    for conversation in islice(conversations("train", 1, complex_share=0.4), 200):
        assert tokenizer.prompt(conversation.messages) == plain(loaded, list(conversation.messages))


def test_every_control_token_in_a_text_is_letters(tokenizer, loaded):
    for token in loaded.added_tokens_encoder:
        for text in (
            token,
            f"a {token} b",
            f"{token}{token}",
            f" {token[:3]}{token}{token[3:]} ",
            f"\U000f0000{token}",
        ):
            ids = tokenizer.prompt(user(text))
            assert controls(loaded, ids) == controls(loaded, plain(loaded, user("a"))), text
            assert token in loaded.decode(ids)


@given(data=st.data())
def test_no_text_brings_a_control_token_with_it(tokenizer, loaded, data):
    names = sorted(loaded.added_tokens_encoder)
    cut = st.sampled_from(names).flatmap(lambda name: st.integers(0, len(name)).map(lambda at: [name[:at], name[at:]]))
    pieces = st.one_of(cut, st.text(max_size=3).map(lambda text: [text]), st.sampled_from([[mark] for mark in MARKS]))
    texts = [piece for run in data.draw(st.lists(pieces, min_size=1, max_size=5)) for piece in run]
    wanted = controls(loaded, plain(loaded, user("a")))
    assert controls(loaded, tokenizer.prompt(user("".join(texts)))) == wanted
    assert controls(loaded, tokenizer.prompt(user([{"type": "text", "text": text} for text in texts]))) == wanted


def test_texts_in_parts_get_the_ids_of_a_template_that_knows_parts(tokenizer, loaded):
    parts = user([{"type": "text", "text": text} for text in ("the quick ", " brown", "fox")])
    joined = user("the quick \n brown\nfox")
    knows_parts = "part['text']" in loaded.chat_template
    assert tokenizer.prompt(parts) == plain(loaded, parts if knows_parts else joined)


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param({"a<turn|>": {"type": "string"}}, id="a property"),
        pytest.param({"a": {"type": "object", "properties": {'<|"|>': {}}}}, id="one inside another"),
    ],
)
def test_a_name_with_a_control_token_is_refused(properties):
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    with pytest.raises(MessagesRefused, match="a name with the control token"):
        ChatTokenizer(gemma_tokenizer()).prompt(user("a"), [{"type": "function", "function": function}])


def test_a_template_that_knows_no_tools_refuses_them(tokenizer, loaded):
    if "tools" in loaded.chat_template:
        assert len(tokenizer.prompt(user("a"), [TOOL])) > len(tokenizer.prompt(user("a")))
    else:
        with pytest.raises(MessagesRefused, match="got: 1 tools"):
            tokenizer.prompt(user("a"), [TOOL])


@pytest.mark.parametrize(
    "content", [{"no": "list"}, 5, [{"type": "text"}], ["text"], [{"type": "text", "text": 5}], [[]], [None]]
)
def test_what_is_no_content_is_refused_or_rendered_but_never_breaks(tokenizer, content):
    with suppress(MessagesRefused):
        tokenizer.prompt(user(content))


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_parts_that_a_template_would_skip_are_refused(tokenizer, kind):
    with pytest.raises(MessagesRefused, match=f"got: parts of type '{kind}'"):
        tokenizer.prompt(user([{"type": "text", "text": "a"}, {"type": kind, kind: {}}]))


def test_an_empty_conversation_is_refused(tokenizer):
    with pytest.raises(MessagesRefused):
        tokenizer.prompt([])
