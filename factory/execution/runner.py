"""The caller's side of running code: servers that fork cells, and what comes of each piece of code as an `Outcome`."""

from __future__ import annotations

import ast
import os
import queue
import select
import shutil
import site
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from factory.execution import cell, frames
from factory.faults import FactoryError

_SERVER: Final = Path(__file__).with_name("server.py")
_GRACE: Final = 20.0  # seconds beyond a deadline before the server itself is given up
_START: Final = 60.0
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/lib32", "/bin")
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp", "TMPDIR": "/tmp",  # noqa: S108
    "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}  # fmt: skip


class Limits(NamedTuple):
    """For one piece of code: seconds from its start, bytes of memory of each process, of each file (its /tmp holds
    twice as much), and processes at a time."""

    seconds: float = 5.0
    memory: int = 512 << 20
    file: int = 32 << 20
    processes: int = 32


class Outcome(NamedTuple):
    """What came of a piece of code. `value`: what it was to find out; or `failure`, the kind of it: `timeout`, `died`
    (it ended without a word), `broken` (the code that judges is at fault, not the one judged), `lost` (the process that
    runs code was ended from outside); `why` in words."""

    value: Mapping[str, Any] | None
    failure: str | None = None
    why: str = ""


class Facility(NamedTuple):
    """Something that isolation needs: is it here, and if not, why not."""

    name: str
    available: bool
    why: str = ""


class _IsolationError(Exception):
    def __init__(self, step: str, why: str) -> None:
        super().__init__(why)
        self.step = step
        self.why = why


