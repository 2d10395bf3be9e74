"""Files that are whole or not there, and what a folder lies on: SQLite's write-ahead log needs a local file system.

Network file systems have no shared memory between hosts, which WAL relies on (sqlite.org/wal.html).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

NETWORK = frozenset({
    "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "fuse.gcsfuse", "fuse.goofys", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs3",
    "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "wekafs",
})  # fmt: skip
MOUNTS = Path("/proc/mounts")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and sync it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Sync a file's bytes, or a folder's entries: then a rename in it is durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_contents(folder: Path) -> None:
    """Sync a folder and each file in it, so that it can be renamed into its place."""
    for path in (*sorted(folder.iterdir()), folder):
        sync(path)


def write_whole(path: Path, text: str) -> None:
    """The file is there whole or not at all, also after a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_durably(temporary, text.encode())
    temporary.replace(path)
    sync(path.parent)


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    found = folder.expanduser().absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    return found.resolve()


def kind(folder: Path, mounts: Path = MOUNTS) -> str:
    """Type of the file system that the folder lies on ("ext4", "nfs4" ...); empty where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target, best, found = existing(folder), -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), fields[1]))  # \040 is a blank
        if target.is_relative_to(point) and len(point.parts) >= best:  # a later mount hides an earlier one
            best, found = len(point.parts), fields[2]
    return found


def is_network(folder: Path, mounts: Path = MOUNTS) -> bool:
    """Does the folder lie on a file system that is shared over a network?"""
    return kind(folder, mounts) in NETWORK
