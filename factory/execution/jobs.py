"""What goes on inside a cell: a user's check of an answer, an answer's functions under tests, an answer's program under
cases of input and output.

The first process of a cell judges. An answer's code runs in a second one, forked before the tests have come, so that
they are nowhere in its memory; it cannot signal or trace the first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import select
import signal
import socket
import sys
import time
import traceback
import unittest
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from factory.execution import frames, kernel, pytest_words, remote
from factory.execution.cell import Bounds, Ground, confine

OUTPUT: Final = 1 << 20  # bytes that a program may print for one case
_WHY: Final = 500
_MODULES: Final = ("solution", "answer", "main", "code_under_test")
"""Names under which tests may import the answer."""

Result = dict[str, Any]


def run(ground: Ground, bounds: Bounds, folder: str, head: Mapping[str, Any], body: int, result: int) -> None:
    """Do one job to its end and write what came of it to `result`. The tests come from `body`."""
    job = {"check": _check, "calls": _calls, "programs": _programs}[head["job"]]
    confine(ground, bounds, folder, [body, result])
    _forget_ourselves()
    frames.send(result, job(ground, head, body, result))


def _forget_ourselves() -> None:
    """What is run here finds a Python as it is when started, without the factory's modules."""
    for name in [name for name in sys.modules if name == "factory" or name.startswith("factory.")]:
        del sys.modules[name]
    sys.argv = ["answer.py"]


def _why(error: BaseException, file: str, source: str = "") -> str:
    """An exception in one line, with the line of `file` that raised it; of an assertion without words, its code."""
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f" (line {lines[-1]})" if lines else ""
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 - an exception of the answer's may fail to be told, in any way
        said = ""
    written = source.split("\n")[lines[-1] - 1 : lines[-1]] if lines else []
    said = said or (written[0].strip() if written and isinstance(error, AssertionError) else "")
    return f"{type(error).__name__}: {said}"[:_WHY] + place


# ---------------------------------------------------------------------------------------------------- a user's check


def _check(ground: Ground, head: Mapping[str, Any], body: int, result: int) -> Result:
    """`check(prompt, answer)` of the user's code: what it returned, or what went wrong with it."""
    given = frames.receive(body)
    namespace: dict[str, Any] = {"__name__": "check", "__file__": "check.py"}
    try:
        exec(compile(head["code"], "check.py", "exec"), namespace)  # noqa: S102 - what the cell is for
        found = namespace["check"](given["prompt"], given["answer"])
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is its failure
        return {"error": _why(error, "check.py")}
    if hasattr(found, "item") and not isinstance(found, bool | int | float):
        found = found.item()
    if isinstance(found, bool) or (isinstance(found, int | float) and 0 <= found <= 1):
        return {"value": found}
    return {"error": f"check returned {found!r:.100}, not true, false, or a number from 0 to 1"}


# -------------------------------------------------------------------------------------- an answer's functions, called


