"""Bytes kept in this process: what was not used for longest goes first, and nothing stays for too long."""

from collections import OrderedDict
from collections.abc import Callable

OVERHEAD = 300  # bytes of an entry besides its data, nearly


class LocalCache:
    """A cache of so many bytes.

    Encoded entries, not objects: only their size is known, and nobody can change what another request is given.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # when it ends, what it is
        self._bytes = 0

    def get(self, key: str) -> bytes | None:
        """What is kept under a key, if it is still good."""
        ends, data = self._entries.get(key, (0.0, b""))
        if not data:
            return None
        if ends <= self._clock():
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return data

    def put(self, key: str, data: bytes, ttl_s: float) -> None:
        """Keep data for so long at most, instead of what was kept before."""
        self.drop(key)
        self._entries[key] = (self._clock() + ttl_s, data)
        self._bytes += len(data) + OVERHEAD
        while self._bytes > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, key: str) -> bool:
        """Let go of a key; tell whether it was there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._bytes -= len(entry[1]) + OVERHEAD
        return True
