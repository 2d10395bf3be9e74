"""Several copies of one engine, each in a process of its own: one for each GPU, or a few on a large CPU.

The work list is cut into jobs by the list and the number of engines alone; an engine that is free takes the next.
Where the engine answers in fixed batches (`BatchEngine`), a job is one of its batches: then an answer depends neither
on the number of engines nor on which of them was faster, only on machine, dtype and threads (name `threads`: on a CPU
the engines share the cores). Else jobs get smaller towards the end, as in guided self-scheduling (Polychronopoulos &
Kuck, IEEE Trans. Comput. 36:12, 1987), longest requests first, so that all engines end at about the same time.

An engine goes on with its job only when what it answered last is stored. One that dies fails what it had in hand as
passing, so that it is asked again of the others. Children end when their parent is gone, also by kill -9: each waits on
a pipe that only the parent holds open, and takes its process group, with whatever its engine has started, along.
"""

from __future__ import annotations

import atexit
import logging
import math
import multiprocessing.util  # its exit handler waits for children: it must be registered before this module's
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from factory.engines import BatchEngine, BurstEngine, Engine, EngineSpec, Item, build, engines, nothing_held
from factory.faults import FactoryError
from factory.schema import Completion, Failure, Have, Identity, Request

LEAST = 64  # answers in a job while there are enough: an engine that batches wants many at once
LAST_LINES = 8  # of a dead child's messages, for the error
PATIENCE = 30.0  # seconds for an idle child to close its engine
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_BLANK = Request([])  # goes back in place of a request that the parent has

log = logging.getLogger("factory")


class _Job(NamedTuple):
    """Answers to be made by one engine. `items`: places in `requests` and samples. `whole`: they are a batch."""

    requests: list[Request]
    items: list[tuple[int, int]]
    whole: bool


class Fleet:
    """`count` engines of one spec that answer as one. FactoryError: an engine cannot be built (as from the engine
    itself), there are fewer devices than engines, or the engine is of a kind that needs no processes."""

    def __init__(self, spec: EngineSpec, count: int) -> None:
        if count < 1:
            raise FactoryError(f"the number of engines must be at least 1, not {count}")
        places = environments(spec, count)
        self._messages = tempfile.TemporaryDirectory(prefix="factory-engines-")
        self._rendering = threading.Lock()
        self._answering = threading.Lock()
        self._children: list[_Child] = []
        atexit.register(self.close)
        try:
            for number, place in enumerate(places):
                file = Path(self._messages.name) / f"{number}.txt"
                self._children.append(_Child(replace(spec, count=1), number, place, file))
            self._identity = self._wait_for_all()
        except BaseException:
            self.close()
            raise

    def _wait_for_all(self) -> Identity:
        """The identity of all engines, once all are built."""
        identities = {child.wait_until_built() for child in self._children}
        if len(identities) > 1:
            raise FactoryError(
                f"the engines are not alike: {sorted(identities)}",
                todo="where GPUs differ, name the dtype in the engine's options",
            )
        return identities.pop()

    @property
    def identity(self) -> Identity:
        """That of one engine: an answer does not tell how many there were."""
        return self._identity

    def render(self, request: Request) -> str:
        """See `Engine.render`; a child renders."""
        with self._rendering:
            for child in self._alive():
                with suppress(EOFError, OSError):
                    child.questions.send(request)
                    return str(child.questions.recv())
        raise self._none_left()

    def close(self) -> None:
        """End all children: idle ones close their engine first, others are killed."""
        for child in self._children:
            child.end()
        self._children.clear()
        self._messages.cleanup()
        atexit.unregister(self.close)

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        """See `Engine.generate`."""
        for burst in self.bursts(requests, have):
            yield from burst

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Generator[list[Completion]]:
        """`generate`, with what has come from all engines by now together. An engine goes on when the next burst is
        asked for. FactoryError: no engine is left alive; what an engine raises ends all."""
        with self._one_at_a_time():
            jobs = deque(self._jobs(list(requests), have))
            try:
                while self._hand_out(jobs, have):
                    burst, fault = self._collect()
                    if burst:
                        yield burst
                    if fault is not None:
                        raise fault
                    for child in self._alive():
                        child.go_on()
                if jobs:
                    raise self._none_left()
            finally:
                for child in self._alive():
                    child.stop()

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._answering.acquire(blocking=False):
            raise RuntimeError("these engines are at work on another list of requests")
        try:
            yield
        finally:
            self._answering.release()

    def _alive(self) -> list[_Child]:
        return [child for child in self._children if child.alive]

    def _none_left(self) -> FactoryError:
        said = "\n".join(child.last_words() for child in self._children)
        return FactoryError(
            "no engine process is left alive", where=said,
            todo="code -9 is often a lack of memory: take fewer engines or smaller batches; the same command goes on "
            "from what was stored",
        )  # fmt: skip

    def _jobs(self, requests: list[Request], have: Have) -> list[_Job]:
        if (batches := self._batches(requests)) is not None:
            return [_job(batch, whole=True) for batch in batches]
        items = [(r, sample) for r in requests for sample in range(r.n) if not have(r, sample)]
        items.sort(key=lambda item: -_length(item[0]))
        return [_job(part, whole=False) for part in portions(items, len(self._alive()) or 1)]

    def _batches(self, requests: Sequence[Request]) -> list[list[Item]] | None:
        """The fixed batches that the engine makes of the list; None when it makes none."""
        for child in self._alive():
            if not child.cuts:
                return None
            with suppress(EOFError, OSError):
                places = child.cut(requests)
                return None if places is None else [[(requests[i], sample) for i, sample in part] for part in places]
        raise self._none_left()

    def _hand_out(self, jobs: deque[_Job], have: Have) -> bool:
        """Give every idle engine a job, as long as there are any with answers missing. False: all is done, or all
        engines are dead."""
        for child in self._alive():
            while child.job is None and jobs:
                job = jobs.popleft()
                if not all(have(job.requests[i], sample) for i, sample in job.items):
                    child.take(job)
        return any(child.job is not None and (jobs or not child.stopping) for child in self._alive())

    def _collect(self) -> tuple[list[Completion], FactoryError | None]:
        """Wait for something from an engine; all that has come by now, and the fault that ends the list."""
        busy = [child for child in self._alive() if child.job is not None]
        ready = wait([child.link for child in busy])
        burst: list[Completion] = []
        fault: FactoryError | None = None
        for child in busy:
            if child.link in ready:
                news = child.news()
                burst += news.completions
                fault = fault or news.fault
        return burst, fault


