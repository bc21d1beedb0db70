"""Images by their address: what may be fetched is, and nothing inside is ever reached."""

import asyncio
import base64
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.errors import BadRequest
from router.serving import images
from router.serving.addresses import is_public
from router.serving.images import ImageFetcher, Messages
from router.settings import ImageSettings

HANG_S = 30.0
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(HANG_S)]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
FETCH = ImageSettings(fetch=True)
PUBLIC = "93.184.216.34"
NAMES = {
    "public.example": [PUBLIC],
    "public.example.": [PUBLIC],
    "six.example": ["2606:4700::1111"],
    "nat64.example": ["64:ff9b::5db8:d822"],  # 93.184.216.34
    "both.example": ["2606:4700::1111", PUBLIC],
    "inside.example": ["10.1.2.3"],
    "half.example": [PUBLIC, "127.0.0.1"],
    "half6.example": [PUBLIC, "::1"],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "empty.example": [],
    "localhost": ["127.0.0.1"],
    "redis": ["172.18.0.2"],
}


def asking(*urls: str) -> Messages:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "?"}, *parts]},
    )


def urls_of(messages: Messages) -> list[str]:
    return [part["image_url"]["url"] for part in messages[1]["content"][1:]]


class World:
    """Names and servers that a test makes up; remembers who was asked."""

    def __init__(self, settings: ImageSettings = FETCH, **answer: Any) -> None:
        self.looked_up: list[str] = []
        self.requests: list[httpx.Request] = []
        self.answer = answer or {"content": PNG}
        self.unreachable: set[str] = set()
        self.running = self.most_running = 0
        self.fetcher = ImageFetcher(settings, resolve=self.resolve)
        if settings.fetch:
            self.fetcher._transport = httpx.MockTransport(self.handle)  # pyright: ignore[reportAttributeAccessIssue]

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        found = [host] if host.replace(".", "").isdigit() or ":" in host else NAMES.get(host)
        if found is None:
            raise OSError("no such name")
        return found

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        if request.url.host in self.unreachable:
            raise httpx.ConnectError("refused")
        content = self.answer.get("content", b"")
        return httpx.Response(
            self.answer.get("status_code", 200),
            headers=self.answer.get("headers"),
            stream=httpx.ByteStream(content) if isinstance(content, bytes) else Pieces(content),
        )


class Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self.pieces = pieces

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self.pieces


BLOCKED = [
    "http://127.0.0.1/x", "https://127.0.0.1/x", "http://127.8.9.1/", "http://0.0.0.0/", "http://0.1.2.3/", "http://10.0.0.1/",
    "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/", "http://100.100.100.200/", "http://168.63.129.16/", "http://192.0.0.192/", "http://198.18.0.1/",
    "http://224.0.0.1/", "http://239.255.255.250/", "http://240.0.0.1/", "http://255.255.255.255/", "http://192.88.99.1/",
    "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/",
    "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[ff02::1]/",
    "http://[2002:7f00:1::]/", "http://[2001:0:7f00:1::1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::a00:1]/",
    "http://[2001:db8::1]/", "http://[100::1]/", "http://[fec0::1]/",
    "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/",
    "http://127.0.0.1./", "http://127\u30020\u30020\u30021/", "http://\uff11\uff12\uff17.0.0.1/", "http://\u2460\u2461\u2466.0.0.1/", "http://%31%32%37.0.0.1/",
    "http://localhost/", "http://localhost./", "http://LOCALHOST/", "http://redis/", "http://localhost%00.public.example/",
    "http://inside.example/", "http://half.example/", "http://half6.example/", "http://metadata.example/", "http://mapped.example/",
    "http://empty.example/", "http://unknown.example/", "http://public.example:22/", "http://public.example:6379/",
    "http://public.example:8080/", "http://public.example:0/", "http://public.example:99999/", "http://user@public.example/",
    "http://user:pass@public.example/", "http://public.example\\@127.0.0.1/",
    "file:///etc/passwd", "ftp://public.example/x", "gopher://public.example/", "unix:///run/x.sock", "//public.example/x", "/etc/passwd",
    "http:///x", "http://", "", "javascript:alert(1)", "http://public.example /", "http://pub\nlic.example/",
    "http://xn--/", "http://xn--a.example/", "http://public.example/" + "x" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("url", BLOCKED)
async def test_nothing_inside_is_reached(url: str) -> None:
    world = World()
    with pytest.raises(BadRequest) as raised:
        await world.fetcher.inline(asking("data:image/png;base64,AA==", url))
    assert world.requests == []
    assert raised.value.param == "messages[1].content[2].image_url.url"


async def test_a_name_inside_and_no_name_look_the_same() -> None:
    words: set[str] = set()
    for url in ("http://inside.example/", "http://unknown.example/", "http://10.0.0.1/", "http://redis/"):
        with pytest.raises(BadRequest) as raised:
            await World().fetcher.inline(asking(url))
        words.add(str(raised.value))
    assert len(words) == 1


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "64:ff9b::808:808"]
)
async def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("text", ["", "public.example", "1.2.3", "999.1.1.1", "::1%lo", "2606:4700::1%eth0"])
async def test_what_is_no_plain_address_is_not_public(text: str) -> None:
    assert not is_public(text)


