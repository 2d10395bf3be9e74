"""Judges that ask a model: what is asked and kept, what a failure spoils, and that nothing is paid for twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from judged import AT, candidate_of, prompt_of
from labelled import Program, Textual, fill, first_wins, logs, panel_of, reads

from factory import pairing, verdicts
from factory.engines import nothing_held
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import EndpointError, FactoryError
from factory.generation import generate
from factory.judges.pairwise import PairwiseJudge
from factory.judges.rating import RatingJudge
from factory.labelling import PanelMember, label
from factory.schema import Ask, Call, Candidate, Completion, Have, Judgment, Matchup, Reading, Request, Sampling
from factory.store import Store
from factory.trust import agreement


class Anew(Textual):
    """The same judge when its reading has changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reader = "new"


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
