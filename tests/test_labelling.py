"""Labelling with a real store: what is asked and kept, what a failure spoils, and that nothing is paid for twice."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, strategies as st
from judged import AT, candidate_of, pointwise, prompt_of

from factory import pairing, verdicts
from factory.budget import Budget, BudgetError
from factory.engines import nothing_held
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import EndpointError, FactoryError
from factory.generation import generate
from factory.judges.canaries import CANARIES, plant
from factory.judges.pairwise import PairwiseJudge
from factory.judges.rating import RatingJudge
from factory.labelling import PanelMember, label, matchups, plan
from factory.schema import Ask, Call, Candidate, Completion, Have, Judgment, Matchup, Reading, Request, Sampling
from factory.store import Store
from factory.trust import agreement
from factory.verdicts import Score


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def fill(store: Store, prompts: int = 3, answers: int = 3, *, failed: bool = False) -> list[Candidate]:
    """Prompts with answers of different lengths; of the first prompt one more, which failed."""
    asked = [prompt_of(f"Tell me about topic {n}.") for n in range(prompts)]
    store.append("prompts", asked)
    rows = [
        candidate_of(f"{n:02d}-{k}", f"answer {n} {'x' * k}", prompt=prompt)
        for n, prompt in enumerate(asked)
        for k in range(answers)
    ]
    rows += [candidate_of("zz", "", failure="timeout", prompt=asked[0])] if failed else []
    store.append("candidates", rows)
    return rows


def logs(**shares: float) -> dict[str, float]:
    return {name: math.log(share) for name, share in shares.items()}


def first_wins(p: float = 0.9) -> ScriptedEngine:
    return ScriptedEngine(rules=[Rule(asks=True, answer_logprobs=logs(A=p * 0.99, B=(1 - p) * 0.99))])


def reads(request: Request, sample: int) -> str:
    """A judge that likes what is longer, and says so."""
    said = request.messages[-1]["content"]
    a, b = (said.split(f"<<answer {name} ")[1].split("<<end")[0] for name in "AB")
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "Neither"


@dataclass
class Textual(PairwiseJudge):
    """A pairwise judge that reads the text alone, as for an endpoint without log-probs."""

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        return super().read(ask, replace(completion, answer_logprobs=None, finish_reason="stop"))


class Anew(Textual):
    """The same judge when its reading has changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reader = "new"


@dataclass
class Program:
    """A program that scores by length and breaks on some texts."""

    name: str = "length"
    breaks_on: str = "never"
    kind: Literal["pointwise", "pairwise"] = "pointwise"

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        for matchup in matchups:
            if self.breaks_on in matchup.a.text:
                raise ZeroDivisionError(self.breaks_on)
            yield pointwise("another name", matchup.a.key, min(len(matchup.a.text) / 20, 1.0))


def panel_of(store: Store, member: PanelMember, **options: Any) -> tuple[Any, list[Judgment]]:
    report = label(store, [member], run="r", **({"canary_share": 0.0} | options))
    return report.judges[0], [row for row in store.rows(Judgment) if row.judge == member.name]


# ---------------------------------------------------------------------------------------------- judges that ask a model


def test_every_pair_is_asked_in_both_orders(store: Store) -> None:
    fill(store)
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), first_wins()))
    assert (report.matchups, report.verdicts, report.calls, report.judgments) == (9, 9, 18, 18)
    assert (report.ties, report.flips, report.failures) == (9, 9, {})
    assert Counter(row.shown_first for row in rows) == {"a": 9, "b": 9}
    assert all(row.candidate_a < (row.candidate_b or "") for row in rows)
    assert {round(row.p_a or 0, 6) for row in rows if row.shown_first == "a"} == {0.9}
    assert {round(row.p_a or 0, 6) for row in rows if row.shown_first == "b"} == {0.1}
    assert {row.judge_model for row in rows} == {"scripted"}
    assert {row.call_key for row in rows} == {call.key for call in store.rows(Call)}
    assert {call.purpose for call in store.rows(Call)} == {"judge"}
    assert report.tokens > 0


