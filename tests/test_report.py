"""The report: what it tells of a made-up run, that it shows texts as texts, and that the store gives it back."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from factory import intervals, page, report as reports
from factory.faults import FactoryError
from factory.report import RoundView, RunReport, collect, queries, sample_pairs, story, summary, training_of, write
from factory.schema import Candidate, Decision, Estimate, PolicyReport, Preference, Prompt, Round, digest
from factory.store import Store

RECIPE = "name: quickstart\npanel:\n  - judge: verifier\n  - judge: pairwise\npair: {lead: verifier}\n"
AT = datetime(2026, 1, 2, 3, 4, 5)
HOSTILE = (
    "<script>alert('x')</script>",
    '"><img src=x onerror="alert(1)">',
    "</div></details><style>*{display:none}</style>",
    "{{ 7 * 7 }} {% raw %}",
    "مرحبا بالعالم \u202e txet",
    "\x00\x1b[31m\x07 bell",
    "\ud800 lone",
)


def measured(passes: int, **values: Any) -> PolicyReport:
    base: dict[str, Any] = {
        "pass_rate": intervals.wilson(passes, 100),
        "tokens": Estimate(50.0, 47.0, 53.0),
        "relevance": Estimate(0.9, 0.8, 1.0),
        "distinct_2": 0.8,
        "kl_sequence": Estimate(3.0, 2.0, 4.0),
        "by_constraint": {"title": intervals.wilson(passes // 2, 50), "max_words": intervals.wilson(passes // 2, 50)},
    }
    return PolicyReport("policy", "heldout", 100, 100, 0, **(base | values))


def metrics(chosen: float, rejected: float, steps: int = 8) -> list[dict[str, Any]]:
    """Log-probs that change by so much in all, evenly."""
    return [
        {
            "step": i,
            "loss": 0.6,
            "rewards/margins": 0.1 * i,
            "rewards/accuracies": 0.5 + 0.05 * i,
            "logps/chosen": -50 + chosen * i / (steps - 1),
            "logps/rejected": -52 + rejected * i / (steps - 1),
        }
        for i in range(steps)
    ]


def preference(
    i: int, *, chosen: str = "good", rejected: str = "bad", asked: str = "Say it.", **values: Any
) -> Preference:
    row = {
        "key": digest("pair", i),
        "run": "r",
        "round": 1,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "prompt_key": digest(i),
        "chosen_key": digest(i, "c"),
        "rejected_key": digest(i, "r"),
        "margin": 0.5,
        "agreement": 0.5,
        "judges": 2,
        "at": AT,
    }
    return Preference(**(row | values))


AGREEMENT = {
    "judges": [
        {
            "judge": "pairwise",
            "kind": "pairwise",
            "judgments": 200,
            "failure_rate": [0.01, 0.0, 0.02],
            "verdicts": 100,
            "tie_rate": [0.1, 0.05, 0.15],
            "flip_rate": [0.71, 0.6, 0.8],
            "first_position": [0.86, 0.8, 0.9],
            "longer_wins": [None, None, None],
            "fooled_rate": [0.4, 0.2, 0.6],
        }
    ],
    "pairs": [
        {
            "judge": "pairwise",
            "other": "verifier",
            "pairs": 100,
            "percent": [0.41, 0.32, 0.51],
            "cohen_kappa": [0.03, -0.1, 0.2],
            "krippendorff_alpha": [None, None, None],
        }
    ],
}


def run_report(**changes: Any) -> RunReport:
    """Two rounds: 14%, then 39% on 100 held-out prompts."""
    start = measured(14, kl_sequence=Estimate(0.0, 0.0, 0.0))
    best = measured(39, gain=intervals.paired_rates(10, 29, 4, 57), win_rate=intervals.wins_and_losses(40, 50, 10))
    rounds = [
        RoundView(round=0, report=start, seconds=60.0, decision=Decision(False, "", "no round to compare yet")),
        RoundView(
            round=1,
            report=best,
            seconds=240.0,
            preferences=51,
            agreement=AGREEMENT,
            metrics=metrics(2.0, -9.0),
            stages={"generate": 100.0, "train": 90.0},
            decision=Decision(True, "max_rounds", "1 of at most 1 round done"),
        ),
    ]
    base: dict[str, Any] = {
        "run": "r",
        "state": "done",
        "recipe": RECIPE,
        "rounds": rounds,
        "champion": 1,
        "final": measured(35, gain=Estimate(0.21, 0.11, 0.3)),
        "final_start": measured(14),
        "pairs": [preference(i) for i in range(3)],
        "provenance": {"begun": AT, "versions": {"torch": "2.13.0"}, "prompts": {"heldout": 100}, "answers": 200},
    }
    return RunReport(**(base | changes))


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


# ----------------------------------------------------------------------------------------------------------- the story


def test_the_story_says_what_was_gained_and_how_surely() -> None:
    told = " ".join(story(run_report()))
    assert "meets every constraint on 39.0% (30.0% to 48.8%) of 100 held-out prompts" in told
    assert "the start policy on 14.0%" in told
    assert "a gain of +25.0 points (95% interval" in told
    assert "On 100 final prompts, which no decision had read: 35.0%" in told
    assert "a gain of +21.0 points (95% interval +11.0 to +30.0)" in told
    assert "It stopped by the rule max_rounds: 1 of at most 1 round done." in told
    assert "is also the judge that decided the labels" in told
    assert "both fell" not in told


def test_a_gain_that_could_be_noise_is_called_so() -> None:
    told = " ".join(story(run_report(final=measured(16, gain=Estimate(0.02, -0.05, 0.09)))))
    assert "+2.0 points (95% interval -5.0 to +9.0): too few prompts to tell it from no change" in told
    loss = " ".join(story(run_report(final=measured(10, gain=Estimate(-0.2, -0.3, -0.1)))))
    assert "a loss of -20.0 points (95% interval -30.0 to -10.0)." in loss


def test_the_trap_of_falling_log_probabilities_is_told() -> None:
    base = run_report()
    fallen = replace(base.rounds[1], metrics=metrics(-5.0, -20.0))
    told = " ".join(story(replace(base, rounds=[base.rounds[0], fallen])))
    assert "In round 1 the log-probabilities of chosen and of rejected answers both fell in training" in told


def test_no_champion_no_final_and_failures_are_told() -> None:
    base = run_report(champion=0, final=None, final_start=None, recipe="")
    failing = replace(base.rounds[1], report=replace(measured(10), failures=3))
    told = " ".join(story(replace(base, rounds=[base.rounds[0], failing])))
    assert "the champion is the start policy" in told
    assert "final prompts" not in told
    assert "3 held-out answers failed and count as not passing." in told
    assert "also the judge" not in told
    unconfirmed = " ".join(story(run_report(final=None, final_start=None)))
    assert "There were no final prompts: nothing that no decision had read confirms it." in unconfirmed


def test_a_run_at_work_and_a_run_not_begun() -> None:
    base = run_report(state="at work", final=None)
    assert "The run is at work: this page tells what there is so far." in story(base)
    nothing = run_report(state="at work", rounds=[], final=None, pairs=[], provenance={})
    assert story(nothing)[0] == "The start policy has not been measured yet."
    assert "<h2>Rounds</h2>" not in page.render(nothing)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("", False),
        ("- a list", False),
        ("panel: [{judge: verifier}, {judge: pairwise}]", True),
        ("panel: [{judge: pairwise}, {judge: verifier}]", False),
        ("panel: [{judge: pairwise}, {judge: verifier, name: rules}]\npair: {lead: rules}", True),
        ("panel: [{judge: pairwise}]\nevaluate: {independent: false}", True),
    ],
)
def test_labels_and_measures(recipe: str, expected: bool) -> None:
    assert reports.labels_and_measures(recipe) is expected


def test_summary_is_the_story_and_a_table() -> None:
    text = summary(run_report())
    assert text.startswith("Round 1 is the champion")
    last = text.splitlines()[-1]
    assert last.startswith("1 *")
    assert "0.39 [0.3, 0.488]" in last


# ---------------------------------------------------------------------------------------------------------- training


def test_training_takes_quarters() -> None:
    """Eight steps: the last two against the first two. Chosen +2 over 7 steps: 6/7 of the way; margins .6 and .7."""
    found = training_of(metrics(2.0, -9.0))
    assert found is not None
    assert found.steps == 8
    assert found.margin == pytest.approx(0.65)
    assert found.accuracy == pytest.approx(0.825)
    assert found.chosen == pytest.approx(2.0 * 6 / 7)
    assert found.rejected == pytest.approx(-9.0 * 6 / 7)


def test_training_goes_by_log_ratios_where_they_are_logged() -> None:
    """The last two of eight steps against the first: -3.25 and -1.625, whatever batch the log-probs are of."""
    steps = [
        row | {"logratios/chosen": -0.5 * i, "logratios/rejected": -0.25 * i} for i, row in enumerate(metrics(9, 9))
    ]
    found = training_of(steps)
    assert found is not None
    assert (found.chosen, found.rejected) == (pytest.approx(-3.25), pytest.approx(-1.625))


def test_training_without_metrics_or_with_odd_ones() -> None:
    assert training_of([]) is None
    assert training_of([{"step": 1, "eval": 3}]) is None
    odd = training_of([{"loss": 0.5, "rewards/margins": math.nan}, {"loss": 0.4, "logps/chosen": "x"}])
    assert odd is not None
    assert (odd.steps, odd.margin, odd.chosen, odd.rejected) == (2, None, None, None)


def test_metrics_are_read_up_to_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert reports.read_metrics(path) == []
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"step": 3, "lo')
    assert reports.read_metrics(path) == [{"step": 1}, {"step": 2}]


# ---------------------------------------------------------------------------------------------------------- the page


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = page.render(run_report())
    seen = Page(html)
    assert seen.open == []
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in seen.tags}
    addresses = [value for _, attrs in seen.tags for name, value in attrs.items() if name in {"src", "href", "action"}]
    assert addresses == []
    assert not re.search(r"url\(|@import|https?://", html)
    policy = next(attrs["content"] for tag, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in html


def test_the_same_report_gives_the_same_bytes() -> None:
    assert page.render(run_report()) == page.render(run_report())


def test_the_page_tells_tables_charts_and_pairs() -> None:
    seen = Page(page.render(run_report()))
    for words in ("+25.0 points", "39.0%", "30.0 to 48.8", "pairwise / verifier", "41.0%", "71.0%", "5 min 0 s"):
        assert words in seen.text
    for head in (
        "Rounds",
        "What changed",
        "By kind of constraint",
        "Training",
        "Judges",
        "3 pairs to read",
        "Decisions",
    ):
        assert head in seen.text
    assert len([tag for tag, _ in seen.tags if tag == "svg"]) == 5 + 1 + 3
    assert "torch 2.13.0" in seen.text
    assert "factory query" in seen.text


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_shown_as_texts(text: str) -> None:
    pair = preference(1, chosen=text, rejected=text, asked=text)
    hostile = run_report(run=text, recipe="", pairs=[pair])
    stop = Decision(True, text, text)
    hostile = replace(hostile, rounds=[*hostile.rounds[:1], replace(hostile.rounds[1], decision=stop, notes=[text])])
    html = page.render(replace(hostile, provenance={"versions": {text: text}, "models": [(1, text, text, text)]}))
    plain, clean = Page(html), Page(page.render(run_report(recipe="", pairs=[preference(1)])))
    assert plain.open == []
    assert {tag for tag, _ in plain.tags} == {tag for tag, _ in clean.tags}
    assert not any(name.startswith("on") for _, attrs in plain.tags for name in attrs)
    assert page.visible(page.shown(text)) in plain.text
    html.encode("utf-8")


def test_right_to_left_texts_take_their_own_direction() -> None:
    seen = Page(page.render(run_report(pairs=[preference(1, chosen="مرحبا")])))
    texts = [attrs for tag, attrs in seen.tags if attrs.get("class") == "text"]
    assert len(texts) == 4  # system, user, chosen, rejected
    assert all(attrs["dir"] == "auto" for attrs in texts)


def test_long_texts_are_cut_and_say_so() -> None:
    cut = page.shown("x" * (reports.CUT + 1234))
    assert cut.endswith("… (1,234 more characters)")
    assert page.visible("a\tb\nc") == "a\tb\nc"
    assert page.visible("\x00\x7f\ud800") == "\u2400\u2421?"


def test_tiles_show_the_champion_once() -> None:
    assert [name for name, _, _ in page.tiles(run_report())] == [
        "gain on final prompts",
        "champion, held out",
        "start, held out",
        "KL from the start",
        "rounds",
    ]
    assert [name for name, _, _ in page.tiles(run_report(champion=0, final=None))] == ["start, held out", "rounds"]


def test_cells() -> None:
    assert page.cell(None).main == "–"
    assert page.cell(math.nan).main == "–"
    assert page.cell(Estimate(math.nan, math.nan, math.nan)).main == "–"
    assert page.cell(Estimate(0.5, math.nan, math.nan)) == ("0.5", "")
    assert page.cell(Estimate(0.0, 0.0, 0.0)) == ("0", "")
    assert page.cell(Estimate(12345.6, 11111.0, 13333.0)) == ("12,346", "11,111 to 13,333")
    assert page.cell(51) == ("51", "")


# --------------------------------------------------------------------------------------------------------- the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with one run of two rounds, as rounds.py leaves it."""
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.put_run("r", RECIPE, {"versions": {"torch": "2.13.0"}})
        for number, passes in ((0, 14), (1, 39)):
            close_round(opened, number, passes)
        opened.append("preferences", [preference(i) for i in range(30)])
        opened.append("prompts", [heldout(i) for i in range(4)])
        opened.append("candidates", [answer(i) for i in range(4)])
        path = opened.run_folder("r") / "round-1" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in metrics(2.0, -9.0)))
        yield opened


