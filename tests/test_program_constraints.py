"""Constraints that run code: which code of an answer is taken, what counts, and whose failure a failure is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judged import candidate_of, prompt_of

from factory import constraints
from factory.constraints.programs import code_of
from factory.execution import Runner, isolation
from factory.faults import ConfigError, FactoryError
from factory.judges.verifier import VerifierJudge
from factory.schema import Judgment, Matchup, Prompt

UNSAFE = not all(facility.available for facility in isolation())
ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner(unsafe_exec=UNSAFE)
    yield made
    made.close()


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


# --------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"Here:\n{fenced(ADD)}\nDone.", ADD),
        (fenced(ADD, ""), ADD),
        (fenced(ADD, "Python3"), ADD),
        (ADD, ADD),
        (f"{fenced(ADD)}\nUse it:\n{fenced('print(add(1, 2))')}", ADD),
        (f"{fenced('def add(a, b): ...')}\nBetter:\n{fenced(ADD)}", ADD),
        (f"{fenced('pip install x', 'bash')}\n{fenced(ADD)}", ADD),
        (f"{fenced('3', 'text')}\n{fenced(ADD)}\n{fenced('not ( python')}", ADD),
        (f"~~~python\n{ADD}~~~", ADD),
        (f"```python\n{ADD}", ADD),
        (f"```python\n{ADD}x = '''\n```\n'''\n```", None),
        ("I cannot do that.", None),
        (fenced("rm -rf", "bash"), None),
        ("", None),
        ("```python\n```", None),
    ],
)
def test_the_code_of_an_answer(text: str, code: str | None) -> None:
    found = code_of(text, frozenset({"add"}))
    if text.count("'''") == 2:
        assert found is not None
        assert found.startswith(ADD)
        return
    assert (found and found.strip()) == (code and code.strip())


def test_tabs_and_odd_characters_in_code_are_kept(runner: Runner) -> None:
    code = "def add(a, b):\n\tif a:\n\t\treturn '\t\u00a0'\n\treturn a + b\n"
    spec = {"kind": "unit_tests", "tests": ["assert add(1, 2) == chr(9) + chr(160)", "assert add(0, 2) == 2"]}
    assert constraints.check(spec, fenced(code), runner=runner).met


# --------------------------------------------------------------------------------------------------- unit tests


def check(runner: Runner, text: str, **parameters: Any) -> constraints.Check:
    return constraints.check({"kind": "unit_tests", "tests": TESTS, **parameters}, text, runner=runner)


def test_all_tests_or_a_share_of_them(runner: Runner) -> None:
    assert check(runner, fenced(ADD)) == constraints.Check(True, "2 of 2 tests pass")
    half = fenced("def add(a, b):\n    return a * b")
    found = check(runner, half)
    assert (found.met, found.share, found.worth, found.failure) == (False, None, 0.0, None)
    assert "1 of 2 tests pass; test 1: AssertionError: assert add(1, 2) == 3" in found.why
    assert check(runner, half, partial=True).worth == 0.5
    assert check(runner, fenced("def add(a, b):\n    while True: pass"), partial=True, seconds=0.3).worth == 0.0


def test_what_the_answer_does_wrong_is_not_met_and_no_failure(runner: Runner) -> None:
    for text in (
        "No.",
        fenced("def add("),
        fenced("import os\nos._exit(0)"),
        fenced("while True: pass"),
        fenced("x = [0] * 10**10"),
    ):
        found = check(runner, text, seconds=0.5)
        assert (found.met, found.failure) == (False, None), text


def test_what_the_tests_do_wrong_is_a_failure(runner: Runner) -> None:
    for parameters in ({"setup": "import no_such_module_here"}, {"tests": [{"input": [1], "output": 1}]}):
        found = check(runner, fenced(ADD), **parameters)
        assert (found.met, found.failure) == (False, "tests_broken")


def test_cases_for_functions_and_programs(runner: Runner) -> None:
    assert check(runner, fenced(ADD), tests=[{"input": [1, 2], "output": 3}], entry_point="add").met
    program = fenced("print(int(input()) * 2)")
    assert check(runner, program, tests=[{"input": "3\n", "output": "6\n"}]).met
    assert not check(runner, program, tests=[{"input": "3\n", "output": "7\n"}]).met


@pytest.mark.parametrize(
    "spec",
    [
        {"tests": []}, {"tests": ""}, {"tests": "assert ("}, {"tests": [1]}, {"tests": [{"input": 1}]},
        {"tests": ["assert 1", {"input": 1, "output": 2}]}, {"tests": "assert 1", "entry_point": "a b"},
        {"tests": "assert 1", "setup": "("}, {"tests": "assert 1", "seconds": 0}, {"tests": "assert 1", "memory": 1},
        {},
    ],
)  # fmt: skip
def test_wrong_tests_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        constraints.check({"kind": "unit_tests", **spec}, "x")


# ------------------------------------------------------------------------------------------------- a user's check


def python(runner: Runner, code: str, text: str, **parameters: Any) -> constraints.Check:
    spec = {"kind": "python", "code": code, **parameters}
    return constraints.check(spec, text, prompt_of("Name a river."), runner=runner)


def test_a_users_check_and_its_failures(runner: Runner) -> None:
    code = "def check(prompt, answer):\n    return prompt[0]['content'].endswith('river.') and answer == 'Rhine'"
    assert python(runner, code, "Rhine").met
    assert not python(runner, code, "rhine").met
    found = python(runner, "def check(p, a):\n    return 0.25", "x")
    assert (found.met, found.worth, found.failure) == (False, 0.25, None)
    assert python(runner, "def check(p, a):\n    return 1.0", "x").met
    assert python(runner, "def check(p, a):\n    return a[5]", "x").failure == "check_broken"
    assert python(runner, "def check(p, a):\n    while 1: pass", "x", seconds=0.3).failure == "check_timeout"
    assert python(runner, "import os\ndef check(p, a):\n    os._exit(0)", "x").failure == "check_died"


@pytest.mark.parametrize("code", ["", "def other(): ...", "def check(", "check", 3, None])
def test_wrong_checks_are_refused(code: Any) -> None:
    assert constraints.faults([{"kind": "python", "code": code}])


# --------------------------------------------------------------------------------------------------- the verifier


def judged(judge: VerifierJudge, prompt: Prompt, *texts: str) -> list[Judgment]:
    rows = list(judge.vote(Matchup(prompt, candidate_of(f"k{i:03d}", t, prompt=prompt)) for i, t in enumerate(texts)))
    judge.close()
    return rows


def with_constraints(*specs: dict[str, Any]) -> Prompt:
    prompt = prompt_of()
    object.__setattr__(prompt, "constraints", list(specs) or None)
    return prompt


def test_the_verifier_keeps_order_and_failures_with_several_workers() -> None:
    prompt = with_constraints({"kind": "unit_tests", "tests": TESTS, "partial": True})
    texts = [fenced(ADD), "No.", fenced("def add(a, b):\n    return 0"), fenced(ADD)] * 20
    rows = judged(VerifierJudge(unsafe_exec=UNSAFE, workers=2), prompt, *texts)
    assert [row.score for row in rows] == [1.0, 0.0, 0.5, 1.0] * 20
    assert [row.candidate_a for row in rows] == [f"k{i:03d}" for i in range(80)]
    assert rows[2].detail["shares"] == [0.5]
    assert rows[0].detail["all_met"] is True


def test_an_ambiguous_answer_is_a_failed_judgment() -> None:
    prompt = with_constraints({"kind": "numeric", "answer": 5})
    right, ambiguous, wrong = judged(VerifierJudge(), prompt, "5", "The answer is 5 or 6", "6")
    assert (right.score, wrong.score) == (1.0, 0.0)
    assert (ambiguous.score, ambiguous.failure) == (None, "ambiguous_answer")
    assert "5 or 6" in ambiguous.detail["why"][0]


def test_a_file_of_the_users_is_one_more_constraint(tmp_path: Path) -> None:
    path = tmp_path / "check.py"
    path.write_text("def check(prompt, answer):\n    return 'sea' in answer\n", encoding="utf-8")
    judge = VerifierJudge(code=str(path), unsafe_exec=UNSAFE)
    alone = judged(judge, with_constraints(), "The sea.", "The land.")
    assert [row.score for row in alone] == [1.0, 0.0]
    both = judged(judge, with_constraints({"kind": "no_commas"}), "The sea, wide.", "The sea.")
    assert [row.score for row in both] == [0.5, 1.0]
    path.write_text("def check(prompt, answer):\n    return 'land' in answer\n", encoding="utf-8")
    other = VerifierJudge(code=str(path))
    assert other.reader != judge.reader != VerifierJudge().reader


@pytest.mark.parametrize("text", ["def other(): ...", "def check(", None])
def test_a_file_that_is_no_check_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "check.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FactoryError) as told:
        VerifierJudge(code=str(path))
    assert str(path) in told.value.text()


def test_code_that_cannot_be_isolated_is_refused_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge ends with a fault that names the remedy; no row says that an answer was wrong."""
    from factory.execution import runner as module

    class Refusing:
        def __init__(self, **options: Any) -> None:
            raise module._IsolationError("namespaces", "not permitted")

    monkeypatch.setattr(module, "_Server", Refusing)
    prompt = with_constraints({"kind": "unit_tests", "tests": TESTS})
    with pytest.raises(FactoryError, match="namespaces is missing") as told:
        judged(VerifierJudge(), prompt, fenced(ADD))
    assert "--unsafe-exec" in told.value.text()
    assert [row.score for row in judged(VerifierJudge(), with_constraints({"kind": "numeric", "answer": 1}), "1")] == [
        1.0
    ]
