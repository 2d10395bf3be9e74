"""What is refused leaves nothing behind: no empty store, no folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.faults import FactoryError
from factory.store import Store

SOUND = "name: mine\npanel: [{judge: verifier}]\nevaluate: {independent: false}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a sound recipe and one with a fault."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sound.yaml").write_text(SOUND)
    (tmp_path / "faulty.yaml").write_text(SOUND + "pair: {strategy: best_wurst}\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "faulty.yaml"],
        ["run", "sound.yaml", "--set", "model=./empty"],
        ["run", "sound.yaml", "--set", "model=./nowhere"],
        ["run", "sound.yaml", "--set", "prompts.source=gone.jsonl"],
        ["run", "sound.yaml", "--set", "prompts.source=store"],
        ["run", "sound.yaml", "--from", "nobody:round-1"],
        ["run", "sound.yaml", "--run", "no/name"],
        ["sweep", "faulty.yaml", "--seeds", "1,2"],
        ["sweep", "sound.yaml", "--seeds", "1,2", "--run", "no/name"],
        ["sweep", "sound.yaml", "--vary", "pair.strategy=all,best_wurst"],
        ["report", "--run", "nobody"],
        ["status", "--run", "nobody"],
        ["prompts", "add", "gone.jsonl"],
    ],
)
def test_a_refused_command_makes_no_store(arguments: list[str], here: Path) -> None:
    outcome = CliRunner().invoke(app, [*arguments, "--store", "store"])
    assert outcome.exit_code == 2, outcome.output
    assert sorted(path.name for path in here.iterdir()) == ["empty", "faulty.yaml", "sound.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "sound.yaml", "--from", "nobody:round-1"],
        ["run", "sound.yaml", "--run", "mine", "--set", "model=./empty"],
        ["report", "--run", "nobody"],
        ["generate", "--run", "nobody", "--split", "train"],
        ["label", "--run", "nobody", "--round", "1", "--judge", "verifier"],
        ["evaluate", "--run", "nobody", "--model", "./nowhere", "--baseline", "./nowhere"],
    ],
)
def test_a_refused_command_makes_no_folder_of_a_run(arguments: list[str], here: Path) -> None:
    Store.open(here / "store", create=True).close()
    outcome = CliRunner().invoke(app, [*arguments, "--store", "store"])
    assert outcome.exit_code == 2, outcome.output
    assert sorted((here / "store").glob("runs/*")) == []
    with Store.open(here / "store") as store:
        assert store.runs() == []


def test_what_a_run_has_left_stays_when_it_is_refused_later(here: Path) -> None:
    def refuse(store: Store, run: str) -> None:
        with store.run_lock(run):
            raise FactoryError("too late")

    with Store.open(here / "store", create=True) as store:
        with pytest.raises(FactoryError):
            refuse(store, "empty")
        assert not (here / "store" / "runs" / "empty").exists()
        (store.run_folder("mine") / "round-1").mkdir()
        with pytest.raises(FactoryError):
            refuse(store, "mine")
        assert (here / "store" / "runs" / "mine" / "round-1").is_dir()
        store.put_run("known", SOUND, {})
        with pytest.raises(FactoryError):
            refuse(store, "known")
        assert (here / "store" / "runs" / "known" / "recipe.yaml").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that takes no bytes")
def test_a_full_disk_is_told_wherever_a_file_is_written(here: Path) -> None:
    """Python names no file where a write fails, and the fault is the user's to cure all the same."""
    with Store.open(here / "store", create=True):
        outcome = CliRunner().invoke(app, ["query", "SELECT 1", "--out", "/dev/full", "--store", "store"])
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stderr.startswith("error: No space left on device\n")
    assert "free some space" in outcome.stderr
