"""A copy of a store is a whole store, also while others write to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from store_processes import SMALL, start
from store_rows import candidate
from typer.testing import CliRunner

from factory.cli import app
from factory.faults import FactoryError
from factory.store import Store

WRITER = """
import sys
from store_processes import SMALL
from store_rows import candidate
from factory.store import Store

with Store.open(sys.argv[1], seal_at=SMALL) as store:
    print("ready", flush=True)
    for number in range(1000, 3000, 4):
        store.append("candidates", [candidate(number + k) for k in range(4)])
"""


def test_copies_of_a_store_that_is_written_to_are_whole(tmp_path: Path) -> None:
    """Every copy has whole commits: four rows of each, and all that was there before."""
    with Store.open(tmp_path / "store", create=True, seal_at=SMALL) as store:
        store.append("candidates", [candidate(number) for number in range(25)])
        writer = start(WRITER, store.folder)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for number in range(5):
            (folder := tmp_path / f"copy-{number}").mkdir()
            store.copy(folder)
            with Store.open(folder) as copied:
                assert copied.verify() == []
                rows = copied.read("candidates", columns=["key"])
                assert (len(rows) - 25) % 4 == 0
                assert copied.secret == store.secret
                assert copied.append("candidates", [candidate(9999)]) == 1
        assert writer.wait() == 0
        assert store.counts()["candidates"] == 25 + 2000


def test_files_of_runs_come_along_and_locks_stay(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        home = store.run_folder("r")
        (home / "round-1" / "policy").mkdir(parents=True)
        (home / "round-1" / "policy" / "config.json").write_text("{}")
        (home / "round-1" / "checkpoints").mkdir()
        (home / "champion").symlink_to("round-1/policy")
        with store.run_lock("r"):
            done = CliRunner().invoke(
                app, ["export", str(tmp_path / "copy"), "--format", "store", "--store", str(store.folder)]
            )
    assert done.exit_code == 0, done.output
    copied = tmp_path / "copy" / "runs" / "r"
    assert sorted(path.name for path in copied.iterdir()) == ["champion", "round-1"]
    assert (copied / "champion").resolve() == copied / "round-1" / "policy"
    assert not (copied / "round-1" / "checkpoints").exists()
    assert json.loads((tmp_path / "copy" / "export.json").read_text())["form"] == "store"
    refused = CliRunner().invoke(
        app, ["export", str(tmp_path / "one"), "--format", "store", "--run", "r", "--store", str(tmp_path / "store")]
    )
    assert (refused.exit_code, "a store is copied whole" in refused.stderr) == (2, True)


def test_a_part_that_goes_meanwhile_is_told(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, seal_at=SMALL) as store:
        store.append("candidates", [candidate(number) for number in range(25)])
        (store.folder / store._journal.parts()[0].path).unlink()
        (tmp_path / "copy").mkdir()
        with pytest.raises(FactoryError, match="lost files while it was copied"):
            store.copy(tmp_path / "copy")
