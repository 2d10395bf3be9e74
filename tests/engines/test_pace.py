"""Buckets never let more through than a minute allows, windows shrink and grow, waits are read in every form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, strategies as st

from factory.engines.pace import Bucket, Window, duration, wait_asked


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(limit: float, units: list[float], pauses: list[float]) -> list[tuple[float, float]]:
    """When which units were taken, by a caller that waits as it is told."""
    clock = Clock()
    bucket = Bucket(limit, clock)
    found = []
    for wanted, pause in zip(units, pauses, strict=True):
        clock.now += pause
        while (wait := bucket.wait(wanted)) > 0:
            clock.now += wait + 1e-9
        bucket.take(wanted)
        found.append((clock.now, wanted))
    return found


@given(
    st.integers(1, 20_000),
    st.lists(st.floats(0, 5), min_size=1, max_size=300),
)
def test_no_minute_holds_more_requests_than_the_limit(limit: int, pauses: list[float]) -> None:
    times = [at for at, _ in taken(limit, [1.0] * len(pauses), pauses)]
    for start in times:
        assert sum(start <= at < start + 60 for at in times) <= limit + 1


@given(st.integers(600, 20_000), st.lists(st.floats(1, 5_000), min_size=1, max_size=100))
def test_no_minute_holds_more_tokens_than_the_limit_and_one_call(limit: int, units: list[float]) -> None:
    """A call larger than the bucket goes when the bucket is full; what follows waits for its debt."""
    found = taken(limit, units, [0.0] * len(units))
    for start, _ in found:
        minute = [wanted for at, wanted in found if start <= at < start + 60]
        assert sum(minute) <= limit + max(minute) + 1


def test_a_bucket_is_as_fast_as_its_limit() -> None:
    """600 a minute: ten a second at once, then one each tenth of a second (591 / 60 a second, to keep the minute)."""
    times = [at for at, _ in taken(600, [1.0] * 40, [0.0] * 40)]
    assert times[:10] == [0.0] * 10
    assert times[-1] == pytest.approx(30 * 60 / 591, rel=1e-3)


def test_what_was_foreseen_and_not_used_is_given_back() -> None:
    clock = Clock()
    bucket = Bucket(6000, clock)
    bucket.take(1000)
    assert bucket.wait(100) > 9
    bucket.give(950)
    assert bucket.wait(50) == 0


def test_a_window_halves_once_for_all_calls_that_were_under_way_together() -> None:
    window = Window(64)
    assert [window.pushed_back(sent=1.0, now=2.0) for _ in range(10)] == [True, *[False] * 9]
    assert window.size == 32
    assert window.pushed_back(sent=3.0, now=4.0)
    assert window.size == 16
    for second in range(10):
        window.pushed_back(sent=5.0 + second, now=5.5 + second)
    assert window.size == 1


def test_a_window_grows_by_one_for_each_window_that_was_served() -> None:
    window = Window(64)
    window.pushed_back(1.0, 2.0)
    for _ in range(32):
        window.served()
    assert window.size == pytest.approx(33, abs=0.05)
    for _ in range(10_000):
        window.served()
    assert window.size == 64


def test_what_an_endpoint_asks_to_wait_is_read_in_every_form() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert wait_asked({"retry-after": "2.5"}) == 2.5
    assert wait_asked({"retry-after": later}) == pytest.approx(30, abs=2)
    assert wait_asked({"retry-after": format_datetime(datetime(2020, 1, 1, tzinfo=UTC))}) == 0
    assert wait_asked({"retry-after": "3", "retry-after-ms": "250"}) == 0.25
    assert wait_asked({"retry-after": "3", "x-ratelimit-reset-requests": "6m0s"}) == 3
    assert wait_asked({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "20ms"}) == 360
    used_up = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-remaining-requests": "99"}
    assert wait_asked({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "20ms"} | used_up) == 0.02
    assert wait_asked({}) is None
    assert wait_asked({"retry-after": "soon"}) is None
    assert wait_asked({"retry-after": "inf"}) is None
    assert wait_asked({"retry-after": "-5"}) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1d", 86400), ("7", 7), ("", None), ("1x", None),
     ("s", None), ("1s 2", None), ("nan", None)],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"]), st.text()))
def test_no_header_is_too_strange(headers: dict[str, str]) -> None:
    wait = wait_asked(headers)
    assert wait is None or 0 <= wait < float("inf")