def heldout(i: int) -> Prompt:
    messages: Any = [{"role": "user", "content": f"topic {i}"}]
    return Prompt(key=digest(i), messages=messages, split="heldout", group=str(i), at=AT)


def answer(i: int) -> Candidate:
    failure = "timeout" if i == 0 else None
    values = {"prompt_key": digest(i), "split": "heldout", "model": "m", "model_hash": "ab" * 16, "tokens": 5}
    return Candidate(key=digest("answer", i), run="r", round=1, failure=failure, at=AT, **values)  # type: ignore[arg-type]


def close_round(store: Store, number: int, passes: int) -> None:
    measures = measured(passes, gain=Estimate(0.25, 0.15, 0.35) if number else None)
    decision = {"stop": number == 1, "rule": "max_rounds" if number else "", "reason": f"{number} of 1", "evidence": {}}
    kept = {
        "round": number,
        "policy": f"policy {number}",
        "champion": True,
        "report": measures.to_json(),
        "pairs": {"preferences": 30} if number else None,
        "agreement": AGREEMENT if number else None,
        "training": {"warnings": ["both fall"]} if number else None,
        "decision": decision,
        "seconds": 60.0,
        "stages": {"evaluate": 60.0},
    }
    row = Round(
        key=digest("r", number),
        run="r",
        round=number,
        policy=f"policy {number}",
        champion=True,
        report=kept,
        decision="stop" if number else "go on",
        at=AT,
    )
    store.append("rounds", [row])
    for stage in ("evaluate", "train", "pair"):
        store.mark("r", number, stage, "done", {"seconds": 20.0})


