"""The device that engines of this process load onto."""

import os
from pathlib import Path

import torch

from engine_core.memory import CONTEXT, Device

_ALL = torch.get_num_threads()  # before anyone sets another number

SMALL = 1024  # hidden features below which several threads wait for each other longer than they work
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none


def use_threads(wanted: int, hidden: int) -> None:
    """Set how many threads share an operation on a CPU, for work of the calling thread.

    Args:
        wanted: so many; 0 for one where the model is small, and else for all cores: two engines with several threads each, waiting for
            each other's cores at every operation, take several times as long.
        hidden: the model's hidden features.
    """
    torch.set_num_threads(wanted or (1 if hidden < SMALL else _ALL))


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
