"""Which tokens of a draft to try next beside a growing answer. Plain Python: no torch.

While the answer is a prefix of the draft, all that is left of the draft is tried at once. After the first token that differs, the rest is aligned
again: where the answer's last tokens stand in the draft as well, the answer may go on as the draft does there; and where they don't, the
differing token may have taken the place of one of the draft's. How many tokens are tried follows how many were right of late, so a draft about
something else soon costs nothing.

What is tried never changes an answer: the model chooses every token itself, and a right guess only spares a forward pass.
"""

from math import ceil

LONGEST = 4  # tokens of a match, beyond which longer ones are no better
NEAR = 4  # a match of a single token counts this close to where the answer was expected to go on
HOPE = 1.0  # right tokens expected of the first try after a token that differs
MEMORY = 0.7  # weight of what was expected before a try
LITTLE = 0.15  # with fewer right tokens expected of a try, only long matches are tried


class Guide:
    """A draft, and where the answer stands in it.

    Args:
        draft: token ids.
        most: tokens that are tried at once after the first that differed; 0: none are.
    """

    def __init__(self, draft: list[int], most: int) -> None:
        self.draft = draft
        self.tried = 0
        self.reused = 0  # right ones among those tried after the first token that differed
        self._most = most
        self._follows: dict[int, list[int]] = {}  # token: the positions behind it
        for position, token in enumerate(draft, 1):
            self._follows.setdefault(token, []).append(position)
        self._agrees = True  # the answer is a prefix of the draft
        self._at = 0  # of the draft: where the answer is expected to go on
        self._length = 0  # of the answer, as far as it has been looked at
        self._expected = HOPE

    def propose(self, answer: list[int], room: int) -> list[int]:
        """Tokens that may come next, at most `room`."""
        self._follow(answer)
        if self._agrees:
            return self.draft[self._at :][:room]
        if not self._most or not answer:
            return []
        position, matched = self._align(answer)
        if self._expected < LITTLE and matched < LONGEST - 1:
            return []
        self._at = position
        return self.draft[position:][: min(room, self._most, ceil(2 * self._expected) + 1)]

    def learn(self, tried: int, right: int) -> None:
        """Take note that of `tried` tokens, the last that were proposed, the first `right` were taken."""
        if not tried:
            return
        self.tried += tried
        if not self._agrees:
            self.reused += right
            # All right: more would have been, nobody knows how many.
            self._expected = 2.0 * tried if right == tried else MEMORY * self._expected + (1 - MEMORY) * right

    def _follow(self, answer: list[int]) -> None:
        """Move on by what the answer has grown: token by token where it goes on as expected, and beside the draft where not."""
        if self._agrees:
            grown = answer[self._length :]
            self._agrees = self.draft[self._length : len(answer)] == grown
        self._at += len(answer) - self._length
        self._length = len(answer)

    def _align(self, answer: list[int]) -> tuple[int, int]:
        """Where in the draft the answer may go on, and how many of its last tokens stand before that."""
        found, best = self._at, (0, 0)
        for position in self._follows.get(answer[-1], ()):
            matched = 1
            while (
                matched < min(LONGEST, len(answer), position)
                and self.draft[position - 1 - matched] == answer[-1 - matched]
            ):
                matched += 1
            distance = abs(position - self._at)
            if (matched > 1 or distance <= NEAR) and (matched, -distance) > best:
                found, best = position, (matched, -distance)
        return found, best[0]
