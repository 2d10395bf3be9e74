"""Revision: draft, critique, revision, each kept with its parent, paid for once and gone on with after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_rows import candidate, prompt
from typer.testing import CliRunner, Result

from factory.budget import Budget, BudgetError
from factory.cli import app
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import EndpointError, FactoryError
from factory.generation import generate
from factory.judges.rubric import draw, load
from factory.pairing import LabelRule, pair
from factory.revision import ReviseReport, chains, revise
from factory.schema import Call, Candidate, Label, Preference, Prompt, Request, Sampling
from factory.store import Store

PROMPTS = [prompt(k, split="train" if k % 3 else "heldout") for k in range(6)]
CRITIQUE = "Write the critique alone"
REVISE = "Write the new answer alone"


def longer(request: Request, sample: int) -> str:
    """Appends a word to the answer that was shown."""
    shown = request.messages[-3]["content"]
    found = re.search(r"<<answer \w+>>\n(.*?)\n<<end of answer", shown, re.DOTALL)
    assert found is not None
    return f"Here is the revised answer:\n\n{found.group(1)} Better."


def obliging(*first: Rule) -> ScriptedEngine:
    """Criticises and revises everything, but for what the rules given first say."""
    rules = [*first, Rule(match=CRITIQUE, reply="Critique: it is vague."), Rule(match=REVISE, reply=longer)]
    return ScriptedEngine(rules=rules)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        filled(opened)
        yield opened


def filled(store: Store) -> None:
    store.append("prompts", PROMPTS)
    sampling = Sampling(max_tokens=40)
    generate(store, ScriptedEngine(), run="r", round=1, n=2, sampling=sampling, seed=3, split="train")


def improve(store: Store, engine: ScriptedEngine, **more: Any) -> ReviseReport:
    options: dict[str, Any] = {"run": "r", "round": 1, "examples": 0}
    return revise(store, engine, **options | more)


def of_kind(store: Store, kind: str, **where: Any) -> list[Candidate]:
    return store.rows(Candidate, {"kind": kind} | where)


def test_each_draft_gets_a_critique_and_a_revision_with_their_parents(store: Store) -> None:
    report = improve(store, obliging())
    drafts = {row.key: row for row in of_kind(store, "sample")}
    critiques = {row.key: row for row in of_kind(store, "critique")}
    revisions = of_kind(store, "revision")
    assert len(drafts) == len(critiques) == len(revisions) == 8
    calls = {call.key: call for call in store.rows(Call)}
    known = {p.name for p in load("helpful-honest-harmless").principles}
    for revision in revisions:
        critique = critiques[str(revision.parent)]
        draft = drafts[str(critique.parent)]
        assert (critique.text, revision.text) == ("it is vague.", f"{draft.text.strip()} Better.")
        assert critique.principle == revision.principle
        assert critique.principle in known
        assert {row.prompt_key for row in (draft, critique, revision)} == {draft.prompt_key}
        assert (revision.sample, revision.split, revision.run, revision.round) == (draft.sample, "train", "r", 1)
        assert calls[str(critique.call_key)].purpose == "critique"
        assert calls[str(revision.call_key)].purpose == "revise"
        assert calls[str(revision.call_key)].text.startswith("Here is")
        assert (critique.logprob, revision.logprob) == (None, None)
    assert (report.drafts, report.critiques, report.revisions, report.pairs) == (8, 8, 8, 8)
    assert (report.calls, report.reused, report.written, report.failed, report.cost) == (16, 0, 16, 0, 0.0)
    assert sum(report.principles.values()) == 8
    assert report.tokens == sum(
        c.prompt_tokens + c.completion_tokens for c in calls.values() if c.purpose != "generate"
    )


def test_a_second_time_pays_nothing_and_adds_nothing(store: Store) -> None:
    first = improve(store, obliging(), rounds=2)
    before = store.read("candidates")
    engine = obliging()
    again = improve(store, engine, rounds=2)
    assert engine.asked == 0
    assert store.read("candidates") == before
    assert (again.calls, again.reused, again.tokens, again.written) == (0, 32, 0, 0)
    assert (again.revisions, again.pairs, again.principles) == (first.revisions, first.pairs, first.principles)


def test_more_rounds_go_on_from_the_last_revision_by_other_principles(store: Store) -> None:
    improve(store, obliging())
    engine = obliging()
    report = improve(store, engine, rounds=3)
    assert engine.asked == 32, "the first round was held"
    assert (report.critiques, report.revisions, report.pairs) == (24, 24, 8)
    found = chains(store.rows(Candidate))
    assert len(found) == 8
    for chain in found:
        assert chain.final.text == f"{chain.draft.text.strip()} Better. Better. Better."
        assert len({step.revision.principle for step in chain.steps}) == 3
        assert [step.revision.parent for step in chain.steps] == [step.critique.key for step in chain.steps]
        before = [chain.draft, *(step.revision for step in chain.steps)]
        assert [step.critique.parent for step in chain.steps] == [row.key for row in before[:-1]]


def test_principles_are_drawn_by_seed_and_can_be_named(store: Store) -> None:
    named = improve(store, obliging(), principles="privacy, care")
    assert set(named.principles) <= {"privacy", "care"}
    drawn = [improve(store, obliging(), seed=seed).principles for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    chain = next(c for c in chains(store.rows(Candidate)) if c.steps[0].critique.principle in ("privacy", "care"))
    assert chain.changed
    with pytest.raises(FactoryError, match="did you mean 'privacy'"):
        improve(store, obliging(), principles=["privcy"])
    with pytest.raises(FactoryError, match="no constitution named 'code-reviw'; did you mean 'code-review'"):
        improve(store, obliging(), constitution="code-reviw")
    with pytest.raises(FactoryError, match="0 rounds"):
        improve(store, obliging(), rounds=0)


def test_a_chain_meets_every_principle_before_it_meets_one_again(store: Store) -> None:
    report = improve(store, obliging(), principles=["privacy", "care", "respect"], rounds=4, limit=1)
    assert report.prompts == 1
    for chain in chains(store.rows(Candidate)):
        names = [step.critique.principle for step in chain.steps]
        assert set(names[:3]) == {"privacy", "care", "respect"}


def test_a_failed_critique_fails_its_revision_and_says_why(store: Store) -> None:
    victim = of_kind(store, "sample")[0]
    broken = Rule(match=lambda r: CRITIQUE in r.messages[-1]["content"] and victim.text in r.messages[-1]["content"],
                  fail="content_filter")  # fmt: skip
    report = improve(store, obliging(broken), rounds=2)
    (critique,) = of_kind(store, "critique", failure="content_filter")
    (revision,) = of_kind(store, "revision", failure="critique_failed")
    assert (critique.parent, critique.text, revision.parent, revision.call_key) == (victim.key, "", critique.key, None)
    assert revision.principle == critique.principle
    assert report.failures == {"critique: content_filter": 1, "revision: critique_failed": 1}
    assert (report.failed, report.critiques, report.revisions, report.pairs) == (2, 14, 14, 7)
    assert victim.key not in {chain.draft.key for chain in chains(store.rows(Candidate))}


def test_a_failure_that_stands_is_asked_again_only_when_told_to(store: Store) -> None:
    once = Rule(match=CRITIQUE, fail="refused_by_server", times=1)
    engine = obliging(once)
    assert improve(store, engine).failures == {"critique: refused_by_server": 8, "revision: critique_failed": 8}
    assert improve(store, engine).calls == 0
    report = improve(store, engine, retry_failed=True)
    assert (report.failed, report.revisions, report.pairs, report.calls) == (0, 8, 8, 16)
    assert len(of_kind(store, "revision")) == 16, "what failed stays a row"
    assert len(chains(store.rows(Candidate))) == 8


def test_empty_refused_and_leaking_revisions_are_failures_and_end_their_chain(store: Store) -> None:
    texts = ("", "I'm sorry, but I can't revise that.", "Better, as the critique asked.")
    for seed, (text, kind) in enumerate(zip(texts, ("empty", "refused", "leaked"), strict=True)):
        report = improve(store, obliging(Rule(match=REVISE, reply=text)), seed=seed, rounds=2)
        assert report.failures == {f"revision: {kind}": 8}
        assert (report.critiques, report.revisions, report.pairs) == (8, 0, 0)
    assert {row.text for row in of_kind(store, "revision", failure="leaked")} == {texts[2]}
    assert chains(store.rows(Candidate)) == []


def test_a_revision_that_says_the_same_is_counted_and_is_no_pair(store: Store) -> None:
    def same(request: Request, sample: int) -> str:
        return longer(request, sample).removesuffix(" Better.") + "\n"

    report = improve(store, obliging(Rule(match=REVISE, reply=same)))
    assert (report.revisions, report.unchanged, report.pairs, report.failed) == (8, 8, 0, 0)
    found = chains(store.rows(Candidate))
    assert len(found) == 8
    assert not any(chain.changed for chain in found)


def test_what_is_cut_and_what_refuses_is_counted(store: Store) -> None:
    refusing = obliging(Rule(match=REVISE, reply="I'm sorry, but I can't help with that."))
    assert improve(store, refusing).refusals == 8


def test_a_revision_that_is_cut_is_none_unless_its_draft_was_cut_too(store: Store) -> None:
    whole, cut = PROMPTS[1].key, PROMPTS[2].key
    words = "one two three four five six seven eight"
    store.append("candidates", [
        candidate(920, run="c", prompt_key=whole, text=words, finish_reason="stop"),
        candidate(921, run="c", prompt_key=cut, text=words, finish_reason="length"),
    ])  # fmt: skip
    report = revise(store, obliging(), run="c", examples=0, sampling=Sampling(max_tokens=6))
    assert (report.failures, report.cut, report.revisions) == ({"revision: cut": 1}, 1, 1)
    (row,) = of_kind(store, "revision", run="c", failure="cut")
    assert row.prompt_key == whole
    again = revise(store, obliging(), run="c", examples=0)
    assert (again.failed, again.cut, again.revisions) == (0, 0, 2)


def test_a_budget_stops_the_work_and_keeps_what_is_paid(store: Store) -> None:
    with pytest.raises(BudgetError):
        improve(store, obliging(), budget=Budget(max_tokens=3500))
    paid = [call for call in store.rows(Call) if call.purpose in ("critique", "revise")]
    assert 0 < len(paid) < 16
    assert len(of_kind(store, "critique")) + len(of_kind(store, "revision")) == len(paid)
    report = improve(store, obliging())
    assert (report.calls, report.reused, report.pairs) == (16 - len(paid), len(paid), 8)


def test_failed_drafts_are_left_out_and_drafts_alone_count(store: Store) -> None:
    store.append("candidates", [
        candidate(900, run="r", round=1, prompt_key=PROMPTS[1].key, failure="timeout", text=""),
        candidate(901, run="r", round=1, prompt_key=PROMPTS[1].key, kind="given", text="Given."),
        candidate(902, run="r", round=1, prompt_key=PROMPTS[1].key, kind="draft", text="A draft."),
        candidate(903, run="other", round=1, prompt_key=PROMPTS[1].key, text="Another run's."),
    ])  # fmt: skip
    report = improve(store, obliging())
    assert (report.drafts, report.failed_drafts) == (9, 1)
    texts = {row.text for row in of_kind(store, "revision")}
    assert "A draft. Better." in texts
    assert not texts & {"Given. Better.", "Another run's. Better."}


def test_the_same_answer_twice_is_asked_about_once_for_each_principle_and_kept_twice(store: Store) -> None:
    twins = [candidate(k, run="t", prompt_key=PROMPTS[1].key, text="Twin.", sample=0) for k in (910, 911)]
    store.append("candidates", twins)
    report = revise(store, obliging(), run="t", round=0)
    assert report.calls == 2
    assert len(of_kind(store, "revision", run="t")) == 2
    assert {chain.draft.key for chain in chains(store.rows(Candidate, {"run": "t"}))} == {twin.key for twin in twins}


def test_another_run_with_the_same_answers_pays_nothing(store: Store) -> None:
    improve(store, obliging())
    store.append("candidates", [replace(row, key=f"copy-{row.key}", run="s") for row in of_kind(store, "sample")])
    assert revise(store, obliging(), run="s", round=1, examples=0).calls == 0


def test_there_must_be_drafts(store: Store) -> None:
    with pytest.raises(FactoryError, match=r"(?s)run 'nowhere', round 1.*factory generate"):
        improve(store, obliging(), run="nowhere")
    with pytest.raises(FactoryError, match="split 'final'"):
        improve(store, obliging(), split="final")


def test_all_that_was_answered_is_kept_when_the_engine_stops(store: Store) -> None:
    stopping = obliging(Rule(match=REVISE, abort=True))
    with pytest.raises(EndpointError):
        improve(store, stopping)
    assert len(of_kind(store, "critique")) == 8
    assert improve(store, obliging()).calls == 16, "another set of rules is another model"


def test_examples_are_shown_unless_told_otherwise(store: Store) -> None:
    improve(store, obliging(), examples=1, limit=1)
    improve(store, obliging(), limit=1)
    asked = [call.messages for call in store.rows(Call, {"purpose": "critique"})]
    assert sorted({len(messages) for messages in asked}) == [1, 5]


def test_the_report_is_json(store: Store) -> None:
    report = improve(store, obliging(), limit=1).to_json()
    assert report["constitution"] == "helpful-honest-harmless"
    assert {"drafts", "critiques", "revisions", "unchanged", "pairs", "failures", "calls", "tokens", "cost"} <= set(
        report
    )


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_revision import improve, obliging
from factory.store import Store
with Store.open(sys.argv[1]) as store:
    improve(store, obliging(), rounds=2)
"""


