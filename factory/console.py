"""What a person sees: results on stdout; progress and notes on stderr, live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

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
        self.began = self.shown = time.monotonic()

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
        seconds = max(time.monotonic() - self.began, 1e-9)
        parts = [f"{self.what}: {self.done}" + (f"/{self.total}" if self.total else "")]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.reused:
            parts.append(f"{self.reused} reused")
        fresh = self.done - self.reused
        if self.tokens > 2 * fresh:  # answers, not one-token verdicts
            parts.append(f"{self.tokens / seconds:.0f} tokens/s")
        elif fresh:
            parts.append(f"{fresh / seconds:.1f}/s")
        if self.total and fresh > 0 and self.done < self.total:
            parts.append(f"{span((self.total - self.done) * seconds / fresh)} left")
        return ", ".join(parts)


class _LiveCounter(_Counter):
    """The same counts on a terminal: one line that is drawn again."""

    def show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self.shown >= 0.2:
            self.shown = now
            sys.stderr.write("\r\x1b[2K" + self.line() + ("\n" if last else ""))
            sys.stderr.flush()


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """A counter for the time of one piece of work; its last line stays."""
    counter = (_LiveCounter if sys.stderr.isatty() else _Counter)(what, total)
    try:
        yield counter
    finally:
        if counter.done:
            counter.show(last=True)


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
    """One value as a cell: four significant figures, an estimate as 0.39 [0.31, 0.47], a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and len(value) == 3 and all(isinstance(v, float) for v in value):
        return f"{value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}]"
    if isinstance(value, dict) and value:
        return ", ".join(f"{name} {show(inner)}" for name, inner in value.items())
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
