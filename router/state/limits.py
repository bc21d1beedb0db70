"""What keys may use: requests and tokens in any minute, requests at once, tokens for good.

One script in Redis counts for all gateways, by Redis's clock. Each gateway keeps the same books of what it granted itself: while Redis is away those
decide, and a limit then holds for each gateway by itself. A request reserves what it may take and settles for what it took.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec import Struct, field

from router.errors import BudgetSpent, NeverFits, RateLimited
from router.serving.messages import Caller, Limits
from router.state.store import Script, Store

SCRIPT = Script(Path(__file__).with_name("limits.lua").read_text())
WINDOW = 61  # seconds; limits.lua says why
KEPT_MS = 86_400_000
UNLIMITED = Limits()
ANY = -1  # in the script's arguments
MOST_UNSETTLED = 10_000  # while Redis is gone the oldest go first
NEVER_MIND_S = 60.0  # the longest Retry-After

Kind = Literal["", "budget", "requests", "tokens", "concurrency"]


class Verdict(NamedTuple):
    """What came of asking; times are in ms, and 0 where there is no such limit."""

    refused: Kind  # "": granted
    wait: int  # until it would be granted; -1: it never will
    requests_left: int
    requests_reset: int  # until none of the minute is used
    tokens_left: int
    tokens_reset: int
    spent: int


class _Window:
    """How much in each of the last seconds."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def see(self, second: int) -> int:
        """Forget what no longer counts; returns the sum of the rest."""
        for at in [at for at in self.counts if at <= second - WINDOW]:
            del self.counts[at]
        return sum(self.counts.values())

    def add(self, second: int, count: int) -> None:
        self.counts[second] = self.counts.get(second, 0) + count

    def wait(self, more: int, most: int, now: int) -> int:
        """Milliseconds until so much more fits; -1: it never will."""
        if more > most:
            return -1
        total, free = sum(self.counts.values()), now
        for at, count in sorted(self.counts.items()):
            if total + more <= most:
                break
            total -= count
            free = (at + WINDOW) * 1000
        return free - now

    def left(self, most: int | None) -> int:
        return 0 if most is None else max(0, most - sum(self.counts.values()))

    def reset(self, now: int) -> int:
        return max(0, (max(self.counts) + WINDOW) * 1000 - now) if self.counts else 0


class _Book(Struct):
    """One key's."""

    requests: _Window = field(default_factory=_Window)
    tokens: _Window = field(default_factory=_Window)
    leases: dict[str, int] = field(default_factory=dict[str, int])  # grant: when it ends, ms
    spent: int = 0


class Reservation(Struct, frozen=True, kw_only=True):
    """What a request may take."""

    key_id: str
    limits: Limits
    grant: str
    lease: int  # ms
    tokens: int


