"""Uniform random tokens, the noise that a canvas is made of: a draw is named by seed, position, step and place, as in `rng`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.aot import Case
from moe_kernels.dispatch import backend, launches
from moe_kernels.rng import draw, words

NOISE = 2  # the generator's stream; 0 and 1 are the denoise head's


def random_tokens(seed: Tensor, position: Tensor, step: Tensor, count: int, vocab: int) -> Tensor:
    """Rows of tokens: token[r, i] = word i * vocab // 2^32, of the words that seed, position and step of row r name.

    No token is likelier than another by more than vocab / 2^32.

    Args:
        seed: (R,) int64.
        position: (R,) int64, below 2^31.
        step: (R,) int64, below 2^31.
        count: tokens a row.
        vocab: of token ids, 1 to 2^31.

    Returns:
        (R, count) int64, the same on every device.

    Raises:
        ValueError: vocab is out of range.
    """
    if not 1 <= vocab <= 1 << 31:
        raise ValueError(f"expected a vocabulary of 1 to 2^31 tokens, got {vocab}")
    chosen = random_tokens_triton if backend("random_tokens", seed.device) == "triton" else random_tokens_torch
    return chosen(seed, position, step, count, vocab)


def random_tokens_torch(seed: Tensor, position: Tensor, step: Tensor, count: int, vocab: int) -> Tensor:
    """Twin of `random_tokens`."""
    drawn = words(seed, position, step, NOISE, 0, count)
    return (torch.from_numpy(drawn.astype("int64")) * vocab >> 32).to(seed.device)


@launches
def random_tokens_triton(seed: Tensor, position: Tensor, step: Tensor, count: int, vocab: int) -> Tensor:
    """Kernel of `random_tokens`: a program a row."""
    out = torch.empty(len(seed), count, dtype=torch.int64, device=seed.device)
    if out.numel():
        block = max(4, triton.next_power_of_2(count))
        seed, position, step = seed.contiguous(), position.contiguous(), step.contiguous()
        random_tokens_kernel[(len(seed),)](seed, position, step, out, count, vocab, STREAM=NOISE, BLOCK=block)  # pyright: ignore[reportArgumentType]
    return out


@triton.jit
def random_tokens_kernel(seed, position, step, out, count, vocab, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) + tl.arange(0, 1)
    at, time = tl.load(position + row).to(tl.int32), tl.load(step + row).to(tl.int32)
    word = draw(tl.load(seed + row), at, time, STREAM, tl.zeros_like(at), BLOCK)
    token = (word.to(tl.int64) & 0xFFFFFFFF) * vocab >> 32
    place = tl.arange(0, BLOCK)[None, :]
    tl.store(out + row[:, None].to(tl.int64) * count + place, token, mask=place < count)


def kernels_to_compile() -> list[Case]:
    """A canvas of 256."""
    types, constexprs = "*i64 *i64 *i64 *i64 i32 i32", {"STREAM": NOISE, "BLOCK": 256}
    return [Case.of("random_tokens", random_tokens_kernel, types, constexprs)]
