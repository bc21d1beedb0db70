"""`draftgate keys`: make, list and revoke API keys, where the configured gateways look for them."""

import argparse
import asyncio
import os
import sys
import time
from datetime import UTC, datetime

import msgspec

from router.api.schemas import MODELS
from router.serving.messages import Limits
from router.settings import Settings, SettingsError, load
from router.state.keys import Key, KeysError, make_key, shelf_of
from router.state.limits import spent_key
from router.state.store import Store

TIMEOUT_S = 5.0  # nobody waits for this Redis but the operator
COLUMNS = ("ID", "TENANT", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "AT ONCE", "BUDGET", "SPENT", "CREATED", "REVOKED")


def main(argv: list[str]) -> int:
    """Do one of the three; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        settings = load(options.config, os.environ)
        lines = asyncio.run(_run(settings, options))
    except (SettingsError, KeysError) as error:
        sys.stderr.write(f"draftgate: {error}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="draftgate keys", description="Make, list and revoke API keys.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|revoke")
    add = actions.add_parser("add", help="make a key; it is shown this once")
    add.add_argument("--tenant", required=True, help="whose cached answers, files and batches the key sees")
    add.add_argument(
        "--models", type=_models, default=(), help="that it may ask for, with commas between; all if not given"
    )
    add.add_argument("--rpm", type=_count, help="requests in any minute")
    add.add_argument("--tpm", type=_count, help="tokens in any minute, read and written")
    add.add_argument("--concurrency", type=_count, help="requests at once")
    add.add_argument("--budget", type=_count, help="tokens for good")
    actions.add_parser("list", help="show all keys, without their secrets")
    revoke = actions.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("id", help="as list shows it")
    for action in actions.choices.values():
        action.add_argument("--config", metavar="FILE", help="that the gateway is served with")
    return parser


async def _run(settings: Settings, options: argparse.Namespace) -> list[str]:
    store = Store(msgspec.structs.replace(settings.redis, timeout_s=TIMEOUT_S))
    try:
        match options.action:
            case "add":
                return await _add(settings, store, options)
            case "list":
                return await _list(settings, store)
            case _:
                return await _revoke(settings, store, options.id)
    finally:
        await store.close()


async def _add(settings: Settings, store: Store, options: argparse.Namespace) -> list[str]:
    limits = Limits(
        requests_per_min=options.rpm,
        tokens_per_min=options.tpm,
        concurrency=options.concurrency,
        budget_tokens=options.budget,
    )
    token, key = make_key(options.tenant, options.models, limits)
    await shelf_of(settings, store).put(key)
    return [token, f"Keep it: it is not shown again. Its id is {key.id}, good within {settings.keys.refresh_s:g} s."]


async def _list(settings: Settings, store: Store) -> list[str]:
    keys = sorted((await shelf_of(settings, store).read()).values(), key=lambda key: key.created_unix_s)
    spent: list[bytes | None] = [None] * len(keys)
    if settings.redis.url:  # else it is in the memory of the gateway's process
        replies = await store.run(*(("GET", spent_key(key.id)) for key in keys))
        if replies is None:
            raise KeysError("Redis does not answer")
        spent = replies
    return _table([COLUMNS, *(_row(key, tokens) for key, tokens in zip(keys, spent, strict=True))])


async def _revoke(settings: Settings, store: Store, id_: str) -> list[str]:
    shelf = shelf_of(settings, store)
    keys = await shelf.read()
    if id_ not in keys:
        raise KeysError(f"expected the id of a key, got {id_!r}; `draftgate keys list` shows them")
    if keys[id_].revoked_unix_s is None:
        await shelf.put(msgspec.structs.replace(keys[id_], revoked_unix_s=time.time()))
    return [f"{id_} is revoked, everywhere within {settings.keys.refresh_s:g} s."]


def _row(key: Key, spent: bytes | None) -> tuple[str, ...]:
    limits = key.limits
    numbers = (limits.requests_per_min, limits.tokens_per_min, limits.concurrency, limits.budget_tokens)
    return (
        key.id,
        key.tenant,
        ",".join(key.models) or "all",
        *("-" if number is None else str(number) for number in numbers),
        "-" if spent is None else spent.decode(),
        _day(key.created_unix_s),
        "-" if key.revoked_unix_s is None else _day(key.revoked_unix_s),
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, got {text!r}")
    return int(text)


def _models(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in MODELS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(MODELS)}, got {unknown[0]!r}")
    return names
