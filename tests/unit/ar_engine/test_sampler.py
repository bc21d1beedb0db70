"""Choosing tokens: against plain formulas, and against the distribution itself over many seeds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ar_engine.sampler import choose, random_number
from ar_engine.sequence import Row, Sampling

VOCAB = 12
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4)) * 1.5
SEEDS = 4000


def asked(position: int = 5, tried: int = -1, *, told=False, lenient=False, prompt=(), answer=(), **sampling) -> Row:
    return Row(Sampling(max_tokens=9, **sampling), position, tried, told, lenient, prompt, answer)


def chosen(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return [choice.token for choice in choose(logits, rows, 0.1, 0.3)]


def distribution(temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """What is to be drawn from, written down as simply as can be."""
    p = (LOGITS.double() / temperature).softmax(0).numpy()
    order = np.argsort(-p)
    keep = order[: top_k or VOCAB]
    kept = np.zeros(VOCAB)
    kept[keep] = p[keep] / p[keep].sum()
    total = 0.0
    for token in keep:
        if total >= top_p:
            kept[token] = 0
        total += p[token] / p[keep].sum()
    return kept / kept.sum()


def test_greedy_rows_take_the_most_likely_token():
    logits = torch.randn(7, VOCAB)
    assert chosen(logits, [asked(i) for i in range(7)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"top_k": 5, "top_p": 0.8},
        {"top_p": 1e-9},
    ],
)
def test_drawn_tokens_have_the_models_distribution(options):
    options = {"temperature": 1.0, **options}
    rows = [asked(seed=seed, **options) for seed in range(SEEDS)]
    counts = np.bincount(chosen(LOGITS.expand(SEEDS, -1), rows), minlength=VOCAB)
    expected = distribution(**options) * SEEDS
    assert not counts[expected == 0].any()
    some = expected > 0
    if some.sum() > 1:
        assert stats.chisquare(counts[some], expected[some]).pvalue > 0.001


def test_what_is_tried_changes_no_choice_and_is_right_as_often_as_it_is_likely():
    rows = [asked(seed=seed, temperature=1.0) for seed in range(SEEDS)]
    alone = chosen(LOGITS.expand(SEEDS, -1), rows)
    token = int(LOGITS.argsort()[-2])
    with_draft = chosen(LOGITS.expand(SEEDS, -1), [row._replace(tried=token) for row in rows])
    assert with_draft == alone
    p = distribution()
    right = sum(choice == token for choice in alone)
    assert stats.binomtest(right, SEEDS, p[token]).pvalue > 0.001
    rest = np.bincount([choice for choice in alone if choice != token], minlength=VOCAB)
    others = p * (np.arange(VOCAB) != token)
    some = others > 0
    assert stats.chisquare(rest[some], (others / others.sum() * rest.sum())[some]).pvalue > 0.001


@given(st.permutations(range(6)), st.integers(0, 2**63 - 1))
def test_a_row_does_not_depend_on_its_neighbours(order, seed):
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(seed % 1000))
    rows = [
        asked(0), asked(1, seed=seed, temperature=1.0), asked(2, seed=seed, temperature=0.7, top_k=4),
        asked(3, seed=seed, temperature=1.3, top_p=0.5), asked(4, frequency_penalty=1.0, answer=[1, 1, 2]),
        asked(5, tried=3, told=True, logprobs=2),
    ]  # fmt: skip
    together = choose(logits, rows, 0.1, 0.3)
    mixed = choose(logits[list(order)], [rows[i] for i in order], 0.1, 0.3)
    assert [mixed[order.index(i)] for i in range(6)] == together
    assert [choose(logits[i : i + 1], rows[i : i + 1], 0.1, 0.3)[0].token for i in range(6)] == [
        c.token for c in together
    ]


def test_random_numbers_are_those_of_seed_and_position():
    numbers = [random_number(seed, position) for seed in (-1, 0, 1, 2**62) for position in range(500)]
    assert len(set(numbers)) == 2000
    assert all(0 <= number < 1 for number in numbers)
    assert stats.kstest(numbers, "uniform").pvalue > 0.001
    assert random_number(7, 3) == random_number(7, 3)


def test_penalties_follow_the_formula():
    answer, prompt = [1, 1, 1, 2], [3, 2]
    row = asked(
        presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0, answer=answer, prompt=prompt, told=True
    )
    logits = torch.zeros(1, VOCAB)
    expected = logits[0].clone()
    for token in range(VOCAB):
        value = 4.0 if token in (1, 2) else -1.0
        logits[0, token] = value
        if token in {*answer, *prompt}:
            value = value / 2 if value > 0 else value * 2
        expected[token] = value - 0.5 * (token in answer) - 0.25 * answer.count(token)
    seen = []
    for _ in range(VOCAB):  # peel the most likely off one by one
        token = chosen(logits, [row])[0]
        assert expected[token] == max(expected[other] for other in range(VOCAB) if other not in seen)
        seen.append(token)
        logits[0, token] = -1e9
        expected[token] = -1e9


def test_log_probabilities_are_the_models_own_whatever_else_is_asked():
    row = asked(tried=4, told=True, logprobs=3, temperature=0.3, top_k=1, frequency_penalty=2.0, answer=[1])
    choice = choose(LOGITS[None], [row], 0.1, 0.3)[0]
    logprobs = LOGITS.log_softmax(0)
    assert choice.logprob == pytest.approx(float(logprobs[choice.token]))
    assert choice.tried_logprob == pytest.approx(float(logprobs[4]))
    assert choice.tried_rank == int((LOGITS[4] < LOGITS).sum())
    assert choice.best == int(LOGITS.argmax())
    assert [token for token, _ in choice.top] == LOGITS.argsort(descending=True)[:3].tolist()
    assert [value for _, value in choice.top] == pytest.approx(logprobs.sort(descending=True).values[:3].tolist())


@pytest.mark.parametrize(("floor", "share"), [(0.1, 0.3), (0.02, 0.9), (1.0, 1.0), (0.0, 0.3)])
def test_a_tried_token_is_likely_enough_by_the_formula(floor, share):
    p = LOGITS.double().softmax(0)
    least = min(floor, share * math.exp(float((p * p.log()).sum())))
    rows = [asked(tried=token, lenient=True) for token in range(VOCAB)]
    found = [choice.likely for choice in choose(LOGITS.expand(VOCAB, -1), rows, floor, share)]
    assert found == [bool(p[token] >= least) for token in range(VOCAB)]
    assert not any(choice.likely for choice in choose(LOGITS[None], [asked(tried=1, told=True)], floor, share))


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 3] = 0.0
    rows = [asked(seed=seed, temperature=1.0, told=True, logprobs=0) for seed in range(50)]
    assert set(chosen(logits.expand(50, -1), rows)) == {3}
