"""API keys: made once, kept without their secret, known while the place they are kept in is away."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from router import keys as command
from router.api.access import identify
from router.errors import Overloaded
from router.serving.messages import Caller, Limits
from router.settings import RedisSettings, ServerSettings, Settings
from router.state.keys import FileShelf, Key, Keys, KeysError, Shelf, is_loopback, keys_of, make_key, shelf_of
from router.state.store import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def configured(redis_settings: RedisSettings, tmp_path: Path) -> Settings:
    """Keys in a file, and in Redis."""
    return Settings(redis=redis_settings, server=ServerSettings(data_dir=str(tmp_path / "data")))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Shelf]:
    store = Store(settings.redis)
    yield shelf_of(settings, store)
    await store.close()


@pytest.fixture
async def shelf(configured: Settings) -> AsyncIterator[Shelf]:
    async with opened(configured) as shelf:
        yield shelf


@pytest.fixture
def keys(shelf: Shelf) -> Keys:
    return Keys(shelf, refresh_s=1.0)


async def add(shelf: Shelf, tenant: str = "acme") -> tuple[str, Key]:
    token, key = make_key(tenant, ("draftgate",), Limits(requests_per_min=5))
    await shelf.put(key)
    return token, key


def known(settings: Settings) -> Keys:
    """To a gateway that starts now."""

    async def load() -> Keys:
        async with opened(settings) as shelf:
            keys = Keys(shelf, refresh_s=1.0)
            assert await keys.load()
            return keys

    return asyncio.run(load())


def test_keys_are_long_unlike_each_other_and_not_kept() -> None:
    made = [make_key("acme", (), Limits()) for _ in range(100)]
    assert len({token for token, _ in made}) == len({key.id for _, key in made}) == 100
    for token, key in made:
        assert re.fullmatch(r"dg-[\w-]{43}", token)
        assert token not in msgspec.json.encode(key).decode()


async def test_a_key_is_found_with_all_that_was_said_of_it(shelf: Shelf, keys: Keys) -> None:
    token, key = await add(shelf)
    assert await keys.load()
    caller = Caller(key_id=key.id, tenant="acme", models=("draftgate",), limits=Limits(requests_per_min=5))
    assert keys.find(token.encode()) == caller


async def test_other_words_are_no_keys(shelf: Shelf, keys: Keys) -> None:
    token, key = await add(shelf)
    await keys.load()
    for wrong in (b"", token[:-1].encode(), token.encode() + b"x", key.id.encode(), key.digest.encode(), b"\xff\x00"):
        assert keys.find(wrong) is None


async def test_added_and_revoked_keys_are_noticed(shelf: Shelf, keys: Keys) -> None:
    await keys.load()
    assert not keys.required
    token, key = await add(shelf)
    assert keys.find(token.encode()) is None
    await keys.load()
    assert keys.required
    assert keys.find(token.encode())
    await shelf.put(msgspec.structs.replace(key, revoked_unix_s=1.0))
    await keys.load()
    assert keys.find(token.encode()) is None
    assert keys.required, "there was a key: the door doesn't open again"


async def test_what_has_not_changed_is_not_read_again(
    shelf: Shelf, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(shelf)
    await keys.load()
    monkeypatch.setattr(shelf, "read", None)
    assert await keys.load()


async def test_keys_that_are_gone_stay_known(
    configured: Settings, shelf: Shelf, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = await add(shelf)
    await keys.load()
    if isinstance(shelf, FileShelf):
        (Path(configured.server.data_dir) / "keys.json").unlink()
    else:
        store = Store(configured.redis)
        await store.run(("DEL", "draftgate:{keys}:all"), ("DEL", "draftgate:{keys}:version"))
        await store.close()
    await keys.load()
    assert keys.find(token.encode())
    assert "the keys are gone" in caplog.text
    assert token not in caplog.text


def test_keys_added_at_once_are_all_kept(configured: Settings) -> None:
    async def add_some() -> None:
        async with opened(configured) as shelf:
            for _ in range(5):
                await add(shelf)

    async def count() -> int:
        async with opened(configured) as shelf:
            return len(await shelf.read())

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(asyncio.run, add_some()) for _ in range(4)]:
            done.result()
    assert asyncio.run(count()) == 20


class TestFile:
    async def test_nobody_else_can_read_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        await FileShelf(folder).put(make_key("acme", (), Limits())[1])
        assert (folder / "keys.json").stat().st_mode & 0o777 == 0o600

    async def test_it_stays_private_when_it_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "keys.new").write_text("left behind by one that was killed")
        (tmp_path / "keys.new").chmod(0o644)
        await FileShelf(tmp_path).put(make_key("acme", (), Limits())[1])
        assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("content", ["", "{", "{}", '[{"id": 5}]'])
    async def test_what_is_not_keys_lets_nobody_in(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "keys.json").write_text(content)
        keys = Keys(FileShelf(tmp_path), refresh_s=1.0)
        assert not await keys.load()
        with pytest.raises(Overloaded):
            identify(keys, [(b"host", b"localhost")])
        with pytest.raises(KeysError, match="not keys"):
            await FileShelf(tmp_path).put(make_key("acme", (), Limits())[1])
        assert (tmp_path / "keys.json").read_text() == content

    async def test_known_keys_stay_known_while_it_is_broken(self, tmp_path: Path) -> None:
        token, key = make_key("acme", (), Limits())
        await FileShelf(tmp_path).put(key)
        keys = Keys(FileShelf(tmp_path), refresh_s=1.0)
        await keys.load()
        good = (tmp_path / "keys.json").read_text()
        (tmp_path / "keys.json").write_text("{")
        assert not await keys.load()
        assert keys.find(token.encode())
        await FileShelf(tmp_path / "elsewhere").put(key)
        (tmp_path / "keys.json").write_text(good)
        assert await keys.load()


class TestEnvironment:
    async def test_it_may_hold_one_key_without_limits(self, tmp_path: Path) -> None:
        settings = Settings(server=ServerSettings(data_dir=str(tmp_path)))
        keys = keys_of(settings, Store(settings.redis), {"DRAFTGATE_API_KEY": "s3cret"})
        await keys.load()
        assert keys.required
        assert keys.find(b"s3cret") == Caller(key_id="environment")
        assert keys.find(b"s3cre") is None

    async def test_it_is_good_before_the_others_are_known(self) -> None:
        settings = Settings(redis=RedisSettings(url="unix:///nowhere.sock"))
        keys = keys_of(settings, Store(settings.redis), {"DRAFTGATE_API_KEY": "s3cret"})
        assert not await keys.load()
        assert identify(keys, [(b"x-api-key", b"s3cret")]).key_id == "environment"
        with pytest.raises(Overloaded):
            identify(keys, [(b"x-api-key", b"other")])

    async def test_an_empty_one_is_none(self, tmp_path: Path) -> None:
        settings = Settings(server=ServerSettings(data_dir=str(tmp_path)))
        keys = keys_of(settings, Store(settings.redis), {"DRAFTGATE_API_KEY": ""})
        await keys.load()
        assert not keys.required
        assert keys.find(b"") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_what_only_this_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "", "localhost.example", "gateway"])
def test_what_others_reach_or_may(host: str) -> None:
    assert not is_loopback(host)


class TestCommand:
    @pytest.fixture
    def arguments(self, configured: Settings, tmp_path: Path) -> list[str]:
        url = f'redis = {{url = "{configured.redis.url}"}}' if configured.redis.url else ""
        config = tmp_path / "draftgate.toml"
        config.write_text(f'server = {{data_dir = "{configured.server.data_dir}"}}\n{url}')
        return ["--config", str(config)]

    def test_add_list_and_revoke(
        self, configured: Settings, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert (
            command.main(["add", "--tenant", "acme", "--models", "draftgate,draftgate-draft", "--rpm", "7", *arguments])
            == 0
        )
        token, words = capsys.readouterr().out.splitlines()
        (id_,) = re.findall(r"[0-9a-f]{12}", words)
        caller = known(configured).find(token.encode())
        assert caller == Caller(
            key_id=id_, tenant="acme", models=("draftgate", "draftgate-draft"), limits=Limits(requests_per_min=7)
        )

        assert command.main(["list", *arguments]) == 0
        listed = capsys.readouterr().out
        assert re.search(
            rf"{id_} +acme +draftgate,draftgate-draft +7 +- +- +- +- +\d{{4}}-\S+ \S+ +-$", listed, re.MULTILINE
        )
        assert token not in listed

        assert command.main(["revoke", id_, *arguments]) == 0
        assert command.main(["revoke", id_, *arguments]) == 0
        fresh = known(configured)
        assert fresh.find(token.encode()) is None
        assert fresh.required
        capsys.readouterr()
        command.main(["list", *arguments])
        assert id_ in capsys.readouterr().out

    def test_an_unknown_id_is_refused(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["revoke", "nothing", *arguments]) == 2
        assert "expected the id of a key, got 'nothing'" in capsys.readouterr().err

    @pytest.mark.parametrize("wrong", [["--rpm", "0"], ["--budget", "many"], ["--models", "gpt-4"], ["--tpm", "-5"]])
    def test_wrong_words_are_refused(self, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            command.main(["add", "--tenant", "acme", *wrong])
        assert exit_.value.code == 2
        assert "expected" in capsys.readouterr().err

    def test_a_redis_that_is_away_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "draftgate.toml"
        config.write_text('redis = {url = "unix:///nowhere.sock"}')
        assert command.main(["list", "--config", str(config)]) == 2
        assert "Redis does not answer" in capsys.readouterr().err


async def test_a_redis_that_goes_leaves_known_keys_good(caplog: pytest.LogCaptureFixture) -> None:
    class Away(FileShelf):
        async def version(self) -> object:
            raise KeysError("Redis does not answer")

    keys = Keys(Away(Path()), refresh_s=1.0, token="s3cret")
    with caplog.at_level(logging.WARNING):
        assert not await keys.load()
        assert not await keys.load()
    assert caplog.text.count("can't be read") == 1, "it is said once"
    assert "s3cret" not in caplog.text
