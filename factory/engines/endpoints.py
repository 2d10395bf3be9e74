"""Equal endpoints of one model, asked in turn; one that no longer answers is left out until it completes a token again.

An endpoint that has failed STRIKES times without an answer in between is asked for one token within a deadline: only
an answer counts, since servers are seen dead behind a /health or /version that says 200. Until it gives one, no call
goes there. When none is left the run waits GONE_AFTER seconds for one to come back, also for one that takes calls but
has answered none in time; where nothing has ever taken a call, it ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import urllib.request
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from factory.engines.connections import Connections
from factory.engines.pace import Window
from factory.faults import EndpointError

PUBLIC = "https://api.openai.com/v1"
AZURE = re.compile(r"\.azure\.(com|us|cn)$")
STRIKES = 8  # failures in a row after which an endpoint is asked for one token
GONE_AFTER = 120.0  # seconds without any endpoint after which the run ends
LONGEST_PAUSE = 10.0  # seconds between two tries of an endpoint that fails, and between two health checks
LONGEST_PAUSE_UNMET = 1.0  # the first of these for one that has never sent anything: most often an address is wrong
FIRST_PAUSE = 0.25
LONGEST_OPENING = 30.0  # seconds for a TCP or TLS connection
KEEP_ALIVE = 4.0  # seconds that an idle connection is kept: uvicorn closes its own after 5
AGENT = "preference-factory"

log = logging.getLogger("factory")
Auth = Literal["auto", "bearer", "api-key"]


class Address:
    """Where an endpoint is: `shown` may stand in messages (a query may hold secrets), `url` is what is asked."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        try:
            self.parts: SplitResult = urlsplit(self.text)
        except ValueError:
            self.parts = SplitResult("", "", self.text, "", "")  # `faults` says that it is none
        path = self.parts.path.rstrip("/")
        self.shown = urlunsplit((self.parts.scheme, self.parts.netloc, path, "", ""))
        self.url = urlunsplit(self.parts._replace(path=f"{path}/chat/completions", fragment=""))
        kept = urlencode([pair for pair in parse_qsl(self.parts.query) if pair[0] != "api-version"])
        self.name = f"{self.shown}?{kept}" if kept else self.shown
        """What an engine's identity holds of it: not which version of the API carries the answers."""

    def faults(self) -> list[str]:
        """What is wrong with it."""
        try:
            host = (self.parts.hostname or "").encode("idna")  # ValueError: a label is empty or too long
            good = self.parts.scheme in {"http", "https"} and bool(host) and self.parts.port != 0
        except ValueError:
            good = False
        if not good:
            return ["base_url: not an http(s) address"]
        if any(not 32 < ord(letter) < 127 for letter in self.text):
            return ["base_url: must be plain ASCII without spaces; write a host as xn--..., a path percent-encoded"]
        if self.parts.username is not None or self.parts.password is not None:
            return ["base_url: holds a user name or password; put the key into the environment"]
        return []

    @property
    def is_azure(self) -> bool:
        """Is it one of Azure's, which want the key in a header of their own?"""
        return bool(AZURE.search(self.parts.hostname or ""))

    @property
    def is_official(self) -> bool:
        """Is it OpenAI's API itself, or Azure's?"""
        return self.is_azure or self.parts.hostname == "api.openai.com"


def addresses(given: str | Sequence[str] | None) -> list[Address]:
    """The endpoints' addresses: as given (a list, or text with commas), else OPENAI_BASE_URL, else OpenAI's own."""
    text = given or os.environ.get("OPENAI_BASE_URL") or PUBLIC
    listed = text.split(",") if isinstance(text, str) else list(text)
    return [Address(one) for one in dict.fromkeys(str(item).strip() for item in listed) if one]


def headers(address: Address, auth: Auth, key: str | None) -> dict[str, str]:
    """The headers of every call: the key as the endpoint wants it, organisation and project by the environment."""
    found = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": AGENT}
    if key and (auth == "api-key" or (auth == "auto" and address.is_azure)):
        found["api-key"] = key
    elif key:
        found["Authorization"] = f"Bearer {key}"
    for variable, header in (("OPENAI_ORG_ID", "OpenAI-Organization"), ("OPENAI_PROJECT_ID", "OpenAI-Project")):
        if value := os.environ.get(variable, "").strip():
            found[header] = value
    return found


def proxy(address: Address) -> str | None:
    """The proxy that the environment names for an address; never one for this machine itself."""
    host = address.parts.hostname or ""
    if host in {"localhost", "::1"} or host.startswith("127.") or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(address.parts.scheme)


def session(address: Address, sent: Mapping[str, str]) -> Connections | aiohttp.ClientSession:
    """Connections to an address; through a proxy, those of aiohttp, which knows how to ask one."""
    through = proxy(address)
    if through is None:
        return Connections(urlsplit(address.url), sent, idle=KEEP_ALIVE, opening=LONGEST_OPENING)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
        headers=sent,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=LONGEST_OPENING),
        proxy=through,
    )


