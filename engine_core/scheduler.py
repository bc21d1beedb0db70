"""Who is let in, and which pages they have: what the schedulers of both engines share. Plain Python: no torch, no clock, no thread.

Requests are admitted in the order of `ticket + priority * PATIENCE`, where tickets count arrivals: first come, first served within a priority,
and a request of lower priority is overtaken by at most PATIENCE later ones for each level between them, so none starves. A request is
admitted whole, with all its sequences, when slots and pages suffice for the longest it may become; so nothing that runs is ever evicted.
The first in line is never passed by one behind it that happens to fit.

From priority BACKGROUND on a request is background: work that nobody waits for, and that must not hold up the others, the foreground.

- Admission. Background leaves a reserve of slots and pages, so that foreground finds room. What of it is not admitted for that holds up its own
  class alone; what is larger than its share is admitted when nothing runs. Foreground that waits is passed by background only by patience, and
  then background may hold no more than the reserve.
- Steps. While foreground runs, background pauses: it keeps slots and pages and takes no part in steps, but for the oldest of it in every
  BACKGROUND_EVERY-th plan, so that it comes to its end. In the CALM plans after that only the oldest of it takes part: whoever has asked
  may ask again, and would wait for a step that is the longer the more take part in it.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from engine_core.pages import NOWHERE, PAGE, Kind, PagePool, Pages, PrefixHashes, first_page, pages_needed

PATIENCE = 1_000
BACKGROUND = 2  # of the priorities, the first that nobody waits for: 0 is a user, 1 helps one
RESERVE = 4  # one in so many slots and pages is left free by background
BACKGROUND_EVERY = 16  # one in so many plans made while foreground runs has background too
CALM = 256  # plans after the last with foreground, until all of the background takes part again
FEW = 16  # until then, and beside foreground, only as many as one in so many slots do
SPARE = (
    4  # of sliding layers, a page for so many in use remembers a prefix; full ones remember as long as there is room
)


class Member(Protocol):
    """A prompt and its growing answer."""

    prompt: list[int]
    tokens: list[int]  # the prompt and what has followed it
    encoded: int  # how many of them stand in the cache
    reused: int  # how many of these another request had encoded
    slot: int  # its place on the device, while it runs; else -1

    @property
    def longest(self) -> int:
        """The most positions it will ever hold."""
        ...

    @property
    def pending(self) -> int:
        """Tokens that are not encoded yet."""
        ...


S = TypeVar("S", bound=Member)
_Line: TypeAlias = "list[tuple[int, int, Group[S]]]"  # rank, ticket, request


class Budget(NamedTuple):
    """What a step and the cache can hold."""

    slots: int  # sequences that run together
    encode_rows: int  # tokens encoded in a step
    windows: Mapping[Kind, int | None]  # the window of each kind of layers
    pages: Mapping[Kind, int]  # of each kind, page 0 included

    @classmethod
    def of(
        cls, slots: int, encode_rows: int, windows: Mapping[Kind, int | None], tokens: int, most_rows: int
    ) -> "Budget":
        """With pages for so many tokens in full layers, and in sliding ones for what can be seen of them.

        Args:
            slots: see above.
            encode_rows: see above.
            windows: see above.
            tokens: positions that the cache holds.
            most_rows: positions that a sequence may write in one step.
        """
        most = -(-tokens // PAGE) + 1
        pages: dict[Kind, int] = {}
        for kind, window in windows.items():
            running = slots * pages_needed(tokens, window, most_rows)
            pages[kind] = most if window is None else min(most, running + running // SPARE + 1)
        return cls(slots, encode_rows, windows, pages)


@dataclass(eq=False)
class Group(Generic[S]):
    """A request's sequences, which share its prompt and are admitted together."""

    sequences: list[S]
    priority: int = 0  # 0 first; background from BACKGROUND on
    share_key: str | None = ""  # equal prefixes are found only under an equal key; None: never
    ticket: int = -1

    @property
    def slots(self) -> int:
        """One for each sequence."""
        return len(self.sequences)

    @property
    def background(self) -> bool:
        """Whether nobody waits for it."""
        return self.priority >= BACKGROUND


class Chunk(NamedTuple, Generic[S]):
    """Tokens of a sequence to be encoded: so many from `start` on."""

    sequence: S
    start: int
    length: int


