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
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from factory.schema import Completion, Request

BEAT = 0.2
"""Seconds after which a caller that waits for answers is given its turn, so that it can stop."""

WHILE = 0.25  # seconds after which a caller has its turn, also when nothing has come

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
        self.free = count
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
            job = flight.next_job()
            if job is None:
                flights.popleft()
                continue
            if len(job.samples) > self.free:
                return
            self.free -= len(job.samples)
            flight.start(job)
            flights.rotate(-1)


class Flight:
    """The calls of one iteration. `landed`, `release` and `cancel` are for the caller's thread, the rest for the
    loop's."""

    def __init__(self, line: Line, slots: Slots, jobs: Iterator[Job], answering: Answering) -> None:
        self.line, self.slots, self.jobs, self.answering = line, slots, jobs, answering
        self.done: queue.SimpleQueue[list[Completion] | BaseException] = queue.SimpleQueue()
        self.basket: list[Completion] = []
        self.ready: Job | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.error: BaseException | None = None
        self.under_way = 0
        self.held = 0  # slots of answers that are under way or not yet stored
        line.loop.call_soon_threadsafe(self._begin)

    # ------------------------------------------------------------------------------------------- the caller's thread

    def landed(self) -> list[Completion]:
        """Wait for one completion; hand over all that have come, none after WHILE seconds without any. Raises what
        ended the flight, once nothing is left."""
        burst: list[Completion] = []
        while not burst or not self.done.empty():
            try:
                came = self.done.get(timeout=WHILE)
            except queue.Empty:
                break
            if isinstance(came, BaseException):
                if not burst:
                    raise came
                self.done.put(came)
                break
            burst += came
        return burst

    def release(self, count: int) -> None:
        """Free the slots of completions that are stored by now."""
        self.line.loop.call_soon_threadsafe(self._give, count)

    def cancel(self) -> None:
        """Stop all calls and wait for their end."""
        self.line.wait_for(self._abort())

    # --------------------------------------------------------------------------------------------- the loop's thread

    def _begin(self) -> None:
        self.slots.flights.append(self)
        self._give(0)

    def _give(self, count: int) -> None:
        self.held -= count
        self.slots.give(count)

    def next_job(self) -> Job | None:
        """The job that waits for its slots; None when none is left."""
        if self.ready is None and self.error is None:
            try:
                self.ready = next(self.jobs, None)
            except Exception as error:  # noqa: BLE001 - a request that cannot be encoded: the caller's thread raises it
                self._end(error)
                if not self.under_way:
                    self.done.put(error)
        return self.ready

    def start(self, job: Job) -> None:
        """Its slots are there: make the call."""
        self.ready = None
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
            if self.error is not None and not self.under_way:
                self._hand_over()
                self.done.put(self.error)

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
        self.ready = None

    async def _abort(self) -> None:
        self.error, self.ready = self.error or asyncio.CancelledError(), None
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        if self in self.slots.flights:
            self.slots.flights.remove(self)
        self._give(self.held)
