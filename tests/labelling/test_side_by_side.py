"""Judges of a panel side by side: who waits for whom, and that the rows are the same."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judged import AT
from labelled import Program, fill, first_wins

from factory.engines import nothing_held
from factory.engines.scripted import ScriptedEngine
from factory.judges.pairwise import PairwiseJudge
from factory.judges.rating import RatingJudge
from factory.labelling import PanelMember, label
from factory.schema import Call, Completion, Have, Judgment, Matchup, Request
from factory.store import Store


def timeless(store: Store) -> list[list[Any]]:
    """Judgments and calls, times aside."""
    return [
        [replace(row, at=AT) for row in store.rows(Judgment)],
        [replace(row, at=AT, latency=0.0) for row in store.rows(Call)],
    ]


class Meeting(ScriptedEngine):
    """Answers only when another engine is asked at the same time."""

    def __init__(self, name: str, barrier: threading.Barrier) -> None:
        super().__init__(name)
        self.barrier = barrier

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        self.barrier.wait(10)
        yield from super().bursts(requests, have)


def test_judges_that_do_not_depend_on_each_other_work_at_the_same_time(store: Store) -> None:
    fill(store)
    barrier = threading.Barrier(2)
    panel = [PanelMember(name, PairwiseJudge(), Meeting(name, barrier)) for name in ("one", "two")]
    report = label(store, panel, run="r")
    assert [(r.judge, r.verdicts, r.fault) for r in report.judges] == [("one", 9, None), ("two", 9, None)]


class Watchful(ScriptedEngine):
    """Counts the threads that ask it at once, and answers one at a time."""

    def __init__(self, *, thread_safe: bool) -> None:
        super().__init__()
        self.thread_safe, self.inside, self.most = thread_safe, 0, 0
        self.lock = threading.Lock()

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            for completion in self.generate(list(requests), have):
                time.sleep(0.001)
                yield [completion]
        finally:
            with self.lock:
                self.inside -= 1


def test_an_engine_that_cannot_be_shared_is_used_by_one_judge_at_a_time(store: Store) -> None:
    fill(store)
    engine = Watchful(thread_safe=False)
    panel = [PanelMember(f"j{n}", PairwiseJudge(principles=[]), engine) for n in range(3)]
    assert all(r.verdicts == 9 for r in label(store, panel, run="r").judges)
    assert engine.most == 1


def test_a_shared_engine_gives_the_rows_of_one_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts that overlap, three judges at once, two of which ask the same: the same rows, each paid for once."""
    monkeypatch.setattr("factory.labelling.judging.AT_ONCE_SHARED", 7)
    with Store.open(tmp_path / "0", create=True) as opened:
        fill(opened, prompts=8, failed=True)
    tables = []
    for number, shared in enumerate((False, True, True), 1):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
        with Store.open(tmp_path / str(number)) as opened:
            engine = Watchful(thread_safe=shared)
            panel = [
                PanelMember("words", Program()),
                PanelMember("one", PairwiseJudge(), engine),
                PanelMember("same", PairwiseJudge(), engine),
                PanelMember("rating", RatingJudge(), engine),
            ]
            report = label(opened, panel, run="r")
            assert not any(r.fault for r in report.judges)
            assert engine.asked == len(opened.rows(Call)) == sum(r.calls for r in report.judges)
            assert (engine.most > 1) is shared
            tables.append(timeless(opened))
    assert tables[0] == tables[1] == tables[2]


def test_a_judge_that_goes_by_scores_waits_for_all_of_them(store: Store) -> None:
    fill(store, prompts=4, answers=4)

    class Slow(Program):
        def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
            time.sleep(0.2)
            yield from super().vote(matchups)

    panel = [
        PanelMember("words", Slow()),
        PanelMember("llm", PairwiseJudge(), first_wins(), matchups="verifier_ties"),
        PanelMember("all", PairwiseJudge(), ScriptedEngine("other")),
    ]
    report = label(store, panel, run="r", canary_share=0)
    assert [r.matchups for r in report.judges] == [16, 4, 24]
