"""The numbers and sums that a text shows."""

import pytest

from classifiers.working import MOST_CHARS, Sum, bounded, numbers_in, percentages, sources, spelled_in, working


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 pens and 1,200 books", [3, 1200]),
        ("$4.50, and .5 of it", [4.5, 0.5]),
        ("model x2 has v1.2", []),
        ("none", []),
    ],
)
def test_numbers_are_read_as_they_are_written(text, expected):
    assert numbers_in(text) == expected


def test_spelled_numbers_and_multiples_count():
    assert spelled_in(["three", "boxes", "twice", "half", "dozen"]) == [3, 2, 0.5, 12]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 * 4 = 12", [Sum((3, 4), 12)]),
        ("2 boxes x $5.50 = $11", [Sum((2, 5.5), 11)]),
        ("10 + 20 + 30 = 60. 60 / 2 = 30", [Sum((10, 20, 30), 60), Sum((60, 2), 30)]),
        (r"3 \times 4 = 12", [Sum((3, 4), 12)]),
        ("<<48/2=24>>", [Sum((48, 2), 24)]),
        ("48/2 = <<48/2=24>>24", [Sum((48, 2), 24)]),
        ("x = 5", []),
        ("", []),
    ],
)
def test_sums_have_operands_and_a_result(text, expected):
    assert working(text).sums == expected


def test_a_sum_of_many_terms_is_read():
    text = " + ".join(["2"] * 17)
    assert working(f"{text} = 34").sums == [Sum((2,) * 17, 34)]


@pytest.mark.parametrize(
    "text",
    [
        *(" + ".join(map(str, range(1, terms + 1))) + " = n(n+1)/2" for terms in (17, 40, 400)),
        "2024 - " + " - ".join(f"{day:02d}" for day in range(1, 32)) + "; a = b",
        "$5 + $3 + $2 + " * 30 + "$7 = total",
        "1 cup + " * 1400 + "= x",
        "1 a b c x " * 1200,
        "(1 ) x " * 1700,
        "1 x x " * 2000,
        "= " + " " * 11_000,
        "1" + " " * 11_000 + "x",
        "<<1=" * 3000,
    ],
    ids=lambda text: f"{text[:12]} {len(text)}",
)
@pytest.mark.timeout(30)  # against patterns that never end
def test_a_hostile_text_is_read_to_its_end(text):
    assert len(working(text).sums) <= len(text)


def test_a_working_counts_its_operators_results_and_notes():
    found = working("5 + 3 = <<5+3=8>>8, 8 - 2 = 6 and 6 / 4 = 1.5")
    assert found.operators == "+-/"
    assert (found.count("+"), found.count("-−"), found.count("*")) == (1, 1, 0)
    assert found.results == [8, 6, 1.5]
    assert (found.notes, found.written) == (1, 3)


def test_operands_come_from_earlier_results_the_request_usual_numbers_or_nowhere():
    sums = [Sum((5, 3), 8), Sum((8, 7), 15), Sum((44, 99), 143), Sum((1, 1), 2)]
    found = sources(sums, given={5.0, 3.0})
    assert (found.earlier, found.given, found.usual, found.nowhere) == (1, 2, 3, 2)
    assert found.unused_results == 2  # 15 and 143; the last sum's result is the answer


def test_a_percentage_may_be_taken_added_or_written_as_a_share():
    assert percentages([20]) == {80, 120, 0.2, 0.8, 1.2}
    assert percentages([5000]) == set()


def test_of_a_long_text_both_ends_are_read():
    text = bounded("begin" + "x" * 10 * MOST_CHARS + "end")
    assert len(text) == MOST_CHARS + 1
    assert text.startswith("begin")
    assert text.endswith("end")