async def test_without_fetching_only_data_urls_pass() -> None:
    world = World(ImageSettings())
    data = asking("data:image/png;base64,AA==", "DATA:image/gif;base64,AA==")
    assert await world.fetcher.inline(data) is data
    with pytest.raises(BadRequest, match="as data: URLs") as raised:
        await world.fetcher.inline(asking("https://public.example/a.png"))
    assert raised.value.param == "messages[1].content[1].image_url.url"
    assert world.looked_up == []
    await world.fetcher.close()


async def test_messages_without_images_are_left_as_they_are() -> None:
    messages = ({"role": "user", "content": "http://127.0.0.1/"}, {"role": "assistant", "content": None})
    assert await World().fetcher.inline(messages) is messages


async def test_the_connection_goes_to_the_address_that_was_looked_at() -> None:
    world = World()
    done = await world.fetcher.inline(asking("https://public.example./a.png?b=c#d"))
    assert urls_of(done) == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]
    assert done[1]["content"][1]["image_url"]["detail"] == "low"
    (request,) = world.requests
    assert str(request.url) == f"https://{PUBLIC}/a.png?b=c"
    assert request.headers["host"] == "public.example."
    assert request.extensions["sni_hostname"] == "public.example"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"authorization", "cookie", "referer"} & set(request.headers)
    assert world.looked_up == ["public.example"]


async def test_the_port_stays_in_the_host_header() -> None:
    world = World(ImageSettings(fetch=True, hosts=("public.example:8080",)))
    await world.fetcher.inline(asking("http://public.example:8080/"))
    assert world.requests[0].headers["host"] == "public.example:8080"
    assert world.requests[0].url.port == 8080


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    world = World()
    world.unreachable.add("2606:4700::1111")
    await world.fetcher.inline(asking("http://both.example/"))
    assert [request.url.host for request in world.requests] == ["2606:4700::1111", PUBLIC]
    world.unreachable.add(PUBLIC)
    with pytest.raises(BadRequest, match="could not be fetched"):
        await world.fetcher.inline(asking("http://both.example/"))


@pytest.mark.parametrize("host", ["six.example", "nat64.example"])
async def test_addresses_of_the_sixth_version(host: str) -> None:
    world = World()
    await world.fetcher.inline(asking(f"http://{host}/"))
    assert [request.url.host for request in world.requests] == NAMES[host]


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (("Public.example",), "http://PUBLIC.example/", True),
        (("public.example",), "https://public.example:443/", True),
        (("public.example",), "http://public.example:8080/", False),
        (("public.example:8080",), "http://public.example:8080/", True),
        (("public.example:8080",), "http://public.example/", False),
        (("public.example",), "http://six.example/", False),
        (("example",), "http://public.example/", False),
        (("inside.example", "127.0.0.1"), "http://inside.example/", False),  # the list narrows, it never opens
        (("127.0.0.1:8080",), "http://127.0.0.1:8080/", False),
    ],
)
async def test_the_list_of_hosts(hosts: tuple[str, ...], url: str, allowed: bool) -> None:
    world = World(ImageSettings(fetch=True, hosts=hosts))
    if allowed:
        await world.fetcher.inline(asking(url))
    else:
        with pytest.raises(BadRequest):
            await world.fetcher.inline(asking(url))
    assert bool(world.requests) == allowed


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (PNG, "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF89a", "gif"),
        (b"GIF87a", "gif"),
        (b"RIFF\n\n\n\nWEBPVP8 ", "webp"),
    ],
)
async def test_the_kind_is_told_by_the_file_not_the_header(file: bytes, kind: str) -> None:
    world = World(content=file, headers={"content-type": "text/html"})
    done = await world.fetcher.inline(asking("http://public.example/"))
    assert urls_of(done) == [f"data:image/{kind};base64,{base64.b64encode(file).decode()}"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"content": b"<html>", "headers": {"content-type": "image/png"}}, "got something else"),
        ({"content": b""}, "got something else"),
        ({"content": b"<svg/>"}, "got something else"),
        ({"status_code": 302, "headers": {"location": "http://169.254.169.254/"}}, "redirects are not followed"),
        ({"status_code": 404, "content": PNG}, "got 404"),
        ({"content": PNG, "headers": {"content-encoding": "gzip"}}, "compressed"),
    ],
)
async def test_other_answers_are_refused(answer: dict[str, Any], words: str) -> None:
    world = World(**answer)
    with pytest.raises(BadRequest, match=words):
        await world.fetcher.inline(asking("http://public.example/"))
    assert len(world.requests) == 1


