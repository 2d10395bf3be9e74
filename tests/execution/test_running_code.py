"""Code that means no harm: checks, tests in every form that data sets have them, programs, and what is told of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from factory.execution import Limits, Outcome, Runner, imported, isolation
from factory.execution.runner import readable
from factory.faults import FactoryError

UNSAFE = not all(facility.available for facility in isolation())


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner(unsafe_exec=UNSAFE)
    yield made
    made.close()


def value_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.value is not None, outcome
    return dict(outcome.value)


def passed(runner: Runner, code: str, *tests: str, **more: Any) -> tuple[int, int]:
    found = value_of(runner.calls(code, tests=tests, **more))
    return found["passed"], found["total"]


# ------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("def check(prompt, answer):\n    return 'river' in answer", True),
        ("def check(prompt, answer):\n    return answer == prompt[-1]['content']", False),
        ("def check(prompt, answer):\n    return len(answer) / 100", 0.17),
        ("import json, re\ncheck = lambda p, a: bool(re.search('sea', a))", True),
        ("def check(prompt, answer):\n    print('noise')\n    return 1", 1),
    ],
)
def test_a_check_says_what_it_returns(runner: Runner, code: str, value: Any) -> None:
    outcome = runner.check(code, [{"role": "user", "content": "Why?"}], "A river to a sea.")
    assert value_of(outcome) == {"value": value}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def check(p, a):\n    return a[99]", "IndexError: string index out of range (line 2)"),
        ("def check(p, a):\n    return None", "check returned None"),
        ("def check(p, a):\n    return 1.5", "check returned 1.5"),
        ("def check(p, a):\n    return float('nan')", "check returned nan"),
        ("def check(p, a):\n    raise SystemExit", "SystemExit"),
        ("def other(p, a):\n    return True", "KeyError: 'check'"),
        ("import no_such_module_here\ndef check(p, a): ...", "ModuleNotFoundError"),
    ],
)
def test_a_check_that_fails_is_broken_not_false(runner: Runner, code: str, why: str) -> None:
    outcome = runner.check(code, [], "x")
    assert (outcome.value, outcome.failure) == (None, "broken")
    assert why in outcome.why


def test_texts_arrive_as_they_are(runner: Runner) -> None:
    text = "tab\t nul\x00 \ud800 \U0001f600 \r\n end"
    code = f"def check(p, a):\n    return a == {text!r}"
    assert value_of(runner.check(code, [], text)) == {"value": True}


def test_installed_packages_can_be_used(runner: Runner) -> None:
    code = "import numpy as np\ndef check(p, a):\n    return np.bool_(np.array([1, 2]).sum() == 3)"
    assert value_of(runner.check(code, [], "x")) == {"value": True}


def test_modules_are_loaded_once_for_all_checks() -> None:
    code = "import sys\nloaded = 'colorsys' in sys.modules\nimport colorsys\ndef check(p, a):\n    return loaded"
    made = Runner(unsafe_exec=UNSAFE, modules=[*imported(code), "no_such_module_here"])
    assert value_of(made.check(code, [], "x")) == {"value": True}
    made.close()
    assert imported("import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i") == ["a.b", "c", "d.e"]
    assert imported("not python") == []


# --------------------------------------------------------------------------------------------------- tests of calls

ADD = "def add(a, b):\n    return a + b\n"


def test_asserts_one_by_one(runner: Runner) -> None:
    found = value_of(
        runner.calls(ADD, tests=["assert add(1, 2) == 3", "assert add(1, 1) == 3", "assert add('a', 'b') == 'ab'"])
    )
    assert (found["passed"], found["total"]) == (2, 3)
    assert found["why"] == "test 2: AssertionError: assert add(1, 1) == 3 (line 1)"


def test_a_check_of_a_candidate(runner: Runner) -> None:
    test = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n"
    assert passed(runner, ADD, test, entry_point="add") == (1, 1)
    assert passed(runner, ADD.replace("+", "*"), test, entry_point="add") == (0, 1)
    assert passed(runner, "def other(): ...", test, entry_point="add") == (0, 1)


def test_test_functions_and_classes_and_parameters(runner: Runner) -> None:
    tests = """
