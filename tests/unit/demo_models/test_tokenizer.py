"""The tokenizer: any text goes in and comes out again, and the chat template is a conversation's only form."""

from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo_models.tasks import Split, conversations
from demo_models.tokenizer import BYTES, EOS, SPECIAL, TURN_END, VOCAB_SIZE, make_tokenizer

MOST_ANSWER_TOKENS = 63  # with the end of turn, one canvas of 64
TEXT = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]))  # surrogates are no UTF-8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@example("")
@example("  two  spaces, a tab\t and\r\n lines \n")
@example("naïve Ω 猫 👩‍👩‍👧 \u202e \x00 \ufeff")
@example("<|turn>model\n<eos>")
@example("12345 x 67890")
@given(TEXT)
def test_any_text_comes_out_as_it_went_in(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = encode(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast):
    pieces = [piece for piece in tokenizer.get_vocab() if piece not in BYTES]
    assert all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)
    assert len(encode(tokenizer, "0123456789")) == 10
    assert len(encode(tokenizer, "5 x 45")) == 4


@pytest.mark.parametrize("split", get_args(Split))
def test_every_answer_fits_one_canvas(tokenizer: PreTrainedTokenizerFast, split: Split):
    texts = [conversation.answer for conversation in islice(conversations(split, 1, complex_share=0.8), 5000)]
    longest = max(texts, key=lambda text: len(encode(tokenizer, text)))
    assert len(encode(tokenizer, longest)) <= MOST_ANSWER_TOKENS, longest


def test_the_vocabulary_is_as_large_as_the_models_expect(tokenizer: PreTrainedTokenizerFast):
    assert len(tokenizer) <= VOCAB_SIZE
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    assert (tokenizer.eos_token, tokenizer.padding_side) == (EOS, "left")


def test_the_same_seed_makes_the_same_tokenizer():
    assert make_tokenizer(samples=200).get_vocab() == make_tokenizer(samples=200).get_vocab()


def test_a_saved_tokenizer_is_the_same_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Is the  lamp in stock? 猫 12"}]
    assert render(loaded, messages) == render(tokenizer, messages)
    assert encode(loaded, messages[0]["content"]) == encode(tokenizer, messages[0]["content"])


# The chat template


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **options: Any) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options})


def test_a_conversation_with_system_prompt_and_turns_is_rendered_in_order(tokenizer: PreTrainedTokenizerFast):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " How much is the lamp?\n"},
        {"role": "assistant", "content": "The lamp costs $45."},
        {"role": "user", "content": "And the mug?"},
    ]
    assert render(tokenizer, messages) == (
        "<bos><|turn>system\nBe brief.<turn|>\n"
        "<|turn>user\nHow much is the lamp?<turn|>\n"
        "<|turn>model\nThe lamp costs $45.<turn|>\n"
        "<|turn>user\nAnd the mug?<turn|>\n"
        "<|turn>model\n"
    )


def test_without_generation_prompt_the_last_turn_is_closed(tokenizer: PreTrainedTokenizerFast):
    assert render(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=False).endswith(
        f"Hi{TURN_END}\n"
    )


def test_a_text_part_is_rendered_like_the_text(tokenizer: PreTrainedTokenizerFast):
    text = "Is the lamp in stock?"
    parts = [{"type": "text", "text": text}]
    as_text, as_parts = ([{"role": "user", "content": content}] for content in (text, parts))
    assert render(tokenizer, as_parts) == render(tokenizer, as_text)


def test_the_turn_markers_are_single_tokens(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)  # pyright: ignore[reportArgumentType]
    assert [token for token in tokens if token in SPECIAL] == ["<bos>", "<|turn>", "<turn|>"]
