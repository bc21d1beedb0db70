"""Who is let in with which headers."""

from pathlib import Path

import msgspec
import pytest

from router.api.access import check_model, identify
from router.errors import Forbidden, Unauthorized, UnknownModel, describe
from router.serving.messages import Caller, Limits
from router.state.keys import FileShelf, Keys, make_key

pytestmark = pytest.mark.anyio
LOCAL = [(b"host", b"localhost:8080")]


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"example.com"), (b"authorization", f"Bearer {token}".encode())]


@pytest.fixture
async def token(tmp_path: Path) -> str:
    token, key = make_key("acme", (), Limits())
    await FileShelf(tmp_path).put(key)
    return token


@pytest.fixture
async def keys(token: str, tmp_path: Path) -> Keys:
    keys = Keys(FileShelf(tmp_path), refresh_s=1.0)
    await keys.load()
    return keys


@pytest.fixture
async def nobody(tmp_path: Path) -> Keys:
    """No key is needed."""
    keys = Keys(FileShelf(tmp_path / "none"), refresh_s=1.0)
    await keys.load()
    return keys


@pytest.mark.parametrize("header", ["authorization: Bearer {}", "authorization: bearer  {} ", "x-api-key: {}"])
async def test_a_key_comes_in_either_header(keys: Keys, token: str, header: str) -> None:
    name, _, value = header.format(token).partition(": ")
    assert identify(keys, [(name.encode(), value.encode())]).tenant == "acme"


@pytest.mark.parametrize(
    "header",
    [
        "authorization: Basic {}",
        "authorization: {}",
        "authorization: Bearer",
        "authorization: Bearer x {}",
        "api-key: {}",
        "cookie: {}",
    ],
)
async def test_other_headers_hold_no_key(keys: Keys, token: str, header: str) -> None:
    name, _, value = header.format(token).partition(": ")
    with pytest.raises(Unauthorized):
        identify(keys, [(name.encode(), value.encode())])


async def test_unknown_and_revoked_keys_are_told_the_same(keys: Keys, token: str, tmp_path: Path) -> None:
    (key,) = (await FileShelf(tmp_path).read()).values()
    await FileShelf(tmp_path).put(msgspec.structs.replace(key, revoked_unix_s=1.0))
    await keys.load()
    said = set[tuple[int, str, str]]()
    for wrong in (token, "dg-unknown"):
        with pytest.raises(Unauthorized) as caught:
            identify(keys, bearer(wrong))
        wire, body, headers = describe(caught.value)
        said.add((wire.status, body.error.message, headers["www-authenticate"]))
    assert said == {(401, "Unknown API key.", "Bearer")}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost", ""])
async def test_where_keys_are_needed_the_host_changes_nothing(keys: Keys, token: str, host: str) -> None:
    claims = [
        (b"host", host.encode()),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-host", b"localhost"),
        (b"forwarded", b"for=127.0.0.1;host=localhost"),
        (b"origin", b"http://localhost"),
    ]
    with pytest.raises(Unauthorized):
        identify(keys, claims)
    assert identify(keys, [*claims, (b"x-api-key", token.encode())]).tenant == "acme"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:8080"])
async def test_without_keys_this_machine_may_ask(nobody: Keys, host: str) -> None:
    assert identify(nobody, [(b"host", host.encode())]) == Caller()
    assert identify(nobody, [(b"host", host.encode()), (b"authorization", b"Bearer none")]) == Caller()


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "127.0.0.1:80:80",
        ),
        *(
            "localhost@evil.example",
            "0.0.0.0",
            "[::]",
            "::1",
            "localhost:",
            "localhost/x",
            "10.0.0.1",
            "localhost ",
        ),
    ],
)
async def test_without_keys_other_names_of_this_machine_are_refused(nobody: Keys, host: str) -> None:
    with pytest.raises(Forbidden):
        identify(nobody, [(b"host", host.encode()), (b"x-forwarded-host", b"localhost")])


async def test_without_keys_a_host_must_be_said_once(nobody: Keys) -> None:
    for hosts in ([], [(b"host", b"localhost"), (b"host", b"evil.example")]):
        with pytest.raises(Forbidden):
            identify(nobody, hosts)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://localhost.evil.example", "file://"])
async def test_without_keys_pages_of_elsewhere_may_not_ask(nobody: Keys, origin: str) -> None:
    with pytest.raises(Forbidden):
        identify(nobody, [*LOCAL, (b"origin", origin.encode())])
    assert identify(nobody, [*LOCAL, (b"origin", b"http://localhost:3000")]) == Caller()


async def test_off_loopback_a_key_is_needed_even_if_there_is_none(tmp_path: Path) -> None:
    keys = Keys(FileShelf(tmp_path), refresh_s=1.0, loopback=False)
    await keys.load()
    with pytest.raises(Unauthorized):
        identify(keys, LOCAL)


def test_a_model_the_key_is_not_for_is_unknown() -> None:
    check_model(Caller(), "draftgate-refine")
    check_model(Caller(models=("draftgate",)), "draftgate")
    with pytest.raises(UnknownModel, match="it may ask for: draftgate\\."):
        check_model(Caller(models=("draftgate",)), "draftgate-refine")