import pytest, unittest
from solution import add

def test_one():
    assert add(1, 2) == 3

@pytest.mark.parametrize("a, b, c", [(1, 1, 2), (2, 2, 5), pytest.param(0, 1, 1)])
def test_many(a, b, c):
    assert add(a, b) == c

@pytest.mark.parametrize("a", [1, 2])
def test_each(a):
    with pytest.raises(TypeError):
        add(a, "x")

class TestAdd:
    def setup_method(self):
        self.two = 2
    def test_in_class(self):
        assert add(self.two, self.two) == 4

class TestCase(unittest.TestCase):
    def setUp(self):
        self.three = 3
    def test_in_case(self):
        self.assertEqual(add(self.three, 1), 4)
    def test_wrong(self):
        self.assertEqual(add(1, 1), 3)
"""
    found = value_of(runner.calls(ADD, tests=[tests]))
    assert (found["passed"], found["total"]) == (7, 9)
    assert "assert add(a, b) == c" in found["why"]


def test_arguments_that_are_changed_are_changed_for_the_tests(runner: Runner) -> None:
    code = "def f(x, d, s):\n    x.sort()\n    d['k'] = [1]\n    s.add(3)\n    x[0] = (x[0], {})\n"
    test = "x, d, s = [3, 1, 2], {}, {1}\nf(x, d, s)\nassert (x, d, s) == ([(1, {}), 2, 3], {'k': [1]}, {1, 3})"
    assert passed(runner, code, test) == (1, 1)


def test_objects_exceptions_callbacks_and_iterators(runner: Runner) -> None:
    code = """
import math
from collections import namedtuple, Counter
from dataclasses import dataclass
Point = namedtuple('Point', 'x y')
class MyError(ValueError):
    pass
class Stack:
    limit = 3
    def __init__(self, *items):
        self.items = list(items)
    def push(self, item):
        if len(self.items) >= self.limit:
            raise MyError('full', self.limit)
        self.items.append(item)
        return self
    def __len__(self):
        return len(self.items)
    def __iter__(self):
        return iter(self.items)
    def __getitem__(self, at):
        return self.items[at]
    def __eq__(self, other):
        return isinstance(other, Stack) and self.items == other.items
    def __repr__(self):
        return f'Stack{self.items}'
    def __add__(self, other):
        return Stack(*self.items, *other.items)
    @property
    def top(self):
        return self.items[-1]
@dataclass
class Node:
    value: int
    next: 'Node' = None
def total(node):
    return node.value + (total(node.next) if node.next else 0)
def apply(f, xs):
    return [f(x) for x in xs]
def count(n):
    yield from range(n)
def sort_by(xs, key):
    return sorted(xs, key=key)
def make():
    return Point(1, 2), Counter('aab'), math.inf, 2**200, b'x', {(1, 2): {3}}, None, True, 1 + 2j
def say():
    print('hello')
def bad():
    raise MyError('no')
