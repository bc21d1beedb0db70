"""Noise tokens: uniform, named by what they are for, and the same by kernel and twin."""

import pytest
import torch

from moe_kernels.random_tokens import random_tokens, random_tokens_torch, random_tokens_triton
from tests.marks import interpreted, on_gpu

SEED = torch.tensor([7, 7, 7, -(2**63), 2**63 - 1])
POSITION = torch.tensor([0, 0, 64, 262_143, 5])
STEP = torch.tensor([0, 1, 0, 48, 3])


def test_they_are_uniform_over_the_vocabulary():
    tokens = random_tokens(torch.arange(400), torch.zeros(400, dtype=torch.int64), torch.zeros(400).long(), 250, 10)
    counts = tokens.flatten().bincount(minlength=10)
    assert len(counts) == 10
    expected = tokens.numel() / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared with 9 degrees of freedom, p = 0.001


def test_a_row_depends_on_its_own_names_only():
    together = random_tokens(SEED, POSITION, STEP, 64, 1024)
    for i in range(len(SEED)):
        one = slice(i, i + 1)
        assert torch.equal(random_tokens(SEED[one], POSITION[one], STEP[one], 64, 1024), together[one])
    assert len({tuple(row.tolist()) for row in together}) == len(SEED)
    assert torch.equal(random_tokens(SEED, POSITION, STEP, 20, 1024), together[:, :20])


@pytest.mark.parametrize("vocab", [0, 2**31 + 1])
def test_a_vocabulary_out_of_range_is_refused(vocab):
    with pytest.raises(ValueError, match=rf"1 to 2\^31 tokens, got {vocab}"):
        random_tokens(SEED, POSITION, STEP, 8, vocab)


@interpreted
@pytest.mark.parametrize(("count", "vocab"), [(1, 5), (8, 160), (64, 1024), (100, 262_144), (256, 2**31)])
def test_the_kernel_draws_what_the_twin_draws(count, vocab):
    expected = random_tokens_torch(SEED, POSITION, STEP, count, vocab)
    assert torch.equal(random_tokens_triton(SEED, POSITION, STEP, count, vocab), expected)
    assert 0 <= expected.min() <= expected.max() < vocab


@on_gpu
def test_the_kernel_draws_what_the_twin_draws_on_a_gpu():
    expected = random_tokens_torch(SEED, POSITION, STEP, 256, 262_144)
    assert torch.equal(random_tokens(SEED.cuda(), POSITION.cuda(), STEP.cuda(), 256, 262_144).cpu(), expected)
