"""Which implementation of an op runs: the Triton kernel on NVIDIA chips from sm_80, the torch twin everywhere else."""

import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 0)
FP4_CHIPS = (100, 120)  # compute capabilities with block-scaled FP4 matrix units
Backend = Literal["triton", "torch"]
P = ParamSpec("P")
R = TypeVar("R")


class KernelUnsupported(RuntimeError):
    """A kernel was asked for something it cannot do; the message says what was expected and what it got."""


@cache
def backend(op: str, device: torch.device) -> Backend:
    """The implementation that serves `op` on `device`; the choice is logged once for each op and device.

    `MOE_KERNELS_BACKEND=triton` or `torch` in the environment decides for all; kernels on a CPU then need `TRITON_INTERPRET=1`.
    """
    if forced := os.environ.get("MOE_KERNELS_BACKEND"):
        expect(forced in ("triton", "torch"), "MOE_KERNELS_BACKEND", "triton or torch", forced)
        chosen, why = forced, "MOE_KERNELS_BACKEND"
    elif device.type != "cuda":
        chosen, why = "torch", f"no kernel for {device.type}"
    elif (capability := torch.cuda.get_device_capability(device)) < MIN_CAPABILITY:
        chosen, why = "torch", f"compute capability {capability}, expected at least {MIN_CAPABILITY}"
    else:
        chosen, why = "triton", torch.cuda.get_device_name(device)
    log.info("%s on %s: %s (%s)", op, device, chosen, why)
    return chosen  # pyright: ignore[reportReturnType]


def launches(function: Callable[P, R]) -> Callable[P, R]:
    """Run a launcher with its tensors' device as the current one: Triton launches there, wherever the tensors are."""

    @wraps(function)
    def on_its_device(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.cuda.device_of(tensor):  # does nothing for a tensor on a CPU
            return function(*args, **kwargs)

    return on_its_device


def has_fp4_units(device: torch.device) -> bool:
    """Whether a CUDA device multiplies block-scaled FP4."""
    return torch.cuda.get_device_capability(device) >= (FP4_CHIPS[0] // 10, 0)


def expect(condition: bool, op: str, expected: str, got: object) -> None:
    """Raise `KernelUnsupported` unless `condition` holds."""
    if not condition:
        raise KernelUnsupported(f"{op}: expected {expected}, got {got}")
