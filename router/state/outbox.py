"""Redis writes that can wait: collected on the request path, sent together once a second."""

import asyncio
from collections import Counter, deque

from router.state.store import Command, Store

FLUSH_EVERY_S = 1.0
MOST_PENDING = 20_000  # while Redis is gone the oldest go first
MOST_PER_TRIP = 16  # fakeredis spends 0.2 ms of the event loop on each, and so long a request may have to wait


class Outbox:
    """Commands and counts to be sent. What was sent but not confirmed is sent again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: Counter[tuple[str, str]] = Counter()  # (key, field)
        self._pending: deque[Command] = deque(maxlen=MOST_PENDING)
        self._sending = asyncio.Lock()

    def add(self, command: Command) -> None:
        """Leave a command to be sent soon, after all counts so far."""
        self._pending.append(command)

    def count(self, key: str, field: str) -> None:
        """Leave one more of something to be added to a hash."""
        self._counts[key, field] += 1

    async def flush(self) -> None:
        """Send what is pending; keep it if Redis doesn't answer.

        Once it returns, all that was left before the call is in Redis, or Redis is away.
        """
        async with self._sending:
            counts, self._counts = self._counts, Counter()
            self._put_back([("HINCRBY", key, field, n) for (key, field), n in counts.items()])
            while self._pending:
                size = min(len(self._pending), MOST_PER_TRIP)
                batch = [self._pending.popleft() for _ in range(size)]
                sent = None
                try:
                    sent = await self._store.run(*batch)
                finally:  # also when cancelled on the way
                    if sent is None:
                        self._put_back(batch)
                if sent is None:
                    return
                await asyncio.sleep(0)  # others first

    async def flush_forever(self) -> None:
        """Flush about once a second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self.flush()

    def _put_back(self, batch: list[Command]) -> None:
        self._pending = deque([*batch, *self._pending], maxlen=MOST_PENDING)
