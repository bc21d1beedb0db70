"""Page tables on the device, and rows as attention takes them."""

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from engine_core.pages import PAGE, Kind, Pages


class PageTables:
    """For each kind of layers a table (slots, most pages) int32: entry i of a slot is the page of its positions 16 i ... 16 i + 15.

    Args:
        kinds: of layers.
        slots: how many there are.
        positions: the most of one sequence.
        device: where they lie.
    """

    def __init__(self, kinds: Iterable[Kind], slots: int, positions: int, device: torch.device) -> None:
        shape = (slots, -(-positions // PAGE))
        self._tables = {kind: torch.zeros(shape, dtype=torch.int32, device=device) for kind in kinds}
        self._copied: dict[tuple[Kind, int], tuple[ref[Any], int]] = {}  # of a kind and slot: how many pages of whom

    def __getitem__(self, kind: Kind) -> Tensor:
        """The table of a kind."""
        return self._tables[kind]

    def copy(self, owner: Any, slot: int, pages: Mapping[Kind, Pages]) -> None:
        """Copy what is new in the tables of a slot's owner; pages given back since then are never read again."""
        for kind, of_kind in pages.items():
            whose, copied = self._copied.get((kind, slot), (None, 0))
            copied = copied if whose and whose() is owner else 0
            if copied < len(of_kind.table):
                table = self._tables[kind]
                new = torch.tensor(of_kind.table[copied:], dtype=torch.int32, device=table.device)
                table[slot, copied : len(of_kind.table)] = new
                self._copied[kind, slot] = ref(owner), len(of_kind.table)

    def places(self, kind: Kind, slots: Tensor, positions: Tensor) -> Tensor:
        """Where rows write: 16 * page + offset, (T,) int64, for rows (T,) of slots at positions."""
        return self._tables[kind][slots, positions // PAGE].long() * PAGE + positions % PAGE


def row_blocks(spans: Iterable[tuple[int, int]], most: int) -> list[tuple[int, int, int]]:
    """Slot, first row and number of rows, at most `most`, of the blocks that attention works in.

    Args:
        spans: slots and their numbers of rows, in the order of the rows.
        most: rows of a block.
    """
    blocks, row = [], 0
    for slot, count in spans:
        blocks += [(slot, row + at, min(most, count - at)) for at in range(0, count, most)]
        row += count
    return blocks
