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

from factory import report as reports
from factory.faults import FactoryError
from factory.report import (
    Lengths,
    PairToRead,
    RoundView,
    RunReport,
    Vote,
    collect,
    page,
    pairs_to_read,
    story as stories,
    training_of,
    write,
)
from factory.report.story import queries, story, summary
from factory.schema import (
    Candidate,
    Decision,
    Estimate,
    Judged,
    Judgment,
    PolicyReport,
    Preference,
    Prompt,
    Round,
    Slice,
    digest,
)
from factory.stats import intervals
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
    row: dict[str, Any] = {
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


AGREEMENT: dict[str, Any] = {
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
        "pairs": [PairToRead("drawn", preference(i), (Vote("verifier", "chosen", 0.9),)) for i in range(3)],
        "panel": AGREEMENT,
        "lengths": Lengths({0: [5, 9, 12], 1: [9, 12, 30]}, [30, 20], [10, 12]),
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
    assert found.chosen == pytest.approx(-3.25)
    assert found.rejected == pytest.approx(-1.625)


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
        "Gain against distance",
        "Lengths",
        "Constraints met by kind",
        "Training",
        "Judges",
        "3 pairs to read",
        "Decisions",
    ):
        assert head in seen.text
    titles = [attrs["aria-label"] for tag, attrs in seen.tags if tag == "svg"]
    measured = ["Held-out pass rate", "Win rate against the start", "KL from the start", "Length", "Relevance"]
    assert titles[:6] == [*measured, "Distinct words"]
    assert titles[6:] == [
        "Pass rate against KL",
        "Held-out answers",
        "Chosen and rejected",
        "Constraints met by kind",
        "Reward margin",
        "Accuracy",
        "Log-probabilities",
        "Loss",
        "Same verdict",
        "Cohen's κ",
        "Habits of pairwise",
    ]
    assert "verifier: chosen (90%)" in seen.text
    assert "Drawn by chance" in seen.text
    assert "The most disputed" not in seen.text  # there are none
    assert "torch 2.13.0" in seen.text
    assert "factory query" in seen.text


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_shown_as_texts(text: str) -> None:
    pair = preference(1, chosen=text, rejected=text, asked=text)
    hostile = run_report(run=text, recipe="", pairs=[PairToRead("drawn", pair)])
    stop = Decision(True, text, text)
    hostile = replace(hostile, rounds=[*hostile.rounds[:1], replace(hostile.rounds[1], decision=stop, notes=[text])])
    html = page.render(replace(hostile, provenance={"versions": {text: text}, "models": [(1, text, text, text)]}))
    plain, clean = Page(html), Page(page.render(run_report(recipe="", pairs=[PairToRead("drawn", preference(1))])))
    assert plain.open == []
    assert {tag for tag, _ in plain.tags} == {tag for tag, _ in clean.tags}
    assert not any(name.startswith("on") for _, attrs in plain.tags for name in attrs)
    assert page.visible(page.shown(text)) in plain.text
    html.encode("utf-8")


def test_right_to_left_texts_take_their_own_direction() -> None:
    seen = Page(page.render(run_report(pairs=[PairToRead("drawn", preference(1, chosen="مرحبا"))])))
    texts = [attrs for tag, attrs in seen.tags if attrs.get("class") == "text"]
    assert len(texts) == 4  # system, user, chosen, rejected
    assert all(attrs["dir"] == "auto" for attrs in texts)


def test_long_texts_are_cut_and_say_so() -> None:
    cut = page.shown("x" * (page.CUT + 1234))
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
    decision: dict[str, Any] = {
        "stop": number == 1,
        "rule": "max_rounds" if number else "",
        "reason": f"{number} of 1",
        "evidence": {},
    }
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


def test_pairs_to_read_are_certain_disputed_and_drawn_by_hash() -> None:
    """Of 50 pairs five are disputed by two of three judges, and four are the surest by margin."""
    pairs = [preference(i, margin=i / 100, agreement=1.0) for i in range(45)]
    pairs += [preference(100 + i, judges=3, agreement=1 / 3, margin=0.2) for i in range(5)]
    found = pairs_to_read(pairs, 14)
    by = {why: [shown.pair for shown in found if shown.why == why] for why in ("certain", "disputed", "drawn")}
    assert {pair.judges for pair in by["disputed"]} == {3}
    assert [pair.margin for pair in by["certain"]] == [0.44, 0.43, 0.42, 0.41]
    assert {why: len(group) for why, group in by.items()} == {"certain": 4, "disputed": 4, "drawn": 6}
    assert len({shown.pair.key for shown in found}) == 14
    assert pairs_to_read(pairs[::-1], 14) == found
    assert [pair.margin for pair in by["drawn"]] != sorted((pair.margin for pair in pairs), reverse=True)[4:10]


def test_few_pairs_are_all_shown_once() -> None:
    pairs = [preference(i, judges=1, agreement=1.0) for i in range(3)]
    assert sorted(shown.pair.key for shown in pairs_to_read(pairs)) == sorted(pair.key for pair in pairs)
    assert pairs_to_read([]) == []


def judged(judge: str, better: str, worse: str, p_better: float) -> Judgment:
    a, b = sorted((better, worse))
    return Judgment(
        key=digest(judge, better, worse), run="r", round=1, judge=judge, kind="pairwise", prompt_key=digest(0),
        candidate_a=a, candidate_b=b, shown_first=None, verdict="a" if better == a else "b",
        p_a=p_better if better == a else 1 - p_better, at=AT,
    )  # fmt: skip


def test_a_pair_is_shown_with_what_every_judge_said_of_it(store: Store) -> None:
    chosen, rejected = digest(0, "c"), digest(0, "r")
    store.append("judgments", [judged("strict", chosen, rejected, 0.9), judged("kind", rejected, chosen, 0.7)])
    (shown,) = reports.with_votes(store, "r", [PairToRead("disputed", preference(0))])
    assert {vote.judge: vote.says for vote in shown.votes} == {"strict": "chosen", "kind": "rejected"}
    assert {vote.judge: round(vote.p_chosen, 6) for vote in shown.votes} == {"strict": 0.9, "kind": 0.3}


STUDY = {
    "round": 0,
    "judge": "<rating>",
    "prompts": 40,
    "sizes": [
        {"n": n, "score": [0.4 + 0.1 * i, 0.3, 0.9], "qualities": {"words": [50.0 - i, 40.0, 60.0]},
         "kl_bound": 0.1 * i, "kl_levels": [0.1 * i, 0.0, 0.5], "kl_estimate": [0.1 * i, 0.0, 0.5],
         "passed": [0.2, 0.1, 0.3], "any_passed": None, "if_alike": 0.3}
        for i, n in enumerate((1, 2, 4, 8))
    ],
    "hacking": [{"measure": "words", "best_n": 1, "begins": 4, "loss": [-2.0, -3.0, -1.0]}],
}  # fmt: skip


def test_studies_of_best_of_n_are_kept_and_shown(store: Store) -> None:
    reports.keep_study(store, "r", STUDY)
    reports.keep_study(store, "r", STUDY | {"prompts": 41})
    found = collect(store, "r")
    assert [study["prompts"] for study in found.studies] == [41]
    (store.run_folder("r") / "bon-9-torn.json").write_text('{"round": ')
    assert len(collect(store, "r").studies) == 1
    html = page.render(found)
    assert "<rating>" not in html
    seen = Page(html)
    titles = [str(attrs.get("aria-label")) for tag, attrs in seen.tags if tag == "svg"]
    assert [title for title in titles if "<rating>" in title] == [
        "<rating>, which picks", "words of what <rating> picks", "Passes of what <rating> picks",
        "KL of what <rating> picks",
    ]  # fmt: skip
    assert "Falls from n = 4: there the judge is fooled." in seen.text


def test_lengths_are_of_answers_that_there_are() -> None:
    rows = [
        {"key": "c", "round": 0, "split": "train", "kind": "sample", "failure": None, "tokens": 9},
        {"key": "r", "round": 1, "split": "train", "kind": "sample", "failure": None, "tokens": 4},
        {"key": "x", "round": 1, "split": "heldout", "kind": "sample", "failure": "timeout", "tokens": 7},
        {"key": "p", "round": 1, "split": "heldout", "kind": "probe", "failure": None, "tokens": 7},
        {"key": "h", "round": 1, "split": "heldout", "kind": "sample", "failure": None, "tokens": 5},
    ]
    pairs = [preference(1, chosen_key="c", rejected_key="r"), preference(2, chosen_key="c", rejected_key="gone")]
    assert reports.lengths_of(rows, pairs) == Lengths({1: [5]}, [9], [4])


def test_what_it_cost_is_told() -> None:
    base = run_report()
    paid = replace(base.rounds[1], tokens=41000, prompt_tokens=9000, cost=1.25)
    told = story(replace(base, rounds=[base.rounds[0], paid]))
    assert "It took 5 min 0 s, 41,000 tokens written and 9,000 read, for $1.25." in told
    unknown = story(replace(base, rounds=[base.rounds[0], replace(paid, cost=None)]))
    assert any("at a price that is not known for every answer" in sentence for sentence in unknown)
    assert any(
        "nothing of it paid for" in sentence for sentence in story(replace(base, rounds=[replace(paid, cost=0)]))
    )


def test_judges_beside_the_verifier_are_told_with_their_part() -> None:
    base = run_report()
    other = Judged(
        "other", independent=True, win_rate=Estimate(0.6, 0.5, 0.7), length_controlled=Estimate(0.5, 0.4, 0.6)
    )
    best = replace(
        base.rounds[1].report, judged=(other, Judged("own", independent=False, win_rate=Estimate(0.9, 0.8, 1)))
    )  # type: ignore[type-var]
    report = replace(base, rounds=[base.rounds[0], replace(base.rounds[1], report=best)])
    told = " ".join(story(report))
    assert "By the judge other, which did not label, it wins 60.0% (50.0% to 70.0%)" in told
    assert "50.0% (40.0% to 60.0%) as it would be at equal lengths." in told
    assert "By the judge own, which also labelled, it wins 90.0%" in told
    html = page.render(report)
    for words in ("win rate by other", "other (independent)", "own (labelled)", "Win rate at equal lengths"):
        assert words in html


def test_broken_answers_that_surely_became_more_are_told() -> None:
    base = run_report()
    before = replace(
        base.rounds[0].report, broken={"loop": Estimate(0.01, 0.0, 0.05), "empty": Estimate(0.0, 0.0, 0.04)}
    )  # type: ignore[type-var]
    after = replace(base.rounds[1].report, broken={"loop": Estimate(0.3, 0.2, 0.4), "empty": Estimate(0.02, 0.0, 0.07)})  # type: ignore[type-var]
    told = " ".join(
        story(replace(base, rounds=[replace(base.rounds[0], report=before), replace(base.rounds[1], report=after)]))
    )
    assert "Answers of the kind 'loop' became more frequent: 30.0% (20.0% to 40.0%), at the start 1.0%" in told
    assert "'empty'" not in told


def test_a_run_without_constraints_is_told_by_win_rates() -> None:
    base = run_report(final=None, final_start=None)
    start = replace(base.rounds[0].report, pass_rate=None)  # type: ignore[type-var]
    best = replace(base.rounds[1].report, pass_rate=None, gain=None, win_rate=Estimate(0.62, 0.55, 0.7))  # type: ignore[type-var]
    told = " ".join(
        story(replace(base, rounds=[replace(base.rounds[0], report=start), replace(base.rounds[1], report=best)]))
    )
    assert "wins 62.0% (55.0% to 70.0%) of its answers against the start policy" in told
    assert "has not been measured" not in told


def test_the_run_that_went_on_past_its_champion_says_so() -> None:
    base = run_report()
    later = replace(base.rounds[1], round=2, report=measured(30))
    told = story(replace(base, rounds=[*base.rounds, later]))
    assert "It went on to round 2 and gives back round 1." in told


def test_the_whole_report_is_plain_json(store: Store) -> None:
    found = collect(store, "r")
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["rounds"][1]["report"]["gain"] == [0.25, 0.15, 0.35]
    assert again["pairs"][0]["pair"]["chosen"] == [{"role": "assistant", "content": "good"}]
    assert set(again["provenance"]["hashes"]) == {"prompts, heldout", "preferences, round 1"}


def test_hostile_names_of_judges_kinds_and_sources_are_texts() -> None:
    name = "<script>alert(1)</script>"
    panel = {
        "judges": [AGREEMENT["judges"][0] | {"judge": name, "quarantined": 3, "quarantine": name}],
        "pairs": [AGREEMENT["pairs"][0] | {"judge": name}],
    }
    base = run_report(panel=panel, provenance={"sources": {name: 1}, "hashes": {name: name}})
    slices = (Slice(name, name, 3, Estimate(0.5, 0.4, 0.6)),)
    best = replace(base.rounds[1].report, slices=slices, judged=(Judged(name, win_rate=Estimate(0.5, 0.4, 0.6)),))  # type: ignore[type-var]
    html = page.render(replace(base, rounds=[base.rounds[0], replace(base.rounds[1], report=best)]))
    assert "<script" not in html
    assert Page(html).text.count(name) > 5


def test_the_queries_run(store: Store) -> None:
    for _, sql in queries("r"):
        store.sql(sql)
    assert shlex.split(stories.command_line(queries("it's")[0][1]))[2].count("'it''s'") == 1