def test_collect_reads_a_run(store: Store) -> None:
    found = collect(store, "r")
    assert (found.run, found.state, found.champion) == ("r", "cut off", 1)
    assert [view.round for view in found.rounds] == [0, 1]
    assert found.best is not None
    assert found.best.gain == Estimate(0.25, 0.15, 0.35)
    second = found.rounds[1]
    assert (second.preferences, second.seconds, len(second.metrics)) == (30, 60.0, 8)
    assert second.decision == Decision(True, "max_rounds", "1 of 1", {})
    assert second.training is not None
    assert second.notes == ["both fall"]
    assert len(found.pairs) == 20
    assert found.provenance["answers"] == 4
    assert found.provenance["failed answers"] == 1
    assert found.provenance["prompts"] == {"heldout": 4}
    assert found.provenance["versions"] == {"torch": "2.13.0"}


def test_collect_a_run_that_is_done_or_at_work(store: Store) -> None:
    with store.run_lock("r"):
        assert collect(store, "r").state == "at work"
    detail = {"champion": 1, "start": measured(12).to_json(), "report": measured(33).to_json(), "seconds": 9.0}
    store.mark("r", 1, "final", "done", detail)
    found = collect(store, "r")
    assert found.state == "done"
    assert found.final == measured(33)
    assert found.final_start == measured(12)


