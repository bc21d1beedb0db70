"""Equal requests at the same time: one of them works the answer out, the others wait for it.

In a process they stand in line: whoever is first leads, and what it lands is handed to those behind it. A leader that leaves with nothing
makes room for the next one. Among gateways on one Redis the first of each line tries for a lease; one without a lease looks again and again
whether the answer has come, or the lease is gone.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from router.serving.messages import Kept
from router.state.store import Command, Script, Store

LEASE_S = 3  # a gateway that died holds up the others for so long
GIVE_BACK = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")


class Flight:
    """A request's place among its equals."""

    def __init__(
        self, kept: Kept | None, *, leads: bool, land: Callable[[Kept], Awaitable[None]] | None = None
    ) -> None:
        self.kept = kept  # what is known already, perhaps only a part of the answer
        self.leads = leads  # False: `kept` is enough
        self._land = land

    async def land(self, kept: Kept) -> None:
        """Keep what was found out, and hand it to those who wait. For the one who leads, at most once."""
        assert self.leads, "only who leads has something to land"
        if self._land is not None:
            await self._land(kept)


class Line:
    """Equal requests in this process; who holds the lock is first."""

    def __init__(self) -> None:
        self.first = asyncio.Lock()
        self.members = 0
        self.landed: Kept | None = None
        self.forgotten = False  # a deletion came: what is landed may be shared, but not stored


class Place:
    """Where one request stands in a line."""

    def __init__(self, line: Line, *, first: bool) -> None:
        self.line = line
        self._first = first  # False: it waited long enough and goes on alone

    @property
    def first(self) -> bool:
        """Do all others of the line wait for this one?"""
        return self._first

    def give_up(self) -> None:
        """Let the next one be first."""
        if self._first:
            self._first = False
            self.line.first.release()


class Lines:
    """All lines of this process."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    @asynccontextmanager
    async def stand(self, key: str, deadline: float) -> AsyncGenerator[Place, None]:
        """Wait to be first in the line for `key`, but no longer than until `deadline`, in the event loop's time."""
        line = self._lines.setdefault(key, Line())
        line.members += 1
        place = None
        try:
            place = Place(line, first=await _acquired(line.first, deadline))
            yield place
        finally:
            if place is not None:
                place.give_up()
            line.members -= 1
            if not line.members:
                self._close(key, line)

    def land(self, key: str, place: Place, kept: Kept) -> None:
        """Hand `kept` to those who stand in line. Who comes later finds it in the cache, or starts anew."""
        place.line.landed = kept
        self._close(key, place.line)
        place.give_up()

    def forget(self, key: str) -> None:
        """What those in line find out must not be stored."""
        if line := self._lines.pop(key, None):
            line.forgotten = True

    def _close(self, key: str, line: Line) -> None:
        if self._lines.get(key) is line:
            del self._lines[key]


class Lease(NamedTuple):
    """The right to lead for a while; whoever knows the token holds it."""

    key: str
    token: str


class Leases:
    """One leader among all gateways. A lease ends soon unless its holder says again and again that it lives."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: set[Lease] = set()
        self._giving: set[asyncio.Task[Any]] = set()
        mine = secrets.token_hex(8)
        self._tokens = (f"{mine}:{number}" for number in itertools.count())

    def new(self, key: str) -> Lease:
        """A lease to be tried for."""
        return Lease(f"draftgate:flight:{key}", next(self._tokens))

    async def take(self, lease: Lease, *then: Command) -> tuple[bool, list[Any]] | None:
        """Try for a lease.

        Returns: whether it is held now, and the replies to the commands `then`, which are carried out after the trial: who holds the lease sees
            all that earlier holders wrote. None: Redis is away.
        """
        try:
            replies = await self._store.run(("SET", lease.key, lease.token, "NX", "EX", LEASE_S), *then)
        except BaseException:  # cancelled on the way, and nobody knows how far it came
            self._held.add(lease)
            raise
        if replies is None:
            return None
        if replies[0] is not None:
            self._held.add(lease)
        return lease in self._held, replies[1:]

    async def give_back(self, lease: Lease) -> None:
        """Let another gateway lead. Does nothing for a lease that isn't held."""
        if lease in self._held:
            self._held.discard(lease)
            giving = asyncio.create_task(self._store.script(GIVE_BACK, [lease.key], lease.token))
            self._giving.add(giving)
            giving.add_done_callback(self._giving.discard)
            # where the client of a stream left, whatever is awaited here is cancelled at once
            await asyncio.shield(giving)

    async def extend(self) -> None:
        """Say that all holders in this process live; to be called well before LEASE_S are over."""
        await self._store.run(*(("EXPIRE", lease.key, LEASE_S) for lease in self._held))


async def _acquired(lock: asyncio.Lock, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            return await lock.acquire()
    except TimeoutError:
        return False
