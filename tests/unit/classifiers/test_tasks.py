"""The kind of task a request is."""

import pytest

from classifiers.tasks import TYPES, Task, task_type


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("Which planet is the largest?\nA. Mars\nB. Jupiter\nC. Venus\nD. Earth", "choice"),
        ("pick one\n(a) a sum 1 + 1\n(b) a product\n(c) neither", "choice"),
        ("Write a function that reverses a list.", "code"),
        ("what does this print?\n```\nprint(1 + 1)\n```", "code"),
        ("Name three rivers as JSON.", "structured"),
        ("A pen costs 3 coins and a book 12. How much do both cost?", "math"),
        ("17 * 23 =", "math"),
        ("Take 15 % off 80.", "math"),
        ("Who painted the ceiling of the chapel?", "lookup"),
        ("Which of my 2 parcels comes first?", "lookup"),
        ("Tell me a story about a fox.", "chat"),
        ("", "chat"),
    ],
)
def test_a_task_is_told_by_its_marks(asked, expected):
    assert task_type(asked) == expected
    assert expected in TYPES


def test_what_is_asked_now_decides_and_not_the_system_prompt():
    system = {"role": "system", "content": "Answer in JSON. You write Python code."}
    earlier = {"role": "user", "content": "Fix the bug in this function of mine, it fails on empty lists."}
    answer = {"role": "assistant", "content": "Done."}
    last = {"role": "user", "content": "How tall is the highest mountain of the continent, please?"}
    assert Task([system, earlier, answer, last]).type == "lookup"


def test_a_short_consent_belongs_to_the_task_before_it():
    asked = {"role": "user", "content": "Write a script that renames all files of a folder."}
    plan = {"role": "assistant", "content": "I would list them, then rename each. Shall I?"}
    assert Task([asked, plan, {"role": "user", "content": "yes, do it"}]).type == "code"
