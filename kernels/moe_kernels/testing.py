"""How far two results are apart, and an assertion that reports both the largest and the typical error."""

from typing import NamedTuple

import torch
from torch import Tensor


class Error(NamedTuple):
    """Largest and root-mean-square difference, both divided by the root-mean-square of the expected values."""

    max: float
    rms: float


def error(actual: Tensor, expected: Tensor) -> Error:
    """Relative errors of `actual` against `expected`, of equal shape, computed in float64.

    max = max_i |a_i - e_i| / rms(e), rms = sqrt(mean (a - e)^2) / rms(e); with rms(e) = 0, absolute errors.
    A NaN or an infinity in one and not the other gives an infinite error.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    if not torch.equal(a.isnan(), e.isnan()) or not torch.equal(a[a.isinf()], e[a.isinf()]):
        return Error(float("inf"), float("inf"))
    finite = e.isfinite()
    a, e = a[finite], e[finite]
    if not e.numel():
        return Error(0.0, 0.0)
    scale = e.square().mean().sqrt().item() or 1.0
    off = (a - e).abs()
    return Error(off.max().item() / scale, off.square().mean().sqrt().item() / scale)


def assert_close(actual: Tensor, expected: Tensor, *, max_error: float, rms_error: float) -> None:
    """Fail unless both relative errors stay within their bounds; the message tells both."""
    found = error(actual, expected)
    if not (found.max <= max_error and found.rms <= rms_error):
        raise AssertionError(
            f"max error {found.max:.3g} (allowed {max_error:.3g}), rms error {found.rms:.3g} (allowed {rms_error:.3g})"
        )
