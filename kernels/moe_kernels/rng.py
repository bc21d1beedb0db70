"""A counter-based random number generator: a draw is a function of what it is for, not of when it is made.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 64-bit key and a 128-bit
counter into four 32-bit words. Here

    key     = the request's seed
    counter = (index // 4, position, step, stream)
    word    = index % 4

where index is what is drawn for (a token id, a group of tokens), position the place in the sequence, step the denoising
step and stream a constant of the caller's that keeps draws for different purposes apart. So a request draws the same
words whatever else is in its batch, on every device: `words` and the Triton function `draw` agree in every bit.

A word w becomes a uniform number from its upper 23 bits, u = (2 * (w >> 9) + 1) * 2^-24, which float32 holds exactly:
from 2^-24 to 1 - 2^-24 in steps of 2^-23, never 0 and never 1. Gumbel noise is -log(-log(u)), from -2.812 to
`GUMBEL_MAX`, so nothing that lies more than 19.45 below the best of its rivals is ever drawn. The logarithms are each
device's own: noise agrees to a few units in the last place.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

GUMBEL_MIN = -2.812  # -log(-log(2^-24)) = -2.81158..., rounded down
GUMBEL_MAX = 16.636  # -log(-log(1 - 2^-24)) = 16.63553..., rounded up so that float32 noise is never above it

_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)[:, None, None]
_WEYL = np.arange(_ROUNDS, dtype=np.uint32)[:, None] * np.array([0x9E3779B9, 0xBB67AE85], np.uint32)


def philox(
    seed: NDArray[Any], counter: tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]
) -> list[NDArray[np.uint32]]:
    """The four words of Philox4x32-10, as Random123 computes them.

    In NumPy, which has the halves of a 64-bit word as views and half of torch's time for an operation.

    Args:
        seed: (R,) int64; its lower and upper 32 bits are the two words of the key.
        counter: integers (C, R), (R,), (R,) and one number; the lower 32 bits count.

    Returns:
        Four of (C, R).
    """
    factors, *products = (np.empty((2, *counter[0].shape), np.uint64) for _ in range(3))
    factors[0], products[1][1], factors[1], products[1][0] = counter
    factors &= 0xFFFFFFFF
    factor, _ = _halves(factors)  # the upper one stays 0
    lows, highs = zip(*((low[::-1], high[::-1]) for low, high in map(_halves, products)), strict=True)
    for turn, key in enumerate(np.stack(_halves(seed))[:, None] + _WEYL[..., None, None]):
        now = turn % 2
        np.multiply(factors, _MULTIPLIERS, out=products[now])
        np.bitwise_xor(highs[now], lows[1 - now], out=factor)
        np.bitwise_xor(factor, key, out=factor)
    (c0, c2), (c1, c3) = factor, lows[(_ROUNDS - 1) % 2]
    return [c0, c1, c2, c3]


def _halves(x: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The lower and upper 32 bits of each word, as views."""
    halves = x.view("<u4")
    return halves[..., ::2], halves[..., 1::2]


def words(
    seed: Tensor, position: Tensor, step: Tensor, stream: int, first: Tensor | int, count: int
) -> NDArray[np.uint32]:
    """The words of the indices first, ..., first + count - 1 for each row.

    Args:
        seed: (R,) int64.
        position: (R,) integers; the lower 32 bits count.
        step: (R,) integers; the lower 32 bits count.
        stream: what the words are for.
        first: (R,) or one for all rows; multiples of 4.
        count: how many words a row gets.

    Returns:
        (R, count).
    """
    begin = first.numpy(force=True) if isinstance(first, Tensor) else first
    index = np.empty(((count + 3) // 4, len(seed)), np.int64)
    index[:] = np.arange(len(index))[:, None]
    index += begin // 4
    key, place, time = (np.ascontiguousarray(x.numpy(force=True)) for x in (seed, position, step))
    made = np.empty((len(seed), len(index), 4), np.uint32)
    for i, word in enumerate(philox(key, (index, place, time, stream))):
        made[..., i] = word.T
    return made.reshape(len(seed), 4 * len(index))[:, :count]


def uniform(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Numbers in (0, 1) from the upper 23 bits of each word: (2 * (word >> 9) + 1) * 2^-24."""
    upper = (words >> 9).astype(np.float32)
    upper += 0.5
    upper *= 2.0**-23
    return upper


def gumbel(seed: Tensor, position: Tensor, step: Tensor, stream: int, first: Tensor | int, count: int) -> Tensor:
    """Gumbel noise of the words of the same arguments: (R, count) float32, at most `GUMBEL_MAX`."""
    drawn = torch.from_numpy(uniform(words(seed, position, step, stream, first, count))).to(seed.device)
    return drawn.log_().neg_().log_().neg_()


@triton.jit
def draw(seed, position, step, STREAM: tl.constexpr, first, COUNT: tl.constexpr):
    """`words` on the device: (R, COUNT) uint32, COUNT a power of 2; seed (R,) int64, the others (R,) int32."""
    counter = (first // 4)[:, None] + tl.arange(0, COUNT // 4)[None, :]
    zero = tl.zeros_like(counter)
    w0, w1, w2, w3 = tl.philox(seed[:, None], counter, zero + position[:, None], zero + step[:, None], zero + STREAM)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (seed.shape[0], COUNT))


@triton.jit
def noise(seed, position, step, STREAM: tl.constexpr, first, COUNT: tl.constexpr):
    """`gumbel` on the device, with the arguments of `draw`: (R, COUNT) float32."""
    word = draw(seed, position, step, STREAM, first, COUNT)
    odd = ((word >> 9) * 2 + 1).to(tl.int32).to(tl.float32)
    return -tl.log(-tl.log(odd * 5.9604644775390625e-08))  # 2^-24
