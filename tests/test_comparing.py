"""Runs beside each other: what is read of each, what making it took, groups over seeds, and the picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from judged import AT
from typer.testing import CliRunner

from factory.cli import app
from factory.comparing import Comparison, Course, Line, Setting, compare, course_of, mean_of, picture
from factory.faults import ConfigError, FactoryError
from factory.recipe import Recipe, dump, parse
from factory.rounds import branching, do
from factory.rounds.runbook import Run
from factory.schema import Candidate, Estimate, Judged, PolicyReport, Round, digest
from factory.store import Store

SVG = "{http://www.w3.org/2000/svg}"


def recipe(*overrides: str) -> Recipe:
    return parse("name: least\npanel: [{judge: verifier}]\n", where="least", overrides=overrides)


def near(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1)


def alone(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan)


def begin(store: Store, run: str, *, prompts: str = "same", **rest: str) -> None:
    store.put_run(run, dump(recipe(*(f"{key}={value}" for key, value in rest.items()))), {})
    store.mark(run, 0, "prompts", "done", {"data": {"heldout": prompts}, "seconds": 3.0})
    store.mark(run, 0, "evaluate", "done", {"seconds": 1000.0})


def close(store: Store, run: str, number: int, rate: float, **measures: Any) -> None:
    report = PolicyReport(
        policy="p", split="heldout", prompts=8, answers=8, failures=0, pass_rate=near(rate), **measures
    )
    row = {"key": digest(run, number), "run": run, "round": number, "policy": "p", "champion": False, "at": AT}
    store.append("rounds", [Round(**row, report={"report": report.to_json()})])


def stages(store: Store, run: str, number: int, details: Mapping[str, Mapping[str, Any]]) -> None:
    for stage, detail in details.items():
        store.mark(run, number, stage, "done", dict(detail))


def answer(run: str, number: int, place: int, tokens: int, **rest: Any) -> Candidate:
    values = {"prompt_key": "p", "split": "train", "model": "m", "tokens": tokens, "at": AT}
    key = digest(run, number, place, sorted(rest.items()))
    return Candidate(key=key, run=run, round=number, **(values | rest))


TOOK = {
    "generate": {"seconds": 10.0, "processor_seconds": 20.0},
    "label": {"seconds": 2.0, "processor_seconds": 1.0},
    "pair": {"seconds": 0.5, "processor_seconds": 0.5},
    "train": {"seconds": 30.0, "processor_seconds": 58.5},
    "evaluate": {"seconds": 1000.0, "processor_seconds": 1000.0},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """`a`: a run of two rounds. `b`: another, that shares the first round of `a` before its training."""
    with Store.open(tmp_path / "store", create=True) as opened:
        begin(opened, "a")
        close(opened, "a", 0, 0.2)
        for number, rate in ((1, 0.3), (2, 0.5)):
            stages(opened, "a", number, TOOK)
            judged = Judged("rating", True, win_rate=near(rate + 0.3))
            close(opened, "a", number, rate, gain=near(rate - 0.2), kl_sequence=near(3.0 * number), judged=(judged,))
            rows = [answer("a", number, i, 100 * number, call_key=f"c{number}{i}") for i in range(2)]
            opened.append("candidates", [*rows, answer("a", number, 7, 5000, split="heldout")])
        begin(opened, "b")
        close(opened, "b", 0, 0.2)
        shared = {name: detail | {"seconds": 0.0, "shared": "a"} for name, detail in TOOK.items() if name != "train"}
        stages(
            opened,
            "b",
            1,
            shared | {"train": {"seconds": 7.0, "processor_seconds": 14.0}, "evaluate": {"seconds": 9.0}},
        )
        close(opened, "b", 1, 0.4, kl_sequence=near(1.0), independent=True)
        opened.append("candidates", [answer("b", 1, i, 100, call_key=f"c1{i}") for i in range(2)])
        yield opened


def test_a_run_is_told_round_by_round_with_what_making_it_took(store: Store) -> None:
    course = course_of(store, "a")
    assert [line.round for line in course.lines] == [0, 1, 2]
    start, first, second = course.lines
    assert (start.kl, start.gain, start.win_rate) == (pytest.approx(alone(0.0), nan_ok=True), None, None)
    assert (first.pass_rate, first.gain, first.win_rate, first.kl) == (
        near(0.3), near(0.3 - 0.2), near(0.3 + 0.3), near(3.0)
    )  # fmt: skip
    made = [(line.seconds, line.processor_seconds, line.sampled) for line in course.lines]
    assert [[value and value.value for value in each] for each in made] == [[0, 0, 0], [42.5, 80, 200], [85, 160, 600]]
    assert second.pass_rate == near(0.5)
    assert course.judges == ("rating",)


def test_a_run_whose_rules_are_a_plugins_that_is_not_here_can_be_compared(store: Store) -> None:
    text = (store.get_run("a") or {})["recipe"]
    own = yaml.safe_dump({**yaml.safe_load(text), "stop": {"any": [{"rule": "of_a_plugin"}]}})
    store.put_run("c", own, {})
    close(store, "c", 0, 0.2)
    assert course_of(store, "c").lines[0].round == 0
    with pytest.raises(ConfigError, match="no stopping rule named 'of_a_plugin'") as raised:
        branching.opened(store, "c")
    assert "--plugin" in raised.value.todo


def test_what_is_shared_is_charged_as_if_it_had_been_done(store: Store) -> None:
    """`b` trained for 7 seconds on what took `a` 12.5."""
    *_, last = course_of(store, "b").lines
    assert last.seconds is not None
    assert last.seconds.value == 19.5
    assert last.processor_seconds is not None
    assert last.processor_seconds.value == 35.5
    assert last.sampled is not None
    assert last.sampled.value == 200


def test_a_shared_training_has_the_answers_that_it_sampled(store: Store) -> None:
    """Answers of an online training stay with the run that trained; of a shared stage of a shared stage too."""
    store.append("candidates", [answer("a", 1, 20, 1000, kind="online"), answer("a", 1, 21, 9, kind="given")])
    for name, origin in (("c", "a"), ("d", "c")):
        begin(store, name)
        close(store, name, 0, 0.2)
        close(store, name, 1, 0.3)
        stages(store, name, 1, {stage: {"seconds": 0.0, "shared": origin} for stage in TOOK})
        store.append("candidates", [answer(name, 1, i, 100, call_key=f"c1{i}") for i in range(2)])
        last = course_of(store, name).lines[-1]
        assert [value and value.value for value in (last.seconds, last.sampled)] == [42.5, 1200]


def test_one_call_that_was_read_twice_was_sampled_once(store: Store) -> None:
    store.append("candidates", [answer("a", 1, 30, 100, call_key="c10", reader="2")])
    assert course_of(store, "a").lines[1].sampled == pytest.approx(alone(200), nan_ok=True)


def test_what_was_not_kept_is_not_told(store: Store) -> None:
    """An older run has no processor seconds; of a run that is gone nothing is known."""
    begin(store, "old")
    close(store, "old", 0, 0.2)
    close(store, "old", 1, 0.2)
    stages(store, "old", 1, {stage: {"seconds": 1.0} for stage in TOOK})
    last = course_of(store, "old").lines[-1]
    assert (last.seconds and last.seconds.value, last.processor_seconds) == (4.0, None)
    with pytest.raises(FactoryError, match="seconds of the processor were not kept by old") as caught:
        picture(compare(store, ["a", "old"]), "processor")
    assert caught.value.todo == "take the other's: --time clock"
    stages(store, "old", 1, {"label": {"seconds": 0.0, "shared": "gone"}})
    assert course_of(store, "old").lines[-1].seconds is None
    with pytest.raises(FactoryError, match="seconds of the clock were not kept by old") as caught:
        picture(compare(store, ["a", "old"]), "clock")
    assert caught.value.todo == "draw the others alone"


def test_a_group_is_the_mean_over_its_runs_with_a_t_interval(store: Store) -> None:
    """Pass rates of round 1: .3 and .4: mean .35, standard error .05, t(0.975, 1) = 12.706. `a` has one round more."""
    found = compare(store, [], {"both": ["a", "b"]})
    [course] = found.courses
    assert (course.runs, [line.round for line in course.lines]) == (("a", "b"), [0, 1])
    rate = course.lines[1].pass_rate
    assert rate is not None
    assert rate.value == pytest.approx(0.35)
    assert rate.high - rate.value == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert course.lines[1].seconds is not None
    assert course.lines[1].seconds.value == pytest.approx((42.5 + 19.5) / 2)
    assert course.lines[1].gain is None  # one of the two has none
    assert [note for note in found.notes if "both is told to round 1" in note and "(a 2, b 1)" in note]


def test_a_group_of_one_keeps_the_runs_own_interval(store: Store) -> None:
    course = course_of(store, "a")
    assert mean_of("x", [course]).lines[1].pass_rate == course.lines[1].pass_rate


def test_what_keeps_runs_from_being_compared_is_told(store: Store) -> None:
    assert compare(store, ["a", "b"]).notes == ()
    begin(store, "c", prompts="others", model="other")
    close(store, "c", 0, 0.2, independent=False)
    notes = compare(store, ["a", "c"]).notes
    assert len(notes) == 3
    assert "different models" in notes[0]
    assert "different held-out prompts" in notes[1]
    assert notes[2].startswith("c: what measures has labelled")


@pytest.mark.parametrize(
    ("runs", "groups", "told"),
    [
        ([], {}, "no run to compare"),
        (["x"], {}, "no run named 'x'"),
        (["a"], {"g": ["a", "x"]}, "no run named 'x'"),
        (["begun"], {}, "no round of run 'begun' is done"),
        (["a"], {"a": ["b"]}, "'a' is a run and a group"),
    ],
)
def test_what_cannot_be_compared(store: Store, runs: list[str], groups: dict[str, list[str]], told: str) -> None:
    begin(store, "begun")
    with pytest.raises(FactoryError, match=told):
        compare(store, runs, groups)


def test_a_stage_keeps_its_seconds_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> dict[str, Any]:
        return {"sum": sum(i * i for i in range(2_000_000))}

    monkeypatch.setattr("factory.rounds.perform", busy)
    with Store.open(tmp_path / "store", create=True) as opened:
        do(Run(opened, recipe("isolate=never"), "r"), 1, "pair")
        [*_, mark] = opened.marks("r")
    assert mark["state"] == "done"
    assert 0 < mark["detail"]["processor_seconds"] < 60


# ------------------------------------------------------------------------------------------------------ picture


def course(name: str, *places: tuple[float, float]) -> Course:
    lines = [
        Line(round=i, pass_rate=near(rate), kl=near(kl), seconds=alone(100.0 * i))
        for i, (kl, rate) in enumerate(places)
    ]
    return Course(name=name, runs=(name,), lines=tuple(lines), setting=Setting("m", "p", 8))


def test_the_picture_has_a_line_for_each_run_that_needs_no_colour() -> None:
    courses = [course(f"<{i}>", (0, 0.2), (i + 1, 0.3), (2 * i + 2, 0.5)) for i in range(7)]
    drawn = ElementTree.fromstring(str(picture(Comparison(tuple(courses)))))
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert texts[:7] == [f"<{i}>" for i in range(7)]
    assert {"held-out pass rate against KL from the start", "held-out pass rate against seconds of making (clock)"} <= {
        *texts
    }
    charts = [element for element in drawn.iter(f"{SVG}svg") if element.get("class") == "lines"]
    assert len(charts) == 2
    for chart in charts:
        lines = list(chart.iter(f"{SVG}polyline"))
        assert len(lines) == 7
        assert len({line.get("stroke-dasharray") for line in lines[:6]}) == 6
        assert len({(line.get("class"), line.get("stroke-dasharray")) for line in lines}) == 7
        bars = [element for element in chart.iter(f"{SVG}line") if str(element.get("class")).startswith("bar")]
        assert len(bars) == 7 * 3 * (2 if chart is charts[0] else 1)
    titles = [title.text for title in charts[1].iter(f"{SVG}title")]
    assert titles[2] == "<0>, 2: seconds: 200; pass rate: 50% (40% to 60%)"


def test_a_groups_interval_stays_upright_and_among_what_can_be() -> None:
    """Of few runs a t interval is wide: nothing passes more often than always, and the mean's place is a place."""
    wide = Line(round=1, pass_rate=Estimate(0.4, -0.3, 1.1), kl=Estimate(9.0, -50.0, 70.0), seconds=alone(5.0))
    group = Course(name="g", runs=("a", "b"), lines=(wide,), setting=Setting("m", "p", 8))
    drawn = ElementTree.fromstring(str(picture(Comparison((group,)))))
    for chart in (element for element in drawn.iter(f"{SVG}svg") if element.get("class") == "lines"):
        [bar] = [element for element in chart.iter(f"{SVG}line") if str(element.get("class")).startswith("bar")]
        assert bar.get("x1") == bar.get("x2")
        [title] = [str(title.text) for title in chart.iter(f"{SVG}title")]
        assert title.endswith("pass rate: 40% (0% to 100%)")


