"""NVFP4: four-bit E2M1 values in blocks of 16 along K, an E4M3 scale a block, a float32 scale a matrix.

Two libraries write it, and differ in more than in how the global scale is applied:

|                            | `modelopt`                     | `compressed-tensors`                  |
|---|---|---|
| value                      | e2m1 * (scale * global)        | e2m1 * (scale / global)               |
| global scale of a matrix   | amax / (6 * 448)               | 6 * 448 / amax                        |
| block amax to its scale    | amax / (6 * global), float32   | (amax / 6) * global, amax / 6 in the weight's dtype |
| scale of a block of zeros  | 1                              | 1/8                                   |
| scale that rounds to zero  | 2^-9, the least E4M3           | 1/8, so the block becomes zeros       |
| code 8, "minus zero"       | decodes to +0                  | decodes to -0                         |

Here both are reproduced to the bit, on CPU and in the same order of float32 operations. The sources are nvidia-modelopt's
`NVFP4QTensor` and compressed-tensors' `generate_gparam`, `calculate_qparams` and `NVFP4PackedCompressor`. What they leave to chance
is fixed here: weights must be finite, and a matrix of zeros has global scale 1 (ModelOpt divides zero by zero). Bytes stay as they are
stored: a NaN scale (0x7F, 0xFF) decodes to NaN, and `checkpoint` refuses to load one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_MIN = 2.0**-9
EMPTY_BLOCK_SCALE = 0.125  # compressed-tensors' "eps" of E4M3
CHUNK = (
    1 << 18
)  # values worked on at once: the float32 temporaries stay in a core's cache (2.0 ns a value, 3.6 at 1 << 21)

Convention = Literal["modelopt", "compressed-tensors"]

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@dataclass(frozen=True, eq=False)
class NVFP4:
    """A weight (..., N, K), or a stack of them, in NVFP4.

    Attributes:
        packed: (..., N, K/2) uint8, two codes a byte, the lower k in the low nibble.
        scales: (..., N, K/16) float8_e4m3fn, row-major.
        global_scale: float32, broadcastable to the leading dimensions: () for one matrix, (E,) for E experts.
        convention: what `global_scale` means; see the module.

    Raises:
        ValueError: dtypes or shapes do not fit together, or the convention is unknown.
    """

    packed: Tensor
    scales: Tensor
    global_scale: Tensor
    convention: Convention

    def __post_init__(self) -> None:
        _check_convention(self.convention)
        dtypes = (self.packed.dtype, self.scales.dtype, self.global_scale.dtype)
        if dtypes != (expected := (torch.uint8, torch.float8_e4m3fn, torch.float32)):
            raise ValueError(f"expected packed, scales and global_scale of {expected}, got {dtypes}")
        if self.packed.dim() < 2 or self.packed.shape[-1] % (BLOCK // 2):
            raise ValueError(f"expected packed (..., N, K/2) with K a multiple of 16, got {tuple(self.packed.shape)}")
        if self.scales.shape != (expected := (*self.shape[:-1], self.shape[-1] // BLOCK)):
            raise ValueError(f"expected scales {expected} for {self.shape} values, got {tuple(self.scales.shape)}")
        _spread(self.global_scale, self.shape[:-2])

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., N, K), in values."""
        return (*self.packed.shape[:-1], 2 * self.packed.shape[-1])

    def factor(self) -> Tensor:
        """The global scale as a factor, for kernels that fold it into their last step; same shape.

        The reciprocal of a compressed-tensors scale is rounded, so results may be one unit in the last place off `dequantize`.
        """
        return self.global_scale if self.convention == "modelopt" else self.global_scale.reciprocal()

    def to(self, device: torch.device | str) -> "NVFP4":
        """The same weight on another device."""
        return NVFP4(self.packed.to(device), self.scales.to(device), self.global_scale.to(device), self.convention)

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """(..., N, K), computed in float32 and rounded once to `dtype`, as both libraries do; NaN where a block's scale is NaN."""
        *lead, n, k = self.shape
        steps = _steps(self.scales, _spread(self.global_scale, lead), self.convention)
        values = _magnitudes_and_signs(self.packed.device)
        if self.convention == "modelopt":
            values = values + 0.0  # -0 + 0 = +0
        codes = unpack(torch.arange(256, dtype=torch.uint8, device=values.device)[:, None])
        # The two float32 a byte stands for, moved as one int64: half the look-ups.
        pairs = values[codes.int()].view(torch.int64).flatten()
        made = torch.empty(*lead, n, k, dtype=dtype, device=self.packed.device)
        for rows, bytes_, step in _chunks(k, made, self.packed, steps):
            block = pairs.index_select(0, bytes_.int().flatten()).view(torch.float32).view(*step.shape, BLOCK)
            rows.copy_(block.mul_(step[..., None]).flatten(-2))
        return made


