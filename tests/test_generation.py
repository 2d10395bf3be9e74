"""Generation: candidates from calls, asked once, with failures kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_rows import prompt

from factory.budget import Budget, BudgetError
from factory.engines.scripted import Rule, ScriptedEngine
from factory.engines.transformers import TransformersEngine
from factory.faults import FactoryError
from factory.generation import GenerateReport, chosen_prompts, generate
from factory.schema import Call, Candidate, Prompt, Sampling, digest
from factory.store import Store

PROMPTS = [prompt(k, split="train" if k % 3 else "heldout") for k in range(9)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("prompts", PROMPTS)
        yield opened


def sample(store: Store, engine: Any, **more: Any) -> GenerateReport:
    options: dict[str, Any] = {
        "run": "r",
        "round": 1,
        "n": 2,
        "sampling": Sampling(max_tokens=40),
        "seed": 3,
        "split": "train",
    }
    return generate(store, engine, **options | more)


def test_prompts_are_chosen_by_split_keys_and_limit_in_the_order_of_keys(store: Store) -> None:
    train = sorted(p.key for p in PROMPTS if p.split == "train")
    assert [p.key for p in chosen_prompts(store, split="train")] == train
    assert [p.key for p in chosen_prompts(store, split="train", limit=2)] == train[:2]
    assert [p.key for p in chosen_prompts(store, keys=train[::-1])] == train
    assert len(chosen_prompts(store)) == 9
    with pytest.raises(FactoryError, match="no prompt 'nothing'"):
        chosen_prompts(store, keys=["nothing", train[0]])


def test_every_prompt_gets_n_candidates_read_from_calls(store: Store) -> None:
    report = sample(store, ScriptedEngine())
    assert (report.prompts, report.candidates, report.failures, report.reused) == (6, 12, 0, 0)
    calls = {call.key: call for call in store.rows(Call)}
    candidates = store.rows(Candidate)
    assert len(candidates) == 12
    assert report.tokens == sum(call.completion_tokens for call in calls.values()) > 0
    for candidate in candidates:
        call = calls[str(candidate.call_key)]
        assert candidate.key == digest("r", 1, call.key, "sample", "1")
        assert (candidate.text, candidate.tokens, candidate.logprob) == (
            call.text,
            call.completion_tokens,
            call.logprob,
        )
        assert (candidate.prompt_key, candidate.sample) == (call.tag, call.sample)
        assert (candidate.split, candidate.kind, call.purpose) == ("train", "sample", "generate")


def test_a_second_time_adds_nothing(store: Store) -> None:
    sample(store, ScriptedEngine())
    before = store.read("candidates")
    engine = ScriptedEngine()
    report = sample(store, engine)
    assert engine.asked == 0
    assert (report.candidates, report.reused, report.tokens) == (12, 12, 0)
    assert store.read("candidates") == before


def test_another_round_reads_the_same_calls_anew(store: Store) -> None:
    sample(store, ScriptedEngine())
    engine = ScriptedEngine()
    sample(store, engine, round=2, purpose="evaluate")
    assert engine.asked == 0
    assert sorted({row["round"] for row in store.read("candidates")}) == [1, 2]
    assert store.counts()["calls"] == 12


def test_a_failed_answer_is_a_candidate_and_its_retry_another(store: Store) -> None:
    broken = ScriptedEngine(rules=[Rule(match="question 1", fail="timeout", passing=True, times=3)])
    report = sample(store, broken)
    assert (report.candidates, report.failures, report.reasons) == (12, 2, {"timeout": 2})
    failed = store.rows(Candidate, {"failure": "timeout"})
    assert [candidate.text for candidate in failed] == ["", ""]
    report = sample(store, broken)
    assert (report.failures, report.reused) == (0, 10)
    assert store.counts()["candidates"] == 14


def test_what_came_before_the_budget_ended_it_can_be_judged(store: Store) -> None:
    with pytest.raises(BudgetError):
        sample(store, ScriptedEngine(), budget=Budget(max_tokens=200))
    held = store.counts()
    assert 0 < held["candidates"] == held["calls"] < 12
    assert sample(store, ScriptedEngine()).reused == held["calls"]
    assert store.counts()["candidates"] == 12


def test_the_report_is_json(store: Store) -> None:
    report = sample(store, ScriptedEngine(), limit=1).to_json()
    assert set(report) == {"prompts", "candidates", "failures", "reused", "tokens", "seconds", "reasons"}


KILLED = """
import sys
from factory.engines.transformers import TransformersEngine
from factory.generation import generate
from factory.schema import Sampling
from factory.store import Store
engine = TransformersEngine(sys.argv[2], device="cpu", dtype="float32", threads=1, batch_size=3)
with Store.open(sys.argv[1]) as store:
    generate(store, engine, run="r", round=1, n=2, sampling=Sampling(max_tokens=6), seed=3, split="train")
"""


@pytest.mark.parametrize("point", ["calls.after_append:3", "generation.before_candidates"])
def test_a_killed_generation_goes_on_as_if_it_had_not_been(
    store: Store, tiny_model: Path, tmp_path: Path, point: str
) -> None:
    """Same calls and candidates, log-probs to the bit, as an uninterrupted one: fixed batches are answered whole."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.folder), str(tiny_model)],
        env=os.environ | {"FACTORY_CRASH": point}, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    engine = TransformersEngine(str(tiny_model), device="cpu", dtype="float32", threads=1, batch_size=3)
    with Store.open(tmp_path / "whole", create=True) as whole:
        whole.append("prompts", PROMPTS)
        for each in (store, whole):
            sample(each, engine, sampling=Sampling(max_tokens=6))
        for table in ("calls", "candidates"):
            assert timeless(store, table) == timeless(whole, table)


def timeless(store: Store, table: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in {"at", "latency"}} for row in store.read(table)]


def test_a_system_prompt_is_said_to_the_model_and_to_nobody_else(store: Store) -> None:
    """More answers to the same prompts, whose log-probs are not those of answers to them; asked once, as ever."""
    own = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
    store.append("prompts", [prompt(20, messages=own)])
    engine = ScriptedEngine(rules=[Rule(match=r"(?s)system: (.*)\nuser", where="all", reply=r"\1")])
    sample(store, engine)
    report = sample(store, engine, system="Be terse.")
    assert (report.candidates, report.reused) == (14, 0)
    answers = {c.key: c for c in store.rows(Candidate, {"prompt_key": prompt(20).key})}
    assert sorted(c.text for c in answers.values()) == ["Be kind."] * 2 + ["Be kind.\n\nBe terse."] * 2
    terse = store.rows(Candidate, {"text": "Be terse."})
    assert len(terse) == 12
    assert {c.logprob for c in terse} == {None}
    assert [p.messages for p in store.rows(Prompt, {"key": prompt(20).key})] == [own]
    said = store.rows(Call, {"key": str(terse[0].call_key)})[0].messages
    assert [turn["role"] for turn in said] == ["system", "user"]
    assert sample(store, engine, system="Be terse.").reused == 14