class _News(NamedTuple):
    """What has come from a child: completions, or a fault that ends the list."""

    completions: list[Completion]
    fault: FactoryError | None = None


class _Child:
    """An engine's process, seen from the parent."""

    def __init__(self, spec: EngineSpec, number: int, place: Mapping[str, str], messages: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, link = context.Pipe()
        self.questions, questions = context.Pipe()
        watched, self._held = context.Pipe(duplex=False)
        self.number, self.messages = number, messages
        self.alive, self.cuts = True, False
        self.job: _Job | None = None
        self.stopping = self.holds_back = False  # told to stop; waits for its answers to be stored
        self._open: set[tuple[int, int]] = set()
        ends = _Ends(link, questions, watched)
        self.process = context.Process(target=_child, args=(spec, dict(place), str(messages), ends))
        self.process.start()
        for end in ends:
            end.close()

    def wait_until_built(self) -> Identity:
        """The engine's identity. Raises what building it raised; FactoryError: the process died."""
        try:
            said = self.link.recv()
        except (EOFError, OSError):
            self._bury()
            raise FactoryError(
                "an engine process died before its engine was built", where=self.last_words(),
                todo="code -9 is often a lack of memory: take fewer engines",
            ) from None  # fmt: skip
        if isinstance(said, FactoryError):
            raise said
        identity, self.cuts = said
        return Identity(*identity)

    def cut(self, requests: Sequence[Request]) -> list[list[tuple[int, int]]] | None:
        """See `BatchEngine.cut`, with places in `requests`. EOFError or OSError: the child is dead."""
        while self.job is not None:  # one that was told to stop
            self.news()
        self.link.send(list(requests))
        places: list[list[tuple[int, int]]] | None = self.link.recv()
        return places

    def take(self, job: _Job) -> None:
        """Begin a job. A child that is dead by now is found out when its news is asked for."""
        self.job, self._open = job, set(job.items)
        with suppress(OSError):
            self.link.send(job)

    def news(self) -> _News:
        """What the child says: answers, an end of its job, or nothing more because it has died."""
        job = self.job
        try:
            said = self.link.recv()
        except (EOFError, OSError):
            return self._died()
        if isinstance(said, list) and job is not None:
            self._open -= {(i, sample) for i, sample, _ in said}
            self.holds_back = not self.stopping
            completions = [replace(completion, request=job.requests[i]) for i, _, completion in said]
            return _News([] if self.stopping else completions)
        fault = said if isinstance(said, FactoryError) and not self.stopping else None
        self.job, self.stopping, self.holds_back = None, False, False
        return _News([], fault)

    def go_on(self) -> None:
        """What it answered is stored."""
        if self.holds_back:
            self.holds_back = False
            self._tell(True)

    def stop(self) -> None:
        """Leave the job at the next burst; its answers are of no use any more."""
        if self.job is not None and not self.stopping:
            self.stopping, self.holds_back = True, False
            self._tell(False)

    def _tell(self, go_on: bool) -> None:
        with suppress(OSError):
            self.link.send(go_on)

    def _died(self) -> _News:
        job, open_items, stopping = self.job, self._open, self.stopping
        self._bury()
        log.warning("%s", self.last_words())
        if job is None or stopping:
            return _News([])
        failure = Failure("engine_died", self.last_words(), passing=True)
        return _News([Completion(job.requests[i], sample, failure=failure) for i, sample in sorted(open_items)])

    def last_words(self) -> str:
        """How a dead process ended, and the last lines of what it wrote to stdout or stderr."""
        said = self.messages.read_text(encoding="utf-8", errors="replace") if self.messages.exists() else ""
        lines = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
        told = "; it said last:" if lines else ""
        return "\n".join([f"engine process {self.number} ended with code {self.process.exitcode}{told}", *lines])

    def _bury(self) -> None:
        """The process is dead: end what it may have started."""
        self._kill()
        self.alive, self.job = False, None
        self._close_ends()

    def end(self) -> None:
        """Close the engine if it is idle, and the process in any case."""
        if not self.alive:
            return
        self.alive = False
        if self.job is None:
            with suppress(OSError):
                self.link.send(None)
                self.process.join(PATIENCE)
        self._kill()
        self._close_ends()

    def _kill(self) -> None:
        """Kill the process, if it runs, and its group; the group first, since its number is free afterwards."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def _close_ends(self) -> None:
        for end in (self.link, self.questions, self._held):
            end.close()


# ------------------------------------------------------------------------------------------------- sharing out


def _job(items: Sequence[Item], *, whole: bool) -> _Job:
    places: dict[int, int] = {}
    requests: list[Request] = []
    for request, _ in items:
        if id(request) not in places:
            places[id(request)] = len(requests)
            requests.append(request)
    return _Job(requests, [(places[id(request)], sample) for request, sample in items], whole)


def _length(request: Request) -> float:
    """About the tokens that a request has at most, prompt and answer."""
    return sum(len(message["content"]) for message in request.messages) / 4 + request.sampling.max_tokens


def portions(items: Sequence[Item], count: int, least: int = LEAST) -> list[Sequence[Item]]:
    """The items cut for `count` engines: half of an engine's share of what is left at a time, then, when `least` each
    would be too many, equal parts of the rest."""
    cut: list[Sequence[Item]] = []
    at = 0
    while (left := len(items) - at) > 0:
        size = math.ceil(left / (2 * count))
        if size < least:
            edges = [at + left * part // count for part in range(count + 1)]
            return cut + [items[start:end] for start, end in pairwise(edges) if start < end]
        cut.append(items[at : at + size])
        at += size
    return cut


def environments(spec: EngineSpec, count: int, environ: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """What each engine's process finds in its environment: its own devices, or its share of the cores."""
    devices = engines.facts(spec.kind).get("devices")
    if devices is None:
        raise FactoryError(
            f"the {spec.kind} engine answers many requests at once in one process",
            todo="leave the number of engines at 1; see its own options for more at once (concurrency)",
        )
    each = int(spec.options.get(devices, 1)) if isinstance(devices, str) else devices
    if not each:
        return [{} for _ in range(count)]
    variable, visible = ("", []) if spec.options.get("device") == "cpu" else visible_devices(environ)
    if not visible:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
        return [{"OMP_NUM_THREADS": threads} for _ in range(count)]
    if len(visible) < count * each:
        raise FactoryError(
            f"{count} engines with {each} device(s) each need {count * each}, and there are {len(visible)}",
            where=f"{variable}={','.join(visible)}", todo="lower the number of engines",
        )  # fmt: skip
    return [{variable: ",".join(visible[i * each : (i + 1) * each])} for i in range(count)]


def visible_devices(environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """The GPUs that this process may use, and the variable that says so. In a list, what follows -1 does not count."""
    for variable in VISIBLE:
        if variable in environ:
            named = [device.strip() for device in environ[variable].split(",")]
            return variable, named[: named.index("-1")] if "-1" in named else [device for device in named if device]
    import torch

    return VISIBLE[0], [str(number) for number in range(torch.cuda.device_count())]


# ------------------------------------------------------------------------------------------------ the child's side


@dataclass(frozen=True, slots=True)
class _Ends:
    """The child's ends of its pipes: jobs and answers, rendering, and the one that tells when the parent is gone."""

    link: Connection
    questions: Connection
    watched: Connection

    def __iter__(self) -> Iterator[Connection]:
        return iter((self.link, self.questions, self.watched))


def _child(spec: EngineSpec, environment: Mapping[str, str], messages: str, ends: _Ends) -> None:
    """The life of a child: build the engine, answer jobs until told to end."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watcher = threading.Thread(target=_end_with_parent, args=(ends.watched, Path(messages).parent), daemon=True)
    watcher.start()
    file = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    try:
        engine = build(spec)
    except FactoryError as fault:
        ends.link.send(fault)
        return
    with closing(engine):
        ends.link.send((tuple(engine.identity), isinstance(engine, BatchEngine)))
        threading.Thread(target=_render, args=(engine, ends.questions), daemon=True).start()
        try:
            _serve(engine, ends.link)
        except (EOFError, ConnectionError):  # the parent is gone, as the watcher sees too: it has to clear up first
            watcher.join(PATIENCE)


def _end_with_parent(watched: Connection, folder: Path) -> None:
    """Wait until the parent is gone; clear up its folder of messages."""
    with suppress(EOFError, OSError):
        watched.recv()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _render(engine: Engine, questions: Connection) -> None:
    with suppress(EOFError, OSError):
        while True:
            questions.send(engine.render(questions.recv()))


def _serve(engine: Engine, link: Connection) -> None:
    """A job is answered in bursts, then None or the fault that ended it; a list of requests is cut into batches; what
    is neither, and not the end, is an order to stop that came too late."""
    while (told := link.recv()) is not None:
        if isinstance(told, _Job):
            try:
                _answer(engine, told, link)
            except FactoryError as fault:
                link.send(fault)
            else:
                link.send(None)
        elif isinstance(told, list) and isinstance(engine, BatchEngine):
            places = {id(request): i for i, request in enumerate(told)}
            batches = engine.cut(told)
            link.send(batches and [[(places[id(r)], sample) for r, sample in batch] for batch in batches])


def _answer(engine: Engine, job: _Job, link: Connection) -> None:
    """Send each burst, and go on when it is stored."""
    places = {id(request): i for i, request in enumerate(job.requests)}
    with closing(_bursts(engine, job)) as bursts:
        for burst in bursts:
            link.send([(places[id(c.request)], c.sample, replace(c, request=_BLANK)) for c in burst])
            if not link.recv():
                return


def _bursts(engine: Engine, job: _Job) -> Generator[list[Completion]]:
    if job.whole and isinstance(engine, BatchEngine):
        yield from engine.answer([(job.requests[i], sample) for i, sample in job.items])
        return
    wanted = {(id(job.requests[i]), sample) for i, sample in job.items}
    ask: Callable[..., Iterable[list[Completion]]]
    ask = engine.bursts if isinstance(engine, BurstEngine) else partial(_one_by_one, engine)
    yield from ask(job.requests, lambda request, sample: (id(request), sample) not in wanted)


def _one_by_one(engine: Engine, requests: Iterable[Request], have: Have) -> Iterator[list[Completion]]:
    yield from ([completion] for completion in engine.generate(requests, have))