def stack(weights: Sequence[NVFP4]) -> NVFP4:
    """E weights of one shape and convention as one, with E as its first dimension. Bytes are copied, nothing is requantised.

    Raises:
        ValueError: there are none, or they differ in shape or convention.
    """
    if len(kinds := {(weight.shape, weight.convention) for weight in weights}) != 1:
        raise ValueError(f"expected weights of one shape and convention, got {sorted(kinds)}")
    packed, scales, global_scale = (
        torch.stack([getattr(weight, name) for weight in weights]) for name in ("packed", "scales", "global_scale")
    )
    return NVFP4(packed, scales, global_scale, weights[0].convention)


def pack(codes: Tensor) -> Tensor:
    """Codes (..., K) uint8 below 16 to bytes (..., K/2): byte j = code 2j | code 2j+1 << 4."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """Bytes (..., K/2) uint8 to codes (..., K): the inverse of `pack`."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def encode_e2m1(values: Tensor) -> Tensor:
    """The nearest E2M1 of each value, as uint8: sign * 8 + index into 0, 0.5, 1, 1.5, 2, 3, 4, 6.

    Ties go to the even code; beyond 6, infinity included, is 6. The sign is `value < 0`: what rounds to zero from below keeps it (code
    8), -0 itself does not (code 0); both libraries do so.

    Raises:
        ValueError: a value is NaN, which E2M1 lacks.
    """
    if values.isnan().any():
        raise ValueError("expected values that E2M1 has, got NaN")
    return _encode(values)


def decode_e2m1(codes: Tensor) -> Tensor:
    """The values of E2M1 codes (integers from 0 to 15) in float32; code 8 is -0."""
    return _magnitudes_and_signs(codes.device)[codes.int()]


