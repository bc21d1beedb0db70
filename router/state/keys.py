"""API keys: made, kept, known.

A key is 32 random bytes and kept as its SHA-256. Nobody can try out 2^256 keys, so no slow hash is needed; a password would need one. Keys are kept in
Redis, or in a file where no Redis is configured. Each gateway knows all of them by heart, so one that was known is known while Redis is away.
"""

import asyncio
import fcntl
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Struct

from router.serving.messages import Caller, Limits
from router.settings import Settings
from router.state import disk
from router.state.store import Script, Store

MARK = "dg-"
ENVIRONMENT = "environment"  # the id of the key in the environment
FILE = "keys.json"
HALF = 32  # hex digits of a digest
KEYS = "draftgate:{keys}:all"  # hash: id -> Key
VERSION = "draftgate:{keys}:version"  # counts the changes
PUT = Script("redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return redis.call('INCR', KEYS[2])")

Decoded = TypeVar("Decoded")

logger = logging.getLogger("draftgate")


class KeysError(Exception):
    """The keys can't be read or changed. Its message is written for the operator."""


class Key(Struct, frozen=True, kw_only=True):
    """All that is known of a key; the key itself can't be told from it."""

    id: str  # public: names the key in commands, records and limits
    digest: str  # SHA-256, hex
    tenant: str
    models: tuple[str, ...] = ()  # that may be asked for; empty: all
    limits: Limits = Limits()
    created_unix_s: float
    revoked_unix_s: float | None = None  # None: it is good


def make_key(tenant: str, models: tuple[str, ...], limits: Limits) -> tuple[str, Key]:
    """A new key, to be shown once, and what is to be kept of it."""
    token = MARK + secrets.token_urlsafe(32)
    key = Key(
        id=secrets.token_hex(6),
        digest=digest_of(token.encode()),
        tenant=tenant,
        models=models,
        limits=limits,
        created_unix_s=time.time(),
    )
    return token, key


def digest_of(token: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(token).hexdigest()


class Shelf(Protocol):
    """Where keys are kept. Every method raises KeysError if that can't be reached."""

    async def version(self) -> object:
        """Changes whenever the keys do, and is cheap to ask for."""
        ...

    async def read(self) -> dict[str, Key]:
        """All keys by id, revoked ones too."""
        ...

    async def put(self, key: Key) -> None:
        """Add a key, or replace the one of that id."""
        ...


class RedisShelf:
    """Keys that all gateways share."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def version(self) -> object:
        """The number of changes."""
        return _reached(await self._store.run(("GET", VERSION)))[0]

    async def read(self) -> dict[str, Key]:
        """All keys."""
        (stored,) = _reached(await self._store.run(("HGETALL", KEYS)))
        return {id_.decode(): _decode(data, Key) for id_, data in stored.items()}

    async def put(self, key: Key) -> None:
        """Keep a key."""
        _reached(await self._store.script(PUT, [KEYS, VERSION], key.id, msgspec.json.encode(key)))


class FileShelf:
    """Keys of one machine. The file is replaced as a whole, and nobody else can read it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    async def version(self) -> object:
        """When the file was written; a new one has another number."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeysError(f"{self._path}: can't be read: {error.strerror}") from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    async def read(self) -> dict[str, Key]:
        """All keys."""
        return await asyncio.to_thread(self._read)

    async def put(self, key: Key) -> None:
        """Keep a key."""
        await asyncio.to_thread(self._put, key)

    def _read(self) -> dict[str, Key]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise KeysError(f"{self._path}: can't be read: {error.strerror}") from error
        return {key.id: key for key in _decode(data, list[Key])}

    def _put(self, key: Key) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                keys = self._read() | {key.id: key}
                with disk.replacing(self._path) as file:
                    file.write(msgspec.json.format(msgspec.json.encode(list(keys.values()))))
        except OSError as error:
            raise KeysError(f"{self._path}: can't be written: {error.strerror}") from error

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep out others that add or revoke a key now."""
        with open(self._path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Known(NamedTuple):
    digest: str
    caller: Caller


class Keys:
    """What a gateway knows of the keys."""

    def __init__(self, shelf: Shelf, *, refresh_s: float, token: str | None = None, loopback: bool = True) -> None:
        """Know nothing yet but the environment's key.

        Args:
            shelf: where the others are kept.
            refresh_s: how often to look there for changes.
            token: the environment's key, without limits.
            loopback: only this machine can connect.
        """
        self._shelf = shelf
        self._refresh_s = refresh_s
        self._version: object = None
        self._own = _by_half([(digest_of(token.encode()), Caller(key_id=ENVIRONMENT))] if token else [])
        self._known: dict[str, _Known] = {}  # of the keys that are good
        self._had_any = False
        self._readable = True
        self._loopback = loopback
        self.loaded = False  # until then nobody is let in who has no key that is known

    @property
    def required(self) -> bool:
        """Must requests bring a key? Yes as soon as there is or was one, or others than this machine can connect."""
        return bool(self._own) or self._had_any or not self._loopback

    def find(self, token: bytes) -> Caller | None:
        """Who holds a key; None for one that is not known, or revoked.

        Half a digest finds what the whole is compared with: the time this takes tells nothing of any key.
        """
        digest = digest_of(token)
        known = self._own.get(digest[:HALF]) or self._known.get(digest[:HALF])
        return known.caller if known and hmac.compare_digest(known.digest, digest) else None

    async def load(self) -> bool:
        """Read the keys if they have changed. False: they can't be read, what was known stays known."""
        try:
            version = await self._shelf.version()
            if not self.loaded or version != self._version:
                self._take(await self._shelf.read())
                self._version, self.loaded = version, True
        except KeysError as error:
            if self._readable:
                logger.warning("the keys can't be read; those that are known stay good: %s", error)
            self._readable = False
            return False
        self._readable = True
        return True

    async def refresh_forever(self) -> None:
        """Look for changes, until cancelled."""
        while True:
            await self.load()
            await asyncio.sleep(self._refresh_s)

    def _take(self, keys: Mapping[str, Key]) -> None:
        if not keys and self._had_any:
            logger.warning(
                "the keys are gone from where they were kept; those that are known stay good until the gateway is restarted"
            )
            return
        self._had_any = bool(keys)
        good = [key for key in keys.values() if key.revoked_unix_s is None]
        self._known = _by_half(
            (key.digest, Caller(key_id=key.id, tenant=key.tenant, models=key.models, limits=key.limits)) for key in good
        )


def shelf_of(settings: Settings, store: Store) -> Shelf:
    """Redis, if one is configured."""
    return RedisShelf(store) if settings.redis.url else FileShelf(Path(settings.server.data_dir))


def keys_of(settings: Settings, store: Store, environ: Mapping[str, str]) -> Keys:
    """The keys as configured, not loaded yet."""
    return Keys(
        shelf_of(settings, store),
        refresh_s=settings.keys.refresh_s,
        token=environ.get(settings.keys.env),
        loopback=is_loopback(settings.server.host),
    )


def is_loopback(host: str) -> bool:
    """Can only this machine connect to an address that is listened on?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _by_half(callers: Iterable[tuple[str, Caller]]) -> dict[str, _Known]:
    return {digest[:HALF]: _Known(digest, caller) for digest, caller in callers}


def _reached(reply: Any | None) -> Any:
    if reply is None:
        raise KeysError("Redis does not answer")
    return reply


def _decode(data: bytes, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise KeysError(f"what is kept is not keys: {error}") from error
