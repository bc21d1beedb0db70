"""The only Redis client. Redis slow or gone never fails a request: `run` then returns None.

Without a URL an in-process fakeredis answers the same commands on the same path. It knows more
commands than Redis 7.0 does, so what may be sent is listed in ALLOWED.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from router.settings import RedisSettings, SettingsError

Command = tuple[str | bytes | int, ...]

ALLOWED = frozenset(
    {
        "PING",
        "GET",
        "SET",
        "DEL",
        "EXPIRE",
        "PTTL",
        "DBSIZE",
        "HINCRBY",
        "HGETALL",
        "XADD",
        "XDEL",
        "XRANGE",
        "XREVRANGE",
        "XTRIM",
    }
)
FAILURES_TO_OPEN = 5
CONNECTIONS = 32


def make_redis(url: str | None, timeout_s: float) -> Any:
    """A client of the Redis at `url`, or of a fresh in-process one."""
    if url is None:
        import fakeredis  # only the embedded mode pays for it

        # Its connections are objects in this process, so as many as are wanted at once.
        return fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), max_connections=1_000_000, protocol=2)
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        max_connections=CONNECTIONS,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        protocol=2,  # redis-py 8 changed its default
        retry=Retry(NoBackoff(), 0),  # one try: the caller has somewhere else to go
    )
    return Redis.from_pool(pool)


class Script:
    """Lua that Redis carries out at once, with nothing between its commands. It is bound to Redis 7.0 by its tests, not by ALLOWED."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Breaker:
    """Stops asking after repeated failures, then lets one call try again now and then."""

    def __init__(self, retry_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0

    @property
    def is_open(self) -> bool:
        """Have the last calls failed?"""
        return self._failures >= FAILURES_TO_OPEN

    def allows(self) -> bool:
        """May this call be made? While open, one call per period may."""
        if not self.is_open:
            return True
        if self._clock() < self._closed_until:
            return False
        self._closed_until = self._clock() + self._retry_after_s
        return True

    def record(self, *, ok: bool) -> None:
        """Tell how a call went."""
        self._failures = 0 if ok else self._failures + 1
        if self._failures == FAILURES_TO_OPEN:
            self._closed_until = self._clock() + self._retry_after_s


class Store:
    """Commands in, replies out, in one round trip."""

    def __init__(self, settings: RedisSettings) -> None:
        try:
            self._redis = make_redis(settings.url, settings.timeout_s)
        except ValueError as error:
            raise SettingsError(
                f"redis.url: expected an address of a Redis, got one that can't be read: {error}"
            ) from None
        self._embedded = settings.url is None
        # Connecting and asking. In process there is nobody to wait for but a busy event loop.
        self._timeout_s = None if self._embedded else 2 * settings.timeout_s
        self._breaker = Breaker(settings.retry_after_s)
        self.failures = 0  # calls that failed, ever

    @property
    def state(self) -> Literal["embedded", "ok", "down"]:
        """As shown to operators."""
        if self._breaker.is_open:
            return "down"
        return "embedded" if self._embedded else "ok"

    async def run(self, *commands: Command) -> list[Any] | None:
        """Send commands together, without a transaction.

        Returns: one reply per command, or None when Redis did not answer in time. Some of the
            commands may have been carried out all the same.
        """
        if not commands:
            return []
        for name, *_ in commands:
            if name not in ALLOWED:
                raise ValueError(f"expected one of {sorted(ALLOWED)}, got {name!r}")
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await self._answer(pipe.execute)

    async def script(self, script: Script, keys: Sequence[str], *arguments: str | bytes | int) -> Any | None:
        """Carry out a script, which must not answer nil.

        Args:
            script: to carry out.
            keys: all that it touches, with one hash tag.
            arguments: its other arguments.

        Returns: its reply, or None when Redis did not answer in time. It may have been carried out all the same.
        """

        async def ask() -> Any:
            try:
                return await self._redis.evalsha(script.sha, len(keys), *keys, *arguments)
            except NoScriptError:  # never sent, or Redis was restarted since
                return await self._redis.eval(script.text, len(keys), *keys, *arguments)

        return await self._answer(ask)

    async def _answer(self, ask: Callable[[], Awaitable[Any]]) -> Any | None:
        if not self._breaker.allows():
            return None
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await ask()
        except (RedisError, OSError, TimeoutError):
            self.failures += 1
            self._breaker.record(ok=False)
            return None
        # The client may lose a cancellation: before Python 3.12 wait_for does, where it comes together with a reply.
        if task and task.cancelling() > cancelled:
            raise asyncio.CancelledError
        self._breaker.record(ok=True)
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
