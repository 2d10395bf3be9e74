"""The walls of a cell. Three steps, each in a process of its own: `enclose` (the server: a root with nothing in it but
Python and the system's libraries, no network), `enter` (one for each piece of code: a process namespace and a /tmp of
its own), `confine` (the code's process: an unprivileged user without capabilities, limits).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from factory.execution import kernel

NOBODY: Final = 65534
DEVICES: Final = ("null", "zero", "full", "random", "urandom")
ALSO_READABLE: Final = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_NAMESPACES: Final = kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWPID
STEPS: Final = ("linux", "namespaces", "mounts", "read-only files", "root of its own", "a cell")
"""What isolation needs, in the order in which it is put up."""


class StepError(Exception):
    """A wall cannot be put up: which, and why."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"{step}: {why}")
        self.step = step
        self.why = why


class Ground(NamedTuple):
    """What a server has for its cells. `user`: the number that their code runs as; None: it stays the server's."""

    isolated: bool
    user: int | None = None


def _step(name: str, act: Callable[..., Any], *given: Any) -> Any:
    try:
        return act(*given)
    except (OSError, AttributeError) as error:
        raise StepError(name, str(error)) from error


# ------------------------------------------------------------------------------------------------------ the server


def leave() -> Ground:
    """Leave this machine's namespaces. The next process that is forked is the first of its own; it goes on with
    `enclose`. StepError: the kernel, or a container around this process, refuses."""
    if sys.platform != "linux":
        raise StepError("linux", f"namespaces are Linux's, and this is {sys.platform}")
    if os.geteuid() == 0 and (spare := _spare_user()) is not None:
        with contextlib.suppress(OSError):  # root in a container may have no right to it, but a user namespace
            kernel.unshare(_NAMESPACES)
            return Ground(True, spare)
    user, group = os.geteuid(), os.getegid()
    _step("namespaces", kernel.unshare, _NAMESPACES | kernel.NEWUSER)
    _step("namespaces", _map_user, user, group)
    return Ground(True, None)


def _spare_user() -> int | None:
    """A user number for code to run as: one that nobody else has, so that limits on its processes count this server's
    alone, else nobody's; None where this process knows no such users (root of a container with one user)."""
    maps = [Path(f"/proc/self/{name}").read_text(encoding="ascii").split() for name in ("uid_map", "gid_map")]
    for number in (2_000_000 + os.getpid() % 1_000_000, NOBODY):
        if all(
            any(int(first) <= number < int(first) + int(count) for first, count in zip(m[::3], m[2::3], strict=True))
            for m in maps
        ):
            return number
    return None


def _map_user(user: int, group: int) -> None:
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1", encoding="ascii")


def enclose(root: str, readable: Sequence[str]) -> None:
    """Change to a root that holds `readable` (folders and files, read-only), a few devices, and an empty /tmp.

    `root` is an empty folder to mount it on. Loses sight of everything else, for good.
    """
    if hidden := [path for path in readable if path.startswith("/tmp/")]:  # noqa: S108 - see `enter`
        raise StepError("mounts", f"{hidden[0]} lies under /tmp, which code has for its own: keep Python elsewhere")
    _step("mounts", kernel.mount, "none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    _step("mounts", kernel.mount, "tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=4m")
    for path in (*readable, *ALSO_READABLE):
        _step("mounts", _bring, root, path)
    for name in DEVICES:
        _step("mounts", _bring, root, f"/dev/{name}", True)
    _step("mounts", (Path(root) / "tmp").mkdir)
    _step("root of its own", kernel.change_root, root)
    _step("read-only files", kernel.mount, "none", "/", "",
          kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)  # fmt: skip


def _bring(root: str, path: str, device: bool = False) -> None:
    """Let a file, folder or link of this machine be seen under the new root, read-only."""
    source, target = Path(path), Path(root + path)
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and source.parent == Path("/"):
        target.symlink_to(source.readlink())  # /lib and the like, where they are part of /usr
        return
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    kernel.mount(str(source.resolve()), str(target), "", kernel.MS_BIND | kernel.MS_REC)
    try:
        kernel.make_read_only(str(target), devices=device)
    except OSError as error:
        raise StepError("read-only files", str(error)) from error


# -------------------------------------------------------------------------------------------------------- the cell


def enter(ground: Ground, scratch: int) -> None:
    """Have process, mount and IPC namespaces of one's own, and a /tmp of `scratch` bytes that goes with them. The next
    process that is forked is the first of the namespace: when it ends, the kernel ends all below it."""
    kernel.unshare(kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC)
    user = NOBODY if ground.user is None else ground.user
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV,  # noqa: S108 - it is ours alone
                 f"size={scratch},nr_inodes=4096,mode=700,uid={user},gid={user}")  # fmt: skip


class Bounds(NamedTuple):
    """Limits of one process: bytes of its own memory, of all that it maps, and of a file; seconds of processor time;
    processes of the cell."""

    memory: int
    mapped: int
    file: int
    seconds: int
    processes: int


def held() -> tuple[int, int]:
    """Bytes of memory of its own, and of all that it maps, that this process has now; 1 GiB where nobody says."""
    try:
        sizes = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 1 << 30, 1 << 30
    page = resource.getpagesize()
    return int(sizes[5]) * page, int(sizes[0]) * page


def confine(ground: Ground, bounds: Bounds, folder: str, keep: Sequence[int]) -> None:
    """Limit this process and all that it starts, for good: no rights, no open files but 0, 1, 2 (nothing) and `keep`,
    no handler of signals but the default, `folder` as the working folder."""
    os.setsid()
    _silence()
    _close_all_but({0, 1, 2, *keep})
    os.chdir(folder)
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _limit(ground, bounds)
    if ground.isolated:
        kernel.bound_capabilities()
        if ground.user is not None:
            os.setgroups([])
            os.setresgid(ground.user, ground.user, ground.user)
            os.setresuid(ground.user, ground.user, ground.user)
        kernel.drop_capabilities()
    if sys.platform == "linux":
        kernel.gain_nothing()
        kernel.hide_memory()


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)


def _close_all_but(keep: set[int]) -> None:
    for low, high in pairwise([-1, *sorted(keep), 1 << 16]):
        if low + 1 < high:  # an empty range would be taken for an endless one
            os.closerange(low + 1, high)


def _limit(ground: Ground, bounds: Bounds) -> None:
    wanted = {
        resource.RLIMIT_CPU: bounds.seconds,
        resource.RLIMIT_FSIZE: bounds.file,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_AS: bounds.mapped,  # also of memory that is shared
        resource.RLIMIT_DATA: bounds.memory,
    }
    if ground.isolated:  # elsewhere the user's own processes would count
        wanted[resource.RLIMIT_NPROC] = bounds.processes
    for limit, value in wanted.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS does not know all of them
            resource.setrlimit(limit, (value, value))
