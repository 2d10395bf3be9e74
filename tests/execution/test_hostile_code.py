"""Hostile code: what it tries ends with it alone, and it passes nothing that it should not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from factory.execution import Limits, Outcome, Runner, isolation

ISOLATED = all(facility.available for facility in isolation())
isolated = pytest.mark.skipif(not ISOLATED, reason=f"no isolation here: {isolation()}")
QUICK = Limits(seconds=1.0, memory=128 << 20)
GOOD = "def add(a, b):\n    return a + b\n"
TEST = "assert add(1, 2) == 3"


@pytest.fixture(scope="module", params=["isolated", "unsafe"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "isolated" and not ISOLATED:
        pytest.skip(f"no isolation here: {isolation()}")
    made = Runner(limits=QUICK, unsafe_exec=request.param == "unsafe")
    yield made
    made.close()


@pytest.fixture(scope="module")
def cells() -> Iterator[Runner]:
    """With isolation only."""
    if not ISOLATED:
        pytest.skip(f"no isolation here: {isolation()}")
    made = Runner(limits=QUICK)
    yield made
    made.close()


def passes(runner: Runner, code: str, *tests: str, seconds: float = 10.0) -> bool:
    outcome = runner.calls(code, tests=tests or (TEST,), limits=QUICK._replace(seconds=seconds))
    return outcome.value is not None and outcome.value["passed"] == outcome.value["total"] > 0


def still_well(runner: Runner) -> None:
    assert passes(runner, GOOD)
    assert not passes(runner, GOOD.replace("+", "-"))


# ------------------------------------------------------------------------------------------- forging a good verdict

FORGERIES = {
    "an exit": "import sys\nsys.exit(0)",
    "an exit at once": "import os\nos._exit(0)",
    "an exit when called": "import os\ndef add(a, b):\n    os._exit(0)",
    "a polite exit when called": "def add(a, b):\n    raise SystemExit(0)",
    "a number that equals all": "class Yes(int):\n    def __eq__(self, other):\n        return True\n"
    "    __hash__ = int.__hash__\ndef add(a, b):\n    return Yes(7)",
    "an object that equals all": "class Yes:\n    def __eq__(self, other):\n        return True\n"
    "    def __ne__(self, other):\n        return False\n    def __bool__(self):\n        return True\n"
    "def add(a, b):\n    return Yes()",
    "a list that equals all": "class Yes(list):\n    def __eq__(self, other):\n        return True\n"
    "def add(a, b):\n    return Yes()",
    "a class whose class lies": "class Yes:\n    __class__ = int\n    def __eq__(self, o):\n        return True\n"
    "def add(a, b):\n    return Yes()",
    "a new AssertionError": "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
    "def add(a, b):\n    return 0",
    "patched builtins": "import builtins\nbuiltins.compile = builtins.exec = lambda *a, **k: None\n"
    "def add(a, b):\n    return 0",
    "patched modules": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('_same', 'run', 'loads'):\n"
    "        if hasattr(m, n):\n            setattr(m, n, lambda *a, **k: True)\ndef add(a, b):\n    return 0",
    "a tracer": "import sys\nsys.settrace(lambda *a: None)\ndef add(a, b):\n    return 0",
    "frames": "import sys\nf = sys._getframe()\nwhile f:\n    for k in list(f.f_locals):\n"
    "        if k in ('result', 'passed', 'reply'):\n            f.f_locals[k] = {'passed': 1, 'total': 1}\n"
    "    f = f.f_back\n"
    "def add(a, b):\n    return 0",
    "words on the output": 'print(\'{"passed": 1, "total": 1, "why": ""}\', flush=True)\ndef add(a, b):\n    return 0',
    "a message on every file": 'import os, struct\nm = b\'{"passed":1,"total":1,"why":""}\'\n'
    "for fd in range(64):\n    try:\n        os.write(fd, struct.pack('>Q', len(m)) + m)\n"
    "    except OSError:\n        pass\n"
    "def add(a, b):\n    return 0",
    "messages of the other end": 'import os, struct\nm = b\'{"value":["l",[]]}\'\n'
    "for fd in range(3, 64):\n    try:\n        os.write(fd, (struct.pack('>Q', len(m)) + m) * 50)\n"
    "    except OSError:\n        pass\ndef add(a, b):\n    return 0",
    "a builtin of its own": "def isinstance(*a):\n    return True\ndef abs(x):\n    return 0\n"
    "def add(a, b):\n    return 9",
    "an order of its own": "class Yes:\n    def __lt__(self, o):\n        return True\n"
    "    __gt__ = __le__ = __ge__ = __lt__\n"
    "def add(a, b):\n    return Yes()",
    "a difference of its own": "class Yes:\n    def __sub__(self, o):\n        return 0.0\n    __rsub__ = __sub__\n"
    "def add(a, b):\n    return Yes()",
    "a difference that is an object": "class Yes:\n    def __sub__(self, o):\n        return self\n"
    "    def __abs__(self):\n        return 0.0\ndef add(a, b):\n    return Yes()",
    "a quotient of its own": "class Yes:\n    def __truediv__(self, o):\n        return 1.0\n"
    "    __floordiv__ = __truediv__\n    def __mod__(self, o):\n        return o % 4\n"
    "    def __xor__(self, o):\n        return 0\n"
    "def add(a, b):\n    return Yes()",
    "an end of the tests' loop": "def add(a, b):\n    raise StopIteration",
    "nothing": "",
    "not Python": "def add(a, b) return 3",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(runner: Runner, name: str) -> None:
    tests = [TEST, "assert abs(add(1, 2) - 3) < 1e-9", "assert 2 < add(1, 2) < 4", "assert add(1, 2) in (3, 4)"]
    tests += ["assert abs(add(1, 2) / 3 - 1) < 1e-9", "assert add(1, 2) % 7 == 3", "assert add(1, 2) ^ 3 == 0"]
    tests += ["assert all(map(lambda case: add(case, 2) == 3, [1]))", "assert all([add(c, 2) == 3 for c in (1,)])"]
    outcome = runner.calls(FORGERIES[name], tests=tests, limits=QUICK._replace(seconds=10.0))
    assert outcome.value is None or outcome.value["passed"] == 0, outcome
    assert passes(runner, GOOD)


def test_a_module_of_its_own_does_not_judge(runner: Runner) -> None:
    forged = (
        "class M:\n    isclose = staticmethod(lambda *a, **k: True)\nmath = M()\ndef isclose(*a):\n    return True\n"
    )
    forged += "isclose.__module__ = 'math'\ndef half(x):\n    return 9.0\n"
    assert not passes(runner, forged, "assert math.isclose(half(1), 0.5)")
    assert not passes(runner, forged, "assert isclose(half(1), 0.5)")
    honest = "import math\nfrom math import isclose\ndef half(x):\n    return x / 2\n"
    assert passes(runner, honest, "assert math.isclose(half(1), 0.5)", "assert isclose(half(1), 0.5)")


def test_a_block_of_the_answers_swallows_no_failure(runner: Runner) -> None:
    manager = "class Held:\n    value = {}\n    def __enter__(self):\n        return self\n"
    manager += "    def __exit__(self, *fault):\n        return True\n"
    test = "with Held() as held:\n    assert held.value == 4"
    assert not passes(runner, manager.format(3), test)
    assert not passes(runner, manager.format(None), "with Held() as held:\n    assert held.value > 3")
    assert passes(runner, manager.format(4), test)


def test_arithmetic_of_an_answers_class_can_be_tested(runner: Runner) -> None:
    vector = """