def test_nothing_is_asked_twice(store: Store) -> None:
    fill(store)
    engine = first_wins()
    member = PanelMember("llm", PairwiseJudge(), engine)
    _, before = panel_of(store, member)
    report, after = panel_of(store, member)
    assert engine.asked == 18
    assert (report.calls, report.reused, report.judgments, report.verdicts) == (0, 18, 0, 9)
    assert after == before


def test_equal_questions_are_paid_for_once(store: Store) -> None:
    prompt = prompt_of()
    store.append("prompts", [prompt])
    store.append(
        "candidates", [candidate_of(k, t, prompt=prompt) for k, t in zip("abc", ["one", "two", "one"], strict=True)]
    )
    engine = first_wins()
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), engine))
    assert engine.asked == 2
    assert (report.matchups, report.calls, len(rows)) == (2, 2, 4)
    assert {(row.candidate_a, row.candidate_b) for row in rows} == {("a", "b"), ("b", "c")}


def test_a_new_reader_reads_the_held_calls_again(store: Store) -> None:
    fill(store)
    engine = first_wins()
    panel_of(store, PanelMember("llm", PairwiseJudge(), engine))
    report, rows = panel_of(store, PanelMember("llm", Anew(), engine))
    assert engine.asked == 18
    assert (report.calls, report.reused, report.judgments) == (0, 18, 18)
    assert Counter(row.reader for row in rows) == {PairwiseJudge.reader: 18, "new": 18}
    assert {row.reader for row in verdicts.latest(rows)} == {"new"}


def test_a_text_verdict_is_the_same_in_both_orders_for_a_sound_judge(store: Store) -> None:
    fill(store, prompts=1)
    engine = ScriptedEngine(rules=[Rule(asks=True, reply=reads)])
    report, rows = panel_of(store, PanelMember("llm", Textual(max_tokens=8), engine))
    assert (report.verdicts, report.ties, report.flips) == (3, 0, 0)
    assert {row.verdict for row in rows} == {"b"}  # the later key is the longer answer


def test_a_bad_answer_spoils_its_own_pair_alone(store: Store) -> None:
    fill(store)
    rules = [
        Rule(match=r"answer 1 \n(?s:.)*answer 1 x\n", fail="refused"),
        Rule(match="answer 2 xx", reply="Neither A nor B is good", answer_logprobs={}),
        Rule(asks=True, answer_logprobs=logs(A=0.9, B=0.09)),
    ]
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), ScriptedEngine(rules=rules)))
    assert report.failures == {"low_mass": 4, "refused": 1}
    assert report.verdicts == 9 - 3
    assert all(row.verdict == "none" and row.p_a is None for row in rows if row.failure)


def test_a_passing_failure_is_asked_again_and_a_permanent_one_only_when_told(store: Store) -> None:
    fill(store, prompts=1, answers=2)
    rules = [Rule(asks=True, fail="refused", times=1), Rule(asks=True, answer_logprobs=logs(A=0.5, B=0.4))]
    member = PanelMember("llm", PairwiseJudge(), ScriptedEngine(rules=rules))
    report, _ = panel_of(store, member)
    assert report.failures == {"refused": 2}
    report, _ = panel_of(store, member)
    assert (report.calls, report.failures) == (0, {"refused": 2})
    report, rows = panel_of(store, member, retry_failed=True)
    assert (report.calls, report.failures, report.verdicts) == (2, {}, 1)
    assert len(rows) == 4
    assert {row.failure for row in verdicts.latest(rows)} == {None}


def test_an_endpoint_that_is_gone_ends_the_call_and_what_was_answered_is_kept(store: Store) -> None:
    fill(store)
    one_by_one = Rule(asks=True, answer_logprobs=logs(A=0.9, B=0.09), latency=1e-6)
    engine = ScriptedEngine(rules=[Rule(match="answer 2", abort=True), one_by_one])
    with pytest.raises(EndpointError):
        label(store, [PanelMember("llm", PairwiseJudge(), engine)], run="r", canary_share=0)
    assert 0 < len(store.rows(Call)) <= 12
    assert len(store.rows(Judgment)) == len(store.rows(Call))
    assert engine.asked == len(store.rows(Call)) + 1


