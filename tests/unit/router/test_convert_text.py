"""Completions in the gateway's own words: prompts as turns, suffixes as gaps."""

from typing import Any

import pytest

from ar_engine.api import TokenLogprob
from router.api.body import strictly
from router.api.schemas.completions import TextRequest
from router.api.text_convert import MOST_CONTEXT, Place, to_infill, to_places, to_text_logprobs
from router.errors import BadRequest, PromptTooLong
from router.serving.messages import Ask, Caller


def places(max_prompt_chars: int = 10_000, **fields: Any) -> list[Place]:
    request = strictly({"model": "draftgate", "prompt": "one"} | fields, TextRequest)
    return to_places(request, Caller(tenant="acme"), request_id="r", max_prompt_chars=max_prompt_chars, timeout_s=9.0)


def infill(**fields: Any) -> Ask:
    return places(**fields)[0].ask


def test_a_prompt_is_a_users_turn() -> None:
    ((prompt, ask),) = places()
    assert prompt == "one"
    assert ask.messages == ({"role": "user", "content": "one"},)
    assert (ask.request_id, ask.tenant, ask.max_tokens, ask.n, ask.needs) == ("r", "acme", 16, 1, ())
    assert ask.timeout_s == 9.0


def test_each_of_several_prompts_is_a_request_of_its_own() -> None:
    found = places(prompt=["a", "b"], n=2, max_tokens=3)
    assert [place.ask.request_id for place in found] == ["r-0", "r-1"]
    assert [place.ask.messages[0]["content"] for place in found] == ["a", "b"]
    assert {(place.ask.n, place.ask.max_tokens) for place in found} == {(2, 3)}
    assert found[0].ask.conversation != found[1].ask.conversation
    assert len({place.ask.conversation for place in places(prompt=["a", "b"], user="u")}) == 1


def test_logprobs_need_the_refiner() -> None:
    ask = infill(logprobs=0)
    assert (ask.logprobs, ask.needs) == (0, ("logprobs",))


def test_a_suffix_makes_a_gap_for_the_draft_engine() -> None:
    ask = infill(prompt="The lamp costs ", suffix=" dollars.", max_tokens=8)
    assert ask.template == ("The lamp costs ", 8, " dollars.")
    assert (ask.wanted, ask.max_tokens) == ("draft", 8)
    assert "The lamp costs " in ask.messages[0]["content"]
    assert " dollars." in ask.messages[0]["content"]
    assert infill(suffix="x").template == ("one", 64, "x")
    assert infill(prompt="", suffix="x").template == (64, "x")
    assert infill(suffix="x", max_tokens=500).template == ("one", 128, "x")
    assert infill(suffix="").template == ()


@pytest.mark.parametrize("canvas", [256, 128, 64])
@pytest.mark.parametrize("gap", [None, 1, 500])
@pytest.mark.parametrize("word", ["word ", "字", "слово ", "x" * 1000])
def test_what_stands_around_a_gap_is_what_is_next_to_it(canvas: int, gap: int | None, word: str) -> None:
    before, after = word * 200 + "last", "first " + word * 200
    ask = to_infill(infill(), before, after, gap, canvas)
    left, size, right = ask.template
    assert isinstance(left, str)
    assert isinstance(right, str)
    assert isinstance(size, int)
    assert before.endswith(left)
    assert after.startswith(right)
    assert 0 < len(left) <= MOST_CONTEXT
    assert 0 < len(right) <= MOST_CONTEXT
    assert size <= canvas // 2
    assert len(left.encode()) + len(right.encode()) <= (canvas - size) * 2.5
    assert before in ask.messages[0]["content"], "the message has all of it"


def test_text_around_a_gap_is_cut_between_words() -> None:
    ask = to_infill(infill(), "alpha beta " * 100, "gamma delta " * 100, 64)
    left, _, right = ask.template
    assert isinstance(left, str)
    assert isinstance(right, str)
    assert set(left.split()) == {"alpha", "beta"}
    assert set(right.split()) == {"gamma", "delta"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": [[1, 2]]}, "prompt[0]"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 15}, "n"),
        ({"prompt": None}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "logprobs"),
        ({"logprobs": 1, "suffix": "x"}, "logprobs"),
        ({"logprobs": 1, "model": "draftgate-draft"}, "model"),
        ({"suffix": "x", "model": "draftgate-refine"}, "suffix"),
        ({"suffix": "x", "draftgate": {"route": "refine"}}, "suffix"),
        ({"draftgate": {"provisional": True}, "stream": True}, "draftgate.provisional"),
        ({"stream_options": {}}, "stream_options"),
        ({"messages": []}, "messages"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as error:
        places(**fields)
    assert error.value.param == param


def test_too_long_a_prompt_is_refused() -> None:
    with pytest.raises(PromptTooLong) as error:
        places(max_prompt_chars=10, prompt=["a", "x" * 11])
    assert error.value.param == "prompt"
    with pytest.raises(PromptTooLong):
        places(max_prompt_chars=300, prompt="a" * 200, suffix="b" * 200)


def test_logprobs_have_their_older_form() -> None:
    ask = infill(logprobs=1)
    tokens = [
        TokenLogprob(token="ab", logprob=-0.5, top=(("cd", -0.1),)),
        TokenLogprob(token="e", logprob=float("-inf")),
    ]
    found = to_text_logprobs(ask, tokens, offset=3)
    assert found is not None
    assert (found.tokens, found.text_offset) == (["ab", "e"], [3, 5])
    assert found.token_logprobs == [-0.5, -9999.0]
    assert found.top_logprobs == [{"cd": -0.1, "ab": -0.5}, {"e": -9999.0}]
    assert to_text_logprobs(infill(), tokens) is None