class Vector:
    def __init__(self, *parts):
        self.parts = parts
    def __sub__(self, other):
        return Vector(*(a - b for a, b in zip(self.parts, other.parts)))
    def __truediv__(self, by):
        return Vector(*(part / by for part in self.parts))
    def __matmul__(self, other):
        return sum(a * b for a, b in zip(self.parts, other.parts))
"""
    tests = ["assert (Vector(3, 5) - Vector(1, 1)).parts == (2, 4)", "assert (Vector(2, 4) / 2).parts == (1, 2)"]
    assert passes(runner, vector, *tests, "assert Vector(1, 2) @ Vector(3, 4) == 11")


def test_the_tests_are_not_in_the_answers_memory(cells: Runner) -> None:
    """The code looks for the value that is due in all objects and frames that there are."""
    spy = """
import gc, sys
def wanted():
    return ''.join(['31415', '9265'])
def secret():
    frame = sys._getframe().f_back
    while frame:
        if wanted() in repr(frame.f_locals):
            return int(wanted())
        frame = frame.f_back
    for found in gc.get_objects():
        if type(found) in (dict, list, tuple) and wanted() in repr(found):
            return int(wanted())
    return 0
"""
    for _ in range(2):
        outcome = cells.calls(spy, tests=["assert secret() == 314159265"])
        assert outcome.value is not None
        assert outcome.value["passed"] == 0
    assert passes(cells, spy.replace("return 0", "return int(wanted())"), "assert secret() == 314159265")


def test_a_check_that_ends_the_process_is_no_verdict(runner: Runner) -> None:
    for code in (
        "import os\ndef check(p, a):\n    os._exit(0)",
        "import os\nos.kill(os.getpid(), 9)\ndef check(p, a): ...",
    ):
        outcome = runner.check(code, [], "x")
        assert outcome.value is None
        assert outcome.failure in ("died", "broken")


def test_a_program_that_prints_and_dies_has_not_passed(runner: Runner) -> None:
    for end in (
        "import os; os._exit(3)",
        "raise ValueError('no')",
        "import os, signal; os.kill(os.getpid(), 11)",
        "1/0",
    ):
        outcome = runner.programs(f"print(6, flush=True)\n{end}", [{"input": "3", "output": "6"}])
        assert outcome.value is not None
        assert outcome.value["passed"] == 0, end


# ----------------------------------------------------------------------------------------------- taking all there is

BOMBS = {
    "a loop": "while True:\n    pass",
    "a sleep": "import time\ntime.sleep(1000)",
    "memory": "x = [0] * 10**9",
    "shared memory": "import mmap\nm = mmap.mmap(-1, 8 << 30)\nm[0] = 1",
    "more and more memory": "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
    "a large file": "f = open('big', 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20))\n    f.flush()",
    "many files": "i = 0\nwhile True:\n    open(str(i), 'w').close()\n    i += 1",
    "output": "while True:\n    print('x' * 100000)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "signals to all": "import os, signal\nos.kill(-1, signal.SIGKILL)" if ISOLATED else "raise SystemExit",
    "a deaf process": "import signal\nfor s in range(1, 32):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_go_off_alone(cells: Runner, name: str) -> None:
    assert not passes(cells, BOMBS[name], seconds=1.0)
    ran = cells.programs(BOMBS[name], [{"input": "", "output": "6"}])
    assert ran.value is None or ran.value["passed"] == 0
    assert passes(cells, GOOD)


def test_without_walls_there_are_still_limits() -> None:
    runner = Runner(limits=QUICK, unsafe_exec=True)
    for name in ("a loop", "memory", "a large file", "output", "a crash"):
        assert not passes(runner, BOMBS[name], seconds=1.0), name
    still_well(runner)
    runner.close()


def test_a_fork_bomb_is_held(cells: Runner) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    before = len(psutil.pids())
    assert not passes(cells, bomb, seconds=1.0)
    assert len(psutil.pids()) < before + 100
    still_well(cells)


def test_what_it_leaves_behind_is_ended(runner: Runner, tmp_path: Path) -> None:
    """A grandchild in a session of its own, deaf to signals."""
    mark = f"left-behind-{os.getpid()}-{time.time_ns()}"
    leaving = (
        "import os, signal, sys, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        for s in (1, 2, 15):\n            signal.signal(s, signal.SIG_IGN)\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])\n"
        "    os._exit(0)\ntime.sleep(0.3)\n"
    )
    assert passes(runner, leaving + GOOD)
    deadline = time.monotonic() + 5
    while (left := _with(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _with(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if mark in (process.info["cmdline"] or []):
            found.append(process)
    return found


# -------------------------------------------------------------------------------------------------- looking around


def seen(runner: Runner, expression: str, before: str = "") -> str:
    """The text of an expression inside a cell."""
    code = f"{before}\ndef look():\n    try:\n        return repr({expression})\n    except BaseException as e:\n"
    code += "        return type(e).__name__\n"
    outcome = runner.calls(code, tests=["raise Exception(look())"], limits=QUICK._replace(seconds=10.0))
    assert outcome.value is not None, outcome
    return str(outcome.value["why"])


def test_no_key_is_in_reach(cells: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    fresh = Runner(limits=QUICK)
    for runner in (cells, fresh, Runner(limits=QUICK, unsafe_exec=True)):
        assert "secret" not in seen(runner, "dict(os.environ)", "import os")
    for path in ("/proc/self/environ", "/proc/1/environ", "/proc/self/maps", "/proc/self/fd"):
        assert "FileNotFoundError" in seen(fresh, f"open({path!r}, 'rb').read()")
    fresh.close()


def test_no_file_of_the_users_is_in_reach(cells: Runner, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("here")
    assert "FileNotFoundError" in seen(cells, f"open({str(secret)!r}).read()")
    for path in (
        str(secret),
        str(Path(__file__)),
        "/etc/passwd",
        "/root/.ssh",
        str(Path.home() / ".bashrc"),
        "/sys",
        "/proc/1",
    ):
        assert "False" in seen(cells, f"os.path.exists({path!r})", "import os"), path


def test_nothing_can_be_written_but_in_a_tmp_of_its_own(cells: Runner) -> None:
    for path in ("/x", "/usr/x", "/etc/x", "/dev/x", f"{sys.prefix}/x", f"{sys.base_prefix}/x"):
        assert "Error" in seen(cells, f"open({path!r}, 'w').write('x')"), path
    assert "1" in seen(cells, "open('/tmp/x', 'w').write('x')")
    assert "[]" in seen(cells, "os.listdir('/tmp')", "import os")
    unlink = f"os.unlink({os.__file__!r})"
    assert "Error" in seen(cells, unlink, "import os")
    assert Path(os.__file__).exists()


def test_no_network(cells: Runner) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "Error" in seen(cells, f"socket.create_connection(('127.0.0.1', {port}), 1)", "import socket")
    assert "Error" in seen(cells, "socket.create_connection(('1.1.1.1', 53), 1)", "import socket")
    assert "gaierror" in seen(cells, "socket.getaddrinfo('example.org', 80)", "import socket")


def test_no_rights(cells: Runner) -> None:
    assert "Exception: 0" not in seen(cells, "os.getuid()", "import os")
    for act in ("os.setuid(0)", "os.chroot('/tmp')", "os.mknod('/tmp/d', 0o60600, 0)", "os.nice(-5)"):
        assert "Error" in seen(cells, act, "import os"), act
    mount = "ctypes.CDLL(None).mount(b'tmpfs', b'/usr', b'tmpfs', 0, None)"
    assert "Exception: -1" in seen(cells, mount, "import ctypes")
    assert "Exception: -1" in seen(cells, "ctypes.CDLL(None).ptrace(16, 1, 0, 0)", "import ctypes")


def test_the_judging_process_cannot_be_harmed(cells: Runner) -> None:
    for act in ("os.kill(os.getppid(), 9)", "os.kill(1, 9)", "os.kill(1, 2)", "os.killpg(0, 19) or os.kill(-1, 9)"):
        assert not passes(cells, f"import os\n{act}\ndef add(a, b):\n    return 0")
    still_well(cells)


def test_one_answer_sees_nothing_of_another(cells: Runner) -> None:
    first = "import builtins, os, sys\nbuiltins.sorted = lambda x: 3\nsys.modules['json'] = None\n"
    first += "open('/tmp/left', 'w').close()\n"
    assert passes(cells, first + GOOD)
    later = "import json, os\ndef add(a, b):\n    return sum(sorted([2, 1])) if not os.listdir('/tmp') else 0\n"
    assert passes(cells, later)


# --------------------------------------------------------------------------------------------------- without it all


ORDINARY = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
user, group = os.getuid(), os.getgid()
assert libc.unshare(0x10000000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
    open(f"/proc/self/{name}", "w").write(text)
open("/proc/sys/user/max_user_namespaces", "w").write(sys.argv[1])
for number in range(41):
    libc.prctl(24, number, 0, 0, 0)
libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
"""Goes on as an ordinary user without rights, who may make as many user namespaces as the first argument says."""


def as_ordinary_user(code: str, namespaces: int) -> str:
    """What the code prints."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ORDINARY, str(namespaces), code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


