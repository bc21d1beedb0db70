"""Images that a message gives by their address: fetched here, so that engines need no network, and as untrusted as whoever asks.

What a URL may reach is decided on the addresses that its host resolves to, once; the connection then goes to one of these and nowhere else.
So no second answer of the name server, no redirect and no proxy can lead it inside. Why a host is refused is not told: that would tell which
names exist inside.
"""

import asyncio
import base64
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, cast

import httpx

from router.errors import BadRequest
from router.serving.addresses import is_public
from router.settings import ImageSettings

Messages = tuple[dict[str, Any], ...]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

MOST_IMAGES = 16  # to be fetched for one request: what the refiner takes
AT_ONCE = 4  # of one request
AT_ONCE_IN_ALL = 32  # of all requests: with max_bytes this bounds what is held while it is read
MOST_URL_CHARS = 2048
PORTS = {"http": 80, "https": 443}
# With a dot and not ending in a number: no name of this network only, and no other spelling of an address (WHATWG URL, section 3.5).
NAME = re.compile(r"([a-z0-9_-]{1,63}\.)+[a-z][a-z0-9-]{0,62}")
SIGNATURES = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "gif": re.compile(rb"GIF8[79]a"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}


class Target(NamedTuple):
    """A URL that may be fetched as far as its text tells."""

    url: httpx.URL
    host: str  # a name or an address, without brackets
    port: int
    param: str  # where the request has it


