"""Any ids in any pieces: what a stream says is what decoding them all says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_core.chat import ChatTokenizer, TextStream
from tests.unit.ar_engine.protocols import TOKENIZERS


@pytest.fixture(scope="module", params=TOKENIZERS.values(), ids=list(TOKENIZERS))
def loaded(request):
    return request.param()


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return Counting(loaded)


class Counting(ChatTokenizer):
    """Counts the tokens it decodes."""

    decoded = 0

    def decode(self, ids, special=False):
        self.decoded += len(ids)
        return super().decode(ids, special)


def streamed(tokenizer: ChatTokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    pieces = [stream.advance(ids[:cut], final=False) for cut in cuts]
    pieces.append(stream.advance(ids, final=True))
    assert stream.text == "".join(pieces)
    return pieces


@given(data=st.data())
def test_pieces_of_any_ids_add_up_to_their_text(tokenizer, loaded, data):
    ids = data.draw(st.lists(st.integers(0, len(loaded) - 1), max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=10)))
    for chosen in (cuts, list(range(len(ids) + 1)), []):
        assert "".join(streamed(tokenizer, ids, chosen)) == tokenizer.decode(ids)


@given(text=st.text(max_size=30).filter(lambda text: "�" not in text))
def test_no_piece_of_a_text_ends_inside_a_character(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids, list(range(len(ids))))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("naïve 日本 🎉 the fox, ", id="a text"),
        pytest.param("\ufffd", id="replacement characters, which might be unfinished ones"),
        pytest.param("日", id="no token without a torn character"),
    ],
)
def test_a_token_is_decoded_a_few_times_however_long_the_text(tokenizer, text):
    ids = tokenizer.encode(text * 400)
    before = tokenizer.decoded
    streamed(tokenizer, ids, list(range(len(ids))))
    assert tokenizer.decoded - before < 10 * len(ids)


def test_endless_torn_characters_are_decoded_a_few_times(tokenizer):
    torn = next((ids[:1] for ids in [tokenizer.encode("日")] if tokenizer.decode(ids[:1]) == "�"), None)
    assert torn is not None
    before = tokenizer.decoded
    streamed(tokenizer, torn * 1000, list(range(1000)))
    assert tokenizer.decoded - before < 10 * 1000