class Endpoint:
    """One endpoint: its connections, its window, its health."""

    def __init__(self, address: Address, most: int, auth: Auth, key: str | None) -> None:
        self.shown = address.shown
        self.url = URL(address.url, encoded=True)
        self.window = Window(most)
        self.flying = 0  # calls under way
        self.last = 0.0  # monotonic time of the last call
        self.not_before = 0.0  # monotonic time at which calls may go on
        self.busy = 0  # times in a row that it had too much
        self.strikes = 0  # failures in a row
        self.lost_at = 0.0  # monotonic time of the first of them
        self.alive = True
        self.reached = False  # has it ever sent anything, or taken a call and let it wait?
        self.answered = False  # has it ever answered?
        self.session = session(address, headers(address, auth, key))

    def served(self) -> None:
        """It has answered."""
        self.strikes = self.busy = 0
        self.reached = self.answered = True
        self.window.served()

    def pause(self) -> float:
        """Seconds that a failing endpoint is left alone: none for the first ones, then longer each time."""
        longest = LONGEST_PAUSE if self.reached else min(LONGEST_PAUSE_UNMET, LONGEST_PAUSE)
        return 0.0 if self.strikes < 3 else min(FIRST_PAUSE * 2 ** (self.strikes - 3), longest)


Check = Callable[[Endpoint], Awaitable[bool]]
"""Does the endpoint complete one token? EndpointError: it refuses for good."""


class Endpoints:
    """The equal endpoints of an engine. All methods belong to the thread of its event loop."""

    def __init__(self, every: Sequence[Endpoint], check: Check) -> None:
        self.every = list(every)
        self.check = check
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._checks: set[asyncio.Task[None]] = set()
        self.lost: EndpointError | None = None

    async def turn(self) -> Endpoint:
        """`next`, once there is one. EndpointError: none answers any more."""
        while (endpoint := self.next()) is None:
            if self.lost is not None:
                raise self.lost
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        return endpoint

    def next(self) -> Endpoint | None:
        """The least busy endpoint that may be asked now, equals in turn, if there is one; `leave` it afterwards."""
        now = time.monotonic()
        best: Endpoint | None = None
        for one in self.every:
            if (
                one.alive
                and one.not_before <= now
                and one.flying < one.window.size
                and (best is None or (one.flying, one.last) < (best.flying, best.last))
            ):
                best = one
        if best is not None:
            best.flying += 1
            best.last = now
        return best

    def leave(self, endpoint: Endpoint) -> None:
        """A call is over. As many that wait have another look as there may be room for now."""
        endpoint.flying -= 1
        if not self._waiting:
            return
        room = max(1, int(endpoint.window.size) - endpoint.flying)
        while self._waiting and room:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1

    def anew(self) -> None:
        """Somebody asks again after all were lost: try them as if nothing had been."""
        if self.lost is not None:
            self.lost = None
            for one in self.every:
                one.alive, one.strikes, one.not_before = True, 0, 0.0

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def hold(self, endpoint: Endpoint, seconds: float) -> None:
        """Ask the endpoint nothing for so long."""
        if seconds <= 0:
            return
        endpoint.not_before = max(endpoint.not_before, time.monotonic() + seconds)
        asyncio.get_running_loop().call_later(seconds + 0.001, self._wake)

    def strike(self, endpoint: Endpoint) -> None:
        """A call failed in a way that speaks against the endpoint's health."""
        if endpoint.strikes == 0:
            endpoint.lost_at = time.monotonic()
        endpoint.strikes += 1
        self.hold(endpoint, endpoint.pause())
        if endpoint.strikes >= STRIKES and endpoint.alive:
            endpoint.alive = False
            log.warning("%s has failed %d times in a row: it is left out until it answers", endpoint.shown, STRIKES)
            task = asyncio.get_running_loop().create_task(self._revive(endpoint))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _revive(self, endpoint: Endpoint) -> None:
        """Ask for one token until there is one, or until no endpoint is left."""
        wait = FIRST_PAUSE
        try:
            await asyncio.sleep(endpoint.not_before - time.monotonic())
            while not await self.check(endpoint):
                if self._given_up():
                    names = ", ".join(one.shown for one in self.every)
                    todo = "check that it runs, and base_url"
                    raise EndpointError("the endpoint cannot be reached or answers no more", where=names, todo=todo)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_PAUSE)
        except EndpointError as error:
            self.lost = error
        else:
            log.warning("%s answers a health check: it is asked again", endpoint.shown)
            endpoint.alive, endpoint.strikes, endpoint.not_before = True, 0, 0.0
        self._wake()

    def _given_up(self) -> bool:
        if any(one.alive for one in self.every):
            return False
        away = time.monotonic() - max(max(one.lost_at, one.not_before) for one in self.every)
        return away >= GONE_AFTER or not any(one.reached for one in self.every)


async def closed(every: Sequence[Endpoint]) -> None:
    """Close the connections of some endpoints."""
    await asyncio.gather(*(one.session.close() for one in every))