def test_bounds_that_nobody_knows_are_not_drawn() -> None:
    one = Line(round=1, pass_rate=alone(0.4), kl=alone(9.0), seconds=alone(5.0))
    drawn = picture(Comparison((Course(name="r", runs=("r",), lines=(one,), setting=Setting("m", "p", 8)),)))
    assert "pass rate: 40%<" in drawn
    assert 'class="bar' not in drawn


def test_without_pass_rates_win_rates_are_drawn() -> None:
    lines = (Line(round=0, win_rate=near(0.5), kl=alone(0.0), seconds=alone(0.0)),)
    one = Course(name="r", runs=("r",), lines=lines, setting=Setting("m", "p", 8))
    assert "held-out win rate against KL" in picture(Comparison((one,)))
    bare = Course(name="r", runs=("r",), lines=(Line(round=0, seconds=alone(0.0)),), setting=Setting("m", "p", 8))
    with pytest.raises(FactoryError, match="none of these runs has a pass rate"):
        picture(Comparison((bare,)))


# ------------------------------------------------------------------------------------------------------ command


def test_the_command_prints_a_table_or_json_and_writes_a_picture(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "compare.svg"
    told = [str(arg) for arg in ("compare", "a", "b", "--group", "both=a,b", "--store", store.folder)]
    shown = CliRunner().invoke(app, [*told, "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[0][:4] == ["run", "runs", "round", "pass"]
    assert [line[:3] for line in lines[2:]] == [
        ["a", "1", "0"], ["a", "1", "1"], ["a", "1", "2"], ["b", "1", "0"], ["b", "1", "1"], ["both", "2", "0"],
        ["both", "2", "1"],
    ]  # fmt: skip
    assert "both (mean of 2 runs)" in out.read_text(encoding="utf-8")
    said = json.loads(CliRunner().invoke(app, [*told, "--json"]).stdout)
    assert [each["name"] for each in said["courses"]] == ["a", "b", "both"]
    assert said["courses"][0]["rounds"][2]["seconds"] == [85.0, None, None]
    assert said["courses"][0]["rounds"][0]["kl"] == [0.0, None, None]


@pytest.mark.parametrize(
    "given",
    [["--group", "a,b"], ["--group", "=a"], ["--group", "g=a,"], ["--group", "g=a,a"],
     ["--group", "g=a", "--group", "g=b"], ["a", "--out", "x.png"], ["a", "--out", "/no folder/x.svg"], []],
)  # fmt: skip
def test_a_wrong_call_is_told(store: Store, given: list[str]) -> None:
    shown = CliRunner().invoke(app, ["compare", *given, "--store", str(store.folder)])
    assert shown.exit_code == 2, shown.output
    assert "to do:" in shown.output
