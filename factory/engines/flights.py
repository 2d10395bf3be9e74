"""From a caller's thread to an event loop and back: many calls under way, answers handed over in bursts.

An engine has one `Line`: a thread with an event loop, in which all its calls are made, whoever asks for them. Each
iteration over answers is a `Flight`. Slots bound how many answers are under way or not yet stored, over all flights: a
slot is given to the next answer only when the caller has come back for more.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from factory.engines import Burst
from factory.schema import Completion, Request

WHILE = 0.25
"""Seconds after which a caller that waits for answers is given its turn, so that it can stop."""

TOGETHER = 16
"""Answers that are stored together, where so many have come: the slots of these are filled again while the next are
stored."""

LINGER = 0.001
"""Seconds in which fewer wait for company: a commit costs as much processor time as some three answers."""

TURN = 0.001
"""Seconds for which one of two busy threads keeps the interpreter while answers are under way. The default is five
times as long: an answer would wait so long to be stored."""

T = TypeVar("T")


class Job(NamedTuple):
    """One call to be made: for these samples of a request, with what its body needs."""

    request: Request
    samples: tuple[int, ...]
    messages: bytes
    seed: int


_turns = threading.Lock()
_quick: list[float] = []  # the usual turn, once for each that wants quick ones


@contextmanager
def quick_turns() -> Iterator[None]:
    """While it is open in any thread, the interpreter's threads take turns of TURN seconds at most."""
    with _turns:
        _quick.append(_quick[0] if _quick else sys.getswitchinterval())
        sys.setswitchinterval(min(TURN, _quick[0]))
    try:
        yield
    finally:
        with _turns:
            usual = _quick.pop()
            if not _quick:
                sys.setswitchinterval(usual)


Answering = Callable[[Job, Callable[[Completion], None]], Coroutine[Any, Any, None] | None]
"""Answers a job, at once or by a coroutine: hands over one completion for each of its samples. FactoryError: no later
call can do better."""


