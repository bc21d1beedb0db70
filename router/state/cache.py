"""Answers to repeated questions: a small local cache in front of the shared one.

Only requests that would get the same answer again are kept. The key covers everything that can
change an answer; nobody can read a prompt back out of it.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from router.serving.messages import Answer, Ask
from router.settings import CacheSettings
from router.state.store import Store


def fingerprint(parts: Iterable[object]) -> bytes:
    """SHA-256 over any JSON-like values, each with its length, so no two lists run together."""
    digest = hashlib.sha256()
    for part in parts:
        data = msgspec.json.encode(part, order="deterministic")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def cache_key(namespace: str, ask: Ask) -> str:
    """Where the answer to `ask` is kept. `namespace` stands for models, classifiers and policy."""
    sampling = (ask.wanted, ask.max_tokens, ask.temperature, ask.top_p, ask.seed, ask.max_steps)
    digest = fingerprint((namespace, sampling, ask.stop, ask.messages))
    return f"draftgate:answer:{digest.hex()}"


class AnswerCache:
    """Looks answers up by request."""

    def __init__(
        self,
        store: Store,
        settings: CacheSettings,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._namespace = namespace
        self._clock = clock
        self._local: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # expiry, answer
        self._local_bytes = 0

    async def get(self, ask: Ask) -> Answer | None:
        """The kept answer, if there is one and the request may use it."""
        if not (ask.use_cache and ask.deterministic):
            return None
        key = cache_key(self._namespace, ask)
        data = self._get_local(key)
        if data is None:
            replies = await self._store.run(("GET", key))
            data = replies[0] if replies else None
        if data is None:
            return None
        try:
            return msgspec.msgpack.decode(data, type=Answer)
        except msgspec.DecodeError:  # written by another version
            return None

    async def put(self, ask: Ask, answer: Answer) -> None:
        """Keep an answer, if it may be reused and is not too long."""
        if not (ask.use_cache and ask.deterministic):
            return
        data = msgspec.msgpack.encode(answer)
        if len(data) > self._settings.max_entry_bytes:
            return
        key = cache_key(self._namespace, ask)
        self._put_local(key, data)
        await self._store.run(("SET", key, data, "EX", self._settings.ttl_s))

    def _get_local(self, key: str) -> bytes | None:
        expires, data = self._local.get(key, (0.0, b""))
        if expires <= self._clock():
            self._drop_local(key)
            return None
        self._local.move_to_end(key)
        return data

    def _put_local(self, key: str, data: bytes) -> None:
        self._drop_local(key)
        self._local[key] = (self._clock() + self._settings.ttl_s, data)
        self._local_bytes += len(data)
        while self._local_bytes > self._settings.local_bytes:
            self._drop_local(next(iter(self._local)))

    def _drop_local(self, key: str) -> None:
        _, data = self._local.pop(key, (0.0, b""))
        self._local_bytes -= len(data)
