"""What equal requests found out before: a small local cache in front of the shared one.

The key is a hash of everything that can change an answer; nobody can read a prompt back out of it, and no two tenants share one. What is
kept is the answer and what is thought of it, never the prompt. Without a Redis of its own the gateway has nobody to share with: everything
stays in the local cache, which is bounded.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec

from router.serving.messages import BACKGROUND, Ask, Kept
from router.settings import CacheSettings
from router.state.flights import Flight, Lease, Leases, Line, Lines, Place
from router.state.local import LocalCache
from router.state.outbox import Outbox
from router.state.store import Store

CACHE_VERSION = 1  # of the key and of what is kept; another one finds nothing
# All but what changes no answer, so that a field added to Ask is in the key unless it is put here.
NOT_KEYED = frozenset(
    {"request_id", "model", "conversation", "quality_target", "cache", "provisional", "priority", "timeout_s"}
)
KEYED = tuple((field.name, field.type is float) for field in msgspec.structs.fields(Ask) if field.name not in NOT_KEYED)

PATIENCE = 0.5  # share of a request's time that it may wait for an equal one
LOOK_EVERY_S = (0.02, 0.05)  # whether another gateway's leader has landed
FORGOTTEN = "draftgate:forgotten"  # the stream of keys that were deleted
FORGOTTEN_KEPT = 1000
WATCH_EVERY_S = 1.0


def fingerprint(parts: Iterable[object]) -> bytes:
    """SHA-256 over any JSON-like values, each with its length, so no two lists run together.

    The order of an object's keys does not count. Texts count byte by byte, and 1, 1.0 and true are three values: a template prints them
    differently.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = msgspec.json.encode(part, order="deterministic")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def cache_key(namespace: str, ask: Ask) -> str:
    """A hash of what the answer to `ask` depends on. `namespace` stands for models and engine settings.

    Thresholds and classifiers are not in it: they judge what is kept. Sampling fields are numbers, so 1 and 1.0 are the same there.
    """
    fields = ((name, getattr(ask, name), is_float) for name, is_float in KEYED)
    wanted = ((name, float(value) + 0.0 if is_float else value) for name, value, is_float in fields)
    return fingerprint((CACHE_VERSION, namespace, *wanted)).hex()


