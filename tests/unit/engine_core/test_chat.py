"""Text in pieces, and how much of it fits."""

import pytest

from demo_models.tokenizer import make_tokenizer
from engine_core.chat import ChatTokenizer, TextStream, fit


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer(make_tokenizer(samples=2000))


@pytest.mark.parametrize("text", ["naïve 日本 🎉", "plain words", "é", ""])
def test_characters_of_several_bytes_are_never_torn(tokenizer, text):
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.advance(ids[: at + 1], final=at + 1 == len(ids)) for at in range(len(ids))]
    assert "".join(pieces) == stream.text == text
    assert "�" not in "".join(pieces)


def test_a_run_of_bytes_that_breaks_off_is_shown_at_the_end(tokenizer):
    ids = tokenizer.encode("ok 日")[:-1]
    stream = TextStream(tokenizer)
    assert stream.advance(ids, final=False) == ""
    assert stream.advance(ids, final=True).startswith("ok ")


def test_equal_tokenizers_have_equal_fingerprints(tokenizer):
    assert ChatTokenizer(make_tokenizer(samples=2000)).fingerprint == tokenizer.fingerprint
    assert ChatTokenizer(make_tokenizer(samples=1000)).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("prompt", "asked", "most"),
    [(10, None, 50), (10, 20, 20), (10, 80, 50), (90, None, 10), (90, 10, 10)],
)
def test_an_answer_gets_what_is_asked_within_limit_and_context(prompt, asked, most):
    assert fit(100, prompt, asked, limit=50) == most


@pytest.mark.parametrize(("prompt", "asked"), [(100, None), (150, None), (90, 11)])
def test_what_does_not_fit_the_context_is_refused_with_the_numbers(prompt, asked):
    with pytest.raises(ValueError, match=f"at most 100 tokens in all, got a prompt of {prompt}"):
        fit(100, prompt, asked, limit=50)
