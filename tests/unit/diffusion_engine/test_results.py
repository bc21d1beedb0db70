import math
from collections.abc import Sequence as Listed
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from diffusion_engine.api import DraftResult, DraftSignals
from diffusion_engine.infill import FREE, Template
from diffusion_engine.results import rank, result_of
from diffusion_engine.sequence import CanvasReport, Finish, Sampling, Sequence
from engine_core.chat import ChatTokenizer

C = 6
END = 0
SAMPLING = Sampling(
    max_steps=48, t_min=0.4, t_max=0.8, entropy_bound=0.1, confidence=0.1, stability=1, max_tokens=20, end_ids=(END,)
)


class Letters(ChatTokenizer):
    """1 is a, 2 is b."""

    def __init__(self) -> None:
        self.fingerprint = "letters"

    def decode(self, ids: Listed[int], special: bool = False) -> str:
        return "".join(chr(96 + token) for token in ids)


def report(ids: list[int], steps: int, changed_at: list[int] | None = None, converged: bool = True) -> CanvasReport:
    """Numbers that tell step count and place."""
    return CanvasReport(
        ids,
        logprobs=[-steps - i / 100 for i in range(C)],
        entropy=[steps + i / 100 for i in range(C)],
        mean_entropy=[steps + i / 10 for i in range(C)],
        changed_at=changed_at or [1] * C,
        steps=steps,
        converged=converged,
    )


def sequence(*reports: CanvasReport, max_tokens: int = 20) -> Sequence:
    one = Sequence(replace(SAMPLING, max_tokens=max_tokens), [5] * 3, C)
    for canvas in reports:
        one.end_canvas(canvas, given_up=False)
    return one


def result(one: Sequence, template: Template | None = None) -> DraftResult:
    return result_of(one, Letters(), template, 1.5)


def test_numbers_belong_to_their_tokens() -> None:
    one = sequence(report([1] * C, 4), report([2, 2, END, 2, 2, 2], 9, converged=False))
    one.candidate, one.forwards, one.reused = 2, 14, 3
    made = result(one)
    assert made.text == "aaaaaabb"
    assert made.token_ids == (1, 1, 1, 1, 1, 1, 2, 2)
    assert made.token_logprobs == (-4.0, -4.01, -4.02, -4.03, -4.04, -4.05, -9.0, -9.01)
    assert made.signals.token_entropy == (4.0, 4.01, 4.02, 4.03, 4.04, 4.05, 9.0, 9.01)
    assert made.signals.mean_entropy == (4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 9.0, 9.1)
    assert (made.signals.steps, made.signals.converged) == ((4, 9), (True, False))
    assert (made.signals.forwards, made.signals.reused_tokens, made.signals.agreement) == (14, 3, None)
    assert (made.finish_reason, made.candidate, made.prompt_tokens, made.elapsed_s) == ("stop", 2, 3, 1.5)
    assert made.tokenizer_fingerprint == "letters"


def test_an_answer_cut_at_the_most_tokens_has_as_many_numbers() -> None:
    made = result(sequence(report([1] * C, 4), report([2] * C, 4), max_tokens=8))
    assert made.finish_reason == "length"
    assert made.text == "aaaaaabb"
    assert len(made.token_logprobs) == len(made.signals.token_entropy) == len(made.signals.mean_entropy) == 8


def test_a_sequence_without_an_end_was_ended_by_its_deadline() -> None:
    assert result(sequence(report([1] * C, 4))).finish_reason == "deadline"


@pytest.mark.parametrize(
    ("steps", "first_late"),
    [(1, 2), (2, 3), (3, 3), (4, 4), (6, 5), (7, 6), (9, 7), (48, 33)],
)
def test_a_flip_is_late_after_two_thirds_of_the_steps(steps: int, first_late: int) -> None:
    for changed in range(1, steps + 1):
        made = result(sequence(report([1, *[END] * (C - 1)], steps, [changed] * C)))
        assert made.signals.late_flips == (changed >= first_late)


late_reports = st.lists(
    st.integers(1, 48).flatmap(
        lambda steps: st.tuples(
            st.just(steps),
            st.lists(st.integers(1, steps), min_size=C, max_size=C),
            st.lists(st.integers(END, 3), min_size=C, max_size=C),
        )
    ),
    min_size=1,
    max_size=4,
)


@given(late_reports, st.integers(1, 4 * C))
def test_every_array_is_as_long_as_the_answer_and_only_its_flips_count(
    drawn: list[tuple[int, list[int], list[int]]], max_tokens: int
) -> None:
    one = Sequence(replace(SAMPLING, max_tokens=max_tokens), [5], C)
    flips = []
    for steps, changed_at, ids in drawn:
        one.end_canvas(report(ids, steps, changed_at), given_up=False)
        flips += [changed > math.ceil(2 * steps / 3) for changed in changed_at]
        if one.finish:
            break
    made = result(one)
    count = len(one.answer())
    arrays = (
        made.token_ids,
        made.token_logprobs,
        made.signals.token_entropy,
        made.signals.mean_entropy,
    )
    assert {len(array) for array in arrays} == {count}
    assert made.signals.late_flips == sum(flips[:count])
    assert len(made.signals.steps) == len(made.signals.converged) == len(one.reports)