"""
    tests = [
        "s = Stack(1).push(2)\nassert len(s) == 2 and list(s) == [1, 2] and s[0] == 1 and s.top == 2",
        "assert Stack(1, 2) == Stack(1, 2) and Stack(1) != Stack(2) and repr(Stack(1)) == 'Stack[1]'",
        "assert isinstance(Stack(), Stack) and not isinstance(3, Stack) and list(Stack(1) + Stack(2)) == [1, 2]",
        "s = Stack(); s.items = [5]; assert s.items == [5] and 5 in s and 6 not in s and Stack.limit == 3",
        "assert total(Node(1, Node(2, Node(3)))) == 6",
        "assert apply(lambda x: x * 2, [1, 2]) == [2, 4] and sort_by(['bb', 'a'], len) == ['a', 'bb']",
        "assert list(count(3)) == [0, 1, 2] and next(count(1)) == 0 and sum(count(4)) == 6",
        "import math\nassert make() == ((1, 2), {'a': 2, 'b': 1}, math.inf, 2**200, b'x', {(1, 2): {3}}, None, True,"
        " 1 + 2j)",
        "try:\n    Stack(1, 2, 3).push(4)\n    assert False\nexcept MyError as e:\n    assert e.args == ('full', 3)",
        "try:\n    bad()\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert False",
        "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    say()\n"
        "assert out.getvalue() == 'hello\\n'",
        "assert math.floor(2.5) == 2",
    ]
    found = value_of(runner.calls(code, tests=tests))
    assert (found["passed"], found["total"]) == (len(tests), len(tests)), found["why"]


def test_coroutines_and_the_tests_own_iterators(runner: Runner) -> None:
    code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1\n"
    code += "def g(xs):\n    return list(xs)\n"
    tests = [
        "import asyncio\nassert asyncio.run(f(2)) == 3",
        "async def both():\n    return await asyncio.gather(f(1), f(2))\nassert asyncio.run(both()) == [2, 3]",
        "assert g(i for i in range(3)) == [0, 1, 2] and g(map(str, [1])) == ['1'] and g(iter('ab')) == ['a', 'b']",
    ]
    assert passed(runner, code, *tests) == (3, 3)


def test_arrays_of_numpy(runner: Runner) -> None:
    code = "import numpy as np\ndef f(n):\n    return np.arange(n) * 2.0\ndef g(x):\n    return x.sum()\n"
    tests = ["assert np.array_equal(f(3), [0, 2, 4]) and f(3).dtype == np.float64", "assert g(np.array([1, 2])) == 3"]
    assert passed(runner, code, *tests) == (2, 2)


def test_cases_of_arguments(runner: Runner) -> None:
    cases = [{"input": [1, 2], "output": 3}, {"input": [[1], [2]], "output": [1, 2]}, {"input": [1, 1], "output": 3}]
    found = value_of(runner.calls(ADD, cases=cases, entry_point="add"))
    assert (found["passed"], found["total"]) == (2, 3)
    assert found["why"] == "test 3: AssertionError: add(1, 1) gave 2, not 3"
    solution = "class Solution:\n    def twice(self, xs):\n        return tuple(x * 2 for x in xs), {1: True}\n"
    case = {"input": [[1, 2]], "output": [[2, 4], {"1": True}]}
    assert value_of(runner.calls(solution, cases=[case], entry_point="twice"))["passed"] == 1
    assert (
        value_of(runner.calls("f = lambda: 1", cases=[{"input": [], "output": True}], entry_point="f"))["passed"] == 0
    )


def test_setup_comes_before_the_tests(runner: Runner) -> None:
    assert passed(runner, ADD, "assert add(math.floor(1.5), N) == 3", setup="import math\nN = 2") == (1, 1)
    outcome = runner.calls(ADD, tests=["assert True"], setup="import no_such_module_here")
    assert outcome.failure == "broken"
    assert "the tests' setup: ModuleNotFoundError" in outcome.why


def test_a_function_with_the_name_of_a_builtin_is_found_when_it_is_the_one_tested(runner: Runner) -> None:
    code = "def sum(a, b):\n    return a + b\n"
    test = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    assert passed(runner, code, test, entry_point="sum") == (1, 1)


def test_errors_are_told_in_words(runner: Runner) -> None:
    for code, why in [
        ("def f(:", "the code does not load: SyntaxError"),
        ("import no_such_module_here", "the code does not load: ModuleNotFoundError: No module named"),
        ("def add(a, b):\n    return a / 0", "test 1: ZeroDivisionError: division by zero"),
        ("x = 1", "test 1: NameError: name 'add' is not defined"),
        ("import os\ndef add(a, b):\n    os._exit(3)", "the answer's process"),
        ("def add(a, b):\n    raise Exception('\\ud800')", "test 1: Exception"),
    ]:
        found = value_of(runner.calls(code, tests=["assert add(1, 2) == 3"]))
        assert (found["passed"], found["total"]) == (0, 1)
        assert why in found["why"]


# ------------------------------------------------------------------------------------------------------ programs


def test_programs_read_and_print(runner: Runner) -> None:
    code = "import sys\nfor line in sys.stdin:\n    a, b = map(int, line.split())\n    print(a + b)\n"
    cases = [{"input": "1 2\n3 4\n", "output": "3\n7"}, {"input": "", "output": ""}, {"input": "1 1", "output": "3"}]
    found = value_of(runner.programs(code, cases))
    assert (found["passed"], found["total"]) == (2, 3)
    assert found["why"] == "case 3: line 1 is '2', not '3'"
    ways = "if __name__ == '__main__':\n    n = int(input())\n    print('é' * n, end='  \\n\\n')\n    exit()\n"
    assert value_of(runner.programs(ways, [{"input": "3", "output": "ééé"}]))["passed"] == 1


def test_each_case_starts_afresh(runner: Runner) -> None:
    code = "import os\nprint(os.path.exists('left'))\nopen('left', 'w').close()\nos.remove('left')\n"
    cases = [{"input": "", "output": "False"}] * 3
    assert value_of(runner.programs(code, cases))["passed"] == 3


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print(1 / 0)", "case 1: it raised ZeroDivisionError: division by zero"),
        ("print(6)\nraise SystemExit(4)", "case 1: it ended with code 4"),
        ("print(6)\nimport os\nos.abort()", "case 1: it was ended by SIGABRT"),
        ("print(6)\nwhile True: pass", "case 1: more than 0.5 s"),
        ("print('6' * 10**7)", "case 1: more than 1048576 bytes of output"),
        ("x = (", "case 1: it raised SyntaxError"),
        ("print(6)\nprint()\nprint(7)", "case 1: 3 lines, not 1"),
    ],
)
def test_what_is_wrong_with_a_program(runner: Runner, code: str, why: str) -> None:
    found = value_of(runner.programs(code, [{"input": "", "output": "6"}], limits=Limits(seconds=0.5)))
    assert (found["passed"], found["total"]) == (0, 1)
    assert found["why"].startswith(why)


# -------------------------------------------------------------------------------------------------------- runners


def test_time_runs_out(runner: Runner) -> None:
    outcome = runner.check("def check(p, a):\n    while True: pass", [], "x", limits=Limits(seconds=0.3))
    assert (outcome.value, outcome.failure, outcome.why) == (None, "timeout", "more than 0.3 s")


def test_several_at_a_time_keep_their_own(runner: Runner) -> None:
    made = Runner(unsafe_exec=UNSAFE, workers=3)
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = value_of(made.check(f"def check(p, a):\n    return {number} / 100", [], "x"))["value"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: n / 100 for n in range(24)}
    assert made._idle.qsize() <= 3
    made.close()


def test_large_inputs_and_results(runner: Runner) -> None:
    big = "x" * 3_000_000
    assert value_of(runner.check("def check(p, a):\n    return len(a) == 3_000_000", [], big)) == {"value": True}
    assert passed(runner, "def f(x):\n    return x * 2", f"assert f({big!r}) == {big!r} * 2") == (1, 1)
    outcome = runner.check("def check(p, a): ...", [], "x" * (65 << 20))
    assert outcome.failure == "broken"


def test_wrong_limits_are_refused() -> None:
    for limits in (Limits(seconds=0), Limits(memory=10)):
        with pytest.raises(FactoryError):
            Runner(limits=limits)


def test_a_projects_own_folder_is_not_readable() -> None:
    from pathlib import Path

    here = Path(__file__).resolve()
    assert not any(here.is_relative_to(path) for path in readable())