@isolated
def test_without_isolation_it_is_refused_with_what_is_missing() -> None:
    """As in a container that forbids user namespaces."""
    said = as_ordinary_user(
        """
from factory.execution import Runner, isolation
from factory.faults import FactoryError
print([f.name for f in isolation() if not f.available])
try:
    Runner().check("def check(p, a): return True", [], "x")
except FactoryError as error:
    print(error.text())
print(Runner(unsafe_exec=True).check("def check(p, a): return True", [], "x"))
""",
        0,
    )
    assert "['namespaces', 'mounts', 'read-only files', 'root of its own', 'a cell']" in said
    assert "code cannot be isolated here: namespaces is missing" in said
    assert "--unsafe-exec" in said
    assert "Outcome(value={'value': True}" in said


@isolated
def test_an_ordinary_user_has_isolation_too() -> None:
    """By a user namespace, not by root's rights; and the walls are the same."""
    said = as_ordinary_user(
        """
from factory.execution import Runner
code = '''
import ctypes, os, socket
def add(a, b):
    return os.getuid(), sorted(os.listdir("/tmp")), os.path.exists("/proc"), os.path.exists("/etc/passwd")
def reach():
    socket.create_connection(("127.0.0.1", 80), 1)
def write():
    open(os.__file__, "a").write("x")
def more():
    libc = ctypes.CDLL(None)
    return libc.mount(b"tmpfs", b"/usr", b"tmpfs", 0, None), libc.sethostname(b"x", 1)
'''
tests = ["assert add(1, 2) == (65534, [], False, False)", "assert more() == (-1, -1)", "reach()", "write()"]
print(Runner().calls(code, tests=tests))
""",
        9,
    )
    assert "'passed': 2, 'total': 4" in said
    assert "test 3: OSError" in said


