"""What processes use of the machine, by /proc."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Of a process and all of its descendants, since they began."""

    cpu_s: float  # user and system time, that of children that have ended included
    waited_s: float  # ready to run while others had the cores; of threads that are alive

    def since(self, before: "Usage") -> "Usage":
        return Usage(self.cpu_s - before.cpu_s, self.waited_s - before.waited_s)


def usage(pid: int) -> Usage:
    """What /proc says. Raises ProcessLookupError: there is no such process."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        fields = stat[stat.rindex(")") + 2 :].split()  # a command's name may hold anything
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(int(field) for field in fields[11:15])
    if pid not in ticks:
        raise ProcessLookupError(f"expected a process that runs, got {pid}")
    tree = [one for one in parents if _descends(one, pid, parents)]
    return Usage(sum(ticks[one] for one in tree) / TICKS_PER_S, sum(_waited_s(one) for one in tree))


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor


def _waited_s(pid: int) -> float:
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int(thread.read_text().split()[1])
    return total / 1e9


def resident_mb(pid: int) -> float:
    """Memory of the process itself."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
