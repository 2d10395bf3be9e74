"""A stage in a process of its own, so that the memory of its model is gone before the next stage begins.

The child is a fresh interpreter (a GPU context does not survive a fork) and ends when its parent is gone, also by
kill -9: it waits on a pipe that only the parent holds open. Where stages run in this process instead, `give_back` hands
what they freed to the system.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

from factory.faults import FactoryError
from factory.recipe import dump, parse
from factory.rounds.runbook import Detail, Run


def in_child(run: Run, number: int, stage: str) -> Detail:
    """Do a stage of a run in a child process and hand back what it says. FactoryErrors come through as themselves."""
    context = multiprocessing.get_context("spawn")
    answer, answering = context.Pipe(duplex=False)
    watched, held = context.Pipe(duplex=False)
    child = context.Process(
        target=_child, args=(str(run.store.folder), dump(run.recipe), run.name, number, stage, answering, watched)
    )
    child.start()
    answering.close()
    watched.close()
    try:
        fault, detail = answer.recv()
    except KeyboardInterrupt:
        held.close()  # the child ends at once, not at the end of its stage
        raise
    except EOFError:
        child.join()
        raise FactoryError(
            f"the process of stage {stage!r} ended with code {child.exitcode}",
            where=f"run {run.name}, round {number}",
            todo="code -9 is often a lack of memory; the same command goes on from what was done",
        ) from None
    finally:
        child.join()
        held.close()
    if fault is not None:
        raise fault
    return dict(detail)


def give_back() -> None:
    """Free what nothing refers to, and let glibc give its empty pages to the system: of itself it keeps the gigabyte
    that a stage's model had, in pieces that the next one fits badly, so that a long run's process grows."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def shortage(error: Exception, where: str) -> Exception:
    """The fault to tell of: memory or disk that ran out in plain words, anything else as it is."""
    if isinstance(error, FactoryError):
        return error
    from train.shortages import of_memory, of_room

    if of_memory(error):
        return FactoryError(
            "the memory ran out (of the GPU, where there is one)",
            where=where,
            todo="what was done is kept: take a smaller batch (engine.options.batch_size, train.config.batch_size or "
            "micro_batch_tokens), and run the same command again",
        )
    if of_room(error):
        return FactoryError(
            "the disk is full", where=where, todo="free some space; the same command goes on from what was done"
        )
    return error


def _child(
    folder: str, text: str, name: str, number: int, stage: str, answering: Connection, watched: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts both: the parent says so, and ends this one
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    from factory.rounds.stages import perform
    from factory.store import Store

    with Store.open(folder) as store, store.run_lock(name):
        try:
            recipe = parse(text, where=f"run {name}")  # not the object: its rules may be a plugin's
            answering.send((None, perform(Run(store, recipe, name), number, stage)))
        except Exception as error:
            fault = shortage(error, f"run {name}, round {number}, {stage}")
            if not isinstance(fault, FactoryError):
                raise
            answering.send((fault, {}))


def _end_with_parent(watched: Connection) -> None:
    try:
        watched.recv()
    except EOFError:
        os._exit(143)
