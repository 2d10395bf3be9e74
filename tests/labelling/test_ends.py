"""Ends of a labelling: a kill, an interrupt, an endpoint that is gone, a spent budget. What is done is kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from judged import AT
from labelled import fill, first_wins, logs

from factory.budget import Budget, BudgetError
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import EndpointError
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.schema import Call, Judgment
from factory.store import Store

KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from labelled import first_wins
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.store import Store
with Store.open(Path(sys.argv[1])) as store:
    label(store, [PanelMember("llm", PairwiseJudge(), first_wins())], run="r")
"""


@pytest.mark.parametrize("point", ["labelling.after_append", "labelling.after_append:3"])
def test_a_killed_run_goes_on_to_the_same_judgments(tmp_path: Path, point: str) -> None:
    """Killed after a commit and run again: the rows of a run that was not killed, on a copy of the store."""
    with Store.open(tmp_path / "one", create=True) as opened:
        fill(opened, prompts=40)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    script = KILLED.format(tests=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", script]
    killed = subprocess.run([*command, str(tmp_path / "one")], env=os.environ | {"FACTORY_CRASH": point}, check=False)
    assert killed.returncode == -signal.SIGKILL
    tables = []
    for folder in ("one", "two"):
        with Store.open(tmp_path / folder) as opened:
            report = label(opened, [PanelMember("llm", PairwiseJudge(), first_wins())], run="r")
            tables.append([replace(row, at=AT) for row in opened.rows(Judgment)])
            assert report.judges[0].verdicts == 120
            assert report.judges[0].reused > 0 or folder == "two"
    assert tables[0] == tables[1]


def test_an_endpoint_that_is_gone_stops_the_other_judges_and_all_work_is_kept(store: Store) -> None:
    fill(store, prompts=20)
    gone = ScriptedEngine("gone", rules=[Rule(match="answer 3", abort=True)])
    slow = ScriptedEngine("slow", rules=[Rule(latency=0.01, asks=True, answer_logprobs=logs(A=0.9, B=0.09))])
    panel = [PanelMember("slow", PairwiseJudge(), slow), PanelMember("gone", PairwiseJudge(), gone)]
    with pytest.raises(EndpointError):
        label(store, panel, run="r", canary_share=0)
    kept = Counter(row.judge for row in store.rows(Judgment))
    assert kept["slow"] == sum(call.model == "slow" for call in store.rows(Call)) < 20 * 6
    assert kept["gone"] > 0


INTERRUPTED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from labelled import Program, first_wins, logs
from factory.engines.scripted import Rule, ScriptedEngine
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.store import Store
slow = [Rule(latency=0.01, asks=True, answer_logprobs=logs(A=0.9, B=0.09))]
panel = [PanelMember(name, PairwiseJudge(), ScriptedEngine(name, rules=slow)) for name in sys.argv[2:]]
with Store.open(Path(sys.argv[1])) as store:
    try:
        label(store, panel, run="r")
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_an_interrupt_ends_all_judges_and_keeps_what_is_done(tmp_path: Path, names: list[str]) -> None:
    with Store.open(tmp_path / "store", create=True) as opened:
        fill(opened, prompts=200)
    script = INTERRUPTED.format(tests=str(Path(__file__).parents[1]))
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "store"), *names])
    with Store.open(tmp_path / "store") as opened:
        while len(opened.rows(Call)) < 10 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert len(opened.rows(Judgment)) == len(opened.rows(Call)) < 200 * 6


def test_a_spent_budget_ends_all_judges_with_what_is_paid_for_kept(store: Store) -> None:
    fill(store, prompts=20)
    panel = [PanelMember(name, PairwiseJudge(), ScriptedEngine(name)) for name in ("one", "two")]
    with pytest.raises(BudgetError):
        label(store, panel, run="r", budget=Budget(max_tokens=9_000), canary_share=0)
    calls = store.rows(Call)
    assert 0 < sum(call.prompt_tokens + call.completion_tokens for call in calls) <= 9_000
    assert len(store.rows(Judgment)) == len(calls)
