"""A stage in a child: it holds the run while it lives, and ends when its parent is interrupted or gone."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory.faults import LockedError
from factory.store import Store

PARENT = """
import signal, sys, time
from factory import recipe
from factory.rounds import isolation, stages
from factory.rounds.isolation import in_child
from factory.rounds.runbook import Run
from factory.store import Store

def stand_still(run, number):
    print("at work", flush=True)
    time.sleep(120)

stages.STAGES = {"generate": stand_still}
if sys.argv[2] == "deaf":
    isolation._end_with_parent = lambda watched: None
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    with Store.open(sys.argv[1]) as store, store.run_lock("r"):
        loaded = recipe.parse("name: x\\npanel: [{judge: verifier}]\\n", where="test")
        store.put_run("r", "", {})
        in_child(Run(store, loaded, "r"), 1, "generate")
"""


def start(folder: Path, child: str) -> subprocess.Popen[str]:
    """A process that waits for its child's stage, which is at work and would take two minutes."""
    script = folder / "parent.py"
    script.write_text(PARENT)
    with Store.open(folder / "store", create=True):
        pass
    command = [sys.executable, str(script), str(folder / "store"), child]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


def child_of(store: Path) -> int:
    (path,) = (store / "runs" / "r" / "locks").glob("child-*.lock")
    return int(path.stem.removeprefix("child-"))


def ended(pid: int, seconds: float = 30) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(int(seconds * 20)):
        try:
            os.kill(pid, 0)
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # dead; whoever inherited it has not asked yet
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_child_that_outlives_its_parent_holds_the_run(tmp_path: Path) -> None:
    parent = start(tmp_path, "deaf")
    child = child_of(tmp_path / "store")
    parent.kill()
    parent.wait()
    try:
        with (
            Store.open(tmp_path / "store") as store,
            pytest.raises(LockedError, match=f"process {child} "),
            store.run_lock("r"),
        ):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_parent_alone_ends_the_child(number: signal.Signals, tmp_path: Path) -> None:
    parent = start(tmp_path, "hearing")
    child = child_of(tmp_path / "store")
    parent.send_signal(number)
    try:
        parent.wait(30)
        assert ended(child)
    finally:
        for pid in (parent.pid, child):
            if not ended(pid, 0.1):
                os.kill(pid, signal.SIGKILL)


KEEPER = """
import sys
from factory.rounds.isolation import give_back

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

class Node:
    pass

blocks = [bytearray(60_000) for _ in range(4000)]
top = bytearray(60_000)
ring = Node()
ring.own, ring.blocks = ring, blocks
del ring, blocks
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library keeps nothing back that is known"
)
def test_what_a_stage_freed_goes_back_to_the_system() -> None:
    """240 MB in pieces below a block that stays, held by nothing but themselves."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
    done = subprocess.run([sys.executable, "-c", KEEPER], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) > 150
