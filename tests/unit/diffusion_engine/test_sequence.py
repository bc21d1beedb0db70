import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers.models.diffusion_gemma.generation_diffusion_gemma import LinearTemperatureScheduleLogitsProcessor

from diffusion_engine.sequence import GRACE_STEPS, CanvasReport, Sampling, Sequence, wont_settle

C = 4
END = 9
SAMPLING = Sampling(
    max_steps=48,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    confidence=0.005,
    stability=1,
    max_tokens=10,
    end_ids=(END,),
)


def sequence(max_tokens: int = 10, prompt: int = 5, **changes: object) -> Sequence:
    return Sequence(replace(SAMPLING, max_tokens=max_tokens, **changes), [7] * prompt, C)


def report(ids: list[int], converged: bool = True) -> CanvasReport:
    none = [0.0] * len(ids)
    return CanvasReport(ids, none, none, none, [1] * len(ids), 3, converged)


def after(*canvases: list[int], given_up: bool = False, max_tokens: int = 10) -> Sequence:
    """A sequence with these canvases; the last may be given up."""
    one = sequence(max_tokens)
    for i, ids in enumerate(canvases):
        assert one.finish is None
        one.end_canvas(report(ids), given_up and i == len(canvases) - 1)
    return one


@given(
    t_min=st.floats(0.01, 1),
    more=st.floats(0.01, 1),
    max_steps=st.integers(1, 100),
    at=st.floats(0, 1, exclude_max=True),
)
def test_temperatures_are_those_of_transformers(t_min: float, more: float, max_steps: int, at: float) -> None:
    sampling = replace(SAMPLING, t_min=t_min, t_max=t_min + more, max_steps=max_steps)
    step = 1 + int(at * max_steps)
    processor = LinearTemperatureScheduleLogitsProcessor(t_min, t_min + more, max_steps)
    nothing: Any = None
    scaled = processor(nothing, torch.ones(1, dtype=torch.float64), cur_step=max_steps - step + 1)
    assert scaled.item() == 1 / sampling.temperature(step)


def test_temperatures_fall_from_the_highest_to_a_step_above_the_lowest() -> None:
    sampling = replace(SAMPLING, t_min=0.0, t_max=1.0, max_steps=4)
    assert [sampling.temperature(step) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "expected max_steps of at least 1, got 0"),
        ({"max_tokens": 0}, "expected max_tokens of at least 1, got 0"),
        ({"stability": -1}, "expected stability of at least 0, got -1"),
        ({"t_min": 0.9}, "expected 0 <= t_min <= t_max < inf, got 0.9 and 0.8"),
        ({"t_min": -0.1}, "expected 0 <= t_min <= t_max < inf, got -0.1 and 0.8"),
        ({"t_max": math.nan}, "expected 0 <= t_min <= t_max < inf, got 0.4 and nan"),
        ({"t_min": math.nan}, "expected 0 <= t_min <= t_max < inf, got nan and 0.8"),
        ({"entropy_bound": -1.0}, "expected entropy_bound of at least 0, got -1.0"),
        ({"entropy_bound": math.nan}, "expected entropy_bound of at least 0, got nan"),
        ({"confidence": -1.0}, "expected confidence of at least 0, got -1.0"),
        ({"seed": 2**63}, f"expected a seed of 64 bits, got {2**63}"),
        ({"seed": -(2**63) - 1}, f"expected a seed of 64 bits, got {-(2**63) - 1}"),
    ],
)
def test_numbers_out_of_range_are_refused_with_expected_and_got(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as refusal:
        replace(SAMPLING, **changes).check()
    assert str(refusal.value) == message


def test_the_ends_of_the_ranges_are_allowed() -> None:
    for changes in (
        {"max_steps": 1, "max_tokens": 1, "stability": 0},
        {"t_min": 0.0, "t_max": 0.0},
        {"entropy_bound": 0.0, "confidence": 0.0},
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
    ):
        replace(SAMPLING, **changes).check()


@pytest.mark.parametrize(
    ("canvases", "finish", "answer"),
    [
        ([[1, 2, END, 3]], "stop", [1, 2]),
        ([[END, 2, 3, 4]], "stop", []),
        ([[1, 2, END, END]], "stop", [1, 2]),
        ([[1, 2, 3, 4]], None, [1, 2, 3, 4]),
        ([[1, 2, 3, 4], [END, 5, 6, 7]], "stop", [1, 2, 3, 4]),
        ([[1, 2, 3, 4], [5, 6, 7, 8], [1, END, 2, 3]], "stop", [1, 2, 3, 4, 5, 6, 7, 8, 1]),
        ([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, END, 3]], "stop", [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]),  # exactly max_tokens
        ([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, END]], "length", [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]),  # beyond
        ([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]], "length", [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]),
    ],
)
def test_an_answer_ends_before_its_end_token_or_at_the_most_tokens(
    canvases: list[list[int]], finish: str | None, answer: list[int]
) -> None:
    one = after(*canvases)
    assert one.finish == finish
    assert one.answer() == answer


