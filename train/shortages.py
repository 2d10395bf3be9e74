"""What a training may run short of, memory and disk, and what to do then."""

from __future__ import annotations

import errno
import gc
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from factory.faults import FactoryError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_NO_ROOM = re.compile(
    r"no space left|disk quota exceeded|os error (?:" + "|".join(map(str, FULL)) + r")\b"
    r"|PytorchStreamWriter failed|enforce fail at inline_container|iostream error",  # as torch.save says it
    re.IGNORECASE,
)


def of_memory(fault: BaseException) -> bool:
    """Was it memory that ran out, on a device or on the host?"""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(fault, RuntimeError) and bool(_NO_MEMORY.search(str(fault)))


def of_room(fault: BaseException) -> bool:
    """Was it the disk that ran out (or a quota, or a limit on the size of files)? Writers of tensors say so in words
    alone."""
    return (isinstance(fault, OSError) and fault.errno in FULL) or bool(_NO_ROOM.search(str(fault)))


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_for(what: str, where: str) -> Iterator[None]:
    """While `what` is done: where the memory runs out, a FactoryError says so in place of a traceback."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not of_memory(fault):
            raise
        raise FactoryError(
            f"out of memory in {what}",
            where=where,
            todo="take a smaller max_length or micro_batch_tokens, a lora adapter, checkpoint_activations: true, or "
            "online fewer prompts and answers; `--plan` says what it takes. What was done is kept, and gone on from",
        ) from fault


@contextmanager
def room_for(what: str, folder: Path, drafts: Sequence[str] = ()) -> Iterator[None]:
    """While `what` is written in `folder`: where the disk is full, the drafts there (patterns) are removed and a
    FactoryError says so; what was whole before stays."""
    try:
        yield
    except Exception as fault:
        if not of_room(fault):
            raise
        for draft in [path for pattern in drafts for path in folder.glob(pattern)]:
            shutil.rmtree(draft, ignore_errors=True)
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise FactoryError(
            f"the disk is full: {what} could not be written ({free / 2**20:.0f} MiB are free)",
            where=str(folder),
            todo="make room and run the same again: it goes on from the last checkpoint, which is kept",
        ) from fault
