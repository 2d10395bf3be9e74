"""HTTP/1.1 connections to one endpoint, kept open between calls, for POSTs of JSON and nothing else.

A general client (aiohttp) spends about 0.1 ms of processor time a call on what is not needed here: cookies, redirects,
traces, streams. This one sends a head made once and reads the reply where it arrives. It is strict: a reply that breaks
RFC 9112 ends its connection, and so does one that is larger than allowed, one that announces its end by closing, and
one that leaves bytes behind. A POST is never sent twice: whether a lost one was paid for is not known here.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import zlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult

from multidict import CIMultiDict

LONGEST_HEAD = 65_536
"""Bytes of status line and headers."""
NEXT_ADDRESS = 0.25
"""Seconds after which the host's next address is tried too (RFC 8305)."""


class BrokenReplyError(ConnectionError):
    """The server closed the connection, or sent what is no HTTP."""


class NoConnectionError(ConnectionError):
    """No connection could be opened: nothing was sent."""


class TooLargeError(Exception):
    """The reply is larger than allowed."""


class Received(NamedTuple):
    """A whole reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connections:
    """The connections to one endpoint. Belongs to the event loop that it is used in.

    idle: seconds that an unused connection is kept. opening: seconds for a new one to be there.
    """

    def __init__(self, address: SplitResult, headers: Mapping[str, str], *, idle: float, opening: float) -> None:
        secure = address.scheme == "https"
        self.host, self.port = address.hostname or "", address.port or (443 if secure else 80)
        self.idle, self.opening = idle, opening
        self.context = ssl.create_default_context() if secure else None
        target = f"{address.path or '/'}?{address.query}" if address.query else address.path or "/"
        lines = [f"POST {target} HTTP/1.1", f"Host: {address.netloc}", "Accept-Encoding: identity"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "Content-Length: "])
        if head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("a header or the address holds a line end")
        self.head = head.encode("latin-1")
        self.open: set[Connection] = set()
        self.free: list[Connection] = []  # the one used last at the end

    async def post(self, body: bytes, max_bytes: int) -> Received:
        """The reply. NoConnectionError; another OSError: it broke; TooLargeError."""
        connection = self._unused() or await self._opened()
        try:
            received = await connection.exchange(b"%b%d\r\n\r\n%b" % (self.head, len(body), body), max_bytes)
        except BaseException:
            connection.abort()
            raise
        if connection.reusable:
            connection.since = time.monotonic()
            self.free.append(connection)
        else:
            connection.abort()
        return received

    def _unused(self) -> Connection | None:
        oldest = time.monotonic() - self.idle
        while self.free:
            connection = self.free.pop()
            if connection.reusable and connection.since >= oldest:
                return connection
            connection.abort()
        return None

    async def _opened(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.opening):
                _, connection = await loop.create_connection(
                    lambda: Connection(self.open), self.host, self.port, ssl=self.context,
                    happy_eyeballs_delay=NEXT_ADDRESS,
                )  # fmt: skip
        except OSError as error:  # a TimeoutError is one too
            raise NoConnectionError(type(error).__name__) from error
        return connection

    async def close(self) -> None:
        """Close all of them."""
        for connection in list(self.open):
            connection.abort()
        self.free.clear()
        await asyncio.sleep(0)


class Connection(asyncio.Protocol):
    """One connection: at most one exchange at a time."""

    def __init__(self, every: set[Connection]) -> None:
        self.every = every
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.reusable = False
        self.since = 0.0
        self.came = bytearray()
        self.waiter: asyncio.Future[Received] | None = None
        self.reply: _Reply | None = None
        self.max_bytes = 0

    # ---------------------------------------------------------------------------------------------- for its owner

    async def exchange(self, request: bytes, max_bytes: int) -> Received:
        """Send a request, and its whole reply."""
        if self.transport is None or self.transport.is_closing():
            raise BrokenReplyError("the connection is closed")
        self.reusable, self.max_bytes, self.reply = False, max_bytes, None
        self.waiter = self.loop.create_future()
        self.transport.write(request)
        return await self.waiter

    def abort(self) -> None:
        """Close it at once."""
        self.reusable = False
        self.every.discard(self)
        if self.transport is not None:
            self.transport.abort()

    # ------------------------------------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = transport  # type: ignore[assignment]
        self.reusable = True
        self.every.add(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.waiter is None or self.waiter.done():  # nobody asked for this
            self.abort()
            return
        self.came += data
        try:
            self._advance(closed=False)
        except (TooLargeError, BrokenReplyError) as error:
            self._fail(error)

    def eof_received(self) -> None:
        """See asyncio.Protocol."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.reusable = False
        self.every.discard(self)
        if self.waiter is None or self.waiter.done():
            return
        try:
            self._advance(closed=True)
        except (TooLargeError, BrokenReplyError) as error:
            self._fail(error)
        else:
            if not self.waiter.done():
                self._fail(exc if isinstance(exc, OSError) else BrokenReplyError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)
        self.abort()

    def _advance(self, *, closed: bool) -> None:
        """Read on as far as the bytes go."""
        while self.reply is None:
            end = self.came.find(b"\r\n\r\n")
            if end < 0:
                if len(self.came) > LONGEST_HEAD:
                    raise BrokenReplyError("the head of the reply has no end")
                return
            reply = _Reply.of(bytes(self.came[:end]), self.max_bytes)
            del self.came[: end + 4]
            if reply.status >= 200:
                self.reply = reply
        whole = self.reply.read(self.came, closed=closed)
        if whole is not None and self.waiter is not None:
            self.reusable = self.reply.keeps and not self.came and not closed
            self.waiter.set_result(whole)


