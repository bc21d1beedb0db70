"""When a kernel's test can run: through Triton's interpreter, or on a GPU."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
_needs_gpu = pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device")


def on_gpu(test):
    """Mark a test of compiled kernels on a CUDA device."""
    return pytest.mark.gpu(_needs_gpu(test))
