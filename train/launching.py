"""Starts a training's processes and hears from them: torch's elastic launcher (torchrun's own), on one host or several.

Workers are spawned and run a function of ours; nothing is looked up by module name. One that dies ends them all, and
what it died of reaches the caller: a FactoryError as itself, anything else with its last words. Workers end with the
process that started them, also by kill -9.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from factory.faults import ConfigError, FactoryError

if TYPE_CHECKING:
    from train.processes import Group

log = logging.getLogger(__name__)

W = TypeVar("W")
R = TypeVar("R")

PATIENCE = 3.0  # seconds: a worker whose fault may be another's death waits so long, so that the death is seen first
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # those that the launcher takes over
NOISY = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing", "torchelastic-events")


class Observer(Protocol):
    """Told of the work as it goes."""

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        """`n` more steps are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How many processes, and on which hosts.

    processes: on this host. nodes: hosts. node: which of them this is, from 0. rendezvous: host:port of host 0, where
    they meet; needed with several. wait: seconds that each waits there for the others. All hosts run the same number of
    processes and see the same folders.
    """

    processes: int
    nodes: int = 1
    node: int = 0
    rendezvous: str = ""
    wait: int = 1800

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.processes * self.nodes

    def check(self) -> None:
        """ConfigError with every fault at once."""
        faults = []
        if self.processes < 1:
            faults.append(f"processes: {self.processes} is below 1")
        if self.nodes < 1:
            faults.append(f"nodes: {self.nodes} is below 1")
        elif not 0 <= self.node < self.nodes:
            faults.append(f"node: {self.node} is not from 0 to {self.nodes - 1}")
        if self.wait < 1:
            faults.append(f"wait: {self.wait} is below 1")
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 65536):
            faults.append(f"rendezvous: several nodes meet at host:port of node 0, not at {self.rendezvous!r}")
        if faults:
            raise ConfigError(faults, where="processes of the training")


def launch(
    function: Callable[[Group, W, Observer | None], R], work: W, how: Launch, observer: Observer | None = None
) -> R:
    """Run function(group, work, observer) in every process; what this host's first one returns.

    `observer` is told by the first process of all, and its log is written here. `function` and `work` must pickle.
    FactoryError: a worker raised one, or died; not all hosts came.
    """
    how.check()
    _refuse_too_many(how)
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(how.processes)]
    ear = _Ear([reader for reader, _ in pipes], observer)
    writers = [writer for _, writer in pipes]
    with tempfile.TemporaryDirectory(prefix="factory-processes-") as folder:
        try:
            with _signals_kept(), _quiet(), ear.listening(writers):
                found = elastic_launch(_config(how, folder), _worker)(function, work, writers, os.getpid())
        except SignalException as ended:
            signal.raise_signal(ended.sigval)  # as if the launcher had not been there
            raise
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            raise ear.fault(failure.local_rank, rank, failure.exitcode) from None
        except DistError as fault:
            raise _not_met(how, fault) from fault
    return cast(R, found[min(found)])


def _not_met(how: Launch, fault: Exception) -> FactoryError:
    """The hosts have not come together, or have lost each other between the start of their workers and the end."""
    others = f"the other {how.nodes - 1} hosts" if how.nodes > 2 else "the other host"
    return FactoryError(
        f"{others} of the training cannot be heard at {how.rendezvous}: {str(fault).splitlines()[0]}",
        todo=f"begin all within --wait ({how.wait} s), each with its --node from 0 to {how.nodes - 1} and else alike; "
        "the port must be free on node 0 and open to the others",
    )


def _refuse_too_many(how: Launch) -> None:
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    if devices is not None and how.processes > devices:
        raise FactoryError(
            f"{how.processes} processes on a host with {devices} GPUs: each takes one",
            todo=f"take --processes {devices}, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU",
        )


def _config(how: Launch, folder: str) -> Any:
    """The launcher's own configuration: workers that die are not started anew."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    alone = how.nodes == 1
    return LaunchConfig(
        min_nodes=how.nodes,
        max_nodes=how.nodes,
        nproc_per_node=how.processes,
        run_id="factory-train",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else how.rendezvous,
        rdzv_configs={} if alone else {"rank": how.node, "timeout": how.wait},
        local_addr="localhost" if alone else None,
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle=",".join(s.name for s in SIGNALS),
    )