class LocalLimits:
    """The script's twin, in this process. All times are given in ms."""

    def __init__(self) -> None:
        self._books: dict[str, _Book] = {}

    def admit(self, asked: Reservation, now: int) -> Verdict:
        """Reserve, if the limits allow it."""
        book, limits = self._book(asked.key_id), asked.limits
        second = now // 1000
        requests, tokens = book.requests.see(second), book.tokens.see(second)
        _forget(book.leases, now - KEPT_MS)
        if limits.budget_tokens is not None and book.spent >= limits.budget_tokens:
            return _verdict("budget", 0, asked, book, now)
        if limits.requests_per_min is not None and requests + 1 > limits.requests_per_min:
            return _verdict("requests", book.requests.wait(1, limits.requests_per_min, now), asked, book, now)
        if limits.tokens_per_min is not None and tokens + asked.tokens > limits.tokens_per_min:
            return _verdict("tokens", book.tokens.wait(asked.tokens, limits.tokens_per_min, now), asked, book, now)
        if limits.concurrency is not None and sum(end > now for end in book.leases.values()) >= limits.concurrency:
            return _verdict("concurrency", 0, asked, book, now)
        self.book(asked, now)
        return _verdict("", 0, asked, book, now)

    def book(self, granted: Reservation, now: int, spent: int | None = None) -> None:
        """Reserve what was granted; `spent` is all that Redis knows of, this included."""
        book = self._book(granted.key_id)
        second = now // 1000
        if granted.limits.requests_per_min is not None:
            book.requests.see(second)
            book.requests.add(second, 1)
        if granted.limits.tokens_per_min is not None:
            book.tokens.see(second)
            book.tokens.add(second, granted.tokens)
        book.leases[granted.grant] = now + granted.lease
        book.spent = book.spent + granted.tokens if spent is None else spent

    def settle(self, granted: Reservation, used: int) -> None:
        """Put what was used in the place of what was reserved; asked for again it does nothing."""
        book = self._book(granted.key_id)
        end = book.leases.pop(granted.grant, None)
        if end is None:
            return
        more = used - granted.tokens
        if granted.limits.tokens_per_min is not None:
            book.tokens.add((end - granted.lease) // 1000, more)
        book.spent += more

    def _book(self, key_id: str) -> _Book:
        return self._books.setdefault(key_id, _Book())


class RateLimiter:
    """The `Limiter` of `router.serving.service`."""

    def __init__(self, store: Store, clock: Callable[[], int] | None = None) -> None:
        """Count in `store`.

        Args:
            store: where all gateways count.
            clock: ms, for both Redis and this process; None: each its own.
        """
        self._store = store
        self._clock = clock
        self._local = LocalLimits()
        self._unsettled: deque[tuple[Reservation, int, bool]] = deque(maxlen=MOST_UNSETTLED)

    async def admit(self, caller: Caller, tokens: int, lease_s: float) -> "Free | Reserved":
        """Reserve a request and so many tokens.

        Args:
            caller: whose limits they are. One without limits costs no round trip.
            tokens: the most that the request may take, read and written.
            lease_s: after this time the request no longer counts as under way, settled or not.

        Raises:
            RateLimited: not now.
            BudgetSpent: the tokens are used up, or reserved by requests under way.
        """
        if caller.limits == UNLIMITED:
            return _FREE
        asked = Reservation(
            key_id=caller.key_id,
            limits=caller.limits,
            grant=uuid.uuid4().hex,
            lease=int(lease_s * 1000),
            tokens=tokens,
        )
        try:
            reply = await self._ask("admit", asked, *_most(caller.limits))
        except asyncio.CancelledError:  # Redis may have granted it all the same
            self._unsettled.append((asked, 0, False))
            raise
        if reply is None:
            verdict = self._local.admit(asked, self._now())
            if verdict.refused:
                self._unsettled.append((asked, 0, False))
        else:
            verdict = Verdict(reply[0].decode(), *reply[1:])
            if not verdict.refused:
                self._local.book(asked, self._now(), verdict.spent)
        if verdict.refused:
            raise _refusal(verdict, asked)
        return Reserved(self, asked, away=reply is None, headers=_headers(caller.limits, verdict))

    async def settle(self, granted: Reservation, used: int, *, away: bool) -> None:
        """Put what was used in the place of what was reserved, here and in Redis, now or when it is back.

        Args:
            granted: what was reserved.
            used: tokens.
            away: it was granted without Redis.
        """
        self._local.settle(granted, used)
        self._unsettled.append((granted, used, away))
        while self._unsettled:
            granted, used, away = unsettled = self._unsettled.popleft()
            limited = granted.limits.tokens_per_min is not None
            if await self._ask("settle", granted, used, int(limited), int(away)) is None:
                self._unsettled.append(unsettled)
                return

    async def _ask(self, operation: str, reservation: Reservation, *arguments: int) -> Any | None:
        tag = f"draftgate:{{limits:{reservation.key_id}}}"
        keys = [f"{tag}:requests", f"{tag}:tokens", f"{tag}:leases", spent_key(reservation.key_id)]
        now = self._clock() if self._clock else ""
        grant = (now, reservation.grant, reservation.lease, reservation.tokens)
        return await self._store.script(SCRIPT, keys, operation, *grant, *arguments)

    def _now(self) -> int:
        return self._clock() if self._clock else time.monotonic_ns() // 1_000_000


class Free:
    """A request that nothing limits and nobody counts."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    async def settle(self, tokens: int) -> None:
        """There is nothing to settle."""


class Reserved:
    """A request that was let in."""

    def __init__(self, limiter: RateLimiter, reservation: Reservation, *, away: bool, headers: dict[str, str]) -> None:
        self.headers = headers
        self._limiter = limiter
        self._reservation = reservation
        self._away = away

    async def settle(self, tokens: int) -> None:
        """Say what the request took; once is enough, again does nothing."""
        await self._limiter.settle(self._reservation, tokens, away=self._away)


_FREE = Free()


def spent_key(key_id: str) -> str:
    """Where the tokens that a key has used for good are counted."""
    return f"draftgate:{{limits:{key_id}}}:spent"


def _most(limits: Limits) -> list[int]:
    fields = (limits.requests_per_min, limits.tokens_per_min, limits.concurrency, limits.budget_tokens)
    return [ANY if most is None else most for most in fields]


def _forget(leases: dict[str, int], before: int) -> None:
    for grant in [grant for grant, end in leases.items() if end <= before]:
        del leases[grant]


def _verdict(refused: Kind, wait: int, asked: Reservation, book: _Book, now: int) -> Verdict:
    return Verdict(
        refused,
        wait,
        book.requests.left(asked.limits.requests_per_min),
        book.requests.reset(now),
        book.tokens.left(asked.limits.tokens_per_min),
        book.tokens.reset(now),
        book.spent,
    )


def _headers(limits: Limits, verdict: Verdict) -> dict[str, str]:
    """As OpenAI's API has them."""
    headers: dict[str, str] = {}
    for kind, most, left, reset in (
        ("requests", limits.requests_per_min, verdict.requests_left, verdict.requests_reset),
        ("tokens", limits.tokens_per_min, verdict.tokens_left, verdict.tokens_reset),
    ):
        if most is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(most)
            headers[f"x-ratelimit-remaining-{kind}"] = str(left)
            headers[f"x-ratelimit-reset-{kind}"] = f"{reset / 1000:.1f}s"
    return headers


def _refusal(verdict: Verdict, asked: Reservation) -> RateLimited | BudgetSpent:
    limits, headers = asked.limits, _headers(asked.limits, verdict)
    wait_s = verdict.wait / 1000
    if verdict.refused == "budget":
        words = f"The key's budget of {limits.budget_tokens} tokens is used up."
        return BudgetSpent(words, retry_after_s=NEVER_MIND_S, headers=headers)
    if verdict.refused == "concurrency":
        words = f"The key has as many requests under way as it may have at once: {limits.concurrency}."
        return RateLimited(words, headers=headers)
    if verdict.refused == "requests":
        words = f"Rate limit reached for requests: {limits.requests_per_min} in a minute. Try again in {wait_s:.1f}s."
        return RateLimited(words, retry_after_s=wait_s, headers=headers)
    most = limits.tokens_per_min
    if verdict.wait < 0:
        words = f"The request may take {asked.tokens} tokens and can never fit: the key's limit is {most} tokens in a minute."
        return NeverFits(words, retry_after_s=NEVER_MIND_S, headers=headers)
    words = (
        f"Rate limit reached for tokens: {most} in a minute, {verdict.tokens_left} left, the request may take {asked.tokens}."
        f" Try again in {wait_s:.1f}s."
    )
    return RateLimited(words, retry_after_s=wait_s, headers=headers)
