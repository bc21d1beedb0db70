"""The gated activation against its formula in float64."""

import pytest
import torch
from torch.nn.functional import gelu

from moe_kernels.activation import gated_gelu
from moe_kernels.testing import assert_close


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(torch.float32, {"max_error": 1e-6, "rms_error": 2e-7}, id="float32"),
        pytest.param(torch.bfloat16, {"max_error": 5e-2, "rms_error": 5e-3}, id="bfloat16"),
    ],
)
def test_it_is_the_formula_in_float64_also_of_slices(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    torch.manual_seed(0)
    gate, up = (2 * torch.randn(40, 2 * 33)).to(dtype).chunk(2, dim=-1)
    exact = gelu(gate.double(), approximate="tanh") * up.double()
    assert_close(gated_gelu(gate, up), exact, **tolerance)


def test_gates_far_from_zero_saturate() -> None:
    gate = torch.tensor([-1e30, -100.0, -0.0, 0.0, 100.0, 2.0**40])
    assert gated_gelu(gate, torch.ones(6)).tolist() == [0.0, 0.0, 0.0, 0.0, 100.0, 2.0**40]


def test_a_row_gets_the_same_bits_wherever_it_stands() -> None:
    torch.manual_seed(1)
    gate, up = torch.randn(41, 2 * 37).chunk(2, dim=-1)
    together = gated_gelu(gate, up)
    for some in (slice(40, 41), slice(3, 5), slice(7, 40)):
        assert torch.equal(gated_gelu(gate[some], up[some]), together[some])
