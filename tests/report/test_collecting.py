"""A report from the store: of a run that is done or at work, whole and the same again."""

from __future__ import annotations

import json
import shlex

import pytest
from reported_run import Page, measured, preference

from factory import report as reports
from factory.faults import FactoryError
from factory.report import (
    Lengths,
    collect,
    page,
    story as stories,
    write,
)
from factory.report.story import queries
from factory.schema import (
    Decision,
    Estimate,
)
from factory.store import Store


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


def test_the_whole_report_is_plain_json(store: Store) -> None:
    found = collect(store, "r")
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["rounds"][1]["report"]["gain"] == [0.25, 0.15, 0.35]
    assert again["pairs"][0]["pair"]["chosen"] == [{"role": "assistant", "content": "good"}]
    assert set(again["provenance"]["hashes"]) == {"prompts, heldout", "preferences, round 1"}


def test_the_queries_run(store: Store) -> None:
    for _, sql in queries("r"):
        store.sql(sql)
    assert shlex.split(stories.command_line(queries("it's")[0][1]))[2].count("'it''s'") == 1