# ---------------------------------------------------------------------------------------------------- in the caller


class _Ear:
    """Hears what the workers of this host say until all of them are gone."""

    def __init__(self, readers: Sequence[Connection], observer: Observer | None) -> None:
        self.readers = list(readers)
        self.observer = observer
        self.faults: dict[int, FactoryError | str] = {}

    @contextmanager
    def listening(self, writers: Sequence[Connection]) -> Iterator[None]:
        """Hear them in a thread; at the end, close this process's ends of the pipes, which ends the thread."""
        thread = threading.Thread(target=self._listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            for writer in writers:
                writer.close()
            thread.join()

    def _listen(self) -> None:
        places = {reader: i for i, reader in enumerate(self.readers)}
        while places:
            for reader in wait(list(places)):
                if not isinstance(reader, Connection):
                    continue
                try:
                    self._hear(places[reader], *reader.recv())
                except (EOFError, OSError):  # gone, perhaps in the middle of a word
                    del places[reader]
                    reader.close()

    def _hear(self, place: int, kind: str, what: Any) -> None:
        if kind == "fault":
            self.faults[place] = what
        elif kind == "log":
            logging.getLogger(what.name).handle(what)
        elif self.observer is not None:
            self.observer.advance(**what)

    def fault(self, place: int, rank: int, code: int) -> FactoryError:
        """What the worker at `place` on this host, `rank` among all, died of."""
        said = self.faults.get(place)
        if isinstance(said, FactoryError):
            return said
        if said is None:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            todo = "SIGKILL is often a lack of memory; the same command goes on from the last checkpoint"
            return FactoryError(f"process {rank} of the training ended {how}", todo=todo)
        log.error("process %d of the training failed:\n%s", rank, said)
        last = said.strip().splitlines()[-1]
        return FactoryError(
            f"process {rank} of the training failed: {last}",
            todo="its traceback is in the log above; the same command goes on from the last checkpoint",
        )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The launcher sets handlers and leaves them: put back those that were there. Only a main thread has any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the launcher's own log: what it has to say is raised."""
    import torch.distributed.elastic.agent.server.local_elastic_agent  # noqa: F401 - its loggers are there then

    logging.getLogger("torchelastic-events-null")  # made by its first event
    loud = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.startswith(NOISY) and not logger.disabled
    ]
    for logger in loud:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loud:
            logger.disabled = False


# ---------------------------------------------------------------------------------------------------- in the worker


class _Far:
    """An observer, and a way for the log, at the other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._lock = threading.Lock()

    def say(self, kind: str, what: Any) -> None:
        with self._lock:
            self.pipe.send((kind, what))

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        self.say("advance", {"n": n, "failed": failed, "reused": reused, "tokens": tokens})


class _LogAfar(logging.handlers.QueueHandler):
    """Sends records instead of writing them."""

    def __init__(self, far: _Far) -> None:
        super().__init__(queue.SimpleQueue())  # which stays empty
        self.far = far

    def enqueue(self, record: logging.LogRecord) -> None:
        self.far.say("log", record)


def _worker(function: Callable[..., Any], work: Any, pipes: Sequence[Connection], parent: int) -> Any:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # to end at once, also while waiting for the others in C++
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    local, rank = int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"])
    far = _Far(pipes[local])
    _speak_once(far, rank)
    from train.processes import joined

    try:
        with joined() as group:
            return function(group, work, far if rank == 0 else None)
    except FactoryError as fault:
        far.say("fault", fault)
        sys.exit(1)  # raised further, torch would write it to a file, which a full disk may not take
    except Exception:  # noqa: BLE001 - it is heard and raised where the processes were launched
        far.say("fault", traceback.format_exc())
        time.sleep(PATIENCE)
        sys.exit(1)


def _speak_once(far: _Far, rank: int) -> None:
    """All processes have the same to say: only the first one's log is heard."""
    root = logging.getLogger()
    root.handlers[:] = [_LogAfar(far) if rank == 0 else logging.NullHandler()]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(143)
