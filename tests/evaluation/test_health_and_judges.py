"""How the policy is, besides its grades: diversity, looks, slices; and what other judges say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from evaluated import BAD, GOOD, PROMPTS, FakeScorer, measure, policy, prompt, topic

from factory.engines.scripted import Rule, ScriptedEngine
from factory.evaluation import compare
from factory.evaluation.answers import Baseline
from factory.evaluation.judged import is_independent, labellers_of
from factory.evaluation.likelihoods import Item
from factory.evaluation.measures import Graded, Scored
from factory.evaluation.reporting import Evidence, report_of
from factory.judges import votes
from factory.labelling.panel import PanelMember
from factory.schema import (
    Candidate,
    Judgment,
    Matchup,
    PolicyReport,
    Reading,
    Sampling,
    digest,
    now,
)
from factory.stats import intervals
from factory.store import Store


def test_the_report_tells_how_the_policy_is(store: Store) -> None:
    """All answers share the same ten words, half of them followed by three more; none is broken."""
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, scorer=FakeScorer())
    assert report.self_bleu is not None
    assert report.self_bleu > 0.7
    assert {name: share.value for name, share in report.broken.items()} == {
        "empty": 0.0, "loop": 0.0, "copy": 0.0, "degenerate": 0.0, "refuse": 0.0
    }  # fmt: skip
    assert report.entropy is not None
    assert report.entropy.value == pytest.approx(0.5)  # minus the scorer's nats a word
    assert report.kl_on == "policy"
    assert report.kl3_token is None  # the fake keeps no tokens
    assert report.distinct_1 is not None
    assert report.distinct_3 is not None
    by = {(part.by, part.name): part for part in report.slices}
    assert by["source", "unknown"].prompts == PROMPTS
    assert by["source", "unknown"].pass_rate == report.pass_rate
    assert by["prompt words", "to 10"].win_rate == report.win_rate
    assert report.near_trained == 0
    assert report.independent is None


def test_intervals_that_allow_for_looks_are_wider_the_more_looks() -> None:
    """200 prompts: the policy passes on the first 120, the baseline on the first 80."""

    def graded(passing: int) -> list[Graded]:
        return [Graded(str(i), 0, "a b", 2, score=float(i < passing), passed=i < passing) for i in range(200)]

    def report(look: int) -> PolicyReport:
        prompts = [replace(prompt(i), key=str(i)) for i in range(200)]
        return report_of(Evidence("p", "heldout", prompts, graded(120), Baseline("s", graded(80), []), None, look=look))

    first, third = report(1), report(3)
    assert first.gain == third.gain == intervals.paired_rates(80, 40, 0, 80)
    assert first.win_rate_anytime is not None
    assert first.win_rate_anytime.value == pytest.approx(0.6)
    for wider, narrower in ((third.gain_anytime, first.gain_anytime), (first.gain_anytime, first.gain)):
        assert wider is not None
        assert narrower is not None
        assert wider.value == pytest.approx(narrower.value)
        assert wider.low < narrower.low
        assert wider.high > narrower.high
    assert (first.look, third.look) == (1, 3)


class OtherTokens(FakeScorer):
    """The policy's tokenizer makes a token of a word, the start's two."""

    def _one(self, policy: str, item: Item) -> Scored:
        found = super()._one(policy, item)
        split = found.tokens * (2 if policy == "start" else 1)
        return found._replace(tokens=split, by_token=(found.logprob / split,) * split)


def test_a_policy_with_another_tokenizer_is_measured_but_for_kl(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, scorer=OtherTokens())
    assert (report.kl_sequence, report.kl_token, report.kl3_sequence, report.kl_on) == (None, None, None, "")
    assert report.entropy is not None
    assert report.relevance is not None
    assert report.scored == PROMPTS


def test_tempered_answers_give_a_log_ratio_unless_there_are_probes(store: Store) -> None:
    """At temperature .8 the answers themselves are scored; with probes, one more answer at 1 to each of 3 prompts."""
    tempered, scorer = Sampling(temperature=0.8, top_p=0.9), FakeScorer()
    measure(store, policy("start", 2), 0, sampling=tempered)
    without = measure(store, policy("p1", 5), 1, sampling=tempered, scorer=scorer)
    assert (without.kl_on, without.scored) == ("tempered", PROMPTS)
    engine = policy("p1", 5)
    found = measure(store, engine, 1, sampling=tempered, scorer=scorer, probes=3)
    assert (found.kl_on, found.scored) == ("policy", 3)
    assert engine.asked == 3  # the rest was held
    assert found.relevance == without.relevance
    assert found.pass_rate == without.pass_rate
    probes = [c for c in store.rows(Candidate, {"run": "r", "round": 1}) if c.kind == "probe"]
    assert len(probes) == 3
    assert compare(store, run="r", round=1, baseline_round=0).gain == without.gain
    plain = measure(store, policy("p2", 5), 2, scorer=scorer, probes=3)
    assert (plain.kl_on, plain.scored) == ("policy", PROMPTS)  # not tempered: no probe is asked for


def test_margins_are_of_the_baseline_s_better_and_worse_answers(store: Store) -> None:
    """Of every prompt sample 0 passes (13 words) and sample 1 fails (10): under the policy half a nat a word, under the
    start one: shifts 6.5 and 5, margin 1.5."""
    rules = [Rule(reply=lambda request, sample: GOOD if sample == 0 else BAD)]
    measure(store, ScriptedEngine("start", rules=rules), 0, n=2)
    report = measure(store, ScriptedEngine("p1", rules=rules), 1, n=2, scorer=FakeScorer())
    assert report.implicit_pairs == PROMPTS
    found = {name: estimate.value for name, estimate in report.implicit.items()}
    assert found == pytest.approx(
        {
            "margin": 1.5,
            "accuracy": 1.0,
            "chosen": -6.5,
            "rejected": -5.0,
            "chosen_shift": 6.5,
            "rejected_shift": 5.0,
        }
    )


class Likes:
    """A pairwise judge that votes for the answer with more words."""

    kind = "pairwise"
    reader = "1"

    def __init__(self, name: str = "likes") -> None:
        self.name = name

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        for m in matchups:
            assert m.b is not None
            more = len(m.a.text.split()) - len(m.b.text.split())
            reading = Reading(verdict="a" if more > 0 else "b", p_a=1.0 if more > 0 else 0.0)
            yield votes.judgment(self, m.a, reading, b=m.b)  # type: ignore[arg-type]


def test_another_judge_compares_with_the_baseline(store: Store) -> None:
    """The start passes (and is longer) on topics 0-1, the policy on 1-4: 3 longer, 1 shorter, 4 the same text."""
    measure(store, policy("start", 2), 0)
    rules = [Rule(reply=lambda request, sample: GOOD if 1 <= topic(request) < 5 else BAD)]
    member = PanelMember("likes", Likes())  # type: ignore[arg-type]
    report = measure(store, ScriptedEngine("p1", rules=rules), 1, judges=[member], labelled_by={"verifier": ""})
    [said] = report.judged
    assert said.win_rate == intervals.wins_and_losses(3, 4, 1)
    assert (said.judge, said.comparisons, said.ties, said.failures, said.flips) == ("likes", 8, 4, 0, 0)
    assert said.independent is True
    assert said.length_controlled is not None
    assert report.independent is True
    assert PolicyReport.from_json(report.to_json()) == report


def test_a_failed_answer_loses_before_every_judge(store: Store) -> None:
    measure(store, policy("start", 8), 0)
    member = PanelMember("likes", Likes())  # type: ignore[arg-type]
    [said] = measure(store, policy("p1", 8, failing=3), 1, judges=[member]).judged
    assert said.win_rate == intervals.wins_and_losses(0, 7, 1)
    assert said.independent is None


def test_a_failed_answer_loses_at_equal_lengths_too(store: Store) -> None:
    """Seven prompts tied, one failed, twice each: 7/16, by the verifier and by a judge."""
    measure(store, policy("start", 8), 0, n=2)
    member = PanelMember("likes", Likes())  # type: ignore[arg-type]
    report = measure(store, policy("p1", 8, failing=3), 1, judges=[member], n=2)
    for found in (report.length_controlled, report.judged[0].length_controlled):
        assert found is not None
        assert found.value == pytest.approx(7 / 16, abs=1e-3)


def test_a_judge_by_another_name_is_the_judge_that_labelled(store: Store) -> None:
    """Of its kind, whatever it is called in the panel and here."""
    measure(store, policy("start", 2), 0)
    for name, labelled in (("other", {"words": ""}), ("words", {"words": ""}), ("words", {"length": "", "words": ""})):
        member = PanelMember.of("words", name=name)
        [said] = measure(store, policy("p1", 5), 1, judges=[member], labelled_by=labelled).judged
        assert said.independent is False
    [said] = measure(
        store, policy("p1", 5), 1, judges=[PanelMember.of("words", name="verifier")], labelled_by={"rating": "m"}
    ).judged
    assert said.independent is True


def test_a_verifier_judge_scores_both_sides(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    member = PanelMember.of("verifier", name="strict")
    [said] = measure(store, policy("p1", 5), 1, judges=[member]).judged
    assert said.win_rate == intervals.wins_and_losses(3, 5, 0)
    assert said.score is not None
    assert said.score.value == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("name", "kind", "model", "labelled_by", "alone"),
    [
        ("pairwise", "pairwise", "big", None, None),
        ("pairwise", "pairwise", "big", {"verifier": ""}, True),
        ("pairwise", "pairwise", "big", {"pairwise": "small"}, False),
        ("strict", "pairwise", "big", {"pairwise": "small"}, False),
        ("rating", "rating", "big", {"pairwise": "big"}, False),  # the same model in another role
        ("verifier", "verifier", "", {"other": ""}, True),
    ],
)
def test_who_is_independent(
    name: str, kind: str, model: str, labelled_by: dict[str, str] | None, alone: bool | None
) -> None:
    assert is_independent(name, kind, model, labelled_by) is alone


def test_labelled_and_measured_by_the_same_is_said(store: Store) -> None:
    report = measure(store, policy("start", 2), 0, labelled_by={"verifier": ""})
    assert report.independent is False
    assert measure(store, policy("start", 2), 0, labelled_by={"pairwise": "m"}).independent is True


def test_the_labellers_of_a_policy_are_those_of_its_run(store: Store) -> None:
    trained = prompt(50, split="train")
    store.append("prompts", [trained])
    row = {"run": "made", "kind": "pointwise", "score": 1.0, "at": now()}
    said = [
        Judgment(key="1", judge="rating", judge_model="m", prompt_key=trained.key, candidate_a="c", **row),  # type: ignore[arg-type]
        Judgment(key="2", judge="verifier", prompt_key=digest(0), candidate_a="d", **row),  # type: ignore[arg-type]
    ]
    store.append("judgments", said)
    folder = store.folder / "runs" / "made" / "round-1" / "policy"
    assert labellers_of(store, str(folder)) == {"rating": "m"}  # what measured held-out answers has not labelled
    rules = Judgment(
        key="3", judge="rules", prompt_key=trained.key, candidate_a="c", detail={"all_met": True}, **row  # type: ignore[arg-type]
    )  # fmt: skip
    store.append("judgments", [rules])
    assert labellers_of(store, str(folder)) == {"rating": "m", "rules": "", "verifier": ""}  # by another name
    assert labellers_of(store, "smollm2-135m-instruct") is None
    assert labellers_of(store, str(store.folder / "runs" / "other" / "policy")) is None


def test_an_older_report_reads(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    whole = measure(store, policy("p1", 5), 1, scorer=FakeScorer()).to_json()
    later = {f.name for f in dataclasses.fields(PolicyReport)} - {
        "policy", "split", "prompts", "answers", "failures", "pass_rate", "score", "win_rate", "baseline", "gain",
        "tokens", "words", "relevance", "distinct_2", "kl_sequence", "kl_token", "scored", "by_constraint",
    }  # fmt: skip
    older = PolicyReport.from_json({name: value for name, value in whole.items() if name not in later})
    assert older.pass_rate == intervals.wilson(5, 8)
    assert (older.slices, older.judged, older.broken, older.entropy, older.look) == ((), (), {}, None, 1)
