"""The engine's own HTTP: what it sends, what it believes, and what it does with a connection afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from hypothesis import given, settings, strategies as st

from factory.engines.connections import BrokenReplyError, Connections, Received, TooLargeError

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
Client = Callable[[Connections], Awaitable[Any]]
OK = b"HTTP/1.1 200 OK\r\n"


def against(replies: Sequence[bytes | list[bytes]], client: Client, **more: Any) -> tuple[Any, list[bytes], int]:
    """What `client` got from a server that sends these bytes, one item a request (a list: piece by piece), and
    closes after the last; the requests that it saw, and how many connections."""
    seen: list[bytes] = []
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        try:
            while len(seen) < len(replies):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                reply = replies[len(seen)]
                seen.append(head + body)
                for piece in [reply] if isinstance(reply, bytes) else reply:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                if b"close" in (reply if isinstance(reply, bytes) else b"".join(reply)).split(b"\r\n\r\n")[0]:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        address = urlsplit(f"http://127.0.0.1:{port}/v1/chat/completions?api-version=1")
        connections = Connections(address, HEADERS, **{"idle": 4.0, "opening": 5.0} | more)
        try:
            return await asyncio.wait_for(client(connections), 10)
        finally:
            await connections.close()
            server.close()

    return asyncio.run(run()), seen, opened


def posts(count: int = 1, max_bytes: int = 1000) -> Client:
    async def client(connections: Connections) -> list[Received]:
        return [await connections.post(b'{"n": %d}' % n, max_bytes) for n in range(count)]

    return client


def whole(body: bytes, more: bytes = b"", first: bytes = OK) -> bytes:
    return first + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_what_is_sent() -> None:
    _, (sent,), _ = against([whole(b"{}")], posts())
    head, body = sent.split(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    assert first == b"POST /v1/chat/completions?api-version=1 HTTP/1.1"
    assert fields[b"Host"].startswith(b"127.0.0.1:")
    assert (fields[b"Authorization"], fields[b"Content-Type"]) == (b"Bearer secret", b"application/json")
    assert (fields[b"Content-Length"], body) == (b"8", b'{"n": 0}')


def test_a_connection_is_used_again() -> None:
    got, seen, opened = against([whole(b"one"), whole(b"two", b"X-Case: Kept\r\n")], posts(2))
    assert [r.body for r in got] == [b"one", b"two"]
    assert (len(seen), opened) == (2, 1)
    assert (got[1].status, got[1].headers["x-case"]) == (200, "Kept")


@pytest.mark.parametrize(
    "reply",
    [
        whole(b"one", b"Connection: close\r\n"),
        whole(b"one", first=b"HTTP/1.0 200 OK\r\n"),
        OK + b"Connection: close\r\n\r\none",
    ],
)
def test_a_connection_that_ends_with_its_reply_is_not_used_again(reply: bytes) -> None:
    got, _, opened = against([reply, whole(b"two")], posts(2))
    assert ([r.body for r in got], opened) == ([b"one", b"two"], 2)


def test_a_connection_with_bytes_left_over_is_not_used_again() -> None:
    got, _, opened = against([whole(b"one") + b"HTTP/1.1 200 OK\r\n", whole(b"two")], posts(2))
    assert ([r.body for r in got], opened) == ([b"one", b"two"], 2)


def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    async def client(connections: Connections) -> list[bytes]:
        first = await connections.post(b"{}", 100)
        await asyncio.sleep(0.05)
        return [first.body, (await connections.post(b"{}", 100)).body]

    got, _, opened = against([whole(b"one"), whole(b"two")], client, idle=0.01)
    assert (got, opened) == ([b"one", b"two"], 2)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (CHUNKED + b"3\r\none\r\n0\r\n\r\n", b"one"),
        (CHUNKED + b"2;name=value\r\non\r\n1\r\ne\r\n0\r\nTrailer: x\r\n\r\n", b"one"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"one"), b"one"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\none", b"one"),
        (OK + b"Content-Length: 3\r\ncontent-length: 3\r\n\r\none", b"one"),
        (whole(gzip.compress(b"one"), b"Content-Encoding: gzip\r\n"), b"one"),
        (whole(zlib.compress(b"one"), b"Content-Encoding: deflate\r\n"), b"one"),
    ],
)
def test_replies_of_every_form(reply: bytes, body: bytes) -> None:
    got, _, opened = against([reply, whole(b"next")], posts(2))
    assert [r.body for r in got] == [body, b"next"]
    assert opened == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>nothing</html>\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        OK + b"no header\r\n\r\n",
        OK + b"Content-Length : 3\r\n\r\none",
        OK + b"Content-Length: -3\r\n\r\none",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\none",
        OK + b"Content-Length: 9\r\nConnection: close\r\n\r\none",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
        CHUNKED + b"x\r\none\r\n0\r\n\r\n",
        CHUNKED + b"2\r\none\r\n0\r\n\r\n",
        whole(b"one", b"Content-Encoding: br\r\n"),
        whole(b"one", b"Content-Encoding: gzip\r\n"),
        OK + b"x: " + b"y" * 100_000,
    ],
)
def test_what_is_no_reply_breaks_its_connection(reply: bytes) -> None:
    async def client(connections: Connections) -> int:
        with pytest.raises(BrokenReplyError):
            await connections.post(b"{}", 100)
        return len(connections.open)

    assert against([reply], client)[0] == 0


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"Content-Length: 999999999999999999999\r\n\r\n",
        OK + b"Content-Length: 101\r\n\r\n",
        CHUNKED + b"65\r\n",
        CHUNKED + b"ffffffffffffffff\r\n",
        OK + b"\r\n" + b"x" * 200,
        whole(gzip.compress(b"x" * 50_000), b"Content-Encoding: gzip\r\n"),
    ],
)
def test_what_is_too_large_is_not_read(reply: bytes) -> None:
    async def client(connections: Connections) -> int:
        with pytest.raises(TooLargeError):
            await connections.post(b"{}", 100)
        return len(connections.open)

    assert against([reply], client)[0] == 0


def test_a_call_that_is_given_up_closes_its_connection() -> None:
    async def client(connections: Connections) -> tuple[int, bytes]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connections.post(b"{}", 100), 0.05)
        return len(connections.open), (await connections.post(b"{}", 100)).body

    (left, body), _, opened = against([OK + b"Content-Length: 9\r\n\r\n", whole(b"two")], client)
    assert (left, body, opened) == (0, b"two", 2)


def test_no_connection_is_an_os_error() -> None:
    async def refused() -> None:
        connections = Connections(urlsplit("http://127.0.0.1:9/v1"), {}, idle=1, opening=1)
        with pytest.raises(OSError, match=r"refused|Connect"):
            await connections.post(b"{}", 100)

    asyncio.run(refused())


def test_a_header_cannot_hold_another() -> None:
    with pytest.raises(ValueError, match="line end"):
        Connections(urlsplit("http://127.0.0.1:9/v1"), {"X": "a\r\nY: b"}, idle=1, opening=1)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=12), st.booleans())
def test_a_reply_may_come_in_any_pieces(body: bytes, cuts: list[int], chunked: bool) -> None:
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    reply, sent = (CHUNKED + chunks if chunked else whole(body)), []
    for cut in cuts:
        sent.append(reply[:cut])
        reply = reply[cut:]
    got, _, opened = against([[*filter(None, sent), reply], whole(b"next")], posts(2))
    assert ([r.body for r in got], opened) == ([body, b"next"], 1)


def test_many_at_once_against_a_real_server() -> None:
    async def echo(request: web.Request) -> web.Response:
        await asyncio.sleep(0.01)
        return web.json_response(await request.json())

    async def run() -> list[int]:
        app = web.Application()
        app.router.add_post("/echo", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = urlsplit(f"http://127.0.0.1:{runner.addresses[0][1]}/echo")
        connections = Connections(address, HEADERS, idle=4, opening=5)

        async def one(number: int) -> int:
            return int(json.loads((await connections.post(b'{"n": %d}' % number, 1000)).body)["n"])

        found = await asyncio.gather(*map(one, range(200)))
        await connections.close()
        await runner.cleanup()
        return found

    assert asyncio.run(run()) == list(range(200))


def test_an_address_of_the_host_that_leads_nowhere_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on networks where IPv6 is announced and goes nowhere: the first address never takes a connection."""
    with socket.socket() as deaf, contextlib.ExitStack() as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):  # its queue is full from here on: the next one waits for ever
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())

        async def client(connections: Connections) -> Received:
            async def found(*_: object, **__: object) -> list[Any]:
                places = [deaf.getsockname(), ("127.0.0.1", connections.port)]
                return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place) for place in places]

            connections.host = "host.example"
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
            return await connections.post(b"{}", 1000)

        (received, _, _) = against([OK + b"Content-Length: 2\r\n\r\n{}"], client, opening=2.0)
    assert received.body == b"{}"
