"""The parts of the forward that stand alone; `test_parity.py` holds the whole against transformers."""

import pytest
import torch

from diffusion_engine.model import GatedMLP
from moe_kernels.moe import by_column


@pytest.mark.parametrize("rows", [257, 513, 1024])
def test_a_dense_mlp_gives_a_row_the_same_bits_however_many_there_are(rows: int) -> None:
    """A part of a single row would be summed in another order."""
    torch.manual_seed(0)
    mlp = GatedMLP(*by_column(torch.randn(512, 128) * 0.1, torch.randn(128, 256) * 0.1))
    x = torch.randn(rows, 128)
    together = mlp(x)
    for some in (slice(0, 64), slice(rows - 2, rows), slice(200, 400)):
        assert torch.equal(mlp(x[some]), together[some])
