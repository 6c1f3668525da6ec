"""HTTP as every client here speaks it: no redirect is followed, an answer has a bound, and no cookie is kept.

`open_session` is for aiohttp, and for SDKs that take a session; `guard_response` is for SDKs over httpx.
"""

import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from llms.errors import Fatal, Rejected, Transient

MAX_RESPONSE_BYTES = 64 * 2**20
"""Size of an answer, decompressed: a larger one is a broken or hostile server's, and would fill the memory."""

REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})

ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
"""Compressions that are asked for and undone here, with a bound on what comes out."""

REQUEST_HEADERS = {"Accept-Encoding": "gzip, deflate"}
"""Headers of every request: no compression that this module cannot bound."""


def open_session(**settings: Any) -> aiohttp.ClientSession:
    """Open a session without a limit: the engine admits requests, and a queue for connections spends the time-out."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),  # models with other keys use the session too
        headers=REQUEST_HEADERS,
        auto_decompress=False,
        response_class=_GuardedResponse,
        **settings,
    )


@lru_cache(maxsize=100)
def environment_proxy(url: str) -> str | None:
    """Return the proxy of the environment. `trust_env` would also read `~/.netrc`, whose login replaces our key."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


async def guard_response(response: Any) -> None:
    """Refuse a redirect, and bound the body: an event hook for the responses of an httpx client.

    Raises:
        Fatal: If the response is a redirect.
        Rejected: If it is compressed in a way that was not asked for.
    """
    address = _without_secrets(f"{response.request.url}")
    _refuse_redirect(response.status_code, response.headers, address)
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding not in {*ENCODINGS, "identity", ""}:
        raise Rejected(f"`{address}` compressed its answer as `{encoding[:20]}`, which was not asked for.")
    stream = _bounded_stream(type(response).__module__.partition(".")[0])
    response.stream = stream(response.stream, _Body(address, encoding))


class _Body:
    """The body of a response, decompressed piece by piece."""

    def __init__(self, address: str, encoding: str) -> None:
        self._address, self._encoding = address, encoding
        self._size = 0
        self._decompressor: Any = None

    def decode(self, piece: bytes) -> bytes:
        """Return what the next piece holds.

        Raises:
            Rejected: If the body is too large.
            Transient: If it is damaged.
        """
        return self._decompress(piece) if self._encoding in ENCODINGS else self._counted(piece)

    def _decompress(self, piece: bytes) -> bytes:
        found: list[bytes] = []
        while piece:
            if self._decompressor is None:  # `deflate` is with a header or, wrongly, without
                has_header = piece[0] == 0x1F or piece[0] & 0x0F == zlib.DEFLATED
                self._decompressor = zlib.decompressobj(47 if has_header else -zlib.MAX_WBITS)
            try:
                found.append(self._counted(self._decompressor.decompress(piece, MAX_RESPONSE_BYTES + 1 - self._size)))
            except zlib.error:
                raise Transient(f"`{self._address}` sent a body that is not `{self._encoding}`.", status=200) from None
            piece = self._decompressor.unconsumed_tail
            if self._decompressor.eof:  # a file of gzip may be several, one behind the other
                piece, self._decompressor = self._decompressor.unused_data.lstrip(b"\0"), None
        return b"".join(found)

    def _counted(self, piece: bytes) -> bytes:
        self._size += len(piece)
        if self._size > MAX_RESPONSE_BYTES:
            raise Rejected(f"`{self._address}` answered more than {MAX_RESPONSE_BYTES / 2**20:g} MiB: it was not read.")
        return piece


class _GuardedResponse(aiohttp.ClientResponse):
    """A response that is no redirect, and whose body is bounded; of a session that does not decompress."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Read status and headers. Usually not called."""
        await super().start(connection)
        address, encoding = _without_secrets(f"{self.url}"), self.headers.get("Content-Encoding", "").strip().lower()
        _refuse_redirect(self.status, self.headers, address)
        self.content: Any = _BoundedContent(self.content, _Body(address, encoding))
        if encoding in ENCODINGS:  # a transport of httpx would decompress it once more
            headers = CIMultiDict(self.headers)
            del headers["Content-Encoding"]
            self._headers = CIMultiDictProxy(headers)
            self._raw_headers = tuple(
                pair for pair in self._raw_headers or () if pair[0].lower() != b"content-encoding"
            )
        return self

    @property
    def headers(self) -> Any:  # type: ignore[override]
        """The headers, without the compression that was undone."""
        return self._headers


class _BoundedContent:
    """The content of a `_GuardedResponse`, as aiohttp's reader that it is in front of."""

    def __init__(self, reader: aiohttp.StreamReader, body: _Body) -> None:
        self._reader, self._body = reader, body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self, n: int = -1) -> bytes:
        """Return all of it."""
        return b"".join([piece async for piece in self.iter_any()])

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield it in pieces."""
        async for piece in self._reader.iter_any():
            yield self._body.decode(piece)

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Yield it in pieces, which may be larger once they are decompressed."""
        return self.iter_any()


@lru_cache
def _bounded_stream(package: str) -> type[Any]:
    """Return the class of a bounded stream for `httpx`, or for a package that is like it."""

    class BoundedStream(import_module(package).AsyncByteStream):
        def __init__(self, stream: Any, body: _Body) -> None:
            self._stream, self._body = stream, body

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in self._stream:
                yield self._body.decode(piece)

        async def aclose(self) -> None:
            await self._stream.aclose()

    return BoundedStream


def _refuse_redirect(status: int, headers: Mapping[str, str], address: str) -> None:
    location = headers.get("location")
    if status in REDIRECT_STATUSES and location:
        target = "another address"
        with suppress(ValueError):
            parts = urlsplit(urljoin(address, location))
            port = f":{parts.port}" if parts.port else ""
            target = f"`{parts.scheme}://{parts.hostname}{port}`"
        raise Fatal(
            f"`{address}` redirects to {target} ({status}). No redirect is followed, as keys and prompts would go "
            "along: where that is the right server, put its address into `base_url`.",
            status=status,
        )


def _without_secrets(url: str) -> str:
    """Return a URL without login, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
