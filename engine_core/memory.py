"""What engines keep in memory, and what there is. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["cuda", "cpu"]

CONTEXT = 500_000_000  # bytes of a CUDA context with the modules of torch and cuBLAS, about
RESERVE: dict[Kind, int] = {"cuda": 1_500_000_000, "cpu": 600_000_000}
"""Bytes that belong to no engine. On a GPU the context, cuBLAS's workspaces, the nodes of CUDA graphs and what the caching allocator rounds
up or can't use for its pieces: an allowance, not a measurement. On a CPU Python and its libraries, measured as 0.43 GB once imported.
"""


class DoesNotFit(ValueError):
    """There is less memory than what is configured needs; the message says expected and got."""


@dataclass(frozen=True)
class Memory:
    """Bytes that an engine holds once it serves, at its largest."""

    weights: int
    cache: int  # keys and values
    state: int  # what else outlives a step
    workspace: int  # what a step needs while it runs
    cache_tokens: int  # positions that the cache holds

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.cache + self.state + self.workspace


@dataclass(frozen=True)
class Device:
    """Where engines run."""

    name: str
    kind: Kind
    capacity: int  # bytes

    @property
    def reserve(self) -> int:
        """Bytes that belong to no engine."""
        return RESERVE[self.kind]

    @property
    def room(self) -> int:
        """Bytes for all engines together."""
        return self.capacity - self.reserve
