import math
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_kernels import rng
from tests.marks import INTERPRETED

# Random123, tests/kat_vectors: philox4x32-10, counter, key, words
KNOWN = [
    pytest.param((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
    pytest.param(
        (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="all-bits-set"
    ),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="digits-of-pi",
    ),
]
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)


@triton.jit
def _fill(seed, position, step, first, words, noises, STREAM: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr):
    row = tl.arange(0, ROWS)
    key, place, time, begin = tl.load(seed + row), tl.load(position + row), tl.load(step + row), tl.load(first + row)
    at = row[:, None] * COUNT + tl.arange(0, COUNT)[None, :]
    tl.store(words + at, rng.draw(key, place, time, STREAM, begin, COUNT).to(tl.int64))
    tl.store(noises + at, rng.noise(key, place, time, STREAM, begin, COUNT))


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _rows(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(count) * 7919 - 3, torch.arange(count) % 64, torch.arange(count) // 64


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    seed = np.array([_signed(key[1] << 32 | key[0], 64)])
    c0, c1, c2, c3 = counter
    four = rng.philox(seed, (np.array([[c0]]), np.array([c1]), np.array([c2]), c3))
    assert tuple(word.item() for word in four) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_words_are_the_four_outputs_in_order(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    seed = torch.tensor([_signed(key[1] << 32 | key[0], 64)])
    position, step = torch.tensor([counter[1]]), torch.tensor([counter[2]])
    assert tuple(rng.words(seed, position, step, counter[3], 4 * counter[0], 4)[0].tolist()) == expected


@pytest.mark.gpu
@pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="needs Triton's interpreter or a CUDA device"
)
@settings(max_examples=20, deadline=None)
@given(seed=INT64, position=INT32, step=INT32, first=st.integers(0, 2**27).map(lambda n: 4 * n))
def test_the_device_function_draws_the_same_words_bit_for_bit(seed: int, position: int, step: int, first: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, count = 4, 32
    seeds = torch.tensor([seed, -1, 0, 2**62], device=device)
    positions = torch.tensor([position, 0, 255, -1], device=device, dtype=torch.int32)
    steps = torch.tensor([step, 47, 0, -1], device=device, dtype=torch.int32)
    firsts = torch.tensor([first, 0, 262_112, 128], device=device, dtype=torch.int32)
    words = torch.empty(rows, count, dtype=torch.int64, device=device)
    noises = torch.empty(rows, count, device=device)
    launch: Any = _fill[(1,)]  # a launcher takes numbers for constants
    launch(seeds, positions, steps, firsts, words, noises, STREAM=1, ROWS=rows, COUNT=count)
    assert np.array_equal(words.numpy(force=True), rng.words(seeds, positions, steps, 1, firsts, count))
    # Two libraries' logarithms, each within 2 units in the last place; near noise 0 the outer one magnifies.
    torch.testing.assert_close(noises, rng.gumbel(seeds, positions, steps, 1, firsts, count), rtol=1e-6, atol=1e-6)


def test_a_word_depends_on_its_own_row_and_index_only() -> None:
    seed, position, step = _rows(5)
    together = rng.words(seed, position, step, 0, 0, 64)
    assert np.array_equal(together[3:4, 20:31], rng.words(seed[3:4], position[3:4], step[3:4], 0, 20, 11))


@pytest.mark.parametrize("changed", ["seed", "seed's upper half", "position", "step", "stream"])
def test_every_part_of_the_key_changes_every_word(changed: str) -> None:
    seed, position, step, stream = torch.tensor([5]), torch.tensor([6]), torch.tensor([7]), 0
    before = rng.words(seed, position, step, stream, 0, 256)
    match changed:
        case "seed":
            seed = seed + 1
        case "seed's upper half":
            seed = seed + 2**32
        case "position":
            position = position + 1
        case "step":
            step = step + 1
        case _:
            stream = 1
    assert not (before == rng.words(seed, position, step, stream, 0, 256)).any()


def test_uniform_numbers_never_reach_zero_or_one() -> None:
    edges = rng.uniform(np.array([0, 511, 512, 2**32 - 1], np.uint32))
    assert edges.tolist() == [2.0**-24, 2.0**-24, 3 * 2.0**-24, 1 - 2.0**-24]


def test_gumbel_noise_is_bounded_as_stated() -> None:
    smallest, largest = -(-torch.from_numpy(rng.uniform(np.array([0, 2**32 - 1], np.uint32))).log()).log()
    assert rng.GUMBEL_MAX - 1e-3 < largest <= rng.GUMBEL_MAX
    assert smallest == pytest.approx(-math.log(24 * math.log(2)))


def test_uniform_and_gumbel_numbers_follow_their_distributions() -> None:
    seed, position, step = _rows(256)
    drawn = rng.uniform(rng.words(seed, position, step, 0, 0, 1024)).flatten()
    noise = rng.gumbel(seed, position, step, 0, 0, 1024).flatten().numpy()
    # The seeds are fixed, so this either holds or not: no test of 262,144 numbers rejects at one in a hundred.
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.01