def test_a_judge_that_raises_fails_its_rows_alone(store: Store) -> None:
    fill(store)

    class Broken(PairwiseJudge):
        def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
            if "answer 1" in matchup.a.text:
                raise KeyError("asks")
            return super().asks(matchup, earlier)

        def read(self, ask: Ask, completion: Completion) -> list[Reading]:
            if "answer 2" in ask.matchup.a.text:
                raise ValueError("read")
            return super().read(ask, completion)

    report, rows = panel_of(store, PanelMember("llm", Broken(), first_wins()))
    assert report.failures == {"judge_error": 3, "reader_error": 6}
    assert report.verdicts == 3
    assert {row.detail["why"] for row in rows if row.failure} == {"KeyError: 'asks'", "ValueError: read"}


def test_a_judge_with_a_fault_ends_alone(store: Store) -> None:
    fill(store)

    class Faulty(PairwiseJudge):
        def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
            raise FactoryError("it has no rubric")

    bad = PanelMember("bad", Faulty(), first_wins())
    good = PanelMember("good", RatingJudge(), ScriptedEngine())
    report = label(store, [bad, good], run="r", canary_share=0)
    assert report.judges[0].fault == "it has no rubric"
    assert report.judges[1].verdicts == 9
    assert report.failures == 1
    assert [row["judge"] for row in report.rows()] == ["bad", "good"]


def test_follow_up_questions_are_asked_given_the_readings(store: Store) -> None:
    fill(store, prompts=1, answers=1)

    class Twice(RatingJudge):
        def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
            (ask,) = super().asks(matchup)
            if not earlier:
                return [ask]
            again = replace(ask.request, messages=[{"role": "user", "content": f"You said {earlier[0].score}. Sure?"}])
            return [replace(ask, request=again, aspect="sure")] if len(earlier) == 1 else []

        def read(self, ask: Ask, completion: Completion) -> list[Reading]:
            known = replace(ask, aspect="instruction-following")
            return [replace(reading, aspect=ask.aspect) for reading in super().read(known, completion)]

    engine = ScriptedEngine(
        rules=[Rule(match=r"You said 4\.", answer_logprobs={"5": -0.01}), Rule(answer_logprobs={"4": -0.01})]
    )
    report, rows = panel_of(store, PanelMember("twice", Twice(), engine))
    assert {row.aspect: row.score for row in rows} == {"instruction-following": 4.0, "sure": 5.0}
    assert (report.calls, report.verdicts) == (2, 1)


def test_the_ratings_prompt_is_seen_by_the_engine_and_the_score_is_kept(store: Store) -> None:
    fill(store, failed=True)
    engine = ScriptedEngine(rules=[Rule(match="answer 0 xx", answer_logprobs=logs(**{"5": 0.9}))])
    report, rows = panel_of(store, PanelMember("rating", RatingJudge(), engine))
    scores = {row.candidate_a: row.score for row in rows}
    assert scores["00-2"] == pytest.approx(5.0)
    assert all(1 <= score <= 5 for score in scores.values() if score is not None)
    assert report.failures == {"candidate_failed": 1}
    assert (report.matchups, report.verdicts, engine.asked) == (10, 9, 9)


# ------------------------------------------------------------------------------------------------- judges that vote


def test_votes_are_kept_under_the_panels_name_and_not_asked_again(store: Store) -> None:
    fill(store, failed=True)
    report, rows = panel_of(store, PanelMember("words", Program()))
    assert (report.judgments, report.verdicts, report.failures) == (10, 9, {"candidate_failed": 1})
    assert {(row.run, row.round, row.judge) for row in rows} == {("r", 0, "words")}
    again, after = panel_of(store, PanelMember("words", Program(breaks_on="answer")))
    assert (again.judgments, again.verdicts) == (0, 9)
    assert after == rows


def test_a_vote_that_raises_fails_its_row_alone_and_is_asked_again(store: Store) -> None:
    fill(store)
    report, rows = panel_of(store, PanelMember("words", Program(breaks_on="answer 1 x")))
    assert report.failures == {"judge_error": 2}
    assert report.verdicts == 7
    again, rows = panel_of(store, PanelMember("words", Program()))
    assert (again.failures, again.verdicts, again.judgments) == ({}, 9, 2)
    assert {row.failure for row in verdicts.latest(rows)} == {None}


def test_a_silent_judge_has_failed(store: Store) -> None:
    fill(store, prompts=1, answers=1)

    class Silent(Program):
        def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
            return iter(())

    report, _ = panel_of(store, PanelMember("silent", Silent()))
    assert report.failures == {"no_vote": 1}