@pytest.mark.parametrize(
    "point", ["calls.after_append", "calls.after_append:3", "revise.before_candidates", "revise.before_candidates:2"]
)
def test_a_killed_revision_goes_on_as_if_it_had_not_been(store: Store, tmp_path: Path, point: str) -> None:
    """The same calls, each paid for once, and the same candidates as of an uninterrupted one."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.folder), str(Path(__file__).parent)],
        env=os.environ | {"FACTORY_CRASH": point}, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    improve(store, obliging(), rounds=2)
    calls = store.rows(Call)
    assert len({call.key for call in calls}) == len(calls) == 8 + 32
    assert {call.attempt for call in calls} == {1}
    with Store.open(tmp_path / "whole", create=True) as whole:
        filled(whole)
        improve(whole, obliging(), rounds=2)
        assert told(store) == told(whole)


def told(store: Store) -> list[tuple[Any, ...]]:
    """What the candidates say; their keys hold the store's own secret."""
    return sorted((c.kind, c.prompt_key, c.sample, str(c.principle), c.text, c.tokens) for c in store.rows(Candidate))


class Shared(ScriptedEngine):
    """One that several threads may use at once, as an endpoint's engine is."""

    thread_safe = True


def test_threads_that_share_an_engine_come_to_the_same(store: Store, tmp_path: Path) -> None:
    shared = improve(store, Shared(rules=obliging().rules), rounds=2)
    with Store.open(tmp_path / "whole", create=True) as whole:
        filled(whole)
        alone = improve(whole, obliging(), rounds=2)
        assert told(store) == told(whole)
    assert replace(shared, seconds=0) == replace(alone, seconds=0)
    again = improve(store, Shared(rules=obliging().rules), rounds=2)
    assert (again.calls, again.reused) == (0, 32)


