"""The device that engines of this process load onto."""

import os
from pathlib import Path

import torch

from engine_core.memory import CONTEXT, Device

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none


def here(*, unused: bool = False) -> Device:
    """The GPU that torch uses, or else the host.

    Args:
        unused: of a GPU's memory count only what no process has; what this one's context takes stays counted, for it is in the reserve.
    """
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Device(torch.cuda.get_device_name(), "cuda", min(total, free + CONTEXT) if unused else total)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = LIMIT.read_text().strip() if LIMIT.exists() else "max"
    return Device("host memory (no GPU here)", "cpu", total if limit == "max" else min(total, int(limit)))