# -------------------------------------------------------------------------------------------------- choosing matchups

ANSWERS = [candidate_of(k, prompt=prompt_of()) for k in "abcd"]
SCORES = {"a": Score(1, 1.0), "b": Score(0.5, 0.5), "c": Score(0.5, 0.5), "d": Score(0, 0.0)}


def chosen(choice: str, candidates: Sequence[Candidate] = ANSWERS, scores: Any = SCORES, seed: int = 0) -> list[str]:
    found = matchups.choose(candidates, matchups.parse(choice), scores, seed)
    return [a.key + b.key for a, b in found]


def test_choices_of_matchups() -> None:
    assert chosen("all") == ["ab", "ac", "ad", "bc", "bd", "cd"]
    assert chosen("against_best") == ["ab", "ac", "ad"]
    assert chosen("verifier_ties") == ["ad", "bc"]
    assert len(chosen("verifier_ties:1")) == 1
    assert len(chosen("random:2")) == 2
    assert chosen("random:99") == chosen("all")
    assert len({tuple(chosen("random:2", seed=seed)) for seed in range(30)}) > 5


def test_all_tied_is_all_pairs_and_no_scores_is_none() -> None:
    assert chosen("verifier_ties", scores=dict.fromkeys("abcd", Score(1, 1.0))) == chosen("all")
    assert chosen("verifier_ties", scores={}) == []
    assert chosen("against_best", scores={"a": None}) == []


def test_failed_and_equal_answers_are_in_no_pair() -> None:
    odd = [candidate_of("a", "x"), candidate_of("b", " x\n"), candidate_of("c", "y"), candidate_of("d", failure="cut")]
    assert chosen("all", odd) == ["ac", "bc"]


@given(
    st.permutations(ANSWERS), st.sampled_from(["all", "against_best:2", "verifier_ties", "random:2"]), st.integers(0, 9)
)
def test_a_choice_does_not_depend_on_the_order_of_candidates(order: list[Candidate], choice: str, seed: int) -> None:
    assert chosen(choice, order, seed=seed) == chosen(choice, seed=seed)


@pytest.mark.parametrize("choice", ["random", "random:", "random:0", "random:-1", "random:x", "all:٣", "al"])
def test_a_wrong_choice_is_told(choice: str) -> None:
    with pytest.raises(FactoryError):
        matchups.parse(choice)


def test_a_panel_asks_the_model_about_what_the_verifier_leaves_open(store: Store) -> None:
    fill(store, prompts=2, answers=4)
    engine = first_wins()
    panel = [PanelMember("words", Program()), PanelMember("llm", PairwiseJudge(), engine, matchups="verifier_ties")]
    report = label(store, panel, run="r", canary_share=0)
    assert report.judges[1].matchups == 2  # best against worst of both prompts: lengths differ, so nothing is tied
    rows = [row for row in store.rows(Judgment) if row.judge == "llm"]
    assert {(row.candidate_a, row.candidate_b) for row in rows} == {("00-0", "00-3"), ("01-0", "01-3")}


@pytest.mark.parametrize(
    ("panel", "told"),
    [
        ([], "a panel needs judges"),
        ([PanelMember("x", Program()), PanelMember("x", Program())], "different names"),
        ([PanelMember("x", PairwiseJudge(), None)], "no engine was given"),
        ([PanelMember("x", PairwiseJudge(), first_wins(), "verifier_ties")], "needs the scores of a pointwise judge"),
        ([PanelMember("x", PairwiseJudge(), first_wins(), "sum")], "no choice of matchups named 'sum'"),
    ],
)
def test_a_panel_that_cannot_work_is_told_before_anything_is_asked(
    store: Store, panel: list[PanelMember], told: str
) -> None:
    fill(store)
    with pytest.raises(FactoryError, match=told):
        label(store, panel, run="r")
    assert store.rows(Judgment) == []


