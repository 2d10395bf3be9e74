"""People's verdicts: what a file may say, what is a fault of it, and how it becomes judgments."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from judged import candidate_of, prompt_of

from factory import verdicts
from factory.faults import ConfigError, FactoryError
from factory.judges import judges
from factory.judges.human import COLUMNS, Given, HumanJudge, read_verdicts, sheet
from factory.labelling import PanelMember, label
from factory.schema import Judgment, Matchup
from factory.store import Store

Row = Mapping[str, Any]


def jsonl(folder: Path, rows: Sequence[Any], name: str = "verdicts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def on(a: str, b: str, verdict: str | None, person: str = "ann") -> dict[str, Any]:
    return {"candidate_a": a, "candidate_b": b, "verdict": verdict, "person": person}


def pair(a: str, b: str, **more: Any) -> Matchup:
    return Matchup(prompt_of(), candidate_of(a), candidate_of(b), **more)


# ------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (on("k1", "k2", "a"), Given("k1", "k2", "a", None, "ann")),
        (on("k2", "k1", "a"), Given("k1", "k2", "b", None, "ann")),
        (on("k2", "k1", "tie"), Given("k1", "k2", "tie", None, "ann")),
        (on("k2", "k1", "k1"), Given("k1", "k2", "a", None, "ann")),
        (on("k1", "k2", " B "), Given("k1", "k2", "b", None, "ann")),
        (on("k1", "k2", "Tie", ""), Given("k1", "k2", "tie", None, "")),
        ({"candidate_a": "k1", "score": "4.5"}, Given("k1", None, None, 4.5, "")),
        ({"candidate_a": "k1", "score": 0, "verdict": None, "candidate_b": ""}, Given("k1", None, None, 0.0, "")),
    ],
)
def test_rows_in_either_order_become_canonical(tmp_path: Path, row: Row, expected: Given) -> None:
    assert read_verdicts(jsonl(tmp_path, [row])) == [expected]


def test_a_csv_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text('\ufeffcandidate_b,verdict,candidate_a,person,note\nk1,b,k2,ann,"why,\nso"\nk1,,k3,ann,\n')
    assert read_verdicts(path) == [Given("k1", "k2", "a", None, "ann")]


def test_rows_that_nobody_filled_in_are_none(tmp_path: Path) -> None:
    rows = [on("k1", "k2", ""), on("k1", "k3", None), {"note": "later"}]
    assert read_verdicts(jsonl(tmp_path, rows)) == []


def test_every_fault_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    rows: list[Any] = [
        on("k1", "k2", "left"), on("", "k2", "a"), on("k1", "", "a"), on("k1", "k1", "a"),
        on("k1", "k2", "a") | {"score": 3}, {"candidate_a": "k1", "score": "high"},
        {"candidate_a": "k1", "score": True}, {"candidate_a": "k1", "score": "nan"},
        {"candidate_a": "k1", "candidate_b": "k2", "score": 1}, ["k1"], on("k1", "k2", "a") | {"person": {}},
    ]  # fmt: skip
    path = jsonl(tmp_path, rows)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ConfigError) as told:
        read_verdicts(path)
    assert [fault.split(":")[0] for fault in told.value.faults] == [f"line {n}" for n in range(1, 13)]
    assert "'left'" in told.value.faults[0]
    assert str(path) in told.value.text()


def test_one_person_cannot_say_two_things_but_may_repeat_one(tmp_path: Path) -> None:
    agreed = [on("k1", "k2", "a"), on("k2", "k1", "b"), on("k1", "k2", "b", "bob")]
    assert len(read_verdicts(jsonl(tmp_path, agreed))) == 2
    with pytest.raises(ConfigError, match="line 4: another verdict by ann than in line 1"):
        read_verdicts(jsonl(tmp_path, [*agreed, on("k2", "k1", "a")]))


@pytest.mark.parametrize("name", ["v.xlsx", "v", "none.csv"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    if name != "none.csv":
        (tmp_path / name).write_text("x")
    with pytest.raises(FactoryError):
        read_verdicts(tmp_path / name)


def test_a_ragged_csv_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text("candidate_a,candidate_b,verdict\nk1,k2\nk1,k2,a,ann\n")
    with pytest.raises(ConfigError, match="not as many cells"):
        read_verdicts(path)


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=150)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    for ending in ("csv", "jsonl"):
        path = folder / f"fuzz.{ending}"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            assert all(isinstance(row, Given) for row in read_verdicts(path))
        except FactoryError as fault:
            assert fault.where  # noqa: PT017 - either way is right


# ------------------------------------------------------------------------------------------------------ the judge


def test_what_was_judged_is_voted_and_the_rest_is_silence(tmp_path: Path) -> None:
    judge = HumanJudge(file=str(jsonl(tmp_path, [on("k2", "k1", "a")])))
    votes = list(judge.vote([pair("k1", "k2"), pair("k1", "k3"), pair("k1", "k2", canary="empty")]))
    assert [(v.candidate_a, v.candidate_b, v.verdict, v.p_a) for v in votes] == [("k1", "k2", "b", 0.0)]
    assert (judge.kind, judge.partial, votes[0].detail) == ("pairwise", True, {"persons": {"ann": "b"}})


def test_several_people_are_averaged_and_one_can_be_picked(tmp_path: Path) -> None:
    """Two for a, one tie: (1 + 1 + 1/2) / 3."""
    rows = [on("k1", "k2", "a", "ann"), on("k1", "k2", "a", "bob"), on("k1", "k2", "tie", "eve")]
    path = str(jsonl(tmp_path, rows))
    [vote] = HumanJudge(file=path).vote([pair("k1", "k2")])
    assert (vote.verdict, vote.p_a) == ("a", pytest.approx(2.5 / 3))
    [alone] = HumanJudge(file=path, person="eve").vote([pair("k1", "k2")])
    assert (alone.verdict, alone.p_a) == ("tie", 0.5)
    with pytest.raises(FactoryError, match="no verdicts by 'joe'"):
        HumanJudge(file=path, person="joe")


def test_scores_need_a_scale_and_stay_on_it(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path, [{"candidate_a": "k1", "score": s, "person": p} for s, p in ((4, "ann"), (5, "bob"))]))
    judge = HumanJudge(file=path, low=1, high=5)
    [vote] = judge.vote([Matchup(prompt_of(), candidate_of("k1"))])
    assert (judge.kind, vote.score, vote.score_low, vote.score_high) == ("pointwise", 4.5, 1, 5)
    with pytest.raises(FactoryError, match="need their scale"):
        HumanJudge(file=path)
    with pytest.raises(FactoryError, match="not on the scale from 1 to 4, such as 5"):
        HumanJudge(file=path, low=1, high=4)


def test_a_file_of_both_needs_a_kind(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path, [on("k1", "k2", "a"), {"candidate_a": "k1", "score": 4}]))
    with pytest.raises(FactoryError, match="set kind"):
        HumanJudge(file=path)
    assert HumanJudge(file=path, kind="pairwise").kind == "pairwise"
    assert len(list(HumanJudge(file=path, kind="pointwise", low=1, high=5).vote([pair("k1", "k2")]))) == 0


def test_other_verdicts_are_another_reading(tmp_path: Path) -> None:
    one = HumanJudge(file=str(jsonl(tmp_path, [on("k1", "k2", "a")])))
    same = HumanJudge(file=str(jsonl(tmp_path, [on("k2", "k1", "b")], "same.jsonl")))
    other = HumanJudge(file=str(jsonl(tmp_path, [on("k1", "k2", "b")], "other.jsonl")))
    assert one.reader == same.reader != other.reader


def test_in_a_panel_nothing_fails_where_nobody_was_asked(tmp_path: Path) -> None:
    prompt = prompt_of()
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("prompts", [prompt])
        store.append("candidates", [candidate_of(key, prompt=prompt) for key in ("k1", "k2", "k3")])

        def run(rows: Sequence[Row]) -> Any:
            member = PanelMember.of("human", options={"file": str(jsonl(tmp_path, rows))})
            return label(store, [member], run="r").judges[0]

        report = run([on("k2", "k1", "k1")])
        assert (report.failures, report.verdicts, report.judgments) == ({}, 1, 1)
        assert run([on("k2", "k1", "k1")]).judgments == 0
        mended = run([on("k2", "k1", "k2"), on("k1", "k3", "tie")])
        assert (mended.verdicts, mended.judgments) == (2, 2)
        panel = verdicts.read(store.rows(Judgment))
    found = {key: verdict and verdict.verdict for key, verdict in panel.pairs["human"].items()}
    assert found == {("k1", "k2"): "b", ("k1", "k3"): "tie"}


def test_the_registry_says_what_it_needs() -> None:
    assert judges.facts("human") == {"asks": False, "file": True}
    with pytest.raises(FactoryError, match="file"):
        PanelMember.of("human")


# ------------------------------------------------------------------------------------------------------ the sheet


def matchups(count: int) -> list[Matchup]:
    return [pair(f"a{n:02d}", f"b{n:02d}", secret=b"x") for n in range(count)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_sheet_filled_in_is_read_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"sheet.{ending}"
    assert sheet(matchups(20), path, seed=3, person="ann") == 20
    assert read_verdicts(path) == []
    if ending == "csv":
        with path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {tuple(row) for row in rows} == {COLUMNS}
    for row in rows:
        row["verdict"] = "a" if row["answer_a"].startswith("answer a") else "b"
    assert 3 < sum(row["verdict"] == "a" for row in rows) < 17
    said = read_verdicts(jsonl(tmp_path, rows, "filled.jsonl"))
    assert {(g.verdict, g.person) for g in said} == {("a", "ann")}
    assert sorted(g.candidate_a for g in said) == [f"a{n:02d}" for n in range(20)]
    assert [g.candidate_a for g in said] != sorted(g.candidate_a for g in said)


def test_the_seed_decides_the_order_and_work_is_not_written_over(tmp_path: Path) -> None:
    texts = []
    for n, seed in enumerate((1, 1, 2)):
        order = matchups(12) if n else list(reversed(matchups(12)))
        sheet(order, tmp_path / f"{n}.jsonl", seed=seed)
        texts.append((tmp_path / f"{n}.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(FactoryError, match="there already"):
        sheet(matchups(1), tmp_path / "0.jsonl")
    with pytest.raises(FactoryError, match=r"a \.csv or a \.jsonl"):
        sheet(matchups(1), tmp_path / "sheet.xlsx")


def test_an_answer_is_no_formula(tmp_path: Path) -> None:
    evil = Matchup(prompt_of(), candidate_of("k1", "=HYPERLINK(1)"), candidate_of("k2", "@SUM(1)"))
    sheet([evil], tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert {row["answer_a"], row["answer_b"]} == {"'=HYPERLINK(1)", "'@SUM(1)"}


def test_verdicts_on_what_was_not_shown_are_counted(tmp_path: Path) -> None:
    judge = HumanJudge(file=str(jsonl(tmp_path, [on("k1", "k2", "a"), on("k1", "k9", "b")])))
    assert judge.unheard == 2
    assert len(list(judge.vote([pair("k1", "k2")]))) == 1
    assert judge.unheard == 1