class AnswerCache:
    """Looks up what is known of a request, and lets equal ones wait for the first."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        settings: CacheSettings,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._settings = settings
        self._namespace = namespace
        self._shared = store.state != "embedded"
        self._local = LocalCache(settings.local_bytes, clock)
        self._requests = LocalCache(settings.local_bytes, clock)  # keys by request, where no Redis is shared
        self._lines = Lines()
        self._leases = Leases(store)
        self._forgotten = 0  # keys, ever

    @asynccontextmanager
    async def board(self, ask: Ask, enough: Callable[[Kept], bool], wait_s: float) -> AsyncGenerator[Flight, None]:
        """Find what is known of a request, or be the one to find it out.

        Who finds an equal request under way waits for what that one lands, for half of `wait_s` at most; then it goes on by itself. However
        the context is left, the next one may lead.

        Args:
            ask: the request.
            enough: is this all that the request needs?
            wait_s: seconds that are left for the request.
        """
        if not self._may_keep(ask):
            yield Flight(None, leads=True)
            return
        key = cache_key(self._namespace, ask)
        kept = self._found(key)
        if kept is not None and enough(kept):
            self._remember(ask, key)
            yield Flight(kept, leads=False)
            return
        if ask.priority >= BACKGROUND:
            async with self._aside(ask, key, kept, enough) as flight:
                yield flight
            return
        deadline = asyncio.get_running_loop().time() + PATIENCE * wait_s
        lease = self._leases.new(key)
        async with self._lines.stand(key, deadline) as place:
            try:
                kept = place.line.landed or self._found(key)
                if place.first and self._shared and not (kept and enough(kept)):
                    kept = await self._look(key, lease, kept, enough, deadline)
                if kept is not None and enough(kept):
                    if place.first:
                        self._lines.land(key, place, kept)  # the others need not wait until this one is served
                    self._remember(ask, key)
                    yield Flight(kept, leads=False)
                else:
                    yield Flight(kept, leads=True, land=lambda kept: self._land(ask, key, place, kept))
            finally:
                place.give_up()
                await self._leases.give_back(lease)

    @asynccontextmanager
    async def _aside(
        self, ask: Ask, key: str, kept: Kept | None, enough: Callable[[Kept], bool]
    ) -> AsyncGenerator[Flight, None]:
        """The flight of a request that nobody waits for: nobody who is waited for may have to wait for it."""
        if self._shared and (replies := await self._store.run(("GET", entry_key(key)))) and replies[0] is not None:
            kept = _decoded(replies[0]) or kept
        if kept is not None and enough(kept):
            self._remember(ask, key)
            yield Flight(kept, leads=False)
        else:
            place = Place(Line(), first=False)
            yield Flight(kept, leads=True, land=lambda kept: self._land(ask, key, place, kept))

    async def forget(self, tenant: str, request_id: str) -> bool | None:
        """Delete what a request found out or was served from, here at once and in other gateways about a second later.

        Returns: whether anything was known of the request; None: Redis is away, so it can't be told.
        """
        name = request_key(tenant, request_id)
        if not self._shared:
            return self._forget_here(name)
        await self._outbox.flush()  # it may be the latest request
        replies = await self._store.run(("GET", name))
        if replies is None or replies[0] is None:
            return None if replies is None else False
        key = replies[0].decode()
        self._drop(key)
        note = ("XADD", FORGOTTEN, "MAXLEN", "~", FORGOTTEN_KEPT, "*", "key", key)
        # what the request is found by goes last: who was told that it failed can ask again
        done = await self._store.run(note, ("DEL", entry_key(key)), ("DEL", name))
        return None if done is None else True

    async def watch_forever(self) -> None:
        """Follow what other gateways delete, and keep this one's leases, until cancelled."""
        last = "-"
        while self._shared:
            last = await self.watch(last)
            await asyncio.sleep(WATCH_EVERY_S)

    async def watch(self, last: str) -> str:
        """Look once for deletions after the one with the id `last`, "-" for all; returns the id of the newest."""
        await self._leases.extend()
        replies = await self._store.run(("XRANGE", FORGOTTEN, last if last == "-" else f"({last}", "+"))
        for name, fields in replies[0] if replies else ():
            last, key = name.decode(), fields[b"key"].decode()
            if self._drop(key):  # it may have been stored after the deletion
                await self._store.run(("DEL", entry_key(key)))
        return last

    def _may_keep(self, ask: Ask) -> bool:
        if ask.cache is not None or self._settings.keep == "nothing":
            return bool(ask.cache)
        return ask.deterministic or self._settings.keep == "all"

    async def _look(
        self, key: str, lease: Lease, kept: Kept | None, enough: Callable[[Kept], bool], deadline: float
    ) -> Kept | None:
        """What Redis knows: enough, or all there is once this request may lead, nobody answers or the time is up."""
        loop = asyncio.get_running_loop()
        while True:
            forgotten = self._forgotten
            found = await self._leases.take(lease, ("GET", entry_key(key)), ("PTTL", entry_key(key)))
            if found is None:
                return kept
            leads, (data, left_ms) = found
            if data is not None and (newer := _decoded(data)) is not None:
                kept = newer
                if self._forgotten == forgotten:  # else it may be this one that was deleted meanwhile
                    self._local.put(key, data, left_ms / 1000)
            if leads or (kept is not None and enough(kept)) or loop.time() >= deadline:
                return kept
            await asyncio.sleep(min(random.uniform(*LOOK_EVERY_S), max(0.0, deadline - loop.time())))

    async def _land(self, ask: Ask, key: str, place: Place, kept: Kept) -> None:
        data = msgspec.msgpack.encode(kept)
        stored = len(data) <= self._settings.max_entry_bytes and not place.line.forgotten
        if stored:
            self._local.put(key, data, self._settings.ttl_s)
        self._lines.land(key, place, kept)
        if not stored:
            return
        if self._shared:
            entry = ("SET", entry_key(key), data, "EX", self._settings.ttl_s)
            if await self._store.run(entry, self._memory_of(ask, key)) is not None:
                return
        self._remember(ask, key)  # else what is kept here could not be deleted once Redis is back

    def _found(self, key: str) -> Kept | None:
        data = self._local.get(key)
        return None if data is None else _decoded(data)

    def _drop(self, key: str) -> bool:
        """Forget a key in this process; tell whether it was known."""
        self._forgotten += 1
        self._lines.forget(key)
        return self._local.drop(key)

    def _forget_here(self, name: str) -> bool:
        """Forget a request that only this process knows of."""
        key = self._requests.get(name)
        if key is None:
            return False
        self._drop(key.decode())
        return self._requests.drop(name)

    def _remember(self, ask: Ask, key: str) -> None:
        if self._shared:
            self._outbox.add(self._memory_of(ask, key))
        else:
            self._requests.put(request_key(ask.tenant, ask.request_id), key.encode(), self._settings.ttl_s)

    def _memory_of(self, ask: Ask, key: str) -> tuple[str | int, ...]:
        """The command that notes which entry a request has to do with, for as long as the entry can last."""
        return ("SET", request_key(ask.tenant, ask.request_id), key, "EX", self._settings.ttl_s)


def entry_key(key: str) -> str:
    """Where Redis has what is kept under a key."""
    return f"draftgate:answer:{key}"


def request_key(tenant: str, request_id: str) -> str:
    """Where Redis has the key that a request was kept under. A request's id has no colon."""
    return f"draftgate:request:{tenant}:{request_id}"


def _decoded(data: bytes) -> Kept | None:
    try:
        return msgspec.msgpack.decode(data, type=Kept)
    except msgspec.DecodeError:  # not ours
        return None