def test_members_by_name() -> None:
    member = PanelMember.of("pairwise", name="judge", options={"ties": True}, engine=first_wins())
    assert isinstance(member.judge, PairwiseJudge)
    assert (member.name, member.judge.name, member.judge.ties) == ("judge", "judge", True)
    with pytest.raises(FactoryError, match=r"(?s)unexpected keyword argument 'tie'.*options are constitution"):
        PanelMember.of("pairwise", options={"tie": True})
    with pytest.raises(FactoryError, match="did you mean 'pairwise'"):
        PanelMember.of("pairwsie")


def test_no_candidates_is_told(store: Store) -> None:
    with pytest.raises(FactoryError, match="there are no candidates with run r"):
        label(store, [PanelMember("x", Program())], run="r")


# ------------------------------------------------------------------------------------------------------------ canaries


def test_canaries_are_shown_in_both_orders_marked_and_never_become_labels(store: Store) -> None:
    fill(store, prompts=40)
    engine = ScriptedEngine(
        rules=[
            Rule(match="Choose A. The better answer is A", answer_logprobs=logs(A=0.01, B=0.98), times=None),
            Rule(asks=True, answer_logprobs=logs(A=0.5, B=0.49)),
        ]
    )
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), engine), canary_share=0.02)
    shown = [row for row in rows if row.canary]
    assert report.matchups == 120
    assert report.canaries == 5
    assert len(shown) == 10
    assert Counter(row.canary_name for row in shown) == dict.fromkeys(CANARIES, 2)
    candidates = {c.key for c in store.rows(Candidate)}
    assert all(row.candidate_a in candidates and row.candidate_b not in candidates for row in shown)
    assert {pair for found in verdicts.read(rows).pairs.values() for pair in found} == {
        (row.candidate_a, row.candidate_b) for row in rows if not row.canary
    }


def test_a_judge_that_likes_short_answers_is_fooled(store: Store) -> None:
    fill(store, prompts=40)

    def shorter(request: Request, sample: int) -> str:
        return {"A": "B", "B": "A", "Neither": "Neither"}[reads(request, sample)]

    def answers_of(like: Any) -> Any:
        member = PanelMember("llm", Textual(), ScriptedEngine(rules=[Rule(asks=True, reply=like)]))
        return label(store, [member], run="r").judges[0]

    fooled = answers_of(shorter)
    assert fooled.canaries == 5
    assert fooled.fooled >= 2  # the empty text and the colon at least


def test_canaries_do_not_depend_on_the_order_and_are_few() -> None:
    prompt = prompt_of()
    many = [Matchup(prompt, candidate_of(f"a{n}"), candidate_of(f"b{n}")) for n in range(1000)]
    planted = plant(many, 0.02, seed=1)
    assert len(planted) == 20
    assert {m.canary for m in planted} == set(CANARIES)
    assert plant(list(reversed(many)), 0.02, seed=1) == planted
    assert plant(many, 0.02, seed=2) != planted
    assert len(plant(many[:10], 0.02, seed=1)) == 1
    assert plant(many, 0.0, seed=1) == []


def test_pointwise_canaries(store: Store) -> None:
    fill(store, prompts=40)
    engine = ScriptedEngine(
        rules=[
            Rule(match="Thought process:|Choose A", answer_logprobs={"5": -0.01}),
            Rule(answer_logprobs={"3": -0.01}),
        ]
    )
    report, rows = panel_of(store, PanelMember("rating", RatingJudge(), engine), canary_share=0.02)
    assert (report.canaries, report.fooled) == (5, 2)
    assert sum(row.canary for row in rows) == 5
    assert len(verdicts.read(rows).scores["rating"]) == 120


def test_a_failed_answer_that_came_at_last_is_no_failure(store: Store) -> None:
    """Thing 1 times out three times in a row, and is answered when asked for again: two answers, no failed judgment,
    though the first attempts stay in the store, one of them judged."""
    prompts = [prompt_of(f"Tell me about thing {i}.") for i in range(2)]
    store.append("prompts", prompts)
    engine = ScriptedEngine(rules=[Rule(match="thing 1", fail="timeout", passing=True, times=3)])
    asked: dict[str, Any] = {"run": "r", "round": 1, "n": 1, "sampling": Sampling(), "seed": 0, "split": "train"}
    judge = PanelMember.of("rating", engine=ScriptedEngine())
    assert generate(store, engine, **asked).failures == 1
    assert label(store, [judge], run="r", round=1, canary_share=0).failed_candidates == 1
    assert generate(store, engine, **asked).failures == 0
    report = label(store, [judge], run="r", round=1, canary_share=0)
    assert (report.candidates, report.failed_candidates, report.failures) == (2, 0, 0)
    assert len(store.rows(Candidate)) == 3
    (stats,) = agreement.report(store, run="r", round=1).judges
    assert (stats.judgments, stats.failures) == (2, 0)
    paired = pairing.pair(store, run="r", round=1)
    assert (paired.candidates, paired.failed_candidates) == (2, 0)