def _calls(ground: Ground, head: Mapping[str, Any], body: int, result: int) -> Result:
    """Tests against the answer's functions: how many there are, how many pass, and why the first that fails does."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        os.close(body)
        os.close(result)
        _answer_calls(theirs.fileno(), head["code"])
        os._exit(0)
    theirs.close()
    given = frames.receive(body)
    peer = remote.Peer(ours.fileno(), serves=remote.TESTS)
    try:
        names = peer.request("load")
    except remote.GoneError:
        return _none_passed(given, f"the answer's process {_ended(child)} while its code was loaded")
    except BaseException as error:  # noqa: BLE001 - whatever the answer's code raises
        return _none_passed(given, f"the code does not load: {type(error).__name__}: {error}"[:_WHY])
    try:
        return _Suite(peer, names, given).run()
    except remote.GoneError:
        return _none_passed(given, f"the answer's process {_ended(child)}")


def _none_passed(given: Mapping[str, Any], why: str) -> Result:
    return {"passed": 0, "total": max(1, len(given.get("tests") or given.get("cases") or ())), "why": why}


def _ended(child: int) -> str:
    """How a process ended, in words."""
    with contextlib.suppress(ChildProcessError):
        for _ in range(200):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return _words(status)
            time.sleep(0.005)
    return "is silent"


def _words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _answer_calls(fd: int, code: str) -> None:
    """The answer's side: load its code when asked, then do what the tests ask of it."""
    printed = _Printed()
    sys.stdout = printed
    namespace: dict[str, Any] = {"__name__": "solution", "__file__": "answer.py"}
    module = ModuleType("solution")
    module.__dict__.update(namespace)
    sys.modules["solution"] = module

    def load() -> Any:
        exec(compile(code, "answer.py", "exec"), module.__dict__)  # noqa: S102 - what the cell is for
        return names.told(peer, module.__dict__)

    names = remote
    peer = remote.Peer(fd, serves={**remote.ANSWERS, "load": load}, printed=printed.taken)
    peer.serve()


class _Printed(io.StringIO):
    """What the answer prints while it is called: a part of it goes to the tests' own output."""

    def write(self, text: str) -> int:
        """Keep what there is room for."""
        if self.tell() < OUTPUT:
            super().write(text[:OUTPUT])
        return len(text)

    def taken(self) -> str:
        """What was printed since it was last taken."""
        said = self.getvalue()
        self.seek(0)
        self.truncate()
        return said


class _Suite:
    """The tests of one answer.

    A test is a piece of code: asserts; functions `test_...` and classes `Test...`, each function a test; or a function
    `check(candidate)`, which is called with the function under test. Or a case: arguments and the value that is due.
    """

    def __init__(self, peer: remote.Peer, names: Any, given: Mapping[str, Any]) -> None:
        self.entry: str | None = given.get("entry_point")
        self.given = given
        self.namespace: dict[str, Any] = {"__name__": "tests", "__file__": "tests.py"}
        self.answer = remote.taken(peer, names, self.entry)
        self.namespace.update(self.answer)
        self.passed = 0
        self.total = 0
        self.why = ""
        if importlib.util.find_spec("pytest") is None:
            sys.modules["pytest"] = pytest_words.module()
        for name in _MODULES:
            module = ModuleType(name)
            module.__dict__.update(self.answer)
            sys.modules[name] = module

    def run(self) -> Result:
        """Run all."""
        if self.given.get("setup"):
            try:
                self._execute(self.given["setup"])
            except remote.GoneError:
                raise
            except BaseException as error:  # noqa: BLE001 - the setup is the user's
                return {"error": f"the tests' setup: {_why(error, 'tests.py')}"}
        for source in self.given.get("tests") or ():
            self._source(source)
        for case in self.given.get("cases") or ():
            self._one(lambda case=case: self._case(case))  # type: ignore[misc]
        return {"passed": self.passed, "total": self.total, "why": self.why}

    def _one(self, test: Callable[[], None], source: str = "") -> None:
        """Run a test and count it."""
        self.total += 1
        try:
            test()
        except remote.GoneError as error:
            self._failed(f"the answer's process is gone: {error}")
        except BaseException as error:  # noqa: BLE001 - any way to not end well is a failed test
            self._failed(_why(error, "tests.py", source))
        else:
            self.passed += 1

    def _failed(self, why: str) -> None:
        self.why = self.why or f"test {self.total}: {why}"

    def _execute(self, source: str) -> None:
        exec(compile(source, "tests.py", "exec"), self.namespace)  # noqa: S102 - what the cell is for

    def _source(self, source: str) -> None:
        """A piece of test code: what it asserts by itself is one test, and so is each of its test functions."""
        before = dict(self.namespace)
        failed = self.total - self.passed
        self._one(lambda: self._execute(source), source)
        if self.total - self.passed > failed:
            return
        new = {name: v for name, v in self.namespace.items() if before.get(name) is not v}
        tests = list(_tests(new))
        check = new.get("check")
        if callable(check) and not isinstance(check, remote.Remote) and self.entry:
            tests.append(lambda: check(self._candidate()))
        if tests:
            self.total -= 1  # the code only defined them
            self.passed -= 1
        for test in tests:
            self._one(test, source)

    def _candidate(self) -> Any:
        """The function under test, also as a method of a class Solution."""
        if self.entry in self.answer:
            return self.answer[self.entry]
        if "Solution" in self.answer:
            return getattr(self.answer["Solution"](), str(self.entry))
        raise NameError(f"the answer defines no {self.entry}")

    def _case(self, case: Mapping[str, Any]) -> None:
        given = case["input"] if isinstance(case["input"], list) else [case["input"]]
        found = self._candidate()(*given)
        if not _same(found, case["output"]):
            raise AssertionError(f"{self.entry}({', '.join(map(repr, given))[:150]}) gave {found!r:.150}, "
                                 f"not {case['output']!r:.150}")  # fmt: skip