class Line:
    """A thread with an event loop; it starts at once and ends with `close`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pid = os.getpid()
        self.ending: asyncio.Task[None] | None = None
        self.thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the loop do a last thing, cancel what is left, and stop. Waits for nothing, so that a garbage collector
        may call it."""
        if self.pid == os.getpid() and self.thread.is_alive():
            self.loop.call_soon_threadsafe(self._end, last)

    def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.ending = self.loop.create_task(self._clear(last))
        self.ending.add_done_callback(lambda task: self.loop.stop())

    async def _clear(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await last()

    def join(self) -> None:
        """Wait for the end."""
        if self.pid == os.getpid():
            self.thread.join()


class Slots:
    """The slots of an engine and the flights that want them, in turn. Belongs to the event loop's thread."""

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self.flights: deque[Flight] = deque()

    def give(self, count: int) -> None:
        """Slots are free again."""
        self.free += count
        self.fill()

    def fill(self) -> None:
        """Start jobs while there are slots for them."""
        flights = self.flights
        while flights:
            flight = flights[0]
            if not flight.waiting:
                flights.popleft()
                continue
            size = len(flight.waiting[0].samples)
            if size > self.free:
                return
            self.free -= size
            flight.start(flight.waiting.popleft())
            flights.rotate(-1)


class Landed(Burst):
    """What has come of a flight: its slots are filled again part by part, while the next part is stored."""

    def __init__(self, flight: Flight) -> None:
        super().__init__()
        self.flight, self.released = flight, 0

    def parts(self) -> Iterator[list[Completion]]:
        """Parts of TOGETHER at most."""
        for start in range(0, len(self), TOGETHER):
            some = self[start : start + TOGETHER]
            yield some
            self.release(start + len(some))

    def release(self, upto: int) -> None:
        """Free the slots of the first so many."""
        if upto > self.released:
            self.flight.release(upto - self.released)
            self.released = upto


class Flight:
    """The calls of one iteration. `wants`, `add`, `landed`, `release` and `cancel` are for the caller's thread, the
    rest for the loop's.

    Jobs are added while earlier ones are under way, and no more while as many wait as there are slots: the first call
    goes out when the first jobs are made, and a caller that stops early has made few for nothing.
    """

    def __init__(self, line: Line, slots: Slots, answering: Answering) -> None:
        self.line, self.slots, self.answering = line, slots, answering
        self.done: queue.SimpleQueue[list[Completion] | BaseException] = queue.SimpleQueue()
        self.basket: list[Completion] = []
        self.waiting: deque[Job] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self.error: BaseException | None = None
        self.aborting: asyncio.Task[None] | None = None
        self.left = 0  # samples added that have not been handed over: the caller's count
        self.under_way = 0
        self.held = 0  # slots of answers that are under way or not yet stored

    # ------------------------------------------------------------------------------------------- the caller's thread

    @property
    def wants(self) -> bool:
        """Is there room for more jobs, and nothing more urgent to do?"""
        waiting, count = len(self.waiting), self.slots.count
        return waiting < count and self.error is None and (self.done.empty() or waiting < count // 4)

    def add(self, jobs: Sequence[Job]) -> None:
        """Jobs for the slots that are free now or next."""
        if jobs:
            self.left += sum(len(job.samples) for job in jobs)
            self.waiting.extend(jobs)
            self.line.loop.call_soon_threadsafe(self._begin)

    def landed(self, seconds: float = WHILE) -> Landed:
        """Wait for one completion; hand over all that have come, none after so many seconds without any. Raises what
        ended the flight, once nothing is left; RuntimeError: the engine was closed meanwhile."""
        burst = Landed(self)
        while not burst or not self.done.empty():
            try:
                came = self.done.get(timeout=seconds) if seconds else self.done.get_nowait()
            except queue.Empty:
                if not self.line.thread.is_alive():
                    raise RuntimeError("the engine was closed while it was asked") from None
                break
            if isinstance(came, BaseException):
                if not burst:
                    raise came
                self.done.put(came)
                break
            if not burst and len(came) < TOGETHER:
                time.sleep(LINGER)
            burst += came
        self.left -= len(burst)
        return burst

    def release(self, count: int) -> None:
        """Free the slots of completions that are stored by now."""
        if count:
            self.line.loop.call_soon_threadsafe(self._give, count)

    def cancel(self) -> None:
        """Stop all calls and wait for their end; in the loop's own thread, where a garbage collector may call it, and
        after the engine was closed, without waiting."""
        if threading.current_thread() is self.line.thread:
            self.aborting = self.line.loop.create_task(self._abort())
        elif self.line.thread.is_alive():
            self.line.wait_for(self._abort())

    # --------------------------------------------------------------------------------------------- the loop's thread

    def _begin(self) -> None:
        if self.error is not None:
            self.waiting.clear()
        elif self not in self.slots.flights:
            self.slots.flights.append(self)
        self.slots.fill()

    def _give(self, count: int) -> None:
        self.held -= count
        self.slots.give(count)

    def start(self, job: Job) -> None:
        """Its slots are there: make the call."""
        self.held += len(job.samples)
        self.under_way += 1
        task = self.line.loop.create_task(self._make(job))
        self.tasks.add(task)

    async def _make(self, job: Job) -> None:
        try:
            work = self.answering(job, self.land)
            if work is not None:
                await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller's thread raises it
            self._end(error)
        finally:
            self.tasks.discard(asyncio.current_task())
            self.under_way -= 1
            self._say_end()

    def land(self, completion: Completion) -> None:
        """An answer has come. All that come in one turn of the loop are handed over together."""
        self.basket.append(completion)
        if len(self.basket) == 1:
            self.line.loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        if self.basket:
            self.done.put(self.basket)
            self.basket = []

    def _end(self, error: BaseException) -> None:
        """No call is started any more; those under way may still land, so that what is paid for is kept."""
        self.error = self.error or error
        self.waiting.clear()

    def _say_end(self) -> None:
        if self.error is not None and not self.under_way:
            self._hand_over()
            self.done.put(self.error)

    async def _abort(self) -> None:
        self._end(asyncio.CancelledError())
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        if self in self.slots.flights:
            self.slots.flights.remove(self)
        self._give(self.held)