def test_a_full_canvas_at_the_most_tokens_ends_by_length() -> None:
    assert after([1, 2, 3, 4], [1, 2, 3, 4], max_tokens=8).finish == "length"
    assert after([1, 2, 3, 4], [1, 2, 3, END], max_tokens=8).finish == "stop"


@pytest.mark.parametrize("ids", [[1, 2, 3, 4], [1, END, 3, 4], [END, 1, 1, 1]])
def test_a_canvas_given_up_is_unsettled_whatever_it_holds(ids: list[int]) -> None:
    one = after([1, 1, 1, 1], ids, given_up=True)
    assert one.finish == "unsettled"
    assert END not in one.answer()


canvases = st.lists(st.lists(st.sampled_from([1, 2, 3, 4, 5, END, 8]), min_size=C, max_size=C), min_size=1, max_size=6)


@given(canvases, st.integers(1, 22), st.booleans())
def test_an_answer_holds_no_end_token_and_no_more_than_it_may(
    drawn: list[list[int]], max_tokens: int, end_too: bool
) -> None:
    one = Sequence(replace(SAMPLING, max_tokens=max_tokens, end_ids=(END, 8) if end_too else (END,)), [END] * 3, C)
    for ids in drawn:
        assert len(one.tokens) + C <= one.longest
        one.end_canvas(report(ids), given_up=False)
        assert one.step == 0
        assert one.entropies == []
        answer = one.answer()
        assert not set(answer) & set(one.sampling.end_ids)
        assert len(answer) <= max_tokens
        assert one.tokens[3 : 3 + len(answer)] == answer
        if one.finish:
            break
    stopped = any(token in one.sampling.end_ids for token in one.tokens[3 : 3 + max_tokens + 1])
    assert (one.finish == "stop") == stopped
    assert (one.finish == "length") == (not stopped and len(one.tokens) - 3 >= max_tokens)


def test_an_answer_before_its_first_canvas_is_empty() -> None:
    assert sequence().answer() == []


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_longest_it_becomes_is_the_prompt_and_whole_canvases(prompt: int, max_tokens: int) -> None:
    one = sequence(max_tokens, prompt)
    assert one.pending == prompt
    assert prompt + max_tokens <= one.longest < prompt + max_tokens + C
    assert (one.longest - prompt) % C == 0


def test_the_prompt_is_not_changed_by_the_answer() -> None:
    prompt = [1, 2, 3]
    first, second = Sequence(SAMPLING, prompt, C), Sequence(SAMPLING, prompt, C)
    first.end_canvas(report([4, 4, 4, 4]), given_up=False)
    assert prompt == second.tokens == [1, 2, 3]
    assert first.pending == 7


def test_a_step_settles_goes_on_or_meets_the_limit() -> None:
    one = sequence(max_steps=3)
    outcomes = []
    for settled in (False, False, False):
        one.step += 1
        outcomes.append(one.after_step(settled, 1.0))
    assert outcomes == ["go on", "go on", "at limit"]
    assert one.after_step(True, 1.0) == "converged"  # in the last step too
    assert one.entropies == [1.0] * 4


def test_only_who_may_be_given_up_is() -> None:
    for give_up, outcome in ((True, "given up"), (False, "go on")):
        one = sequence(give_up=give_up)
        states = []
        for _ in range(GRACE_STEPS):
            one.step += 1
            states.append(one.after_step(False, 2.0))
        assert states == ["go on"] * (GRACE_STEPS - 1) + [outcome]


falling = st.lists(st.floats(0, 12), min_size=1, max_size=GRACE_STEPS - 1)


@given(falling)
def test_a_young_canvas_always_goes_on(entropies: list[float]) -> None:
    assert not wont_settle(entropies, SAMPLING)


@given(st.lists(st.floats(0, 12), min_size=GRACE_STEPS, max_size=48))
def test_a_confident_canvas_or_one_that_wants_all_steps_goes_on(entropies: list[float]) -> None:
    assert not wont_settle([*entropies, SAMPLING.confidence], SAMPLING)
    assert not wont_settle(entropies, replace(SAMPLING, confidence=0.0))


@given(start=st.floats(0.1, 12), takes=st.integers(GRACE_STEPS, 200), at=st.integers(GRACE_STEPS, 47))
def test_an_even_fall_is_given_up_only_when_it_comes_too_late(start: float, takes: int, at: int) -> None:
    factor = (SAMPLING.confidence / start) ** (1 / takes)  # confident after so many steps
    entropies = [start * factor**step for step in range(1, at + 1)]
    if takes <= SAMPLING.max_steps - 1:
        assert not wont_settle(entropies, SAMPLING)
    elif takes >= SAMPLING.max_steps + 1:
        assert wont_settle(entropies, SAMPLING)


@given(st.lists(st.floats(0.1, 12), min_size=1, max_size=30), st.floats(0.01, 12))
def test_a_canvas_that_stands_still_is_given_up(entropies: list[float], level: float) -> None:
    assert wont_settle(entropies + [level] * GRACE_STEPS, SAMPLING)
