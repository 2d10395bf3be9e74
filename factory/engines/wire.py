"""One POST: its reply within a deadline and a byte cap, whatever the network or the server does.

All calls of an engine have the same time, so the order in which they begin is the order in which they are overdue: one
timer serves them all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from factory.engines.connections import Connections, NoConnectionError, TooLargeError
from factory.schema import Failure

if TYPE_CHECKING:
    from yarl import URL

NOTHING: Mapping[str, str] = {}


class Reply(NamedTuple):
    """What came over the wire: status, headers (names in any case) and body; or the failure to get any. `sent`: there
    was a connection, so that the endpoint may have seen the call."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    failure: Failure | None = None
    sent: bool = True


class Deadlines:
    """Cancels tasks that have run for so many seconds since `start`. Belongs to the thread of its event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, task: asyncio.Task[Any]) -> None:
        """The task's time begins."""
        self._ends[task] = end = time.monotonic() + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._sweep)

    def stop(self, task: asyncio.Task[Any]) -> bool:
        """The task's time is over; was it cancelled for being overdue?"""
        return self._ends.pop(task, None) is None

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        for task, end in list(self._ends.items()):
            if end > now:
                self._timer = self._loop.call_at(end, self._sweep)
                return
            del self._ends[task]
            task.cancel()


class Wire:
    """Makes POSTs. `seconds` is a call's whole time, from the first byte sent to the last one read."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.deadlines = Deadlines(seconds)

    async def post(self, session: Connections | aiohttp.ClientSession, url: URL, body: bytes) -> Reply:
        """The reply; one without a status holds the failure to get any."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a POST is made by a task")
        deadlines = self.deadlines
        deadlines.start(task)
        overdue = False
        try:
            if isinstance(session, Connections):
                return Reply(*await session.post(body, self.max_bytes))
            response = await session.post(url, data=body, allow_redirects=False)
            try:
                return await self._received(response)
            finally:
                response.close()
        except asyncio.CancelledError:
            overdue = deadlines.stop(task)
            if not overdue or task.uncancel():
                raise
            detail = f"no whole answer in {deadlines.seconds:g} s"
            return Reply(0, NOTHING, b"", Failure("timeout", detail, passing=True))
        except (NoConnectionError, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            detail = str(error) if isinstance(error, NoConnectionError) else type(error).__name__
            return Reply(0, NOTHING, b"", Failure("connection", detail, passing=True), sent=False)
        except TooLargeError:
            return self._too_large()
        except (aiohttp.ClientError, OSError) as error:
            return Reply(0, NOTHING, b"", Failure("connection", type(error).__name__, passing=True))
        finally:
            deadlines.stop(task)

    def _too_large(self) -> Reply:
        return Reply(0, NOTHING, b"", Failure("too_large", f"more than {self.max_bytes} bytes"))

    async def _received(self, response: aiohttp.ClientResponse) -> Reply:
        headers = response.headers
        length = response.content_length
        if length is not None and length <= self.max_bytes and "Content-Encoding" not in headers:
            return Reply(response.status, headers, await response.read())
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self.max_bytes:
                return self._too_large()
        return Reply(response.status, headers, bytes(body))
