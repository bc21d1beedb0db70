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

import torch
import triton
import triton.language as tl
from torch import Tensor

GUMBEL_MAX = 16.636  # -log(-log(1 - 2^-24)) = 16.63553..., rounded up so that float32 noise is never above it

_ROUNDS = 10
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of Philox4x32-10, as Random123 computes them.

    Args:
        seed: int64; its lower and upper 32 bits are the two words of the key.
        counter: four int64 tensors, of which the lower 32 bits count; everything broadcasts.

    Returns:
        Four int64 tensors with values from 0 to 2^32 - 1.
    """
    c0, c1, c2, c3 = (word & _LOW for word in counter)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        # The product wraps round to 64 bits, signed: its bits are right, and the mask undoes the shift's sign.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((odd >> 32) & _LOW) ^ c1 ^ k0, odd & _LOW
        c2, c3 = ((even >> 32) & _LOW) ^ c3 ^ k1, even & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def words(seed: Tensor, position: Tensor, step: Tensor, stream: int, first: Tensor | int, count: int) -> Tensor:
    """The words of the indices first, ..., first + count - 1 for each row.

    Args:
        seed: (R,) int64.
        position: (R,) integers; the lower 32 bits count.
        step: (R,) integers; the lower 32 bits count.
        stream: what the words are for.
        first: (R,) or one for all rows; multiples of 4.
        count: how many words a row gets.

    Returns:
        (R, count) int64, from 0 to 2^32 - 1.
    """
    begin = torch.as_tensor(first, device=seed.device).expand_as(seed)[:, None] // 4
    counter = begin + torch.arange((count + 3) // 4, device=seed.device)
    purpose = torch.tensor(stream, device=seed.device)
    four = philox(seed[:, None], (counter, position.long()[:, None], step.long()[:, None], purpose))
    return torch.stack(four, dim=-1).flatten(1)[:, :count]


def uniform(words: Tensor) -> Tensor:
    """Numbers in (0, 1), float32, from the upper 23 bits of each word: (2 * (word >> 9) + 1) * 2^-24."""
    return ((words >> 9) * 2 + 1).float() * 2.0**-24


def gumbel(seed: Tensor, position: Tensor, step: Tensor, stream: int, first: Tensor | int, count: int) -> Tensor:
    """Gumbel noise of the words of the same arguments: (R, count) float32, at most `GUMBEL_MAX`."""
    return -(-uniform(words(seed, position, step, stream, first, count)).log()).log()


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
