"""The process that forks a cell for each piece of code. Started by runner.py as a script, never imported.

In: a message of settings, then for each piece of code a message (the job, with the code) and one with its tests, which
this process passes on without looking. Out: a message with what isolation there is, then one for each job. It ends
when the one who started it is gone, and all below it ends with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from factory.execution import cell, frames, jobs

if __name__ == "__main__":
    sys.path.pop(0)

IN, OUT = 0, 1
RESULT: Final = 4 << 20  # bytes of a result
_PID: Final = struct.Struct("=i")


def main() -> None:
    """Settings, walls, then one job after another."""
    settings = frames.receive(IN)
    sys.path[:] = settings["path"]
    done: list[str] = []
    try:
        ground = cell.leave() if settings["isolate"] else cell.Ground(False)
    except cell.StepError as error:
        frames.send(OUT, {"missing": [error.step, error.why]})
        return
    if not ground.isolated:
        jobs.forbid_gains()
        _serve(ground, settings, tempfile.mkdtemp(dir=settings["folder"]))
        return
    child = os.fork()  # the first process of the new namespace: when it ends, the kernel ends all below it
    if child == 0:
        _serve_enclosed(ground, settings, done)
        os._exit(0)
    os.close(IN)
    os.close(OUT)
    os.waitpid(child, 0)


def _serve_enclosed(ground: cell.Ground, settings: Mapping[str, Any], done: list[str]) -> None:
    try:
        private, mapped = cell.held()
        cell.enclose(settings["folder"], settings["readable"])
    except cell.StepError as error:
        frames.send(OUT, {"missing": [error.step, error.why]})
        return
    _serve(ground, {**settings, "held": (private, mapped)}, "/tmp")  # noqa: S108 - each cell's own


def _serve(ground: cell.Ground, settings: Mapping[str, Any], folder: str) -> None:
    """Tell what there is, then do jobs until there are no more."""
    jobs.preload(settings["modules"])
    held = settings.get("held") or cell.held()
    if ground.isolated and (fault := _rehearse(ground)):
        frames.send(OUT, {"missing": ["a cell", fault]})
        return
    gc.freeze()  # a cell's collector need not touch, and so copy, what all cells share
    frames.send(OUT, {"missing": None})
    while True:
        try:
            head = frames.receive(IN)
        except EOFError:
            return
        if not ground.isolated:
            folder = tempfile.mkdtemp(dir=settings["folder"])
        frames.send(OUT, _job(ground, _bounds(held, head), folder, head))
        if not ground.isolated:
            _sweep(folder)


def _bounds(held: tuple[int, int], head: Mapping[str, Any]) -> cell.Bounds:
    """The limits of a job, beyond what this process holds already and a cell's process has from it."""
    limits = head["limits"]
    return cell.Bounds(
        memory=held[0] + limits["memory"] + (16 << 20),
        mapped=held[1] + limits["memory"] + (128 << 20),
        file=limits["file"],
        seconds=int(head["deadline"]) + 2,
        processes=limits["processes"],
    )


def _rehearse(ground: cell.Ground) -> str:
    """Can a cell be made? Why not, or nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cell.enter(ground, 1 << 20)
        except OSError as error:
            os.write(writing, str(error).encode()[:500])
        os._exit(0)
    os.close(writing)
    fault = os.read(reading, 500).decode("utf-8", "replace")
    os.close(reading)
    os.waitpid(child, 0)
    return fault


def _job(ground: cell.Ground, bounds: cell.Bounds, folder: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a cell of its own and say how it ended."""
    body_out, body_in = os.pipe()
    result_out, result_in = os.pipe()
    pid_out, pid_in = os.pipe()
    began = time.monotonic()
    middle = os.fork()
    if middle == 0:
        _in_between(ground, bounds, folder, head, (body_out, result_in, pid_in))
    for fd in (body_out, result_in, pid_in):
        os.close(fd)
    first = os.read(pid_out, _PID.size)
    os.close(pid_out)
    os.waitpid(middle, 0)
    child = _PID.unpack(first)[0] if len(first) == _PID.size else 0
    data, timed_out = _exchange(body_in, result_out, began + head["deadline"])
    seconds = time.monotonic() - began
    status = _end(ground, child) if child else 0
    result = frames.whole(data)
    return {"result": result, "timed_out": timed_out, "seconds": seconds, "ended": jobs._words(status) if child else
            "did not begin"}  # fmt: skip


def _in_between(
    ground: cell.Ground, bounds: cell.Bounds, folder: str, head: Mapping[str, Any], fds: tuple[int, int, int]
) -> None:
    """Leave the server's namespaces, fork the cell's first process, tell its number, and end: it is the server's."""
    body, result, pid = fds
    if ground.isolated:
        cell.enter(ground, bounds.file * 2)
    child = os.fork()
    if child:
        os.write(pid, _PID.pack(child))
        os._exit(0)
    try:
        jobs.run(ground, bounds, folder, head, body, result)
    except BaseException as error:  # noqa: BLE001 - told as the result, whatever it is
        with contextlib.suppress(OSError):
            frames.send(result, {"error": f"{type(error).__name__}: {error}"[:500]})
    os._exit(0)


def _exchange(body: int, result: int, deadline: float) -> tuple[bytes, bool]:
    """Hand on the tests and take the result; true: time ran out. Ends this process when its starter is gone."""
    left = frames.size(IN) + 8
    head = struct.pack(">Q", left - 8)
    os.set_blocking(body, False)
    parts: list[bytes] = []
    size = 0
    timed_out = False
    while size <= RESULT:
        wait = deadline - time.monotonic()
        if wait <= 0:
            timed_out = True
            break
        reading = [result, IN] if not left else [result]
        ready, writable, _ = select.select(reading, [body] if left else [], [], wait)
        if IN in ready:  # nothing is due: the starter is gone
            os._exit(1)
        if writable:
            head, left = _hand_on(body, head, left)
        if result in ready:
            part = os.read(result, 1 << 16)
            if not part:
                break
            parts.append(part)
            size += len(part)
    os.close(result)
    os.close(body)
    _discard(left - len(head))
    return b"".join(parts), timed_out


def _hand_on(body: int, head: bytes, left: int) -> tuple[bytes, int]:
    """Move some of the tests to the cell, in the kernel: they are never in the memory that cells are forked from."""
    try:
        if head:
            done = os.write(body, head)
            return head[done:], left - done
        return b"", left - _moved(body, min(left, 1 << 16))
    except BlockingIOError:
        return head, left
    except BrokenPipeError:
        _discard(left - len(head))
        return b"", 0


def _moved(target: int, count: int) -> int:
    if hasattr(os, "splice"):
        return os.splice(IN, target, count)
    return os.write(target, frames.exactly(IN, min(count, 512)))


def _discard(count: int) -> None:
    """Take what nobody wants any more out of the way."""
    while count > 0:
        count -= len(os.read(IN, min(count, 1 << 16))) or count


def _end(ground: cell.Ground, child: int) -> int:
    """End a cell's first process, and so all of it; its status. Without walls: all that can be found of it."""
    if not ground.isolated:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if not ground.isolated:
        _end_orphans()
    return status


def _end_orphans() -> None:
    """Without walls: end what was left behind and has become this process's."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    for _ in range(100):
        with contextlib.suppress(OSError):
            for pid in listed.read_text(encoding="ascii").split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)
        except ChildProcessError:
            return


def _sweep(folder: str) -> None:
    """Delete a folder and what is in it, also where its rights were changed."""
    import shutil

    with contextlib.suppress(OSError):
        Path(folder).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