class _Reply:
    """A reply on its way in: what its head says, and its body so far."""

    def __init__(self, status: int, fields: list[tuple[str, str]], version: bytes, max_bytes: int) -> None:
        self.status, self.fields, self.max_bytes = status, fields, max_bytes
        named = {name.lower(): value for name, value in fields}
        lengths = {value for name, value in fields if name.lower() == "content-length"}
        coding = named.get("transfer-encoding", "").lower()
        self.chunks: _Chunks | None = None
        self.length: int | None = None
        if coding:
            if coding != "chunked":
                raise BrokenReplyError(f"a transfer coding that nobody asked for: {coding[:40]}")
            self.chunks = _Chunks(max_bytes)
        elif lengths:
            (text, *more) = lengths
            if more or not (text.isascii() and text.isdigit()):
                raise BrokenReplyError("a length that is none")
            self.length = int(text[:20])
        elif status in {204, 304}:
            self.length = 0
        if self.length is not None and self.length > max_bytes:
            raise TooLargeError
        ends = self.length is not None or self.chunks is not None
        wish = named.get("connection", "").lower()
        self.keeps = ends and "close" not in wish and (version == b"HTTP/1.1" or "keep-alive" in wish)
        self.encoding = named.get("content-encoding", "").lower()

    @classmethod
    def of(cls, head: bytes, max_bytes: int) -> _Reply:
        """From status line and headers. BrokenReplyError: that is no HTTP."""
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        status = rest[:3]
        if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not status.isdigit() or rest[3:4] not in {b"", b" "}:
            raise BrokenReplyError("no status line")
        fields = []
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise BrokenReplyError("a header that is none")
            fields.append((name.decode("latin-1"), value.strip().decode("latin-1")))
        return cls(int(status), fields, version, max_bytes)

    def read(self, came: bytearray, *, closed: bool) -> Received | None:
        """Take what belongs to the body from `came`; the reply, once it is whole."""
        if self.chunks is not None:
            if not self.chunks.read(came):
                return None
            body = bytes(self.chunks.body)
        elif self.length is not None:
            if len(came) < self.length:
                return None
            body = bytes(came[: self.length])
            del came[: self.length]
        else:
            if len(came) > self.max_bytes:
                raise TooLargeError
            if not closed:
                return None
            body = bytes(came)
            came.clear()
        if self.encoding not in {"", "identity"}:
            body = inflated(body, self.encoding, self.max_bytes)
        return Received(self.status, CIMultiDict(self.fields), body)


class _Chunks:
    """A chunked body so far."""

    def __init__(self, max_bytes: int) -> None:
        self.body, self.max_bytes = bytearray(), max_bytes
        self.left: int | None = None  # bytes of this chunk, its line end included; None: its size is next
        self.trailing = False

    def read(self, came: bytearray) -> bool:
        """Take what is there; is the body whole?"""
        while True:
            if self.left is None or self.trailing:
                end = came.find(b"\r\n")
                if end < 0:
                    if len(came) > LONGEST_HEAD:
                        raise BrokenReplyError("a chunk without a size")
                    return False
                line = bytes(came[:end])
                del came[: end + 2]
                if self.trailing:
                    if not line:
                        return True
                    continue
                self._begin(line)
            elif len(came) < self.left:
                return False
            else:
                self._end(came)

    def _begin(self, line: bytes) -> None:
        size = line.partition(b";")[0].strip()
        if not size or len(size) > 16 or not all(digit in b"0123456789abcdefABCDEF" for digit in size):
            raise BrokenReplyError("a chunk's size that is none")
        count = int(size, 16)
        if len(self.body) + count > self.max_bytes:
            raise TooLargeError
        self.trailing = count == 0
        self.left = count + 2

    def _end(self, came: bytearray) -> None:
        size = (self.left or 2) - 2
        if came[size : size + 2] != b"\r\n":
            raise BrokenReplyError("a chunk that does not end where it says")
        self.body += came[:size]
        del came[: size + 2]
        self.left = None


def inflated(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body of a server that compresses though nobody asked. TooLargeError: it would be larger than allowed."""
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise BrokenReplyError(f"a content encoding that nobody asked for: {encoding[:40]}")
    for bits in (47, -15) if encoding == "deflate" else (47,):
        unpacked = zlib.decompressobj(bits)
        try:
            text = unpacked.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(text) > max_bytes:
            raise TooLargeError
        if unpacked.eof:
            return text
    raise BrokenReplyError("a compressed body that cannot be read")
