"""Hashed n-grams: one entry per occurrence, the same for the same piece of text wherever it stands."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.ngrams import BITS, COLUMNS, MOST_BYTES, ngrams


def families(text: str) -> list[list[int]]:
    """Columns of words, pairs and 4-grams."""
    columns, _ = ngrams(text)
    return [sorted(columns[columns >> BITS == family].tolist()) for family in range(3)]


def pieces(text: str) -> list[int]:
    """How many words, pairs and 4-grams a text of plain letters, spaces and signs holds, counted one by one."""
    words = [[]]
    for character in text:
        if character == " " or not character.isalnum():
            words += [[character], []] if character != " " else [[]]
        else:
            words[-1].append(character)
    count = len([word for word in words if word])
    padded = f" {text} "
    fours = sum(" " not in padded[at + 1 : at + 3] for at in range(len(padded) - 3))
    return [count, max(0, count - 1), fours]


@pytest.mark.parametrize(
    "text", ["", "a", "ab", "abc", "two words", "x, y", "what's up?", "a b c d", "   padded   twice ", "..."]
)
def test_every_occurrence_is_counted_once(text):
    assert [len(family) for family in families(text)] == pieces(text)


@given(st.text(alphabet="ab ,", max_size=30))
def test_every_occurrence_is_counted_once_in_any_text(text):
    assert [len(family) for family in families(text)] == pieces(text)


def test_a_word_has_one_column_wherever_it_stands():
    words, pairs, _ = families("the cat sat on the mat and the cat ran")
    assert Counter(words).most_common(2)[0][1] == 3
    assert Counter(pairs).most_common(1)[0][1] == 2  # the cat


def test_order_matters_to_pairs_only():
    one, other = families("red fish blue"), families("blue fish red")
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_texts_of_one_word_more_share_the_rest():
    long, short = families("how many mugs are left"), families("how many mugs are")
    assert not Counter(short[0]) - Counter(long[0])
    assert len(long[0]) == len(short[0]) + 1


def test_each_family_has_length_one_over_its_occurrences():
    columns, values = ngrams("some text that says a little")
    for family in range(3):
        assert (values[columns >> BITS == family] ** 2).sum() == pytest.approx(1, rel=1e-5)


def test_few_of_many_different_words_share_a_column():
    columns, _ = ngrams(" ".join(f"w{i}" for i in range(500)))
    words = columns[columns >> BITS == 0]
    assert len(set(words.tolist())) > 480  # of 16,384 columns; 500 balls leave 492 in the mean


@given(st.text(max_size=80))
def test_any_text_has_columns_in_range_and_finite_values(text):
    columns, values = ngrams(text)
    assert len(columns) == len(values)
    assert np.isfinite(values).all()
    assert ((columns >= 0) & (columns < COLUMNS)).all()


def test_other_scripts_have_words_too():
    assert len(families("сколько стоит лампа")[0]) == 3
    assert families("ランプはいくらですか")[2]


def test_what_stands_behind_the_limit_is_not_read():
    text = "word " * MOST_BYTES
    assert families(text) == families(text + "more")


def test_surrogates_are_read_as_something():
    assert len(families("a \ud800 b")[0]) == 3