async def test_too_much_is_not_read_to_its_end() -> None:
    read = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal read
        while True:
            read += 1000
            yield PNG.ljust(1000)

    world = World(ImageSettings(fetch=True, max_bytes=10_000), content=endless())
    with pytest.raises(BadRequest, match="at most 10000 bytes"):
        await world.fetcher.inline(asking("http://public.example/"))
    assert read <= 12_000


async def test_images_of_a_request_share_what_may_be_read() -> None:
    world = World(ImageSettings(fetch=True, max_bytes=3 * len(PNG)))
    await world.fetcher.inline(asking(*(f"http://public.example/{i}" for i in range(3))))
    with pytest.raises(BadRequest, match="at most"):
        await world.fetcher.inline(asking(*(f"http://public.example/{i}" for i in range(4))))


async def test_few_at_a_time_and_each_once() -> None:
    world = World()
    urls = [f"http://public.example/{i}" for i in range(12)]
    done = await world.fetcher.inline(asking(*urls, *urls))
    assert len(world.requests) == 12
    assert world.most_running == images.AT_ONCE
    assert all(url.startswith("data:") for url in urls_of(done))


async def test_too_many_are_refused_before_any_is_fetched() -> None:
    world = World()
    with pytest.raises(BadRequest, match="at most 16 images"):
        await world.fetcher.inline(asking(*(f"http://public.example/{i}" for i in range(17))))
    assert world.looked_up == []


async def test_one_bad_image_ends_the_others() -> None:
    world = World(ImageSettings(fetch=True, timeout_s=HANG_S))
    world.fetcher._resolve = never
    with pytest.raises(BadRequest, match="doesn't fetch"):
        await world.fetcher.inline(asking("http://public.example/", "http://unknown.example/"))


async def never(host: str, port: int) -> Sequence[str]:
    if host == "unknown.example":
        raise OSError
    await asyncio.Event().wait()
    return []


async def test_a_name_server_that_hangs_is_not_waited_for() -> None:
    world = World(ImageSettings(fetch=True, timeout_s=0.01))
    world.fetcher._resolve = never
    with pytest.raises(BadRequest, match=r"within 0\.01 s"):
        await world.fetcher.inline(asking("http://public.example/"))


async def test_a_real_server() -> None:
    """Everything but the choice of addresses is real here: sockets, HTTP, the name in the header."""
    heads: list[bytes] = []
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if b" /slow " in heads[-1]:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + PNG)
            await reader.read()
            closed.set()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: %d\r\n\r\n" % len(PNG) + PNG)
        writer.close()

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = ImageSettings(fetch=True, hosts=(f"pictures.example:{port}",), timeout_s=1.0)
    fetcher = ImageFetcher(settings, resolve=resolve, public=lambda address: address == "127.0.0.1")
    url = f"http://pictures.example:{port}"
    for _ in range(2):
        done = await fetcher.inline(asking(f"{url}/a"))
        assert urls_of(done) == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]
    assert all(f"\r\nhost: pictures.example:{port}\r\n".encode() in head.lower() for head in heads)
    assert b"cookie" not in heads[1].lower()
    with pytest.raises(BadRequest, match="within 1 s"):
        await fetcher.inline(asking(f"{url}/slow"))
    await closed.wait()  # no connection is left behind
    await fetcher.close()
    server.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize("host", ["pictures.example", "other.example"])
async def test_the_certificate_must_be_the_names(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    names = ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *names]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    offered = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    offered.load_cert_chain(certificate, key)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: ssl.create_default_context(cafile=certificate))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(PNG) + PNG)
        writer.close()

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=offered)
    port = server.sockets[0].getsockname()[1]
    settings = ImageSettings(fetch=True, hosts=(f"{host}:{port}",), timeout_s=HANG_S)
    fetcher = ImageFetcher(settings, resolve=resolve, public=lambda _: True)
    messages = asking(f"https://{host}:{port}/")
    if host == "pictures.example":
        assert urls_of(await fetcher.inline(messages))[0].startswith("data:image/png;base64,")
    else:
        with pytest.raises(BadRequest, match="could not be fetched"):
            await fetcher.inline(messages)
    await fetcher.close()
    server.close()