async def look_up(host: str, port: int) -> Sequence[str]:
    """Addresses of a name, best first. Raises OSError: there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(cast("str", address[0]) for *_, address in found))


class ImageFetcher:
    """Puts images into messages in place of their addresses."""

    def __init__(
        self, settings: ImageSettings, *, resolve: Resolve = look_up, public: Callable[[str], bool] = is_public
    ) -> None:
        """Connect to nothing yet.

        Args:
            settings: whether to fetch, from where, and how much.
            resolve: finds the addresses of a name; raises OSError where there are none.
            public: whether an address may be connected to.
        """
        self._settings = settings
        self._resolve = resolve
        self._public = public
        self._places = asyncio.Semaphore(AT_ONCE_IN_ALL)
        # The bare transport: no redirects, cookies, proxies or log lines. Its pool knows connections by address, so none is used twice: on a
        # shared machine the next one may be for another name.
        self._transport = (
            httpx.AsyncHTTPTransport(
                verify=httpx.create_ssl_context(), trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
            )
            if settings.fetch
            else None
        )

    async def inline(self, messages: Messages) -> Messages:
        """The messages with data: URLs in place of all others.

        Raises:
            BadRequest: an image that can't be had; `param` names its part.
        """
        wanted: dict[str, str] = {}
        for param, url in _remote(messages):
            wanted.setdefault(url, param)
        if not wanted:
            return messages
        if self._transport is None:
            words = "Images must come inside the request, as data: URLs: this server fetches none."
            raise BadRequest(words, param=next(iter(wanted.values())))
        if len(wanted) > MOST_IMAGES:
            words = f"expected at most {MOST_IMAGES} images to fetch, got {len(wanted)}."
            raise BadRequest(f"messages: {words}", param="messages")
        targets = [self._target(url, param) for url, param in wanted.items()]
        files = dict(zip(wanted, await self._fetch_all(targets), strict=True))
        return tuple(_filled(message, files) for message in messages)

    async def close(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.aclose()

    def _target(self, text: str, param: str) -> Target:
        """What can be told before any name is looked up. Raises BadRequest."""
        try:
            url = httpx.URL(text) if len(text) <= MOST_URL_CHARS else None
        except (httpx.InvalidURL, ValueError):
            url = None
        if url is None or url.scheme not in PORTS or not url.raw_host:  # `host` would decode it, which may fail
            words = f"expected a data:, http: or https: URL of at most {MOST_URL_CHARS} characters."
            raise BadRequest(f"{param}: {words}", param=param)
        if url.userinfo:
            raise BadRequest(f"{param}: expected a URL without a user or password.", param=param)
        host, port = url.raw_host.decode("ascii").rstrip("."), PORTS[url.scheme] if url.port is None else url.port
        usual = port in PORTS.values()
        allowed = [entry.lower() for entry in self._settings.hosts]
        known = f"{host}:{port}" in allowed or (usual and (host in allowed or not allowed))
        if not known or not (NAME.fullmatch(host) or self._public(host)):
            raise _closed(param)
        return Target(url, host, port, param)

    async def _fetch_all(self, targets: Sequence[Target]) -> list[str]:
        deadline = asyncio.get_running_loop().time() + self._settings.timeout_s
        budget = Budget(self._settings.max_bytes)
        places = asyncio.Semaphore(AT_ONCE)

        async def fetch(target: Target) -> str:
            try:
                async with asyncio.timeout_at(deadline), places, self._places:
                    return await self._fetch(target, budget)
            except TimeoutError:
                words = f"could not be fetched within {self._settings.timeout_s:g} s."
                raise BadRequest(f"{target.param}: the image {words}", param=target.param) from None

        tasks = [asyncio.create_task(fetch(target)) for target in targets]
        try:
            return await asyncio.gather(*tasks)
        finally:  # of several, the first failure ends the others
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, target: Target, budget: "Budget") -> str:
        addresses: Sequence[str] = ()
        with suppress(OSError, UnicodeError):
            addresses = await self._resolve(target.host, target.port)
        if not addresses or not all(map(self._public, addresses)):
            raise _closed(target.param)
        for address in addresses:
            try:
                async with aclosing(self._read(target, address, budget)) as pieces:
                    return _data_url(b"".join([piece async for piece in pieces]), target.param)
            except httpx.ConnectError:  # the next one may be reached: there are networks without IPv6
                continue
            except httpx.TransportError:
                break
        raise BadRequest(f"{target.param}: the image could not be fetched.", param=target.param)

    async def _read(self, target: Target, address: str, budget: "Budget") -> AsyncGenerator[bytes, None]:
        assert self._transport is not None, "looked at before"
        request = httpx.Request(
            "GET",
            target.url.copy_with(host=address, fragment=None),
            headers={
                "host": target.url.netloc.decode("ascii"),
                "user-agent": "draftgate",
                "accept": "image/*",
                "accept-encoding": "identity",  # or the bound on what is read would be one on compressed bytes
            },
            extensions={"sni_hostname": target.host},  # the certificate must be this name's
        )
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                words = f"expected status 200 for the image, got {response.status_code}; redirects are not followed."
                raise BadRequest(f"{target.param}: {words}", param=target.param)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BadRequest(f"{target.param}: expected an image that is not compressed again.", param=target.param)
            async for piece in response.aiter_raw():
                if not budget.take(len(piece)):
                    words = f"expected at most {self._settings.max_bytes} bytes of images, got more."
                    raise BadRequest(f"{target.param}: {words}", param=target.param)
                yield piece
        finally:
            await response.aclose()


class Budget:
    """Bytes that all images of a request may take together."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, count: int) -> bool:
        """Were there still so many?"""
        self._left -= count
        return self._left >= 0


def _remote(messages: Messages) -> list[tuple[str, str]]:
    """Where URLs stand that must be fetched, and what they are."""
    found: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        for j, part in enumerate(_parts(message)):
            match part:
                case {"type": "image_url", "image_url": {"url": str(url)}} if not _is_data(url):
                    found.append((f"messages[{i}].content[{j}].image_url.url", url))
                case _:
                    pass
    return found


def _filled(message: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    parts = _parts(message)
    return message | {"content": [_with(part, files) for part in parts]} if parts else message


def _with(part: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} as image} if url in files:
            return part | {"image_url": image | {"url": files[url]}}
        case _:
            return part


def _parts(message: dict[str, Any]) -> Sequence[dict[str, Any]]:
    content = message.get("content")
    return cast("Sequence[dict[str, Any]]", content) if isinstance(content, list | tuple) else ()


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _data_url(file: bytes, param: str) -> str:
    for kind, signature in SIGNATURES.items():
        if signature.match(file):
            return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"
    raise BadRequest(f"{param}: expected an image in {', '.join(SIGNATURES)}, got something else.", param=param)


def _closed(param: str) -> BadRequest:
    return BadRequest(f"{param}: this server doesn't fetch from there.", param=param)
