"""Who takes part in the next step. Plain Python: no torch, no clock, no thread.

Each step denoises every canvas whose prefix is in the cache, and encodes pending tokens (prompts, finished canvases) in chunks, oldest request
first, as many as the budget allows; a sequence whose last pending token is encoded in a step denoises its canvas in that same step.

Requests are admitted in the order of `ticket + priority * PATIENCE`, where tickets count arrivals: first come, first served within a priority,
and a request of lower priority is overtaken by at most PATIENCE later ones for each level between them, so none starves. A request is
admitted whole, with all its candidates, when slots and pages suffice for the longest it may become; so nothing that runs is ever evicted.
The first in line is never passed by one behind it that happens to fit.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from diffusion_engine.pages import NOWHERE, PAGE, Kind, PagePool, Pages, PrefixHashes, first_page, pages_needed
from diffusion_engine.sequence import Sequence

PATIENCE = 1_000


class Budget(NamedTuple):
    """What a step and the cache can hold."""

    slots: int  # canvases denoised together
    encode_rows: int  # tokens encoded in a step
    windows: Mapping[Kind, int | None]  # the window of each kind of layers
    pages: Mapping[Kind, int]  # of each kind, page 0 included


@dataclass(eq=False)
class Group:
    """A request's candidates, which share its prompt and are admitted together."""

    sequences: list[Sequence]
    priority: int = 0  # 0 first
    share_key: str | None = ""  # equal prefixes are found only under an equal key; None: never
    ticket: int = -1

    @property
    def slots(self) -> int:
        """One for each candidate."""
        return len(self.sequences)


class Chunk(NamedTuple):
    """Tokens of a sequence to be encoded: so many from `start` on."""

    sequence: Sequence
    start: int
    length: int


class Plan(NamedTuple):
    """One step. A sequence may be in both lists."""

    chunks: list[Chunk]
    canvases: list[Sequence]

    def sequences(self) -> list[Sequence]:
        """All that take part, once each."""
        return list(dict.fromkeys([*(chunk.sequence for chunk in self.chunks), *self.canvases]))


class TooLong(ValueError):
    """A request that would not fit an idle engine either."""