class TooLong(ValueError):
    """A request that would not fit an idle engine either."""


class Admission(Generic[S]):
    """Holds the requests that wait and the sequences that run."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.pools: dict[Kind, PagePool] = {kind: PagePool(count) for kind, count in budget.pages.items()}
        self.running: list[S] = []  # in the order of admission
        self._pages: dict[S, dict[Kind, Pages]] = {}
        self._group_of: dict[S, Group[S]] = {}
        self._background: set[S] = set()  # of those that run
        self._hashes: dict[S, PrefixHashes] = {}  # of those that share
        self._lines: tuple[_Line[S], _Line[S]] = ([], [])  # heaps of those that wait: foreground, background
        self._busy_plans = 0  # made while foreground ran
        self._calm_plans = CALM  # made since then
        self._free_slots = list(range(budget.slots - 1, -1, -1))
        self._tickets = 0

    def most_rows(self, sequence: S) -> int:
        """Positions that a sequence may write in one step."""
        raise NotImplementedError

    def known_part(self, sequence: S) -> list[int]:
        """The part of a prompt that need not be encoded where another request has encoded it."""
        return sequence.prompt

    @property
    def waiting(self) -> int:
        """Requests not yet admitted."""
        return sum(map(len, self._lines))

    @property
    def background(self) -> int:
        """Background sequences that run, and background requests not yet admitted."""
        return len(self._background) + self.background_waiting

    @property
    def background_waiting(self) -> int:
        """Background requests not yet admitted."""
        return len(self._lines[True])

    def pages(self, sequence: S) -> Mapping[Kind, Pages]:
        """The pages of a running sequence, by kind of layer."""
        return self._pages[sequence]

    def add(self, group: Group[S]) -> None:
        """Put a request in line.

        Raises:
            TooLong: it needs more slots or pages than there are; says expected and got.
            ValueError: a negative priority, which would overtake without limit.
        """
        if group.priority < 0:
            raise ValueError(f"expected a priority of at least 0, got {group.priority}")
        if group.slots > self.budget.slots:
            raise TooLong(f"expected at most {self.budget.slots} answers at once, got {group.slots}")
        for kind, needed in self._needs(group.sequences).items():
            if needed > (most := self.budget.pages[kind] - 1):
                positions = group.sequences[0].longest
                raise TooLong(
                    f"expected a request that fits the cache of {most * PAGE} positions ({kind}), got "
                    f"{group.slots} x {positions}"
                )
        group.ticket = self._tickets
        self._tickets += 1
        rank = group.ticket + group.priority * PATIENCE
        heapq.heappush(self._lines[group.background], (rank, group.ticket, group))

    def remove(self, sequences: Iterable[S]) -> None:
        """Let sequences go, wherever they are: slot and pages are free at once."""
        for sequence in sequences:
            if sequence in self._pages:
                self.running.remove(sequence)
                for pages in self._pages.pop(sequence).values():
                    pages.release()
                self._free_slots.append(sequence.slot)
                sequence.slot = -1
                del self._group_of[sequence]
                self._background.discard(sequence)
                self._hashes.pop(sequence, None)

    def forget(self, group: Group[S]) -> None:
        """Let a whole request go, waiting or running."""
        if any(sequence in self._pages for sequence in group.sequences):
            self.remove(group.sequences)
        else:
            line = self._lines[group.background]
            line[:] = [entry for entry in line if entry[2] is not group]
            heapq.heapify(line)

    def able(self) -> list[S]:
        """Admit who fits; all that take part in the next step if there is work for them, in the order of admission."""
        self._admit()
        able = self._not_paused([sequence for sequence in self.running if not self._waits_for_twin(sequence)])
        for sequence in able:
            if sequence.encoded == 0:
                self._adopt_prefix(sequence)
        return able

    def reach(self, sequence: S, positions: int) -> None:
        """See that a sequence has pages for its first `positions`."""
        for pages in self._pages[sequence].values():
            pages.reach(positions)

    def stands(self, sequence: S, encoded: int) -> None:
        """Take note that a sequence's first `encoded` tokens stand in the cache now."""
        start, sequence.encoded = sequence.encoded, encoded
        if sequence in self._hashes:
            hashes = self._hashes[sequence].of(sequence.tokens[:encoded])
            for pages in self._pages[sequence].values():
                for i in range(start // PAGE, len(hashes)):
                    pages.pool.make_known(pages.table[i], hashes[i])
        for pages in self._pages[sequence].values():
            pages.forget(encoded)

    def _admit(self) -> None:
        while line := self._next_line():
            group = heapq.heappop(line)[2]
            for sequence in group.sequences:
                sequence.slot = self._free_slots.pop()
                self._group_of[sequence] = group
                if group.share_key is not None:
                    self._hashes[sequence] = PrefixHashes(group.share_key)
                self._pages[sequence] = {
                    kind: Pages(self.pools[kind], sequence.longest, window, self.most_rows(sequence))
                    for kind, window in self.budget.windows.items()
                }
                self.running.append(sequence)
            if group.background:
                self._background.update(group.sequences)

    def _next_line(self) -> "_Line[S] | None":
        """The line whose first request can be admitted now, if there is one; of two the one whose turn it is.

        Foreground that finds no room holds up everybody behind it, background nobody but its own.
        """
        for line in sorted(filter(None, self._lines), key=lambda line: line[0]):
            group = line[0][2]
            if self._fits(group) and (not group.background or self._leaves_reserve(group)):
                return line
            if not group.background:
                return None
        return None

    def _fits(self, group: Group[S]) -> bool:
        """Whether slots and pages suffice for a request."""
        needs = self._needs(group.sequences)
        return group.slots <= len(self._free_slots) and all(
            needed <= self.pools[kind].available for kind, needed in needs.items()
        )

    def _leaves_reserve(self, group: Group[S]) -> bool:
        """Whether background holds no more than its share with one more request, or the engine would be idle without it."""
        if not self.running:
            return True

        def share(whole: int) -> int:
            reserve = max(1, whole // RESERVE)
            return reserve if self._lines[False] else whole - reserve

        held = [*self._background, *group.sequences]
        return len(held) <= share(self.budget.slots) and all(
            needed <= share(self.budget.pages[kind] - 1) for kind, needed in self._needs(held).items()
        )

    def _needs(self, sequences: list[S]) -> dict[Kind, int]:
        return {
            kind: sum(pages_needed(one.longest, window, self.most_rows(one)) for one in sequences)
            for kind, window in self.budget.windows.items()
        }

    def _not_paused(self, able: list[S]) -> list[S]:
        """All of the foreground, and as much of the background as may take part in this plan."""
        background = [sequence for sequence in able if sequence in self._background]
        if len(background) < len(able):
            self._calm_plans = 0
            self._busy_plans += 1
            if self._busy_plans % BACKGROUND_EVERY:
                background = []
        else:
            self._calm_plans += 1
        if self._calm_plans <= CALM:
            background = background[: max(1, self.budget.slots // FEW)]
        taking_part = set(background)
        return [one for one in able if one in taking_part or one not in self._background]

    def _waits_for_twin(self, sequence: S) -> bool:
        """A group's other sequences wait until the first one has encoded the prompt, to share it."""
        group = self._group_of[sequence]
        first = group.sequences[0]
        return (
            sequence is not first
            and sequence.encoded == 0
            and group.share_key is not None
            and first in self._pages
            and first.encoded < len(first.prompt) >= PAGE
        )

    def _adopt_prefix(self, sequence: S) -> None:
        if sequence not in self._hashes:
            return
        hashes = self._hashes[sequence].of(self.known_part(sequence))
        found = {kind: [pool.find(known_as) for known_as in hashes] for kind, pool in self.pools.items()}
        for count in range(len(hashes), 0, -1):
            first = {kind: first_page(count * PAGE, window) for kind, window in self.budget.windows.items()}
            if all(NOWHERE not in found[kind][first[kind] : count] for kind in found):
                for kind, pages in self._pages[sequence].items():
                    pages.adopt([NOWHERE] * first[kind] + found[kind][first[kind] : count])
                sequence.encoded = sequence.reused = count * PAGE
                return


def share_rows(pending: list[S], rows: int) -> dict[S, int]:
    """How many tokens each encodes: half for the oldest, then the shortest first, and what is left for the oldest.

    So a long prompt holds up neither a short one nor a finished block, and is not held up by them either.

    Args:
        pending: who has tokens to encode, the oldest first.
        rows: that can be encoded in all.
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
