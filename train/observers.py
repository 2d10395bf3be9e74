"""Who is told of a training as it goes: one small protocol that others can fill.

`metrics.jsonl` is the training's own record and is always written. Further observers are named in the settings, by a
known name or as module:attribute, a class or function that makes one without arguments. They are told in one process,
the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from factory.faults import FactoryError
from factory.registry import Registry
from train.config import TrainConfig

Line = Mapping[str, Any]


class Training(NamedTuple):
    """What is observed: the folder it writes, its settings, its steps, and how many were done before."""

    folder: Path
    config: TrainConfig
    steps: int
    done: int


class Observer(Protocol):
    """Told of a training as it goes. What it raises ends the training."""

    def start(self, training: Training) -> None:
        """Before the first step."""

    def step(self, line: Line, warnings: Sequence[str]) -> None:
        """After a step: its metrics, as in metrics.jsonl, and what they warn of."""

    def end(self, fault: BaseException | None) -> None:
        """After the last step, or after what ended it before."""


class Progress(Protocol):
    """Counts steps."""

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        """`n` more steps are done."""


@dataclass
class Counter:
    """Moves a progress bar."""

    progress: Progress

    def start(self, training: Training) -> None:
        """Steps that were done before count; so many are to come, for a bar that has a total."""
        expect = getattr(self.progress, "expect", None)
        if expect is not None:
            expect(training.steps)
        if training.done:
            self.progress.advance(training.done)

    def step(self, line: Line, warnings: Sequence[str]) -> None:
        """One more."""
        self.progress.advance(1)

    def end(self, fault: BaseException | None) -> None:
        """Nothing."""


class TensorBoard:
    """Event files in the training's folder, under tensorboard/: a scalar for every metric, warnings as texts.

    FactoryError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as fault:
            raise FactoryError(
                f"tensorboard is not installed: {fault}", where="observers of the training",
                todo="pip install 'preference-factory[tensorboard]', or leave it out of observers",
            ) from fault  # fmt: skip
        self._open: Any = SummaryWriter
        self._writer: Any = None

    def start(self, training: Training) -> None:
        """A training that goes on hides what was written of later steps."""
        self._writer = self._open(str(training.folder / "tensorboard"), purge_step=training.done + 1)

    def step(self, line: Line, warnings: Sequence[str]) -> None:
        """On the disk when this returns."""
        at = int(line["step"])
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, at)
        for text in warnings:
            self._writer.add_text("warnings", text, at)
        self._writer.flush()

    def end(self, fault: BaseException | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


known: Registry[Callable[[], Observer]] = Registry("observer")
known.add("tensorboard", TensorBoard)


def named(name: str) -> Observer:
    """The observer of that name, or of module:attribute. FactoryError: there is none."""
    if ":" not in name:
        return known.get(name)()
    module, _, attribute = name.partition(":")
    try:
        make: Callable[[], Observer] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as fault:
        raise FactoryError(
            f"the observer {name!r} cannot be loaded: {fault}", todo="name it as module:attribute, importable from here"
        ) from fault
    observer = make()
    missing = [method for method in ("start", "step", "end") if not callable(getattr(observer, method, None))]
    if missing:
        raise FactoryError(f"the observer {name!r} has no {', '.join(missing)}", todo="see train.observers.Observer")
    return observer


@dataclass
class Observers:
    """All of a training's as one."""

    each: Sequence[Observer] = field(default_factory=list)

    @contextmanager
    def watching(self, training: Training) -> Iterator[None]:
        """Between start and end."""
        fault: BaseException | None = None
        try:
            for one in self.each:
                one.start(training)
            yield
        except BaseException as raised:
            fault = raised
            raise
        finally:
            for one in self.each:
                one.end(fault)

    def step(self, line: Line, warnings: Sequence[str]) -> None:
        """One more step is done."""
        for one in self.each:
            one.step(line, warnings)