class Scheduler:
    """Holds the requests that wait and the sequences that run."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.pools: dict[Kind, PagePool] = {kind: PagePool(count) for kind, count in budget.pages.items()}
        self.running: list[Sequence] = []  # in the order of admission
        self._pages: dict[Sequence, dict[Kind, Pages]] = {}
        self._group_of: dict[Sequence, Group] = {}
        self._hashes: dict[Sequence, PrefixHashes] = {}  # of those that share
        self._waiting: list[tuple[int, int, Group]] = []
        self._free_slots = list(range(budget.slots - 1, -1, -1))
        self._tickets = 0

    @property
    def waiting(self) -> int:
        """Requests not yet admitted."""
        return len(self._waiting)

    def pages(self, sequence: Sequence) -> Mapping[Kind, Pages]:
        """The pages of a running sequence, by kind of layer."""
        return self._pages[sequence]

    def add(self, group: Group) -> None:
        """Put a request in line.

        Raises:
            TooLong: it needs more slots or pages than there are; says expected and got.
            ValueError: a negative priority, which would overtake without limit.
        """
        if group.priority < 0:
            raise ValueError(f"expected a priority of at least 0, got {group.priority}")
        if group.slots > self.budget.slots:
            raise TooLong(f"expected at most {self.budget.slots} candidates, got {group.slots}")
        for kind, needed in self._needs(group).items():
            if needed > (most := self.budget.pages[kind] - 1):
                positions = group.sequences[0].longest
                raise TooLong(
                    f"expected a request that fits the cache of {most * PAGE} positions ({kind}), got "
                    f"{group.slots} x {positions}"
                )
        group.ticket = self._tickets
        self._tickets += 1
        rank = group.ticket + group.priority * PATIENCE
        heapq.heappush(self._waiting, (rank, group.ticket, group))

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Let sequences go, wherever they are: slot and pages are free at once."""
        for sequence in sequences:
            if sequence in self._pages:
                self.running.remove(sequence)
                for pages in self._pages.pop(sequence).values():
                    pages.release()
                self._free_slots.append(sequence.slot)
                sequence.slot = -1
                del self._group_of[sequence]
                self._hashes.pop(sequence, None)

    def forget(self, group: Group) -> None:
        """Let a whole request go, waiting or running."""
        if any(sequence in self._pages for sequence in group.sequences):
            self.remove(group.sequences)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not group]
            heapq.heapify(self._waiting)

    def plan(self) -> Plan:
        """Admit who fits, and choose the next step's work; both lists are empty when there is nothing to do."""
        self._admit()
        able = [sequence for sequence in self.running if not self._waits_for_twin(sequence)]
        for sequence in able:
            if sequence.encoded == 0:
                self._adopt_prefix(sequence)
        shares = _shares([sequence for sequence in able if sequence.pending], self.budget.encode_rows)
        chunks, canvases = [], []
        for sequence in able:
            count = shares.get(sequence, 0)
            if count:
                chunks.append(Chunk(sequence, sequence.encoded, count))
            reached = sequence.encoded + count
            if count == sequence.pending:
                canvases.append(sequence)
                reached += sequence.canvas
            for pages in self._pages[sequence].values():
                pages.reach(reached)
        return Plan(chunks, canvases)

    def encoded(self, plan: Plan) -> None:
        """Take note that a plan's chunks stand in the cache now."""
        for sequence, start, length in plan.chunks:
            sequence.encoded = start + length
            if sequence in self._hashes:
                hashes = self._hashes[sequence].of(sequence.tokens[: sequence.encoded])
                for pages in self._pages[sequence].values():
                    for i in range(start // PAGE, len(hashes)):
                        pages.pool.make_known(pages.table[i], hashes[i])
            for pages in self._pages[sequence].values():
                pages.forget(sequence.encoded)

    def _admit(self) -> None:
        while self._waiting:
            group = self._waiting[0][2]
            if group.slots > len(self._free_slots):
                return
            if any(needed > self.pools[kind].available for kind, needed in self._needs(group).items()):
                return
            for sequence in group.sequences:
                sequence.slot = self._free_slots.pop()
                self._group_of[sequence] = group
                if group.share_key is not None:
                    self._hashes[sequence] = PrefixHashes(group.share_key)
                self._pages[sequence] = {
                    kind: Pages(self.pools[kind], sequence.longest, window, self._most_rows(sequence))
                    for kind, window in self.budget.windows.items()
                }
                self.running.append(sequence)
            heapq.heappop(self._waiting)

    def _needs(self, group: Group) -> dict[Kind, int]:
        return {
            kind: sum(pages_needed(one.longest, window, self._most_rows(one)) for one in group.sequences)
            for kind, window in self.budget.windows.items()
        }

    def _most_rows(self, sequence: Sequence) -> int:
        """Positions that a sequence may write in one step."""
        return max(self.budget.encode_rows, sequence.canvas) + sequence.canvas

    def _waits_for_twin(self, sequence: Sequence) -> bool:
        """A candidate waits until the first one has encoded the prompt, to share it."""
        group = self._group_of[sequence]
        first = group.sequences[0]
        return (
            sequence is not first
            and sequence.encoded == 0
            and group.share_key is not None
            and first in self._pages
            and first.encoded < len(first.prompt) >= PAGE
        )

    def _adopt_prefix(self, sequence: Sequence) -> None:
        if sequence not in self._hashes:
            return
        hashes = self._hashes[sequence].of(sequence.prompt)
        found = {kind: [pool.find(known_as) for known_as in hashes] for kind, pool in self.pools.items()}
        for count in range(len(hashes), 0, -1):
            first = {kind: first_page(count * PAGE, window) for kind, window in self.budget.windows.items()}
            if all(NOWHERE not in found[kind][first[kind] : count] for kind in found):
                for kind, pages in self._pages[sequence].items():
                    pages.adopt([NOWHERE] * first[kind] + found[kind][first[kind] : count])
                sequence.encoded = sequence.reused = count * PAGE
                return


def _shares(pending: list[Sequence], rows: int) -> dict[Sequence, int]:
    """How many tokens each encodes: half for the oldest, then the shortest first, and what is left for the oldest.

    So a long prompt holds up neither a short one nor a finished canvas, and is not held up by them either.
    """
    if not pending:
        return {}
    oldest, *others = pending
    shares = {oldest: min(oldest.pending, -(-rows // 2))}
    left = rows - shares[oldest]
    for sequence in sorted(others, key=lambda one: one.pending):
        share = min(sequence.pending, left)
        # A product of a single row is summed in another order, so no step should consist of one if it can be helped.
        shares[sequence] = 0 if share == 1 < sequence.pending else share
        left -= shares[sequence]
    shares[oldest] += min(left, oldest.pending - shares[oldest])
    return shares