def quantize(weight: Tensor, convention: Convention, global_scale: Tensor | None = None) -> NVFP4:
    """Quantise (..., N, K) to the nearest, each matrix with a global scale of its own, to the bit as the convention's library does.

    Args:
        weight: float32 or bfloat16, finite, K a multiple of 16. The dtype matters: compressed-tensors takes some steps in it.
        convention: see the module.
        global_scale: float32, finite and positive, broadcastable to the leading dimensions, in place of the one computed from the
            weight. Where it is too small for the weight, scales saturate at 448 and values at 6 * 448 of it.

    Raises:
        ValueError: any of the above does not hold. NaN and infinity are refused: no scale could represent their block.
    """
    _check_convention(convention)
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expected a weight of float32 or bfloat16, got {weight.dtype}")
    if weight.dim() < 2 or weight.shape[-1] % BLOCK or not weight.numel():
        raise ValueError(f"expected a weight (..., N, K) with K a multiple of 16, got {tuple(weight.shape)}")
    low, high = weight.unflatten(-1, (-1, BLOCK)).aminmax(dim=-1)
    block_amax = torch.maximum(-low, high).abs()  # (..., N, K/16)
    amax = block_amax.amax(dim=(-2, -1))
    if not amax.isfinite().all():
        raise ValueError("expected finite weights, got NaN or infinity")
    if global_scale is None:
        global_scale = _global_scale(amax, convention)
    elif global_scale.dtype != torch.float32 or not (global_scale.isfinite() & (global_scale > 0)).all():
        raise ValueError(f"expected finite positive float32 global scales, got {global_scale}")
    spread = _spread(global_scale, amax.shape)
    scales = _block_scales(block_amax, spread, convention)
    steps = _steps(scales, spread, convention)
    packed = torch.empty(*weight.shape[:-1], weight.shape[-1] // 2, dtype=torch.uint8, device=weight.device)
    for bytes_, rows, step in _chunks(weight.shape[-1], packed, weight, steps):
        bytes_.copy_(pack(_encode((rows.unflatten(-1, (-1, BLOCK)) / step[..., None]).flatten(-2))))
    return NVFP4(packed, scales, global_scale, convention)


def _global_scale(amax: Tensor, convention: Convention) -> Tensor:
    if convention == "modelopt":
        scale = amax.float() / (E2M1_MAX * E4M3_MAX)
        return torch.where(scale == 0, 1.0, scale)
    # Written as theirs: number / tensor is not correctly rounded in torch, and is rounded to the weight's dtype.
    scale = E4M3_MAX * E2M1_MAX / amax.clamp(min=torch.finfo(amax.dtype).tiny)
    return torch.where(scale.isinf(), 1.0, scale).float()


def _block_scales(amax: Tensor, global_scale: Tensor, convention: Convention) -> Tensor:
    if convention == "modelopt":
        scale = amax.float() / (E2M1_MAX * global_scale)
        return torch.where(scale == 0, 1.0, scale).clamp(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn)
    # By a tensor: on CUDA, dividing by a number multiplies by its reciprocal.
    scale = (global_scale * (amax / amax.new_tensor(E2M1_MAX))).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    return torch.where(scale.float() == 0, EMPTY_BLOCK_SCALE, scale.float()).to(torch.float8_e4m3fn)


def _steps(scales: Tensor, global_scale: Tensor, convention: Convention) -> Tensor:
    """What one unit of E2M1 is worth in each block, float32."""
    return scales.float() * global_scale if convention == "modelopt" else scales.float() / global_scale


def _encode(values: Tensor) -> Tensor:
    # The code is the number of midpoints passed; the odd ones are passed when met, which is what ties to even means here.
    magnitude = values.abs()
    codes = (values < 0).view(torch.uint8) << 3
    for i, midpoint in enumerate(_MIDPOINTS):
        codes += (magnitude >= midpoint if i % 2 else magnitude > midpoint).view(torch.uint8)
    return codes


def _magnitudes_and_signs(device: torch.device) -> Tensor:
    magnitudes = torch.tensor(_MAGNITUDES, device=device)
    return torch.cat((magnitudes, -magnitudes))


def _spread(global_scale: Tensor, lead: Sequence[int]) -> Tensor:
    """The global scale beside (..., N, K/16): broadcast to the leading dimensions, then (..., 1, 1)."""
    try:
        return global_scale.expand(torch.Size(lead))[..., None, None]
    except RuntimeError:
        got = tuple(global_scale.shape)
        raise ValueError(f"expected a global scale broadcastable to {tuple(lead)}, got shape {got}") from None


def _chunks(k: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same few rows of each (..., N, ?); the first is written to and must be contiguous."""
    flat = [tensors[0].view(-1, tensors[0].shape[-1]), *(t.reshape(-1, t.shape[-1]) for t in tensors[1:])]
    return zip(*(t.split(max(1, CHUNK // k)) for t in flat), strict=True)


def _check_convention(convention: str) -> None:
    if convention not in ("modelopt", "compressed-tensors"):
        raise ValueError(f"expected the convention modelopt or compressed-tensors, got {convention!r}")
