"""The page: well formed, loading nothing, showing texts as texts."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from reported_run import AGREEMENT, HOSTILE, Page, preference, run_report

from factory.faults import FactoryError
from factory.report import PairToRead, charts, figures, page, written
from factory.schema import (
    Decision,
    Estimate,
    Judged,
    Slice,
)

SVG = "{http://www.w3.org/2000/svg}"


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


def test_every_tone_of_a_chart_has_its_colour_by_day_and_by_night() -> None:
    html = page.render(run_report())
    for tone in range(1, len(charts.COLOURS) + 1):
        by_day, by_night = re.findall(rf"--t{tone}: (#[0-9a-f]{{6}});", html)
        assert by_day == charts.COLOURS[tone - 1]
        assert by_night != by_day
        assert f".t{tone} {{ --tone: var(--t{tone}); }}" in html


def test_eight_lines_of_a_measure_are_told_apart() -> None:
    kinds = [f"kind {i}" for i in range(8)]
    get = [lambda report, i=i: Estimate(i / 10, i / 20, i / 5) for i in range(8)]
    measure = figures._Measure("Kinds", "of broken answers", list(zip(kinds, get, strict=True)))
    drawn = figures._over_rounds(measure, run_report().rounds)
    assert [name for name, _ in drawn.legend] == kinds
    assert sorted(tone for _, tone in drawn.legend) == list(range(1, 9))
    assert all(f"line t{tone}" in drawn.chart for tone in range(1, 9))


def test_the_measures_are_one_picture_that_names_its_lines() -> None:
    report = run_report()
    views = [
        replace(
            view,
            report=view.report
            and replace(
                view.report,
                kl3_sequence=Estimate(4.0, 3.0, 5.0),
                gain_anytime=view.report.gain and Estimate(view.report.gain.value, -0.5, 0.5),
            ),
        )
        for view in report.rounds
    ]
    drawn = ElementTree.fromstring(written(replace(report, rounds=views), "svg"))
    captions = [text for text in drawn.iter(f"{SVG}text") if text.get("class") == "caption"]
    assert [text.text for text in captions][:4] == [
        "Held-out pass rate", "Gain since the start", "Win rate against the start", "KL from the start",
    ]  # fmt: skip
    assert list(captions[0]) == []
    assert [span.text for span in captions[1]] == ["alone", "at every look"]
    assert [span.text for span in captions[3]] == ["k1", "k3"]
    assert len({span.get("fill") for span in captions[3]}) == 2
    assert len(list(drawn.iter(f"{SVG}polyline"))) == len(captions) + 2


def test_nothing_measured_is_no_picture() -> None:
    with pytest.raises(FactoryError, match="no round was evaluated"):
        written(replace(run_report(), rounds=()), "svg")


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
    measured = ["Held-out pass rate", "Gain since the start", "Win rate against the start", "KL from the start"]
    assert titles[:7] == [*measured, "Length", "Relevance", "Distinct words"]
    assert titles[7:] == [
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
