"""What a person sees: results on stdout; progress and notes on stderr, live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

LIVE_SECONDS = 0.2  # on a terminal: numbers are drawn at most this often
PLAIN_SECONDS = 10.0  # without a terminal: one line of progress at most this often


class Progress(Protocol):
    """Told of work as it is done."""

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        """`n` more items are done, of which `failed` failed and `reused` were held already; `tokens` were generated."""


class _Counter:
    """Counts, and says so in one line: 120/480 answers, 3 failed, 40 reused, 310 tokens/s, 1 min 10 s left."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what = what
        self.total = total
        self.done = self.failed = self.reused = self.tokens = 0
        self.cost = 0.0
        self.began = self.shown = time.monotonic()

    def expect(self, n: int) -> None:
        """So many items more are to come, as is known now."""
        self.total = (self.total or 0) + n

    def pay(self, cost: float) -> None:
        """US dollars were paid."""
        self.cost += cost

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        self.done += n
        self.failed += failed
        self.reused += reused
        self.tokens += tokens
        self.show()

    def show(self, *, last: bool = False) -> None:
        if last or time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.shown = time.monotonic()
            note(self.line())

    def line(self) -> str:
        """All of it."""
        return ", ".join([f"{self.what}: {self.counted()}", *self.rates()])

    def counted(self) -> str:
        """120/480; a total that was passed is none."""
        return f"{self.done}/{self.total}" if self.total and self.total >= self.done else str(self.done)

    def rates(self) -> list[str]:
        """What failed, was held already, how fast it goes, and how long it may still take."""
        seconds, parts = max(time.monotonic() - self.began, 1e-9), []
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.reused:
            parts.append(f"{self.reused} reused")
        fresh = self.done - self.reused
        if self.tokens > 2 * fresh:  # answers, not one-token verdicts
            parts.append(f"{self.tokens / seconds:.0f} tokens/s")
        elif fresh:
            parts.append(f"{fresh / seconds:.1f}/s")
        if self.cost:
            parts.append(f"${self.cost:,.2f}" if self.cost >= 0.01 else f"${self.cost:.2g}")
        if self.total and fresh > 0 and self.done < self.total:
            parts.append(f"{span((self.total - self.done) * seconds / fresh)} left")
        return parts


def expect(counter: Progress | None, n: int) -> None:
    """Tell a progress that so many items more are to come, if it is one that counts them."""
    grow = getattr(counter, "expect", None)
    if grow is not None:
        grow(n)


def pay(counter: Progress | None, cost: float | None) -> None:
    """Tell a progress what an answer cost, in US dollars, if it is one that counts that; None: nobody knows."""
    add = getattr(counter, "pay", None)
    if add is not None and cost:
        add(cost)


class _Board:
    """The bars that stand on a terminal: one rich display for all that runs at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bars: Any = None
        self._open = 0

    def add(self, counter: _Bar) -> Any:
        """A bar for a counter; its number."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bars, SpinnerColumn, TextColumn

        with self._lock:
            if self._bars is None:
                columns = [TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[said]")]
                self._bars = Bars(
                    SpinnerColumn(), columns[0], BarColumn(bar_width=24), columns[1], console=Console(stderr=True)
                )
                self._bars.start()
            self._open += 1
            return self._bars.add_task(visible(counter.what), total=counter.total, said="")

    def update(self, task: Any, counter: _Bar) -> None:
        """Draw the counter's numbers."""
        with self._lock:
            said = ", ".join([counter.counted(), *counter.rates()])
            total = counter.total if counter.total and counter.total >= counter.done else None
            self._bars.update(task, completed=counter.done, total=total, said=said)

    def close(self, task: Any, counter: _Bar) -> None:
        """The bar stays as a plain line; the display goes with the last one."""
        with self._lock:
            self._bars.remove_task(task)
            self._open -= 1
            if not self._open:
                self._bars.stop()
                self._bars = None
            if counter.done:
                note(counter.line())


_board = _Board()


class _Bar(_Counter):
    """The same counts as a bar on a terminal."""

    def __init__(self, what: str, total: int | None) -> None:
        super().__init__(what, total)
        self.task = _board.add(self)

    def show(self, *, last: bool = False) -> None:
        if last:
            _board.close(self.task, self)
        elif time.monotonic() - self.shown >= LIVE_SECONDS:
            self.shown = time.monotonic()
            _board.update(self.task, self)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """A counter for the time of one piece of work; its last line stays."""
    counter = (_Bar if sys.stderr.isatty() else _Counter)(what, total)
    try:
        yield counter
    finally:
        if counter.done or isinstance(counter, _Bar):
            counter.show(last=True)


def watch(look: Callable[[], tuple[str, bool]], seconds: float) -> None:
    """Show what `look` says, again and again, until it says that nothing more will come, or the user interrupts, which
    is no fault. On a terminal it is drawn in place; elsewhere it is printed when it changes."""
    with suppress(KeyboardInterrupt):
        if sys.stdout.isatty():
            _watch_in_place(look, seconds)
        else:
            _watch_in_lines(look, seconds)


def _watch_in_place(look: Callable[[], tuple[str, bool]], seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, vertical_overflow="crop") as shown:
        over = False
        while not over:
            said, over = look()
            shown.update(Text(visible(said, keep="\n")), refresh=True)
            if not over:
                time.sleep(seconds)


def _watch_in_lines(look: Callable[[], tuple[str, bool]], seconds: float) -> None:
    before, over = "", False
    while not over:
        said, over = look()
        if said != before:
            emit({}, as_json=False, text=said)
        before = said
        if not over:
            time.sleep(seconds)


def visible(text: str, *, keep: str = "") -> str:
    """The text with every character that a terminal would act on, or not show, written as an escape; but for `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """One line (or a few) to stderr."""
    sys.stderr.write(visible(text, keep="\n") + "\n")
    sys.stderr.flush()


def span(seconds: float) -> str:
    """Seconds as a person says them: 41 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def emit(result: Mapping[str, Any] | Sequence[Any], *, as_json: bool, text: str = "") -> None:
    """A command's result on stdout: JSON when asked for, else `text`. What would act on a terminal is
    escaped in the text: names and reasons in it may come from files and from models."""
    if as_json:  # a lone surrogate, as of a file's name, becomes JSON's own escape
        text = (
            json.dumps(result, ensure_ascii=False, indent=2, default=str).encode("utf-8", "backslashreplace").decode()
        )
    else:
        text = visible(text, keep="\n")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def facts(pairs: Mapping[str, Any]) -> str:
    """Names and values in two columns; what is None or holds nothing is left out."""
    shown = {name: value for name, value in pairs.items() if value is not None and value not in ([], {}, ())}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(f"{name:<{width}}  {show(value)}" for name, value in shown.items())


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as an aligned plain-text table; numbers to the right. A column without any value is left out."""
    if not rows:
        return "(no rows)"
    names = list(columns or (name for name in rows[0] if any(row.get(name) is not None for row in rows)))
    cells = [[show(row.get(name)) for name in names] for row in rows]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]

    def render(line: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([render(names), render(["-" * width for width in widths]), *map(render, cells)])


def show(value: Any) -> str:
    """One value as a cell: four significant figures, an estimate as 0.39 [0.31, 0.47] (one without an interval as a
    number), a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and len(value) == 3 and all(isinstance(v, float) for v in value):
        interval = "" if math.isnan(value[1]) else f" [{value[1]:.3g}, {value[2]:.3g}]"
        return f"{value[0]:.3g}{interval}"
    if isinstance(value, dict) and value:
        return ", ".join(f"{name} {show(inner)}" for name, inner in value.items())
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
