"""Locks between processes: one a run, held by the run's process tree, and a brief one for sealing.

The lock itself is the kernel's (filelock), so that a killed holder frees it; a note beside it says who holds it. A
child process of the holder passes, and takes a lock of its own: while it lives on without its parent, the run is held.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from factory.faults import LockedError
from factory.schema import now

VARIABLE = "FACTORY_RUN_LOCK"


@contextmanager
def run_lock(folder: Path, run: str) -> Iterator[None]:
    """Hold the run of this folder. LockedError says which process holds it already."""
    locks = (folder / "locks").resolve()
    locks.mkdir(parents=True, exist_ok=True)
    inherited = os.environ.get(VARIABLE) == str(locks)
    name = f"child-{os.getpid()}" if inherited else "run"
    with held(locks / f"{name}.lock", f"run {run}"):
        if inherited:
            yield
            return
        _refuse_orphans(locks, run)
        os.environ[VARIABLE] = str(locks)
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)


def is_locked(folder: Path) -> bool:
    """Is the run of this folder held, by its process or by a child that outlived it?"""
    return any(_is_held(path) for path in sorted((folder / "locks").glob("*.lock")))


def _is_held(path: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which stands for `what`. LockedError says which process holds it already."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    note = path.with_suffix(".json")
    try:
        lock.acquire()
    except Timeout:
        raise held_by(note, what) from None
    try:
        note.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now().isoformat()}))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _refuse_orphans(locks: Path, run: str) -> None:
    """A child of a killed holder may still be at work; what dead ones left is cleaned away."""
    from filelock import FileLock, Timeout

    for path in locks.glob("child-*.lock"):
        note = path.with_suffix(".json")
        try:
            with FileLock(path, timeout=0):
                note.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except Timeout:
            raise held_by(note, f"run {run}") from None


def holder(note: Path) -> dict[str, Any]:
    """Who wrote the note: pid, host, since; empty when there is none that can be read."""
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def held_by(note: Path, what: str) -> LockedError:
    """The error that names the holder."""
    who = holder(note)
    if not who:
        return LockedError(f"{what} is held by another process", where=str(note.parent))
    since = datetime.fromisoformat(who["since"]).strftime("%Y-%m-%d %H:%M:%S")
    return LockedError(
        f"{what} is held by process {who['pid']} on {who['host']} since {since} UTC",
        where=str(note.parent),
        todo=f"wait until it is done, or end it: kill {who['pid']}",
    )


def stale_notes(store: Path) -> list[Path]:
    """Notes of run locks whose process on this machine is dead: a killed run, which the next one takes over."""
    return [n for n in sorted(store.glob("runs/*/locks/*.json")) if _dead(holder(n))]


def _dead(who: dict[str, Any]) -> bool:
    if not who or who["host"] != socket.gethostname():
        return False
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def seal_lock(store: Path, timeout: float) -> Iterator[None]:
    """The brief lock of a seal. LockedError when another process seals for longer than `timeout` seconds."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(store / "seal.lock", timeout=timeout):
            yield
    except Timeout:
        raise LockedError("the store is being sealed by another process", where=str(store), todo="try again") from None
