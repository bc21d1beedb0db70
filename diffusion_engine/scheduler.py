"""Who takes part in the next denoising step. Plain Python: no torch, no clock, no thread.

Each step denoises every canvas whose prefix is in the cache, and encodes pending tokens (prompts, finished canvases) in chunks, oldest request
first, as many as the budget allows; a sequence whose last pending token is encoded in a step denoises its canvas in that same step.
"""

from typing import NamedTuple, TypeAlias

from diffusion_engine.sequence import Sequence
from engine_core import scheduler
from engine_core.scheduler import Admission, share_rows

Group: TypeAlias = scheduler.Group[Sequence]
Chunk: TypeAlias = scheduler.Chunk[Sequence]


class Plan(NamedTuple):
    """One step. A sequence may be in both lists."""

    chunks: list[Chunk]
    canvases: list[Sequence]

    def sequences(self) -> list[Sequence]:
        """All that take part, once each."""
        return list(dict.fromkeys([*(chunk.sequence for chunk in self.chunks), *self.canvases]))


class Scheduler(Admission[Sequence]):
    """Chooses the work of every step."""

    def most_rows(self, sequence: Sequence) -> int:
        """A chunk and a canvas behind it."""
        return max(self.budget.encode_rows, sequence.canvas) + sequence.canvas

    def plan(self) -> Plan:
        """Admit who fits, and choose the next step's work; both lists are empty when there is nothing to do."""
        able = self.able()
        shares = share_rows([sequence for sequence in able if sequence.pending], self.budget.encode_rows)
        chunks, canvases = [], []
        for sequence in able:
            count = shares.get(sequence, 0)
            if count:
                chunks.append(Chunk(sequence, sequence.encoded, count))
            reached = sequence.encoded + count
            if count == sequence.pending:
                canvases.append(sequence)
                reached += sequence.canvas
            self.reach(sequence, reached)
        return Plan(chunks, canvases)

    def encoded(self, plan: Plan) -> None:
        """Take note that a plan's chunks stand in the cache now."""
        for sequence, start, length in plan.chunks:
            self.stands(sequence, start + length)
