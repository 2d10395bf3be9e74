"""Tasks side by side in threads, and all of them ended when one fails or the user interrupts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]], width: int, end: Callable[[], None]) -> list[T]:
    """Do the tasks, up to `width` at a time, and give their results in order.

    One at a time is done in this thread, unless it is the main one: there an interrupt would cut into it between what
    is paid for and what is kept of it. When a task raises, or this thread is interrupted, `end` is called, which must
    make the tasks that run return soon; no other is begun; and when all have returned, the first fault is raised.
    """
    if (width <= 1 or len(tasks) <= 1) and threading.current_thread() is not threading.main_thread():
        return [task() for task in tasks]
    crew = _Crew(tasks, end)
    try:
        for _ in range(min(max(width, 1), len(tasks))):
            crew.start()
        crew.wait()
    except BaseException as interrupt:
        crew.stop(interrupt)
        crew.wait()
        raise
    if crew.faults:
        raise crew.faults[0]
    return [crew.found[place] for place in range(len(tasks))]


class _Crew(Generic[T]):
    """What the threads have in common: the tasks left, what was found, what went wrong."""

    def __init__(self, tasks: Sequence[Callable[[], T]], end: Callable[[], None]) -> None:
        self.found: dict[int, T] = {}
        self.faults: list[BaseException] = []
        self._left = iter(enumerate(tasks))
        self._end = end
        self._turn = threading.Lock()
        self._running = 0
        self._gone = threading.Condition()

    def start(self) -> None:
        """One thread more."""
        with self._gone:
            threading.Thread(target=self._run, daemon=True).start()
            self._running += 1

    def wait(self) -> None:
        """Until no thread runs. (Thread.join takes a thread for ended when an interrupt comes while it waits.)"""
        with self._gone:
            while self._running:
                self._gone.wait()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            with self._gone:
                self._running -= 1
                self._gone.notify_all()

    def _work(self) -> None:
        """Do tasks until none is left or one has failed."""
        while not self.faults:
            with self._turn:
                place, task = next(self._left, (-1, None))
            if task is None:
                return
            try:
                self.found[place] = task()
            except BaseException as fault:  # noqa: BLE001 - raised in the thread of the caller
                self.stop(fault)

    def stop(self, fault: BaseException) -> None:
        """Begin no other task, and let those that run return."""
        self.faults.append(fault)
        self._end()