def test_a_round_at_work_is_seen_from_its_marks(store: Store) -> None:
    store.mark("r", 2, "pair", "done", {"pairs": {"preferences": 3}, "seconds": 1.5})
    store.mark("r", 2, "train", "done", {"training": None, "skipped": "3 preferences are fewer than 8", "seconds": 0.0})
    store.mark("r", 2, "evaluate", "failed", {"reason": "no endpoint"})
    found = collect(store, "r")
    view = found.rounds[2]
    assert found.state == "failed"
    assert (view.preferences, view.report, view.decision, view.seconds) == (3, None, None, 1.5)
    html = page.render(found)
    assert "no training: 3 preferences are fewer than 8" in html
    assert "Not decided yet." in html


def test_no_such_run(store: Store) -> None:
    with pytest.raises(FactoryError, match="no run named 'x'"):
        collect(store, "x")


def test_write_is_whole_and_repeatable(store: Store) -> None:
    path = write(store, "r")
    assert path == store.run_folder("r") / "report.html"
    first = path.read_bytes()
    assert write(store, "r").read_bytes() == first
    assert [item.name for item in path.parent.iterdir() if item.name.startswith(".")] == []


def test_pairs_are_drawn_by_hash() -> None:
    pairs = [preference(i, margin=i / 100) for i in range(50)]
    drawn = sample_pairs(pairs)
    assert len({pair.key for pair in drawn}) == 20
    assert sample_pairs(pairs[::-1]) == drawn
    assert [pair.margin for pair in drawn] == sorted((pair.margin for pair in drawn), reverse=True)
    assert max(pair.margin for pair in pairs) > drawn[0].margin or min(p.margin for p in drawn) < 0.3  # not the surest


def test_the_queries_run(store: Store) -> None:
    for _, sql in queries("r"):
        store.sql(sql)
    assert shlex.split(reports.command_line(queries("it's")[0][1]))[2].count("'it''s'") == 1
