"""The decision log: one line per request, and a capped stream in Redis. Never any prompt text."""

import logging

import msgspec

from router.policy import DecisionRecord
from router.state.outbox import Outbox
from router.state.store import Store

STREAM = "draftgate:decisions"
KEPT = 10_000

logger = logging.getLogger("draftgate.decisions")


class DecisionLog:
    """Writes decisions off the request path."""

    def __init__(self, store: Store, outbox: Outbox) -> None:
        self._store = store
        self._outbox = outbox

    def add(self, record: DecisionRecord) -> None:
        """Log one decision."""
        line = msgspec.json.encode(record)
        logger.info("decision %s", line.decode())
        self._outbox.add(("XADD", STREAM, "MAXLEN", "~", KEPT, "*", "record", line))

    async def latest(self, count: int) -> list[DecisionRecord]:
        """The newest decisions first; empty when Redis is gone."""
        replies = await self._store.run(("XREVRANGE", STREAM, "+", "-", "COUNT", count))
        entries: list[tuple[bytes, dict[bytes, bytes]]] = replies[0] if replies else []
        return [msgspec.json.decode(f[b"record"], type=DecisionRecord) for _, f in entries]
