"""Prompts that must not be kept leave the store whole: no row, no byte on the disk, and the rest as it was."""

from __future__ import annotations

import json
from pathlib import Path
from pkgutil import resolve_name

import pytest
from store_processes import SMALL
from typer.testing import CliRunner, Result

from factory.cli import app
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import LockedError
from factory.generation import generate
from factory.labelling import PanelMember, label
from factory.pairing import pair
from factory.prompts import add_prompts
from factory.prompts.forgetting import forget
from factory.schema import Prompt, Sampling
from factory.store import Store

SECRET = "Xyzzyne Plughova"
TABLES = ("prompts", "calls", "candidates", "judgments", "preferences", "labels")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with all tables filled, sealed and not, in which one prompt of six and its answers name a person."""
    lines = [{"prompt": f"Who is {who}?"} for who in (SECRET, "Ada", "Grace", "Alan", "Edsger", "Barbara")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    says = [Rule(match=r"Who is (.*)\?", reply=lambda request, n: f"{request.messages[-1]['content']} {'so ' * n}")]
    with Store.open(tmp_path / "store", create=True, seal_at=SMALL) as store:
        add_prompts(store, str(tmp_path / "mine.jsonl"), heldout=0, final=0)
        engine = ScriptedEngine(rules=says)
        generate(store, engine, run="r", round=0, n=3, sampling=Sampling(), seed=0)
        label(store, [PanelMember.of("words"), PanelMember.of("pairwise", engine=engine)], run="r")
        pair(store, run="r", lead="words")
        assert all(store.counts()[table] for table in TABLES)
        assert store._journal.parts()
        assert store._journal.pending()
    return tmp_path / "store"


def whose(store: Store) -> str:
    return next(prompt.key for prompt in store.rows(Prompt) if SECRET in prompt.messages[0]["content"])


def on_disk(folder: Path) -> list[str]:
    """Files that hold the name: as bytes, or in the columns of a part."""
    with Store.open(folder) as store:
        held = [table for table in TABLES if SECRET in repr(store.read(table))]
    names = SECRET.encode()
    return held + [path.name for path in folder.rglob("*") if path.is_file() and names in path.read_bytes()]


def test_nothing_is_left_of_a_prompt_and_all_of_the_others(folder: Path) -> None:
    assert {"journal.sqlite", "prompts", "calls", "candidates", "preferences"} <= set(on_disk(folder))
    with Store.open(folder, seal_at=SMALL) as store:
        key = whose(store)
        others = {name: [row for row in store.read(name) if key not in repr(row)] for name in TABLES}
        plan = forget(store, [key], erase=False)
        assert whose(store) == key
        done = forget(store, [key])
        assert (done.rows, done.runs) == (plan.rows, ("r",))
        assert all(done.rows.values())
        assert {name: store.read(name) for name in TABLES} == others
        assert {name: len(rows) for name, rows in others.items()} == {name: store.counts()[name] for name in TABLES}
        assert (store.verify(), store.orphans()) == ([], [])
        assert store.sql("SELECT count(*) AS n FROM prompts").rows() == [{"n": 5}]
        assert forget(store, [key]).rows == dict.fromkeys(done.rows, 0)
        store.seal(force=True)
        assert store.verify() == []
    assert on_disk(folder) == []


@pytest.mark.parametrize(
    ("where", "calls"),
    [("factory.store.parts.sync", 3), ("factory.store.journal._count_pending", 4), ("factory.store.Store.scrub", 1)],
)
def test_what_was_cut_off_is_forgotten_by_the_same_call(
    folder: Path, where: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a new part that no manifest has, inside a transaction, and before the journal's file is written anew."""
    passed, real = 0, resolve_name(where)

    def stop(*arguments: object) -> None:
        nonlocal passed
        passed += 1
        if passed == calls:
            raise KeyboardInterrupt
        real(*arguments)

    with Store.open(folder, seal_at=SMALL) as store:
        key = whose(store)
        with monkeypatch.context() as patched:
            patched.setattr(where, stop)
            with pytest.raises(KeyboardInterrupt):
                forget(store, [key])
        assert store.verify() == []
        forget(store, [key])
    assert on_disk(folder) == []


def test_a_run_at_work_is_left_alone(folder: Path) -> None:
    with Store.open(folder) as store:
        key = whose(store)
        with store.run_lock("r"), pytest.raises(LockedError, match="run r is at work"):
            forget(store, [key])
        assert whose(store) == key


def test_the_command_says_what_goes_and_erases_with_yes(folder: Path) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["prompts", "forget", *arguments, "--store", str(folder)])

    where = ("--where", f"messages[1].content LIKE '%{SECRET}%'")
    told = run(*where, "--json")
    assert "add --yes" in told.stderr
    assert json.loads(told.stdout)["rows"]["prompts"] == 1
    assert on_disk(folder)
    done = run(*where, "--yes")
    assert (done.exit_code, on_disk(folder)) == (0, []), done.output
    assert "stay: r" in done.stderr
    assert run("nokey", "--yes").exit_code == 2
    assert "which prompts?" in run("--yes").stderr
