"""Stop sequences: cut the text before the first one, however it was split into deltas."""


class StopCutter:
    """Lets text through until a stop sequence completes; that and all after it is dropped.

    Of several, the one that is complete first wins, so the cut does not depend on how the text
    was split. A tail that may still become a stop sequence is held back.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """Take more text; returns what is safe to show."""
        if self.hit:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.hit = True
            return self._held[: min(found)[1]]
        safe = len(self._held) - self._doubtful()
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def rest(self) -> str:
        """The tail held back, once no more text can come."""
        return "" if self.hit else self._held

    def _doubtful(self) -> int:
        """Length of the longest tail that begins a stop sequence."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(s.startswith(tail) for s in self._stops):
                return length
        return 0


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """A whole text up to its first stop sequence, and whether there was one."""
    cutter = StopCutter(stops)
    shown = cutter.feed(text) + cutter.rest()
    return shown, cutter.hit