def test_an_infilling_tells_the_text_of_each_gap_and_throws_the_rest_of_the_canvas_away() -> None:
    template = Template([FREE, FREE, 1, FREE, END, FREE], length=4, gaps=((0, 2), (3, 4)))
    one = Sequence(replace(SAMPLING, max_tokens=4, end_ids=()), [5], C, given=template.given)
    one.end_canvas(report([2, 3, 1, 4, END, 7], 3), given_up=False)
    made = result(one, template)
    assert made.text == "bcad"
    assert made.filled == ("bc", "d")
    assert made.finish_reason == "stop"
    assert len(made.token_logprobs) == 4


def draft(
    ids: str, logprob: float = -1.0, finish: Finish = "stop", candidate: int = 0, agreement: float | None = None
) -> DraftResult:
    return DraftResult(
        text=ids,
        token_ids=tuple(map(ord, ids)),
        token_logprobs=(logprob,) * len(ids),
        tokenizer_fingerprint="",
        finish_reason=finish,
        prompt_tokens=1,
        signals=DraftSignals(
            steps=(1,), converged=(True,), token_entropy=(0.0,) * len(ids), late_flips=0, agreement=agreement
        ),
        candidate=candidate,
        elapsed_s=0.0,
    )


def texts(results: list[DraftResult]) -> list[str]:
    return [one.text for one in results]


def test_one_alone_agrees_with_nobody() -> None:
    assert rank([]) == []
    (one,) = rank([draft("a")])
    assert one.signals.agreement is None


def test_agreement_is_the_mean_share_of_equal_positions_of_the_longer() -> None:
    ranked = rank([draft("abcd"), draft("abxx"), draft("ab")])
    agreement = {one.text: one.signals.agreement for one in ranked}
    assert agreement == {"abcd": 0.5, "abxx": 0.5, "ab": 0.5}
    ranked = rank([draft("abcd"), draft("abcd"), draft("zbcd")])
    assert [one.signals.agreement for one in ranked] == [0.875, 0.875, 0.75]
    assert [one.signals.agreement for one in rank([draft(""), draft("")])] == [1.0, 1.0]
    assert [one.signals.agreement for one in rank([draft("a"), draft("")])] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("candidates", "best_first"),
    [
        ([draft("ab", finish="unsettled"), draft("zz")], ["zz", "ab"]),
        ([draft("ab", finish="deadline"), draft("zz", finish="length")], ["zz", "ab"]),
        ([draft("ab", -0.1, "unsettled"), draft("ab", -0.2, "unsettled"), draft("zz", -9.0)], ["zz", "ab", "ab"]),
        ([draft("zz", -0.1), draft("ab", -3.0), draft("ac", -2.0)], ["ac", "ab", "zz"]),
        ([draft("ab", -2.0), draft("cd", -1.0)], ["cd", "ab"]),
        ([draft(""), draft("ab", -5.0)], ["ab", ""]),
    ],
    ids=[
        "settled before unsettled",
        "ended before late",
        "ended before agreed",
        "agreed before likely",
        "likely",
        "said something before said nothing",
    ],
)
def test_the_best_comes_first_in_whatever_order_they_finish(
    candidates: list[DraftResult], best_first: list[str]
) -> None:
    for order in permutations(candidates):
        assert texts(rank(list(order))) == best_first


def test_equals_stay_in_their_order() -> None:
    ranked = rank([draft("ab", candidate=i) for i in range(4)])
    assert [one.candidate for one in ranked] == [0, 1, 2, 3]


candidates = st.lists(
    st.builds(
        draft, st.text("ab", max_size=5), st.floats(-9, 0), st.sampled_from(["stop", "length", "unsettled", "deadline"])
    ),
    max_size=5,
)


@given(candidates)
def test_ranking_loses_and_changes_nobody(drawn: list[DraftResult]) -> None:
    drawn = [replace(one, candidate=i) for i, one in enumerate(drawn)]
    ranked = rank(drawn)
    bare = [replace(one, signals=replace(one.signals, agreement=None)) for one in ranked]
    assert sorted(bare, key=lambda one: one.candidate) == drawn
    ended = [one.finish_reason in ("stop", "length") for one in ranked]
    assert ended == sorted(ended, reverse=True)
    if len(drawn) > 1:
        assert all(0 <= (one.signals.agreement or 0) <= 1 for one in ranked)
