"""From kept judgments to preferences for a judge: collected, judged in both orders, paired; and rubrics end to end."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judged import candidate_of, prompt_of

from factory import meta_judging
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import FactoryError
from factory.labelling import PanelMember, label
from factory.meta_judging import KIND, SPLIT, collect
from factory.pairing import pair
from factory.prompts import add_prompts
from factory.schema import Call, Candidate, Judgment, Preference, Prompt, Request
from factory.store import Store
from factory.verdicts import read

WRITTEN = {"reasoning": "written", "samples": 4, "temperature": 0.8}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        prompts = [prompt_of(f"Tell me about topic {n}.") for n in range(3)]
        opened.append("prompts", prompts)
        opened.append(
            "candidates", [candidate_of(f"{n}", f"About topic {n}.", prompt=p) for n, p in enumerate(prompts)]
        )
        yield opened


def writes(request: Request, sample: int) -> str:
    """Judgments of one answer: two alike, one that cannot be read, one long."""
    return (
        "On topic.\nScore: 4",
        "On topic.\nScore: 4",
        "No score from me.",
        f"{'Well, ' * 30} weak.\nScore: 1",
    )[sample]


def judge_once(store: Store, engine: ScriptedEngine | None = None) -> None:
    engine = engine or ScriptedEngine(rules=[Rule(reply=writes)])
    member = PanelMember.of("self_reward", engine=engine, options=WRITTEN)
    label(store, [member], run="r", canary_share=0.0)


def test_judgments_become_candidates_and_the_better_one_a_preference(store: Store) -> None:
    judge_once(store)
    report = collect(store, run="r", round=0, judge="self_reward")
    assert (report.calls, report.unread, report.too_long) == (12, 3, 0)
    assert (report.questions, report.judgments, report.written) == (3, 6, 6)
    asked = store.rows(Prompt, {"split": SPLIT})
    assert len(asked) == 3
    assert all("Score: <0 to 5>" in p.messages[-1]["content"] for p in asked)

    meta = PanelMember.of("meta_judge", engine=ScriptedEngine(model="meta"))
    label(store, [meta], run="r", split=SPLIT, kind=KIND, canary_share=0.0)
    rows = store.rows(Judgment, {"judge": "meta_judge"})
    assert Counter(row.shown_first for row in rows) == {"a": 3, "b": 3}
    assert all(row.aspect == "sound-judgment" and row.failure is None for row in rows)
    pair(store, run="r", split=SPLIT, kind=KIND, lead="meta_judge", tie_margin=0.0)
    made = store.rows(Preference, {"run": "r"})
    assert len(made) == 3
    texts = {p.key: p for p in asked}
    verdicts = read(rows, 0.0).pairs["meta_judge"]
    said = {writes(Request([]), 0), writes(Request([]), 3)}
    for preference in made:
        assert preference.prompt == texts[preference.prompt_key].messages
        assert {preference.chosen[0]["content"], preference.rejected[0]["content"]} == said
        a, b = sorted((preference.chosen_key, preference.rejected_key))
        verdict = verdicts[a, b]
        assert verdict is not None
        assert preference.chosen_key == (a if verdict.p_a > 0.5 else b)


def test_what_is_collected_twice_is_there_once_and_spoils_no_prompts(store: Store, tmp_path: Path) -> None:
    judge_once(store)
    collect(store, run="r", round=0, judge="self_reward")
    again = collect(store, run="r", round=0, judge="self_reward")
    assert (again.judgments, again.written) == (6, 0)
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"prompt": "Tell me about topic 1, please."}) + "\n")
    added = add_prompts(store, str(file))
    assert (added.prompts, added.failures) == (1, ())
    assert store.rows(Prompt, {"split": SPLIT})[0].group.startswith("judging=")


def test_long_judgments_and_certain_questions_can_be_left_out(store: Store) -> None:
    judge_once(store)
    short = collect(store, run="r", round=0, judge="self_reward", longest=20)
    assert (short.too_long, short.questions) == (3, 0)
    assert collect(store, run="r", round=0, judge="self_reward", questions=2).questions == 2


def test_a_judge_without_judgments_is_told_what_to_do(store: Store) -> None:
    with pytest.raises(FactoryError, match="no judgments by a model"):
        collect(store, run="r", round=0, judge="self_reward")


def test_the_questions_that_the_judge_is_least_sure_of_come_first() -> None:
    def calls(*scores: float) -> list[Any]:
        return [(None, score) for score in scores]

    assert meta_judging._spread(calls(1, 5)) == 4.0
    assert meta_judging._spread(calls(3, 3)) == 0.0


# -------------------------------------------------------------------------------- steps and rubrics, with a real store


def test_reasoning_is_asked_once_and_is_no_judgment(store: Store) -> None:
    store.append("candidates", [candidate_of("0b", "Short.", prompt=prompt_of("Tell me about topic 0."))])
    engine = ScriptedEngine(
        rules=[
            Rule(asks=True, answer_logprobs={"A": math.log(0.9), "B": math.log(0.05)}),
            Rule(reply="Answer A says more."),
        ]
    )
    member = PanelMember.of("pairwise", engine=engine, options={"reasoning": "first"})
    report = label(store, [member], run="r", canary_share=0.0).judges[0]
    assert (report.calls, report.judgments) == (4, 2)
    rows = store.rows(Judgment)
    assert all(row.p_a is not None and (row.detail or {})["reasoning"] == "Answer A says more." for row in rows)
    assert len(store.rows(Call)) == 4
    again = label(store, [member], run="r", canary_share=0.0).judges[0]
    assert (again.calls, again.judgments) == (0, 0)
    assert len(store.rows(Judgment)) == 2


def test_reasoning_that_failed_leaves_no_verdict_and_can_be_asked_again(store: Store) -> None:
    store.append("candidates", [candidate_of("0b", "Short.", prompt=prompt_of("Tell me about topic 0."))])
    failing = ScriptedEngine(rules=[Rule(asks=False, fail="refused", times=1), Rule(asks=False, reply="Fine.")])
    member = PanelMember.of("pairwise", engine=failing, options={"reasoning": "first"})
    report = label(store, [member], run="r", canary_share=0.0).judges[0]
    assert report.failures == {"refused": 2}
    assert read(store.rows(Judgment)).pairs["pairwise"] == {("0", "0b"): None}
    again = label(store, [member], run="r", canary_share=0.0, retry_failed=True).judges[0]
    assert (again.failures, again.verdicts) == ({}, 1)


def test_rubrics_from_a_file_reach_the_judge_and_their_lack_is_a_failed_row(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rubrics.jsonl"
    rows = [
        {"q": "Name a long river.", "r": ["Names a river.", {"text": "Is rude.", "weight": -1}]},
        {"q": "Say hello."},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    add_prompts(store, str(file), mapping={"prompt": "q", "rubric": "r"}, heldout=0, final=0)
    kept = {p.messages[0]["content"]: p for p in store.rows(Prompt)}
    assert kept["Name a long river."].rubric == [
        {"text": "Names a river.", "weight": 1.0},
        {"text": "Is rude.", "weight": -1.0},
    ]
    assert kept["Say hello."].rubric is None
    store.append("candidates", [candidate_of(f"c{n}", f"The Nile {n}.", prompt=p) for n, p in enumerate(kept.values())])
    engine = ScriptedEngine(rules=[Rule(asks=True, answer_logprobs={"Yes": math.log(0.8), "No": math.log(0.2)})])
    report = label(store, [PanelMember.of("rubric", engine=engine)], run="r", canary_share=0.0).judges[0]
    assert report.failures == {"no_rubric": 7}
    (score,) = [s for s in read(store.rows(Judgment)).scores["rubric"].values() if s is not None]
    assert score.value == pytest.approx(0.5)  # (1 x .8 + 1 x .2) / 2


def test_another_rubric_for_a_known_prompt_is_told_and_not_taken(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rubrics.jsonl"
    rows = [
        {"prompt": "Say hello.", "rubric": ["Polite."]},
        {"prompt": "Say hello.", "rubric": ["Polite."]},
        {"prompt": "Say hello.", "rubric": ["Brief."]},
        {"prompt": "Tell me about topic 1.", "rubric": ["Polite."]},
        {"prompt": "Say goodbye.", "rubric": [{"weight": 1}]},
        {"prompt": "Say nothing.", "rubric": "not JSON"},
        {"prompt": "Say it all.", "rubric": '[{"criterion": "All.", "points": 3}]'},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    report = add_prompts(store, str(file))
    assert [(f.line, f.column) for f in report.failures] == [(3, "rubric"), (4, "rubric"), (5, "rubric"), (6, "rubric")]
    assert (report.prompts, report.duplicates) == (2, 1)
    assert report.unused == ()


def test_candidates_of_judgments_name_their_call(store: Store) -> None:
    judge_once(store)
    collect(store, run="r", round=0, judge="self_reward")
    calls = {call.key: call for call in store.rows(Call)}
    for candidate in store.rows(Candidate, {"kind": KIND}):
        call = calls[str(candidate.call_key)]
        assert (candidate.text, candidate.model, candidate.sample) == (call.text, call.model, call.sample)
