"""The few calls of Linux that Python 3.11 has no names for: namespaces, mounts, capabilities (man 2 unshare, mount,
mount_setattr, pivot_root, prctl, capset)."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from functools import cache
from typing import Final

NEWNS: Final = 0x00020000
NEWUTS: Final = 0x04000000
NEWIPC: Final = 0x08000000
NEWUSER: Final = 0x10000000
NEWPID: Final = 0x20000000
NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
_MNT_DETACH: Final = 0x2

_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
_MOUNT_SETATTR: Final = 442  # the same number everywhere
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_CAPABILITY_VERSION: Final = 0x20080522


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces behind for new ones; a new process namespace is for the children."""
    _checked(_libc().unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    found = _libc().mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _checked(found, f"mount {target}")


def make_read_only(target: str, *, devices: bool = False) -> None:
    """A mount and all below it: read-only, without set-user-ID programs, and without devices unless wanted."""
    wanted = 0x1 | 0x2 | (0 if devices else 0x4)  # MOUNT_ATTR_RDONLY, _NOSUID, _NODEV
    attributes = struct.pack("=QQQQ", wanted, 0, 0, 0)
    found = _libc().syscall(
        ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), target.encode(), ctypes.c_uint(_AT_RECURSIVE),
        attributes, ctypes.c_size_t(len(attributes)),
    )  # fmt: skip
    _checked(found, f"mount_setattr {target}")


def change_root(root: str) -> None:
    """Make the mount at `root` the root of this process's namespace, and let go of the old one."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root is not known on {platform.machine()}")
    os.chdir(root)
    _checked(_libc().syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    _checked(_libc().umount2(b".", _MNT_DETACH), "umount")  # the old root lies on top of the new one
    os.chdir("/")


def _prctl(option: int, value: int, what: str) -> None:
    _checked(_libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0), what)


def gain_nothing() -> None:
    """No program that is started from here on has more rights than this process (set-user-ID and the like)."""
    _prctl(_SET_NO_NEW_PRIVS, 1, "no_new_privs")


def hide_memory() -> None:
    """No process of the same user may look into this one's memory or trace it."""
    _prctl(_SET_DUMPABLE, 0, "dumpable")


def adopt_orphans() -> None:
    """Processes below this one whose parent ends become its children."""
    _prctl(_SET_CHILD_SUBREAPER, 1, "child_subreaper")


def bound_capabilities() -> None:
    """No program that is started from here on can have a capability."""
    for number in range(64):
        if _libc().prctl(_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) < 0:
            if number == 0:
                _checked(-1, "capbset_drop")
            return


def drop_capabilities() -> None:
    """This process has none from here on."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _checked(_libc().capset(header, bytes(24)), "capset")
