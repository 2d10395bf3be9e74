"""Messages between processes: JSON behind its length, over pipes and sockets. Raw bytes are never unpickled."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

_HEAD = struct.Struct(">Q")
LARGEST = 64 << 20  # bytes of one message


class BrokenFrameError(ValueError):
    """What came is no message."""


def pack(value: Any) -> bytes:
    """A JSON value as a message. ValueError: it is nested in itself; RecursionError: too deep."""
    data = json.dumps(value, separators=(",", ":")).encode()
    return _HEAD.pack(len(data)) + data


def send(fd: int, value: Any) -> None:
    """Write a message whole. OSError: nobody reads."""
    write(fd, pack(value))


def write(fd: int, data: bytes) -> None:
    """Write all of the bytes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int, most: int = LARGEST) -> Any:
    """The next message. EOFError: there is none; BrokenFrameError: it is longer than `most` bytes, or not JSON."""
    return unpack(exactly(fd, size(fd, most)))


def size(fd: int, most: int = LARGEST) -> int:
    """Bytes of the next message, its length taken from the stream."""
    length: int = _HEAD.unpack(exactly(fd, _HEAD.size))[0]
    if length > most:
        raise BrokenFrameError(f"a message of {length} bytes")
    return length


def exactly(fd: int, count: int) -> bytes:
    """So many bytes. EOFError: the stream ended."""
    parts: list[bytes] = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError("the stream ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def unpack(data: bytes) -> Any:
    """The JSON value of a message's body."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenFrameError(str(error)) from None


def whole(data: bytes) -> Any:
    """The one message that the bytes are; None where they are anything else."""
    if len(data) < _HEAD.size or _HEAD.unpack(data[: _HEAD.size])[0] != len(data) - _HEAD.size:
        return None
    try:
        return unpack(data[_HEAD.size :])
    except BrokenFrameError:
        return None