@isolated
@pytest.mark.parametrize("inside", [0, 1000])
def test_root_of_a_container_with_one_user_has_isolation(inside: int) -> None:
    """It has root's rights there, and no other user to run code as."""
    code = (
        "from factory.execution import Runner\n"
        "print(Runner().calls('import os\\ndef add(a, b):\\n    return os.getuid(), os.path.exists(\\'/proc\\')',"
        " tests=['assert add(1, 2) == (65534, False)']))"
    )
    enter = ORDINARY.replace("1000 {user}", f"{inside} {{user}}").replace("1000 {group}", f"{inside} {{group}}")
    enter = enter.split("for number in range(41)")[0] + enter.rpartition("\n\n")[2].split("bytes(24))\n")[-1]
    command = [sys.executable, "-c", enter, "9", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "'passed': 1" in done.stdout, done.stdout + done.stderr


def test_servers_end_with_their_starter() -> None:
    code = (
        "import os, signal\nfrom factory.execution import Runner\n"
        f"r = Runner(unsafe_exec={not ISOLATED})\nr.check('def check(p, a): return True', [], 'x')\n"
        "print(r._idle.queue[0]._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout)
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_is_ended_from_outside_is_replaced(runner: Runner) -> None:
    still_well(runner)
    os.kill(runner._idle.queue[0]._process.pid, signal.SIGKILL)
    outcome: Outcome = runner.calls(GOOD, tests=[TEST])
    assert outcome.value is not None
    assert outcome.value["passed"] == 1
