"""What a conversation asks now, and the numbers that describe it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.conversation import COUNTS, MOST_CHARS, asked, counts, features, refers, task_of

PLAN = "Here is the plan: first shard the index by tenant, then replay the log, then switch reads over."


def said(*turns: str) -> list[dict[str, str]]:
    """Turns of user and assistant, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.mark.parametrize(
    "turn",
    [
        "yes, do it",
        "Go ahead.",
        "Sure",
        "oui",
        "да, давай",
        "what about that one?",
        "and the blue mug?",
        "Why?",
        "好的 继续",
        "Implement the plan above",
        "Do the second option",
    ],
)
def test_a_turn_that_leans_on_the_one_before_takes_it_along(turn):
    task = task_of(said("Move our search index to the new cluster without downtime", PLAN, turn))
    assert PLAN in task
    assert task.endswith(turn)
    assert "without downtime" in task


STANDING = [
    "How much does the ceramic lamp cost?",
    "What is the capital of France?",
    "Why is the sky blue?",
    "法国的首都是哪里",
]


@pytest.mark.parametrize("turn", STANDING)
def test_a_turn_that_stands_by_itself_is_the_whole_task(turn):
    assert task_of(said("Move our search index to the new cluster", PLAN, turn)) == turn


def test_a_chain_of_follow_ups_goes_back_to_the_turn_that_started_it():
    task = task_of(
        said("Describe how mountains form over millions of years", "They rise.", "go on", "They erode.", "more")
    )
    assert task.startswith("Describe how mountains form")
    assert task.endswith("more")


def test_what_was_asked_before_a_turn_that_stands_by_itself_is_left_out():
    task = task_of(
        said(
            "Prove the Riemann hypothesis please, in all its parts",
            "No.",
            "Tell me how much the lamp costs today",
            "$45",
            "and the mug?",
        )
    )
    assert task == "Tell me how much the lamp costs today\n$45\nand the mug?"


def test_system_and_developer_messages_and_tool_results_are_left_out():
    question = said("What does the brass lamp cost today?")
    around = [
        {"role": "system", "content": "You are an agent."},
        {"role": "developer", "content": "Prove it."},
        *question,
    ]
    assert task_of(around) == task_of(question)
    assert task_of([*question, {"role": "tool", "content": "x" * 99}]) == task_of(question)


def test_parts_are_joined_and_images_hold_no_text():
    parts = [
        {"type": "text", "text": "What does this lamp"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "cost?"},
    ]
    assert task_of([{"role": "user", "content": parts}]).split() == ["What", "does", "this", "lamp", "cost?"]


HARNESS = {
    "a reminder": "<system-reminder>\nThe user has 3 todos. Never mention it.\n</system-reminder>\n{}",
    "the environment behind the question": "{}\n<environment_details>\n# Files\nsrc/a.py\nproof.tex\n</environment_details>",
    "rules": "<user_rules a='1'>Always prove theorems by induction.</user_rules>\n\n{}",
    "a tag that holds the question": "<user_query>\n{}\n</user_query>",
    "rules that stand beside a question": "<rules>\nProve theorems by induction.\n</rules>\n{}",
    "rules without tags": "You are a careful agent.\nAlways think step by step.\n\n# Rules\n- Never guess.\n- Do not use tools.\n\n{}",
}


@pytest.mark.parametrize("pasted", HARNESS.values(), ids=HARNESS.keys())
def test_what_an_agent_pastes_into_the_turn_is_cut(pasted):
    found = asked(pasted.format("What does the brass lamp cost?"))
    assert "What does the brass lamp cost?" in found
    for word in ("todos", "Files", "proof", "theorems", "guess", "careful"):
        assert word not in found


@pytest.mark.parametrize(
    "turn",
    [
        "<system-reminder>only this</system-reminder>",
        "You are wrong.",
        "Always look on the bright side, who wrote that?",
        "<div class='x'>Why is this not centred?</div>",
        "a <system-note without end",
        "You are given two sorted arrays of n numbers.\n\nThanks!",
        "Avoid the left road.\n\nWhich road do I take?",
        "<instructions>Prove that the square root of two is irrational.</instructions>\nthanks",
        "<system-a> never closed <system-b> neither",
    ],
)
def test_a_turn_that_has_nothing_else_is_left_as_it_is(turn):
    assert asked(turn) == turn


def test_a_long_task_keeps_its_beginning_and_its_end():
    task = task_of(said("begin " + "x " * MOST_CHARS + " finish this long text now"))
    assert len(task) <= MOST_CHARS + 1
    assert task.startswith("begin")
    assert task.endswith("finish this long text now")


def test_the_longest_hostile_turns_are_read_in_one_pass():
    """Each took seconds by a pattern that tries again from every place."""
    for turn in ("<" + "a-" * 500_000, "<system-" * 200_000, "".join(f"<system-{i}>" for i in range(50_000))):
        assert len(asked(turn)) <= MOST_CHARS + 1
    assert task_of([{"role": "user", "content": ""}] * 200_000).strip() == ""


def test_many_unclosed_tags_are_left_like_one():
    assert asked("<system-x>" * 20_000).count("<system-x>") == MOST_CHARS // len("<system-x>")


def dense(text: str) -> dict[int, float]:
    found = features(said(text))
    columns: dict[int, float] = {}
    for column, value in zip(found.columns.tolist(), found.values.tolist(), strict=True):
        columns[column] = columns.get(column, 0) + value
    return columns


def test_case_and_the_digits_of_a_number_do_not_change_the_ngrams():
    one, other = dense("I buy 12 Lamps for $45 in all today"), dense("i buy 9 lamps for $1200 in all today")
    assert one == pytest.approx(other)


def test_counts_count():
    one, two = counts("How many mugs? 3, or 4.5?"), counts("How many mugs? 3, or 4.5?" * 2)
    assert one.shape == (COUNTS,)
    assert one.dtype == np.float32
    assert (one != two).any()
    assert not np.array_equal(counts("a total of 7"), counts("a result of 7"))


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], [{"role": "user", "content": None}], said("", ""), [{"role": "tool"}]]
)
def test_a_conversation_without_text_has_features_too(messages):
    found = features(messages)
    assert np.isfinite(found.counts).all()
    assert len(found.columns) == len(found.values)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_conversation_has_finite_features(turns):
    found = features(said(*turns))
    assert np.isfinite(found.counts).all()
    assert np.isfinite(found.values).all()


@given(st.text(max_size=60))
def test_whether_a_turn_refers_is_told_of_any_text(turn):
    assert refers(turn) in (True, False)
