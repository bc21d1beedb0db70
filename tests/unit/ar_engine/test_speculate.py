"""What is tried beside a growing answer: a model that says a fixed text stands in for a real one."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ar_engine.speculate import Guide

TOKENS = st.lists(st.integers(0, 9), max_size=40)


def write(text: list[int], draft: list[int], most: int = 24, room: int = 64) -> tuple[int, Guide]:
    """Let a model that says `text` answer beside a draft; how many forward passes it took."""
    guide, answer, forwards = Guide(draft, most), list[int](), 0
    while len(answer) < len(text):
        tried = guide.propose(answer, room)
        assert len(tried) <= room
        forwards += 1
        right = next((i for i, (a, b) in enumerate(zip(tried, text[len(answer) :], strict=False)) if a != b), None)
        right = min(len(tried), len(text) - len(answer)) if right is None else right
        guide.learn(len(tried), right)
        answer += text[len(answer) :][: right + 1]
    assert answer == text
    return forwards, guide


@given(TOKENS, TOKENS, st.integers(0, 8), st.integers(1, 50))
def test_any_draft_leaves_the_answer_as_it_is_and_never_costs_a_forward(text, draft, most, room):
    forwards, guide = write(text, draft, most, room)
    assert forwards <= len(text)
    assert 0 <= guide.reused <= guide.tried


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_a_right_draft_takes_one_forward(text):
    assert write(text, text)[0] == 1


@pytest.mark.parametrize("room", [1, 7, 30])
def test_a_right_draft_is_tried_piece_by_piece_where_there_is_little_room(room):
    text = list(range(60))
    forwards, guide = write(text, text, room=room)
    assert forwards == -(-60 // (room + 1))
    assert guide.reused == 0, "it never differed"


TEXT = random.Random(5).choices(range(200), k=60)


@pytest.mark.parametrize("at", [0, 1, 20, 58])
@pytest.mark.parametrize("change", ["another token", "a token too many", "a token missing", "three tokens missing"])
def test_the_rest_of_a_draft_is_found_again_after_one_difference(at, change):
    drafts = {
        "another token": [*TEXT[:at], 999, *TEXT[at + 1 :]],
        "a token too many": [*TEXT[:at], 999, *TEXT[at:]],
        "a token missing": TEXT[:at] + TEXT[at + 1 :],
        "three tokens missing": TEXT[:at] + TEXT[at + 3 :],
    }
    forwards, guide = write(TEXT, drafts[change])
    assert forwards <= 12, "a text of 60 tokens: the rest comes in pieces that grow"
    if at < 50:
        assert guide.reused > 0


def test_nothing_is_tried_after_a_difference_if_that_is_switched_off():
    forwards, guide = write(TEXT, [999, *TEXT[1:]], most=0)
    assert (forwards, guide.reused) == (60, 0)


def test_a_draft_about_something_else_is_soon_left_alone():
    other = random.Random(6).choices(range(300, 500), k=400)
    forwards, guide = write(TEXT * 6, other)
    assert forwards == 360
    assert guide.tried < 400 + 64, "what comes after the first try, the whole draft, is a few short ones"
    assert guide.propose(TEXT * 6, 64) == []


def test_a_left_draft_is_taken_up_again_at_a_long_match():
    shared = list(range(600, 640))
    text = TEXT + shared
    forwards, guide = write(text, [*random.Random(7).choices(range(300, 500), k=60), *shared])
    assert guide.reused > 25
    assert forwards < len(TEXT) + 15


def test_of_several_places_the_longest_match_wins_and_then_the_nearest():
    draft = [1, 2, 3, 50, 9, 9, 2, 3, 60, 9, 9, 9, 7, 2, 3, 70]
    guide = Guide(draft, 8)
    guide.propose([], 64)
    guide.learn(16, 0)
    assert guide.propose([7, 2, 3], 1) == [70]
    near = Guide(draft, 8)
    near.propose([], 64)
    near.learn(16, 0)
    assert near.propose([8, 8, 8, 8, 2, 3], 1) == [60]