def test_progress_is_told_of_every_answer(store: Store) -> None:
    told: list[tuple[int, int, int]] = []

    class Listener:
        def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
            told.append((n, failed, reused))

    improve(store, obliging(Rule(match=REVISE, fail="x")), progress=Listener())
    assert (len(told), sum(t[1] for t in told), sum(t[2] for t in told)) == (16, 8, 0)


def test_chains_stand_on_their_own_rows() -> None:
    """Pure: a tree of rows in any order; what failed, and what hangs on it, is in no chain."""
    draft = candidate(1)
    rows = [draft]
    for number, (kind, parent, failure) in enumerate(
        [("critique", 1, None), ("revision", 2, None), ("critique", 3, None), ("revision", 4, "empty"),
         ("critique", 1, "timeout"), ("revision", 6, None), ("critique", 1, None), ("revision", 8, None)],
        start=2,
    ):  # fmt: skip
        rows.append(candidate(number, kind=kind, parent=candidate(parent).key, failure=failure))
    found = chains(reversed(rows))
    assert {chain.final.text for chain in found} == {"answer 3", "answer 9"}
    assert all(len(chain.steps) == 1 and chain.draft == draft for chain in found)


def test_a_principle_is_drawn_in_proportion_to_its_weight() -> None:
    principles = load("code-review").principles
    drawn = [draw(principles, 1, seed)[0].name for seed in range(4000)]
    total = sum(p.weight for p in principles)
    for principle in principles:
        expected = principle.weight / total
        assert abs(drawn.count(principle.name) / 4000 - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_revisions_become_preferences_over_their_drafts_and_labels(store: Store) -> None:
    """Prompt to pair: the revision is chosen, its draft rejected; what did not change or failed makes none."""

    def mixed(request: Request, sample: int) -> str:
        revised = longer(request, sample)
        return revised if len(revised) % 3 else revised.removesuffix(" Better.")

    spoilt = of_kind(store, "sample")[0]
    failing = Rule(match=lambda r: REVISE in r.messages[-1]["content"] and spoilt.text in r.messages[-3]["content"],
                   fail="content_filter")  # fmt: skip
    revised = improve(store, obliging(failing, Rule(match=REVISE, reply=mixed)))
    assert 0 < revised.unchanged < 7
    report = pair(store, run="r", round=1, strategy="draft_revision", labels=LabelRule(by="pairs"))
    assert report.preferences == revised.pairs == 7 - revised.unchanged
    assert report.dropped == {"failed_revision": 1, "unchanged": revised.unchanged}
    known = {row.key: row for row in store.rows(Candidate)}
    found = {(known[str(c.chosen_key)].key, c.rejected_key) for c in store.rows(Preference)}
    assert found == {(c.final.key, c.draft.key) for c in chains(known.values()) if c.changed}
    for row in store.rows(Preference):
        assert row.chosen[0]["content"] == f"{row.rejected[0]['content'].strip()} Better."
        assert row.strategy == "draft_revision"
    labels = {row.candidate_key: row.label for row in store.rows(Label)}
    assert labels == {chosen: True for chosen, _ in found} | {rejected: False for _, rejected in found}
    assert pair(store, run="r", round=1, strategy="draft_revision", labels=LabelRule(by="pairs")).written == 0


def test_the_view_shows_every_step_and_what_to_train_on(store: Store) -> None:
    blocked = Rule(match=lambda r: CRITIQUE in r.messages[-1]["content"] and "Better." in r.messages[-1]["content"],
                   fail="content_filter", times=1)  # fmt: skip
    improve(store, obliging(blocked), limit=1)
    same = Rule(match=REVISE, reply=lambda r, s: longer(r, s).removesuffix(" Better.") + "\n\t ")
    improve(store, obliging(same), limit=1, seed=9)
    improve(store, obliging(blocked), rounds=2, limit=1)
    rows = store.sql("SELECT * FROM revisions ORDER BY draft, step, outcome, revision_text").rows()
    assert [(row["step"], row["outcome"], row["final"]) for row in rows] == [
        (1, "revised", True), (1, "unchanged", True), (2, "failed", False),
    ] * 2  # fmt: skip
    first, unchanged, failed = rows[:3]
    assert first["revision_text"] == f"{first['draft_text'].strip()} Better."
    assert (first["before_text"], first["critique_text"]) == (first["draft_text"], "it is vague.")
    assert (failed["before_text"], failed["failure"]) == (first["revision_text"], "critique_failed")
    assert first["messages"] == store.rows(Prompt, {"key": first["prompt_key"]})[0].messages
    assert first["completion"] == [{"role": "assistant", "content": first["revision_text"]}]
    finals = store.sql("SELECT revision FROM revisions WHERE final").rows()
    assert {row["revision"] for row in finals} == {c.final.key for c in chains(store.rows(Candidate))}
    assert unchanged["revision_text"].strip() == unchanged["draft_text"].strip()


RULES = """
- match: Write the critique alone
  reply: It is vague.
- match: Write the new answer alone
  reply: [A better answer, "I'm sorry, but I can't revise that."]
"""


def command(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["revise", "--store", str(store.folder), *arguments])


def test_the_command_revises_the_newest_run_and_fails_with_its_rows(store: Store, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    engine = ("--engine", "scripted", "--model", str(rules), "--json")
    planned = json.loads(command(store, *engine, "--dry-run", "--rounds", "2", "--limit", "3").stdout)
    assert planned == {
        "run": "r", "prompts": 3, "drafts": 6, "principles": 11, "calls_at_most": 24, "tokens_written_at_most": 12288,
        "cost": "nothing is paid for",
    }  # fmt: skip
    assert of_kind(store, "critique") == []
    done = command(store, *engine, "--constitution", "concise-and-sourced", "--principle", "brevity")
    report = json.loads(done.stdout)
    assert (report["run"], report["drafts"], report["principles"]) == ("r", 8, {"brevity": 8})
    assert report["revisions"] + report["failures"]["revision: refused"] == 8
    assert done.exit_code == 1, "some were refused"
    assert {row.principle for row in of_kind(store, "revision")} == {"brevity"}
    rules.write_text(RULES.replace("[A better answer,", "[A better answer, Another] #"))
    done = command(store, "--engine", "scripted", "--model", str(rules), "--seed", "4", "--examples", "0")
    assert done.exit_code == 0, done.output


def test_the_command_names_what_is_wrong(store: Store, tmp_path: Path) -> None:
    for wrong, told_of in (
        (["--constitution", "code-revew"], "did you mean 'code-review'"),
        (["--principle", "brevity"], "no principle with a critique question named 'brevity'"),
        (["--constitution", "instruction-following"], "no principle with a critique question"),
        (["--run", "nowhere"], "factory generate"),
    ):
        for more in ([], ["--dry-run"]):
            failed = command(store, "--engine", "scripted", "--model", "m", *wrong, *more)
            assert failed.exit_code == 2
            assert told_of in failed.output