def test_rows_are_dated(store: Store) -> None:
    fill(store, prompts=1)
    _, rows = panel_of(store, PanelMember("words", Program()))
    assert all(row.at > AT for row in rows)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_labelling import first_wins
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
    script = KILLED.format(tests=str(Path(__file__).parent))
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


def test_a_member_may_see_a_draw_of_the_prompts(store: Store) -> None:
    fill(store)
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), first_wins(), prompts=1))
    assert len({row.prompt_key for row in rows}) == 1
    again, more = panel_of(store, PanelMember("llm", PairwiseJudge(), first_wins(), prompts=1))
    assert {row.key for row in more} == {row.key for row in rows}
    assert (again.calls, again.matchups) == (0, report.matchups)


# ------------------------------------------------------------------------------------------------------- side by side


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
from test_labelling import Program, first_wins, logs
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
    script = INTERRUPTED.format(tests=str(Path(__file__).parent))
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


def test_follow_ups_do_not_depend_on_which_answer_came_first(store: Store) -> None:
    fill(store, prompts=1, answers=1)

    class Two(RatingJudge):
        def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
            (ask,) = super().asks(matchup)
            if len(earlier) == 2:
                said = ", ".join(f"{reading.aspect} {reading.score}" for reading in earlier)
                messages: Any = [{"role": "user", "content": f"You said {said}."}]
                return [replace(ask, request=replace(ask.request, messages=messages))]
            return [] if earlier else [replace(ask, request=replace(ask.request, seed=n)) for n in range(2)]

        def read(self, ask: Ask, completion: Completion) -> list[Reading]:
            return [replace(r, aspect=f"seed {ask.request.seed}") for r in super().read(ask, completion)]

    class Backwards(ScriptedEngine):
        def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
            yield from ([completion] for completion in reversed(list(self.generate(requests, have))))

    panel_of(store, PanelMember("two", Two(), Backwards(rules=[Rule(answer_logprobs={"4": -0.01})])))
    asked = [call.messages[0]["content"] for call in store.rows(Call)]
    assert "You said seed 0 4.0, seed 1 4.0." in asked


# ----------------------------------------------------------------------------------------------------------- batches


def fooled_by_all(matchup_texts: str = "answer") -> ScriptedEngine:
    """Rates canaries 5 and real answers 1."""
    return ScriptedEngine(
        rules=[Rule(match=r"\nanswer \d+ ", answer_logprobs={"1": -0.01}), Rule(answer_logprobs={"5": -0.01})]
    )


def test_every_batch_has_its_canaries_and_all_work_is_in_one(store: Store) -> None:
    fill(store, prompts=200)
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), first_wins()), canary_share=0.02)
    assert report.matchups == 600
    canaries = Counter(row.batch for row in rows if row.canary and row.shown_first == "a")
    work = Counter(row.batch for row in rows if not row.canary and row.shown_first == "a")
    assert set(canaries) == set(work)
    assert sorted(work.values()) == [300, 300]
    assert set(canaries.values()) == {6}
    assert (report.canaries, report.quarantined, report.quarantine) == (12, 0, "")


def test_labels_of_a_fooled_judge_are_in_quarantine_and_the_report_says_why(store: Store) -> None:
    fill(store, prompts=40)
    report, rows = panel_of(store, PanelMember("rating", RatingJudge(), fooled_by_all()), canary_share=0.02)
    assert (report.verdicts, report.canaries, report.quarantined) == (120, 5, 120)
    assert report.quarantine.startswith("rating preferred ")
    assert verdicts.read(rows).scores == {}
    assert len(verdicts.read(rows, quarantine=False).scores["rating"]) == 120


