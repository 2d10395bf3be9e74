"""Labelling through an endpoint that fails, and labelling that is killed: no label wrong, none lost, little paid twice.

The server is a process of its own that knows the truth (tests/judging_server.py), and counts what it is asked.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from judged import candidate_of, prompt_of
from judging_server import judging, paid_twice

from factory.engines.openai import OpenAIEngine
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import LabelReport, PanelMember, label
from factory.schema import Candidate, Judgment
from factory.store import Store

FLIGHT = 64
LABEL = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_labelling_kills import labelled
labelled(Path(sys.argv[1]), sys.argv[2])
"""


def filled(folder: Path, prompts: int) -> None:
    """Prompts with four answers of different lengths, the longest of them not always with the same place."""
    with Store.open(folder, create=True) as store:
        asked = [prompt_of(f"Tell me about topic {n}.") for n in range(prompts)]
        store.append("prompts", asked)
        store.append(
            "candidates",
            [
                candidate_of(f"{n:04d}-{k}", f"answer {n} " + "x" * (1 + (k * 3 + n) % 4), prompt=prompt)
                for n, prompt in enumerate(asked)
                for k in range(4)
            ],
        )


def labelled(folder: Path, address: str, *, timeout: float = 30.0) -> LabelReport:
    """Six pairs a prompt in both orders, and canaries."""
    engine = OpenAIEngine("judge", base_url=address, concurrency=FLIGHT, timeout=timeout)
    member = PanelMember("llm", PairwiseJudge(prefix="", max_tokens=8), engine)
    with Store.open(folder) as store:
        try:
            return label(store, [member], run="r")
        finally:
            engine.close()


def judgments(folder: Path) -> list[Judgment]:
    with Store.open(folder) as store:
        return store.rows(Judgment)


def assert_true(folder: Path, rows: list[Judgment]) -> None:
    """Every verdict on real answers says what the server knows."""
    with Store.open(folder) as store:
        lengths = {candidate.key: len(candidate.text) for candidate in store.rows(Candidate)}
    for row in rows:
        if not row.canary and row.failure is None:
            longer = "a" if lengths[row.candidate_a] > lengths[row.candidate_b or ""] else "b"
            assert (row.verdict, row.p_a) == (longer, float(longer == "a"))


def assert_whole(folder: Path, prompts: int) -> None:
    """Every pair has one judgment in each order."""
    real = [row for row in judgments(folder) if not row.canary]
    assert_true(folder, real)
    assert all(row.failure is None for row in real)
    asked = Counter((row.candidate_a, row.candidate_b, row.shown_first) for row in real)
    assert len(asked) == prompts * 6 * 2
    assert set(asked.values()) == {1}


# ------------------------------------------------------------------------------------------------------------ faults


def test_every_row_is_answered_or_says_why_not(tmp_path: Path) -> None:
    """429, 500, texts that are no verdict, and calls that never end: no row is null and none is wrong."""
    filled(tmp_path / "store", 100)
    with judging(tmp_path, faults=True) as (address, _):
        report = labelled(tmp_path / "store", address, timeout=1.0).judges[0]
    rows = judgments(tmp_path / "store")
    real = [row for row in rows if not row.canary]
    assert len(real) == 100 * 6 * 2
    assert_true(tmp_path / "store", real)
    failures = Counter(row.failure for row in real if row.failure is not None)
    assert failures["no_verdict"] > 0
    assert set(failures) <= {"no_verdict", "timeout", "rate_limited", "server_error"}
    assert report.failures == dict(failures)
    for row in real:
        assert row.verdict in ({"a", "b"} if row.failure is None else {"none"})
        assert (row.p_a is None) == (row.failure is not None)
        if row.failure == "no_verdict":
            assert "no" in row.detail["why"]


# ------------------------------------------------------------------------------------------------------------- kills


def kill_midway(folder: Path, address: str, log: Path, calls: int) -> None:
    """Label in a process of its own; kill -9 once the server has been asked so many calls more."""
    asked = len(log.read_text().split()) if log.exists() else 0
    script = LABEL.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", script, str(folder), address], env=os.environ | QUIET)
    try:
        while process.poll() is None and (not log.exists() or len(log.read_text().split()) < asked + calls):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


QUIET = {"OMP_NUM_THREADS": "1"}


def survives(tmp_path: Path, seed: int, prompts: int, kills: int) -> None:
    filled(tmp_path / "store", prompts)
    draw = random.Random(seed)
    with judging(tmp_path) as (address, log):
        for number in range(1, kills + 1):
            kill_midway(tmp_path / "store", address, log, draw.randint(1, prompts * 12 // kills))
            assert paid_twice(log) <= (number - 1) * FLIGHT
        labelled(tmp_path / "store", address)
        assert paid_twice(log) <= kills * FLIGHT
        before = len(log.read_text().split())
        again = labelled(tmp_path / "store", address).judges[0]
        assert (again.calls, again.judgments, len(log.read_text().split())) == (0, 0, before)
    assert_whole(tmp_path / "store", prompts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_midway_loses_nothing_and_pays_for_no_more_than_was_in_flight(tmp_path: Path, seed: int) -> None:
    survives(tmp_path, seed, prompts=120, kills=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_twenty_kills(tmp_path: Path, seed: int) -> None:
    survives(tmp_path, seed, prompts=120, kills=1)


@pytest.mark.soak
def test_many_kills_of_one_run(tmp_path: Path) -> None:
    survives(tmp_path, 7, prompts=400, kills=8)
