"""A sequence by itself: what is tried and kept, and that drafts change no distribution. The model is a table of bigrams."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ar_engine.scheduler import Group, Scheduler
from ar_engine.sequence import Choice, Sampling, Scored, Sequence
from ar_engine.speculate import Guide
from engine_core.scheduler import Budget
from tests.unit.ar_engine.engines import ToyRunner

VOCAB, END = 5, 4
BIGRAMS = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(6)) * 1.5
SEEDS = 800
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def budget(slots: int, encode_rows: int) -> Budget:
    return Budget(slots, encode_rows, {"full_attention": None}, {"full_attention": 4 * slots + 1})


def write(sequences: list[Sequence], encode_rows: int = 64, floor: float = 0.1, share: float = 0.3) -> list[list[int]]:
    """What a model that knows bigrams makes of them, all together."""
    runner = ToyRunner(lambda _, before: BIGRAMS[before[-1]], floor, share)
    scheduler = Scheduler(budget(len(sequences), encode_rows))
    for one in sequences:
        scheduler.add(Group([one], share_key=None))
    while works := scheduler.plan():
        for work, choices in zip(works, runner.run(works, scheduler), strict=True):
            one, stands = work.sequence, work.start + work.length
            if work.answers:
                stands += one.commit(work.tried, choices)
            scheduler.stands(one, min(stands, len(one.tokens) - (one.finish is None)))
            if one.finish:
                scheduler.remove([one])
    return [one.answer for one in sequences]


def sequence(draft: list[int] | None = None, lenient: bool = False, **sampling) -> Sequence:
    guide = Guide(draft, 4) if draft else None
    return Sequence(Sampling(**{"max_tokens": 8, **sampling}), [0, 1], guide, lenient)


def drawn(draft: list[int] | None, seeds: range, most: int, **sampling) -> list[tuple[int, ...]]:
    """The first `most` tokens of an answer for each seed."""
    asked = [sequence(draft, max_tokens=most, temperature=1.0, seed=seed, **sampling) for seed in seeds]
    return [tuple(answer) for answer in write(asked, encode_rows=len(asked) * most)]


@pytest.mark.parametrize("draft", [None, [2, 3, 0], [3, 3, 3, 3]], ids=str)
def test_sampled_answers_have_the_models_joint_distribution_with_and_without_a_draft(draft: list[int] | None):
    counts = Counter(drawn(draft, range(SEEDS), most=3))
    p = BIGRAMS.double().softmax(-1)
    words = list(product(range(VOCAB), repeat=3))
    expected = np.array([float(p[1, a] * p[a, b] * p[b, c]) * SEEDS for a, b, c in words])
    found = np.array([counts[word] for word in words])
    rare = expected < 5  # together: a chi-square test wants some of each
    expected = np.append(expected[~rare], expected[rare].sum())
    found = np.append(found[~rare], found[rare].sum())
    assert len(found) > 15
    assert stats.chisquare(found, expected).pvalue > 0.001


@given(draft=TOKENS, seed=st.integers(0, 2**32), rows=st.integers(1, 30), temperature=st.sampled_from([0.0, 0.7, 1.5]))
@settings(max_examples=25, deadline=None)
def test_the_same_seed_gives_the_same_text_whatever_the_draft_and_its_pieces(draft, seed, rows, temperature):
    sampling = {"temperature": temperature, "seed": seed, "end_ids": frozenset({END}), "frequency_penalty": 0.5}
    (alone,) = write([sequence(**sampling)])
    (drafted,) = write([sequence(draft, **sampling)], rows)
    together = write([sequence(other, **sampling) for other in (draft, draft[::-1], alone, None)], rows)
    assert [drafted, *together] == [alone] * 5


def typical_by_the_rule(draft: list[int], most: int, floor: float, share: float) -> tuple[list[int], int]:
    """Greedy `typical` written down as simply as can be: the answer, and how much of the draft is kept."""
    answer, kept = list[int](), 0
    while len(answer) < most:
        p = BIGRAMS[[1, *answer][-1]].double().softmax(0)
        best, token = int(p.argmax()), draft[kept] if kept < len(draft) and kept == len(answer) else -1
        least = min(floor, share * float((p * p.log()).sum().exp()))
        if token >= 0 and (token == best or p[token] >= least):
            best, kept = token, kept + 1
        if best == END:
            break
        answer.append(best)
    return answer, min(kept, len(answer))


@given(
    draft=TOKENS,
    rows=st.integers(1, 20),
    floor=st.sampled_from([0.02, 0.1, 0.3, 1.0]),
    share=st.sampled_from([0.1, 0.3, 0.9]),
    company=st.lists(TOKENS, max_size=2),
)
@settings(max_examples=50, deadline=None)
def test_typical_keeps_what_the_rule_says_however_few_tokens_are_tried_at_once(draft, rows, floor, share, company):
    end = frozenset({END})
    others = [sequence(other, lenient=True, end_ids=end) for other in company]
    one = sequence(draft, lenient=True, end_ids=end)
    *_, answer = write([*others, one], rows, floor, share)
    expected, kept = typical_by_the_rule(draft, 8, floor, share)
    assert answer == expected
    assert one.kept >= kept  # where the model itself goes on as the draft, that counts as kept too


def test_after_the_first_rejected_token_typical_goes_on_as_the_model_does():
    best = BIGRAMS.argmax(-1).tolist()
    worst = BIGRAMS.argmin(-1).tolist()
    draft = [best[1], worst[best[1]], *[3] * 20]
    one = sequence(draft, lenient=True, max_tokens=8)
    write([one])
    assert one.kept == 1
    for before, token in zip([1, *one.answer], one.answer, strict=False):
        assert token == best[before]


def test_a_draft_is_kept_as_far_as_the_model_chooses_it():
    one = sequence([7, 8, 9])
    one.encoded = 1
    assert one.propose(64) == [7, 8, 9]
    assert one.commit([7, 8, 9], [Choice(7), Choice(8), Choice(1), Choice(2)]) == 2
    assert (one.answer, one.kept, one.finish) == ([7, 8, 1], 2, None)


@pytest.mark.parametrize(("ends_at", "answer"), [(7, []), (8, [7]), (9, [7, 8]), (2, [7, 8, 9]), (5, [7, 8, 9, 2])])
def test_an_answer_ends_at_an_end_token_wherever_it_comes_among_what_is_taken_at_once(ends_at, answer):
    one = sequence([7, 8, 9], end_ids=frozenset({ends_at}))
    one.propose(64)
    one.commit([7, 8, 9], [Choice(7), Choice(8), Choice(9), Choice(2)])
    ended = len(answer) < 4
    assert (one.answer, one.ended, one.finish) == (answer, ended, "stop" if ended else None)


def test_an_answer_ends_at_its_most_tokens_even_if_more_were_taken():
    one = sequence([7, 8, 9], max_tokens=4)
    assert one.propose(64) == [7, 8, 9], "with the model's own token that makes four"
    one.commit([7, 8, 9], [Choice(7), Choice(8), Choice(9), Choice(2)])
    assert (one.answer, one.finish, one.ended) == ([7, 8, 9, 2], "length", False)
    assert sequence([7, 8, 9], max_tokens=1).propose(64) == []


def test_details_are_of_the_tokens_that_were_taken():
    one = sequence([7, 8, 9], logprobs=1)
    one.propose(64)
    told = [Choice(7, tried_logprob=-0.1), Choice(1, logprob=-0.5, tried_logprob=-2.0), Choice(3), Choice(4)]
    one.commit([7, 8, 9], told)
    assert (one.answer, [value for value, _ in one.details]) == ([7, 1], [-0.1, -0.5])
    one.cut(1)
    assert (one.answer, len(one.details), one.finish, one.ended) == ([7], 1, "stop", False)


def test_penalties_are_told_all_that_was_said_before_each_row():
    rows = sequence(frequency_penalty=1.0).rows([3, 2])
    assert [row.answer for row in rows] == [[], [3], [3, 2]]
    assert {tuple(row.prompt) for row in rows} == {(0, 1)}
    assert [row.position for row in rows] == [2, 3, 4]
    assert [row.answer for row in sequence().rows([3, 2])] == [()] * 3, "who asks for none is spared the copies"


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_scored_draft_is_read_whole_in_any_pieces(draft: list[int], rows: int):
    one = Scored(Sampling(max_tokens=len(draft)), [0, 1], draft=draft)
    write([one], rows)
    assert one.tokens == [0, 1, *draft]
    logprobs = BIGRAMS.log_softmax(-1)
    before = [1, *draft]
    assert [score.tried_logprob for score in one.scores] == pytest.approx(
        [float(logprobs[a, b]) for a, b in zip(before, draft, strict=False)], abs=1e-5
    )
    assert [score.best for score in one.scores] == [int(logprobs[a].argmax()) for a in before[:-1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "expected a temperature of at least 0, got -0.1"),
        ({"temperature": float("inf")}, "expected a temperature of at least 0, got inf"),
        ({"temperature": float("nan")}, "expected a temperature of at least 0, got nan"),
        ({"top_p": 0.0}, "expected 0 < top_p <= 1, got 0.0"),
        ({"top_p": 1.1}, "expected 0 < top_p <= 1, got 1.1"),
        ({"top_k": -1}, "expected top_k of at least 0 and of 31 bits, got -1"),
        ({"presence_penalty": 2.1}, "expected presence_penalty of -2 to 2, got 2.1"),
        ({"frequency_penalty": -2.1}, "expected frequency_penalty of -2 to 2, got -2.1"),
        ({"repetition_penalty": 0.0}, "expected a repetition_penalty of 0.01 to 100, got 0.0"),
        ({"repetition_penalty": float("inf")}, "expected a repetition_penalty of 0.01 to 100, got inf"),
        ({"seed": 2**63}, "expected a seed of 64 bits, got"),
        ({"logprobs": -1}, "expected logprobs of 0 to 20, got -1"),
        ({"logprobs": 21}, "expected logprobs of 0 to 20, got 21"),
    ],
)
def test_options_out_of_range_are_refused_with_expected_and_got(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Sampling(max_tokens=1, **options).check()  # pyright: ignore[reportArgumentType]


def test_options_at_the_ends_of_their_ranges_are_taken():
    for extreme in (-2, 2):
        Sampling(
            max_tokens=1, presence_penalty=extreme, frequency_penalty=extreme, logprobs=20, seed=-(2**63), top_p=1.0
        ).check()