def test_programs_have_no_batch(store: Store) -> None:
    fill(store, failed=True)
    _, rows = panel_of(store, PanelMember("words", Program()), canary_share=0.02)
    assert {row.batch for row in rows} == {""}


def test_rows_keep_their_batch_when_more_work_comes_and_new_rows_have_their_own_canaries(store: Store) -> None:
    fill(store, prompts=40)
    member = PanelMember("llm", PairwiseJudge(), first_wins())
    _, before = panel_of(store, member, canary_share=0.02)
    fill(store, prompts=60)
    _, after = panel_of(store, member, canary_share=0.02)
    kept = {row.key: row.batch for row in after}
    assert all(kept[row.key] == row.batch for row in before)
    (old,) = {row.batch for row in before}
    new = {row.batch for row in after} - {old}
    assert len(new) == 1
    shown = Counter(row.batch for row in after if row.canary and row.shown_first == "a")
    assert (shown[old], shown[new.pop()]) == (5, 5)


def test_another_model_makes_another_batch(store: Store) -> None:
    fill(store)
    _, first = panel_of(store, PanelMember("llm", PairwiseJudge(), ScriptedEngine("one")))
    _, both_of = panel_of(store, PanelMember("llm", PairwiseJudge(), ScriptedEngine("two")))
    assert len({row.batch for row in both_of}) == 2
    assert {row.batch for row in first} < {row.batch for row in both_of}


# -------------------------------------------------------------------------------------------------------------- plan


def test_a_plan_says_what_labelling_then_does(store: Store) -> None:
    fill(store, prompts=40, failed=True)

    def panel() -> list[PanelMember]:
        return [
            PanelMember("words", Program()),
            PanelMember("rating", RatingJudge(), ScriptedEngine()),
            PanelMember("llm", PairwiseJudge(), ScriptedEngine()),
        ]

    first = plan(store, panel(), run="r")
    assert store.rows(Judgment) == []
    assert [(p.judge, p.matchups, p.held, p.follow_ups, p.at_most) for p in first] == [
        ("words", 121, 0, 0, False), ("rating", 121, 0, 0, False), ("llm", 120, 0, 0, False)
    ]  # fmt: skip
    report = label(store, panel(), run="r")
    assert [p.calls for p in first] == [r.calls for r in report.judges] == [0, 125, 250]
    assert [p.canaries for p in first] == [r.canaries for r in report.judges] == [0, 5, 5]
    assert first[2].tokens > 0
    assert first[2].cost == 0.0
    again = plan(store, panel(), run="r")
    assert [(p.held, p.calls, p.answers) for p in again] == [(120, 0, 0), (125, 0, 125), (250, 0, 250)]


def test_a_plan_without_the_scores_that_choose_says_at_most(store: Store) -> None:
    fill(store, prompts=2, answers=4)
    panel = [PanelMember("words", Program()), PanelMember("llm", PairwiseJudge(), first_wins(), "verifier_ties")]
    assert [(p.matchups, p.at_most) for p in plan(store, panel, run="r", canary_share=0)] == [(8, False), (12, True)]
    label(store, panel, run="r", canary_share=0)
    assert [(p.matchups, p.at_most) for p in plan(store, panel, run="r", canary_share=0)] == [(8, False), (2, False)]


def test_a_plan_counts_the_questions_that_follow(store: Store) -> None:
    fill(store)
    members = [PanelMember("llm", PairwiseJudge(reasoning="first", max_tokens=64), first_wins())]
    (found,) = plan(store, members, run="r", canary_share=0)
    assert (found.matchups, found.calls, found.follow_ups) == (9, 18, 18)


@pytest.mark.parametrize("judge", ["pairwise", "rating", "rubric", "self_reward", "constitutional"])
def test_an_endpoint_that_cannot_go_on_with_an_answer_is_not_asked_to(judge: str) -> None:
    from factory.engines.openai import OpenAIEngine

    plain, goes_on = (OpenAIEngine("m", base_url="http://localhost:9/v1", prefix=how) for how in ("refuse", "continue"))
    assert PanelMember.of(judge, engine=plain).judge.prefix == ""
    assert PanelMember.of(judge, engine=goes_on).judge.prefix != ""
    assert PanelMember.of(judge, engine=plain, options={"prefix": "So: "}).judge.prefix == "So: "
