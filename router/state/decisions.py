"""The decision log: one line per request, and a stream in Redis, capped by count and age.

No text of the conversation is in either, unless the operator wants some kept: then the last turn and the answer are in the stream, redacted
and cut. They never are in the process log.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct

from router.policy import DecisionRecord
from router.redact import redacted
from router.serving.messages import Texts
from router.settings import PrivacySettings
from router.state.outbox import Outbox
from router.state.store import Command, Store

STREAM = "draftgate:decisions"
KEPT = 10_000
PAGE = 500
TRIM_EVERY_S = 60.0

logger = logging.getLogger("draftgate.decisions")


class LoggedDecision(Struct, frozen=True):
    """A decision, and of the conversation what is kept."""

    record: DecisionRecord
    texts: Texts | None = None  # redacted and cut; None: not kept


class DecisionLog:
    """Writes decisions off the request path."""

    def __init__(self, store: Store, outbox: Outbox, privacy: PrivacySettings) -> None:
        self._store = store
        self._outbox = outbox
        self._privacy = privacy

    def add(self, record: DecisionRecord, texts: Texts | None = None) -> None:
        """Log one decision."""
        line = msgspec.json.encode(record)
        logger.info("decision %s", line.decode())
        command: Command = ("XADD", STREAM, "MAXLEN", "~", KEPT, "*", "record", line)
        if texts is not None and self._privacy.keep_text:
            most = self._privacy.text_chars
            shown = Texts(redacted(texts.asked, most), redacted(texts.answered, most))
            command += ("texts", msgspec.json.encode(shown))
        self._outbox.add(command)

    async def latest(self, count: int) -> list[LoggedDecision]:
        """The newest decisions first, without those that another version of the gateway wrote in another way; empty when Redis is gone."""
        replies = await self._store.run(("XREVRANGE", STREAM, "+", "-", "COUNT", count))
        entries: list[tuple[bytes, dict[bytes, bytes]]] = replies[0] if replies else []
        return [logged for _, fields in entries if (logged := _logged(fields)) is not None]

    async def forget(self, tenant: str, request_id: str) -> bool | None:
        """Delete a request's line from the stream.

        Returns: whether there was one; None: Redis is away, so it can't be told.
        """
        await self._outbox.flush()  # it may be the latest request
        ids: list[bytes] = []
        async with aclosing(self._pages()) as pages:
            async for page in pages:
                if page is None:
                    return None
                ids += [name for name, fields in page if _is_of(fields[b"record"], tenant, request_id)]
        if not ids:
            return False
        done = await self._store.run(("XDEL", STREAM, *ids))
        return None if done is None else True

    async def trim_forever(self) -> None:
        """Keep no decision longer than the settings say, until cancelled."""
        while True:
            await self.trim()
            await asyncio.sleep(TRIM_EVERY_S)

    async def trim(self) -> None:
        """Let go of all that is too old; of everything at last, if nobody comes any more to do so."""
        kept_s = self._privacy.keep_hours * 3600
        oldest_ms = int((time.time() - kept_s) * 1000)
        # exact, as "~" would leave up to a hundred lines until they are a full node of the stream
        await self._store.run(("XTRIM", STREAM, "MINID", "=", oldest_ms), ("EXPIRE", STREAM, kept_s))

    async def _pages(self) -> AsyncGenerator[list[tuple[bytes, dict[bytes, bytes]]] | None, None]:
        """The whole stream, newest first; then None if Redis is away."""
        end = "+"
        while True:
            replies: list[Any] | None = await self._store.run(("XREVRANGE", STREAM, end, "-", "COUNT", PAGE))
            page = replies[0] if replies else None
            if page == []:
                return
            yield page
            if page is None:
                return
            end = f"({page[-1][0].decode()}"


def _logged(fields: dict[bytes, bytes]) -> LoggedDecision | None:
    try:
        record = msgspec.json.decode(fields[b"record"], type=DecisionRecord)
        return LoggedDecision(record, msgspec.json.decode(fields.get(b"texts", b"null"), type=Texts | None))
    except msgspec.DecodeError:
        return None


class _Origin(Struct):
    """Whose line it is, whatever version wrote the rest."""

    request_id: str
    tenant: str = ""


def _is_of(line: bytes, tenant: str, request_id: str) -> bool:
    if request_id.encode() not in line:  # much sooner known than by decoding
        return False
    origin = msgspec.json.decode(line, type=_Origin)
    return (origin.tenant, origin.request_id) == (tenant, request_id)
