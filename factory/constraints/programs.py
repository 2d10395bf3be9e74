"""Kinds that run code, in cells (`factory/execution`): a user's check of an answer, and tests of an answer's code.

What the answer's code does wrong is the answer's: it is not met, and `why` says what. What the check or the tests do
wrong is a failure of the judgment.
"""

from __future__ import annotations

import ast
import atexit
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from factory.constraints.answer import Answer
from factory.constraints.kinds import Check, kind
from factory.constraints.parameters import checked, flag, number, text, whole
from factory.execution import Limits, Outcome, Runner

MIB: Final = 1 << 20
_FENCE: Final = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]{0,3}\1|\Z)", re.M | re.S)
_PYTHON: Final = frozenset({"python", "py", "python3", "py3"})
_UNSAID: Final = frozenset({"", "code", "text"})


@lru_cache(maxsize=1)
def default_runner() -> Runner:
    """A runner with isolation, for whoever brings none; it ends with the program."""
    runner = Runner()
    atexit.register(runner.close)
    return runner


# ---------------------------------------------------------------------------------------------------- a user's check


@lru_cache(maxsize=256)
def _syntax_fault(source: str) -> str | None:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"is not Python: {error}"
    return None


def code_fault(value: Any) -> str | None:
    """What is wrong with the source of a check; None: nothing."""
    fault = text().fault(value)
    if fault or (fault := _syntax_fault(value)):
        return fault
    defined = _defined(ast.parse(value))
    return None if "check" in defined else "must define a function check(prompt, answer)"


_SECONDS: Final = number(0.01, 5.0)
_MEMORY: Final = whole(16, 512)


@kind("python", settles=True, runs=True, code=checked(code_fault), seconds=_SECONDS, memory=_MEMORY)
def python(said: Answer, code: str, seconds: float, memory: int, runner: Runner | None) -> Check:
    """`check(prompt, answer)` of the code says true, or how far the answer is right (0 to 1; 1 is met).

    It gets the conversation as a list of messages and the answer as it was written, and runs with `seconds` and
    `memory` (MiB), without network and files. Code that must not be trusted is for `unit_tests`, not to be run by it.
    """
    prompt = [dict(turn) for turn in said.prompt.messages] if said.prompt else []
    limits = Limits(seconds=seconds, memory=memory * MIB)
    outcome = (runner or default_runner()).check(code, prompt, said.raw, limits=limits)
    if outcome.value is None:
        return Check(False, outcome.why, failure=f"check_{outcome.failure}")
    value = outcome.value["value"]
    share = None if isinstance(value, bool) else float(value)
    return Check(value is True or share == 1.0, f"check says {value}", share)


# ------------------------------------------------------------------------------------------------- tests of answers


def _tests_fault(value: Any) -> str | None:
    tests = [value] if isinstance(value, str) else value
    if not isinstance(tests, Sequence) or not tests:
        return f"must be a text, a list of texts, or a list of cases with input and output, not {value!r:.100}"
    if all(isinstance(t, Mapping) for t in tests):
        return None if all({"input", "output"} <= set(t) for t in tests) else "has a case without input or output"
    if not all(isinstance(t, str) and t.strip() for t in tests):
        return "must be texts alone, or cases with input and output alone"
    return next((f for t in tests if (f := _syntax_fault(t))), None)


def _name_fault(value: Any) -> str | None:
    return None if value is None or (isinstance(value, str) and value.isidentifier()) else f"is no name: {value!r}"


def _setup_fault(value: Any) -> str | None:
    return _syntax_fault(value) if isinstance(value, str) else f"must be a text, not {value!r}"


@kind(
    "unit_tests", settles=True, runs=True, tests=checked(_tests_fault), entry_point=checked(_name_fault, None),
    setup=checked(_setup_fault, ""), partial=flag(default=False), seconds=_SECONDS, memory=_MEMORY,
)  # fmt: skip
def unit_tests(
    said: Answer, tests: Any, entry_point: str | None, setup: str, partial: bool, seconds: float, memory: int,
    runner: Runner | None,
) -> Check:  # fmt: skip
    """The code of the answer passes all tests (`partial`: the share that it passes counts).

    tests: pieces of code with asserts, test functions or `check(candidate)`; or cases {input, output}: arguments and
    value of `entry_point`, or without one what a program reads and prints. The answer's code is its Python block (see
    `code_of`). `seconds` are for all tests together, of programs for each case.
    """
    pieces = [tests] if isinstance(tests, str) else list(tests)
    code = code_of(said.raw, _wanted(pieces, entry_point))
    if code is None:
        return Check(False, "there is no Python code in the answer", 0.0 if partial else None)
    limits = Limits(seconds=seconds, memory=memory * MIB)
    outcome = _run(runner or default_runner(), code, _Given(pieces, entry_point, setup), limits)
    if outcome.value is None:
        ours = outcome.failure in ("broken", "lost")
        return Check(False, outcome.why, 0.0 if partial else None, f"tests_{outcome.failure}" if ours else None)
    passed, total = int(outcome.value["passed"]), int(outcome.value["total"])
    if not total:
        return Check(False, "the tests hold no test", failure="tests_broken")
    why = f"{passed} of {total} tests pass" + (f"; {outcome.value['why']}" if outcome.value["why"] else "")
    return Check(passed == total, why, passed / total if partial else None)


class _Given(NamedTuple):
    """Tests as they were given."""

    pieces: list[Any]
    entry_point: str | None
    setup: str


def _run(runner: Runner, code: str, given: _Given, limits: Limits) -> Outcome:
    pieces = given.pieces
    if isinstance(pieces[0], str):
        return runner.calls(code, tests=pieces, entry_point=given.entry_point, setup=given.setup, limits=limits)
    if given.entry_point:
        return runner.calls(code, cases=pieces, entry_point=given.entry_point, setup=given.setup, limits=limits)
    if not all(isinstance(case[side], str) for case in pieces for side in ("input", "output")):
        return Outcome(None, "broken", "cases without an entry_point are what a program reads and prints: texts")
    return runner.programs(code, pieces, limits=limits)


def _wanted(pieces: Sequence[Any], entry_point: str | None) -> frozenset[str]:
    """The names that the answer is expected to define: the function under test, or those that the tests use."""
    if entry_point:
        return frozenset({entry_point, "Solution"})
    trees = [ast.parse(piece) for piece in pieces if isinstance(piece, str)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return frozenset({node.id for node in nodes if isinstance(node, ast.Name)} | imported)


def code_of(text: str, wanted: frozenset[str] = frozenset()) -> str | None:
    """The Python code of an answer; None: there is none.

    Of its fenced blocks (those said to be Python where there are such, else those said to be nothing) the one that
    defines most of the `wanted` names, of equals the last, and one that is Python before one that is not. Without a
    block, the whole text where that is Python.
    """
    blocks = [(found[2].lower(), found[3]) for found in _FENCE.finditer(text)]
    if not blocks:
        return text if text.strip() and _syntax_fault(text) is None else None
    named = [code for language, code in blocks if language in _PYTHON]
    codes = named or [code for language, code in blocks if language in _UNSAID]
    ranked = sorted(enumerate(codes), key=lambda item: (_worth(item[1], wanted), item[0]))
    return ranked[-1][1] if ranked and ranked[-1][1].strip() else None


def _worth(code: str, wanted: frozenset[str]) -> tuple[bool, int]:
    """Is it Python, and how many of the wanted names does it define?"""
    if _syntax_fault(code) is not None:
        return False, 0
    return True, len(_defined(ast.parse(code)) & wanted)


def _defined(tree: ast.Module) -> set[str]:
    """The names that a module defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return names
