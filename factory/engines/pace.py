"""How fast an endpoint may be asked: buckets for requests and tokens a minute, a window that shrinks and grows, waits.

The window is additive increase, multiplicative decrease (Jacobson, Congestion Avoidance and Control, 1988): halved
when the endpoint says that it has too much, one more for each window that was served.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

SMALLEST = 1.0  # window: one call is always under way
LONGEST_NAP = 1.0  # seconds until a wait for tokens is worked out again, as answers may give some back


class Bucket:
    """So many units a minute, evenly: at most `limit` in any minute, up to a second's worth of them at once.

    One taking may be larger than the bucket; it goes when the bucket is full, and what follows waits for the debt.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = max(1.0, limit / 60)
        self.rate = max(limit - self.size + 1, 0.5) / 60  # a second
        self.clock = clock
        self.level, self.at = self.size, clock()

    def _fill(self) -> None:
        now = self.clock()
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now

    def wait(self, units: float) -> float:
        """Seconds until so many units may be taken."""
        self._fill()
        return max(0.0, (min(units, self.size) - self.level) / self.rate)

    def take(self, units: float) -> None:
        """Take the units, after the wait."""
        self._fill()
        self.level -= units

    def give(self, units: float) -> None:
        """Put back what was taken and not used (less than 0: take what was used besides)."""
        self.level = min(self.size, self.level + units)


class Pace:
    """Requests and tokens a minute, kept by all calls of an engine, in the order in which they come."""

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self.requests = None if requests is None else Bucket(requests)
        self.tokens = None if tokens is None else Bucket(tokens)
        self._turn = asyncio.Lock()

    async def enter(self, tokens: float) -> None:
        """Wait until a call of about so many tokens may go."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await asyncio.sleep(min(wait, LONGEST_NAP))
            if self.requests is not None:
                self.requests.take(1)
            if self.tokens is not None:
                self.tokens.take(tokens)

    def _wait(self, tokens: float) -> float:
        waits = [bucket.wait(units) for bucket, units in ((self.requests, 1), (self.tokens, tokens)) if bucket]
        return max(waits)

    def correct(self, estimate: float, used: float) -> None:
        """The endpoint has said what a call used."""
        if self.tokens is not None:
            self.tokens.give(estimate - used)


class Window:
    """How many calls may be under way at an endpoint, between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = float(most)
        self.since = -math.inf  # when it was halved last

    def served(self) -> None:
        """A call was answered."""
        if self.size < self.most:
            self.size = min(float(self.most), self.size + 1 / self.size)

    def pushed_back(self, sent: float, now: float) -> bool:
        """The endpoint had too much of a call sent at `sent`. Halves the window, once for all that were under way
        together; was it halved?"""
        if sent < self.since:
            return False
        self.since = now
        self.size = max(SMALLEST, self.size / 2)
        return True


# ------------------------------------------------------------------------------------------------------------ waits

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait; None where it does not say. Header names in any case, as aiohttp's.

    Read in this order: retry-after-ms, Retry-After (seconds or a date), x-ratelimit-reset-* (1s, 6m0s, 20ms) of what
    is used up.
    """
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    after = headers.get("retry-after", "").strip()
    found = _seconds(after)
    if found is None and after:
        found = _until(after)
    return _reset(headers) if found is None else found


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _until(date: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    resets = {kind: duration(headers.get(f"x-ratelimit-reset-{kind}", "")) for kind in ("requests", "tokens")}
    used_up = [reset for kind, reset in resets.items() if headers.get(f"x-ratelimit-remaining-{kind}", "") == "0"]
    known = [reset for reset in used_up or resets.values() if reset is not None]
    return max(known, default=None)


def duration(text: str) -> float | None:
    """Seconds of a duration such as 1s, 6m0s or 20ms, or of a plain number; None of any other text."""
    text = text.strip()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return math.fsum(float(number) * _UNITS[unit] for number, unit in parts)
    return _seconds(text)