def _same(found: Any, wanted: Any) -> bool:
    """Equal, tuples taken for lists, as in JSON; true is not 1."""
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        texts = {str(k): v for k, v in found.items()}
        return len(texts) == len(wanted) and all(k in texts and _same(texts[k], v) for k, v in wanted.items())
    if isinstance(found, bool) is not isinstance(wanted, bool):
        return False
    return bool(found == wanted)


def _tests(new: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """The test functions and methods among newly defined names."""
    for name, value in new.items():
        if isinstance(value, remote.Remote):
            continue
        if name.startswith("test") and callable(value) and not isinstance(value, type):
            yield from _parametrized(value, value)
        elif isinstance(value, type) and issubclass(value, unittest.TestCase) and value is not unittest.TestCase:
            for method in unittest.defaultTestLoader.getTestCaseNames(value):
                yield lambda value=value, method=method: _debug(value(method))  # type: ignore[misc]
        elif isinstance(value, type) and name.startswith("Test"):
            for method, function in vars(value).items():
                if method.startswith("test") and callable(function):
                    yield from _parametrized(function, lambda *a, v=value, m=method, **k: _method(v, m)(*a, **k))


def _debug(case: Any) -> None:
    case.setUpClass()
    case.debug()


def _method(of: type, name: str) -> Any:
    made = of()
    for begin in ("setup_class", "setup_method", "setUp"):
        if hasattr(made, begin):
            getattr(made, begin)(*([None] if getattr(made, begin).__code__.co_argcount > 1 else []))
    return getattr(made, name)


def _parametrized(marked: Any, function: Callable[..., Any]) -> Iterator[Callable[[], None]]:
    """A test once for each set of values that pytest.mark.parametrize gives it."""
    sets: list[dict[str, Any]] = [{}]
    for mark in getattr(marked, "pytestmark", []):
        if mark.name == "parametrize":
            names = mark.args[0].replace(" ", "").split(",") if isinstance(mark.args[0], str) else list(mark.args[0])
            values = [getattr(row, "values", row) if len(names) > 1 or hasattr(row, "values") else (row,)
                      for row in mark.args[1]]  # fmt: skip
            sets = [known | dict(zip(names, row, strict=True)) for known in sets for row in values]
    for given in sets:
        yield lambda given=given: function(**given)  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ programs under cases


def _programs(ground: Ground, head: Mapping[str, Any], body: int, result: int) -> Result:
    """The answer as a program: run once for each case, its input given, its output compared with the one that is due.

    A process in between runs the program, so that the outputs that are due are in no memory that the program has.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        os.close(body)
        os.close(result)
        _run_programs(ground, theirs.fileno(), head["code"], float(head["seconds"]))
        os._exit(0)
    theirs.close()
    cases = frames.receive(body)["cases"]
    passed, why = 0, ""
    for number, case in enumerate(cases, 1):
        try:
            frames.send(ours.fileno(), {"stdin": case["input"]})
            ran = frames.receive(ours.fileno(), 4 * OUTPUT)
        except (EOFError, OSError, frames.BrokenFrameError):
            return {
                "passed": passed,
                "total": len(cases),
                "why": why or f"case {number}: the program's process is gone",
            }
        fault = ran["fault"] or _difference(ran["stdout"], case["output"])
        passed += not fault
        why = why or (f"case {number}: {fault}" if fault else "")
    return {"passed": passed, "total": len(cases), "why": why}


def _difference(found: str, wanted: str) -> str:
    """Where the output is not the one that is due; blanks at the ends of lines and empty lines at the end aside."""
    mine, due = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (found, wanted))
    for number, (line, other) in enumerate(zip(mine, due, strict=False), 1):
        if line != other:
            return f"line {number} is {line[:100]!r}, not {other[:100]!r}"
    return "" if len(mine) == len(due) else f"{len(mine)} lines, not {len(due)}"


def _run_programs(ground: Ground, fd: int, code: str, seconds: float) -> None:
    """Run the program for each input that comes, and send what it printed."""
    while True:
        try:
            order = frames.receive(fd)
        except EOFError:
            return
        printed, writing = os.pipe()
        with open("stdin", "w+", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - in the cell's own folder
            file.write(order["stdin"])
            file.flush()
            file.seek(0)
            child = os.fork()
            if child == 0:
                os.dup2(file.fileno(), 0)
                os.dup2(writing, 1)
                os.closerange(3, 4096)
                os.setpgid(0, 0)
                _main(code)
        os.close(writing)
        frames.send(fd, _watch(ground, child, printed, seconds))


def _main(code: str) -> None:
    """Be the program."""
    status = 1
    try:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it is the program's for good
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        main = ModuleType("__main__")
        main.__dict__["__file__"] = "answer.py"
        sys.modules["__main__"] = main
        exec(compile(code, "answer.py", "exec"), main.__dict__)  # noqa: S102 - what the cell is for
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - told to the one who watches, as the last line of the output
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            os.write(1, f"\n{type(error).__name__}: {error}"[:_WHY].encode("utf-8", "replace"))
        os._exit(70)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(status & 0xFF)


def _watch(ground: Ground, child: int, printed: int, seconds: float) -> Result:
    """What a program printed, and what was wrong with how it ended."""
    end, parts, size, fault = time.monotonic() + seconds, [], 0, ""
    while True:
        ready, _, _ = select.select([printed], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            fault = f"more than {seconds:g} s"
            break
        part = os.read(printed, 1 << 16)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > OUTPUT:
            fault = f"more than {OUTPUT} bytes of output"
            break
    os.close(printed)
    status = _reaped(child, end, fault)
    _end_rest(ground, child)
    text = b"".join(parts).decode("utf-8", "replace")
    if not fault and status == 70 << 8:
        fault = f"it raised {text.rsplit(chr(10), 1)[-1]}"
    elif not fault and status != 0:
        fault = f"it {_words(status)}"
    return {"stdout": "" if fault else text, "fault": fault}


def _reaped(child: int, end: float, fault: str) -> int:
    """The status of the program once it has ended, which is seen to at `end` at the latest."""
    while not fault and time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.001)
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _end_rest(ground: Ground, child: int) -> None:
    """End what a program has left behind. In a cell of its own that is every process but the first and this one."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    if ground.isolated:
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def preload(modules: list[str]) -> None:
    """Import what a user's check imports, once for all its cells. What cannot be imported is left to the check."""
    for name in modules:
        with contextlib.suppress(Exception):
            __import__(name)


def forbid_gains() -> None:
    """For a server without walls: at least no set-user-ID programs, and orphans are its own to end."""
    if sys.platform == "linux":
        kernel.gain_nothing()
        kernel.adopt_orphans()
