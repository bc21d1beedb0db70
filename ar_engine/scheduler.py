"""Who takes part in the next forward pass, and with which tokens. Plain Python: no torch, no clock, no thread.

Every sequence whose prompt stands in the cache, but for its last token, gets its next one in each step, and with it a number of tokens of its
draft are tried; prompts are encoded beside that, in chunks. A prompt's last chunk gives its answer's first token in the same step.
"""

from typing import NamedTuple, TypeAlias

from ar_engine.sequence import Sequence
from engine_core import scheduler
from engine_core.scheduler import Admission, share_rows

Group: TypeAlias = scheduler.Group[Sequence]


class Work(NamedTuple):
    """A sequence's part in a step: so many of its tokens from `start` on, and behind them what is tried."""

    sequence: Sequence
    start: int
    length: int
    tried: list[int]
    answers: bool  # whether the next token follows: the chunk reaches the last one

    @property
    def rows(self) -> int:
        """Rows of the forward pass."""
        return self.length + len(self.tried)


class Scheduler(Admission[Sequence]):
    """Chooses the work of every step: of prompts, and of drafts, at most `encode_rows` tokens each."""

    def most_rows(self, sequence: Sequence) -> int:
        """A chunk, what is tried behind it, and an image that is encoded in one piece whatever its size."""
        image = max((image.count for image in sequence.images), default=0) if sequence.whole_images else 0
        return 2 * self.budget.encode_rows + 1 + image

    def known_part(self, sequence: Sequence) -> list[int]:
        """All but the last token: without a row for it there would be no next one."""
        return sequence.prompt[:-1]

    def plan(self) -> list[Work]:
        """Admit who fits, and choose the next step's work; empty when there is nothing to do."""
        able = self.able()
        shares = share_rows([sequence for sequence in able if sequence.pending > 1], self.budget.encode_rows)
        free = self.budget.encode_rows
        works = []
        for sequence in able:
            length = sequence.whole(shares.get(sequence, 1))
            answers = length == sequence.pending
            tried = sequence.propose(free) if answers else []
            free -= min(free, len(tried))
            if length:
                works.append(Work(sequence, sequence.encoded, length, tried, answers))
                self.reach(sequence, sequence.encoded + length + len(tried))
        return works