class Runner:
    """Runs code in cells, at most `workers` pieces at a time; may be used by several threads.

    unsafe_exec: without walls, with limits only. modules: imported once for all cells. Servers start when they are
    first needed, and end with `close`, or with this process.
    """

    def __init__(
        self, *, limits: Limits | None = None, workers: int = 1, unsafe_exec: bool = False, modules: Sequence[str] = ()
    ) -> None:
        limits = limits or Limits()
        if limits.seconds <= 0 or limits.memory < 1 << 20 or workers < 1:
            raise FactoryError("seconds and workers must be above 0, and memory at least a mebibyte")
        self.limits = limits
        self.unsafe_exec = unsafe_exec
        self._modules = list(modules)
        self._idle: queue.LifoQueue[_Server] = queue.LifoQueue()
        self._free = threading.Semaphore(workers)

    def check(
        self, code: str, prompt: Sequence[Mapping[str, Any]], answer: str, *, limits: Limits | None = None
    ) -> Outcome:
        """`check(prompt, answer)` as `code` defines it: value {"value": true, false or a number from 0 to 1}.

        `prompt` is the conversation as a list of messages. What the code raises or returns else is `broken`.
        """
        limits = limits or self.limits
        head = {"job": "check", "code": code, "deadline": limits.seconds}
        return self._judged(head, {"prompt": list(prompt), "answer": answer}, limits)

    def calls(
        self, code: str, *, tests: Sequence[str] = (), cases: Sequence[Mapping[str, Any]] = (),
        entry_point: str | None = None, setup: str = "", limits: Limits | None = None,
    ) -> Outcome:  # fmt: skip
        """The functions of `code` under tests (asserts, test functions, `check(candidate)`) or cases of arguments and
        the value due: value {"passed", "total", "why"}; `why` of the first that fails."""
        limits = limits or self.limits
        head = {"job": "calls", "code": code, "deadline": limits.seconds}
        body = {"tests": list(tests), "cases": list(cases), "entry_point": entry_point, "setup": setup}
        return self._judged(head, body, limits)

    def programs(self, code: str, cases: Sequence[Mapping[str, str]], *, limits: Limits | None = None) -> Outcome:
        """`code` as a program, run for each case's input, its output compared with the one due; `seconds` for each."""
        limits = limits or self.limits
        deadline = limits.seconds * (len(cases) + 1)
        head = {"job": "programs", "code": code, "seconds": limits.seconds, "deadline": deadline}
        return self._judged(head, {"cases": list(cases)}, limits)

    def close(self) -> None:
        """End the servers that are idle."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _judged(self, head: Mapping[str, Any], body: Mapping[str, Any], limits: Limits) -> Outcome:
        try:
            packed = frames.pack({**head, "limits": limits._asdict()}), frames.pack(body)
        except (ValueError, RecursionError) as error:
            return Outcome(None, "broken", f"what is to be run cannot be handed over: {error}")
        if max(map(len, packed)) > frames.LARGEST:
            return Outcome(None, "broken", f"more than {frames.LARGEST >> 20} MiB of code or tests")
        for _ in range(2):  # a server that was ended from outside is replaced once
            with self._server() as server:
                reply = server.ask(packed, float(head["deadline"]))
            if reply is not None:
                return self._outcome(reply, float(head["deadline"]))
        return Outcome(None, "lost", "the process that runs code was ended from outside, twice")

    def _outcome(self, reply: Mapping[str, Any], deadline: float) -> Outcome:
        result = reply["result"]
        if reply["timed_out"]:
            return Outcome(None, "timeout", f"more than {deadline:g} s")
        if not isinstance(result, dict):
            return Outcome(None, "died", f"it {reply['ended']} without a result")
        if "error" in result:
            return Outcome(None, "broken", str(result["error"]))
        return Outcome(result)

    @contextmanager
    def _server(self) -> Iterator[_Server]:
        """A server for one job; one that did not survive it is not used again."""
        with self._free:
            try:
                server = self._idle.get_nowait()
            except queue.Empty:
                server = self._start()
            try:
                yield server
            except BaseException:
                server.close()
                raise
            if server.alive:
                self._idle.put(server)

    def _start(self) -> _Server:
        try:
            return _Server(isolate=not self.unsafe_exec, modules=self._modules)
        except _IsolationError as error:
            raise FactoryError(
                f"code cannot be isolated here: {error.step} is missing ({error.why})",
                where="running code",
                todo="allow this process user namespaces (docker: --security-opt seccomp=unconfined, or run as root "
                "with CAP_SYS_ADMIN); or let code run without isolation by --unsafe-exec, if you trust all of it",
            ) from error


class _Server:
    """A server process."""

    def __init__(self, *, isolate: bool, modules: Sequence[str]) -> None:
        self.alive = True
        self._folder = tempfile.mkdtemp(prefix="factory-cells-")
        root = Path(self._folder) / "root"
        root.mkdir()
        log = (Path(self._folder) / "log").open("wb")
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-s", "-P", "-B", str(_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, env=_ENVIRONMENT, cwd=root, start_new_session=True,
        )  # fmt: skip
        log.close()
        self._end = weakref.finalize(self, _end, self._process, self._folder)  # at the latest with the interpreter
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()  # type: ignore[union-attr]
        settings = {
            "isolate": isolate, "folder": str(root), "readable": readable(), "path": _import_path(),
            "modules": list(modules),
        }  # fmt: skip
        try:
            frames.send(self._in, settings)
            hello = self._reply(_START)
        except (OSError, EOFError, frames.BrokenFrameError):
            hello = None
        if hello is None:
            said = (Path(self._folder) / "log").read_text(encoding="utf-8", errors="replace").strip()
            self.close()
            raise _IsolationError("a process for it", said.rpartition("\n")[2] or "it did not start")
        if hello["missing"]:
            self.close()
            raise _IsolationError(*hello["missing"])

    def ask(self, packed: tuple[bytes, bytes], deadline: float) -> dict[str, Any] | None:
        """What the server says of one job; None when it is gone, and it is not used again."""
        try:
            for data in packed:
                frames.write(self._in, data)
            return self._reply(deadline + _GRACE)
        except (OSError, EOFError, frames.BrokenFrameError):
            self.close()
            return None

    def _reply(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        ready, _, _ = select.select([self._out], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise EOFError("no answer in time")
        found: dict[str, Any] = frames.receive(self._out)
        return found

    def close(self) -> None:
        """End the server and all below it."""
        self.alive = False
        self._end()


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End a server: it does so by itself when its input ends; what is not gone in two seconds is killed."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, 9)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------- what cells can read


def readable() -> list[str]:
    """The folders that code can read: the system's, the Python installation's and its packages'. Never a project's."""
    wanted = [*_SYSTEM, sys.base_prefix, sys.prefix, *_packages()]
    found: list[str] = []
    for path in dict.fromkeys(str(Path(path).absolute()) for path in wanted):
        inside = any(Path(path).is_relative_to(other) for other in found)
        if Path(path).exists() and path != "/" and not inside:
            found.append(path)
    return found


def _packages() -> list[str]:
    """Folders of installed packages that Python looks in."""
    known = {*site.getsitepackages()}
    return [path for path in sys.path if path in known or Path(path).name in ("site-packages", "dist-packages")]


def _import_path() -> list[str]:
    """Where code finds modules: the standard library and installed packages."""
    allowed = [Path(path) for path in (sys.base_prefix, sys.prefix, *_packages())]
    return [path for path in sys.path if path and any(Path(path).is_relative_to(root) for root in allowed)]


def imported(code: str) -> list[str]:
    """The modules that code imports at its top level; none where it is not Python."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return list(dict.fromkeys(names))


def isolation() -> tuple[Facility, ...]:
    """What isolation needs, in the order in which it is put up, and whether this machine has it: all is tried."""
    try:
        _Server(isolate=True, modules=()).close()
    except _IsolationError as error:
        steps = list(cell.STEPS)
        at = steps.index(error.step) if error.step in steps else 0
        why = ["" if i < at else error.why if i == at else "not tried" for i in range(len(steps))]
        return tuple(Facility(step, i < at, why[i]) for i, step in enumerate(steps))
    return tuple(Facility(step, True) for step in cell.STEPS)
