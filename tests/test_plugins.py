"""Code of users' own: every example of docs/extending.md at work, and plugins that are not there, broken or empty."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from factory import plugins
from factory.faults import ConfigError, FactoryError
from factory.recipe import parse
from factory.registry import Registry
from factory.rounds import runbook
from factory.store import Store

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    name: textwrap.dedent(f"    # {name}\n{body}")
    for name, body in re.findall(
        r"^    # (\w+\.py)\n((?:    .*\n|\n)+)", (ROOT / "docs/extending.md").read_text(), re.M
    )
}
Factory = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def factory(examples: Path) -> Factory:
    """The command as a user has it, in the folder of the examples; `env` holds FACTORY_PLUGINS, if anything."""

    def call(*arguments: str, plugins: str = "") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "FACTORY_PLUGINS": plugins}
        code = "from factory.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=examples, env=env, capture_output=True, text=True, check=False
        )

    return call


def good(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_examples_at_work(factory: Factory, examples: Path, tiny_model: Path) -> None:
    """From prompts with an own constraint to a training by an own objective, each stage with something of its own."""
    with (examples / "prompts.jsonl").open("w") as file:
        for i in range(8):
            row = {
                "prompt": f"Tell of quiet northern glass river {i}, please",
                "constraints": [{"kind": "exclamations", "count": 1}],
            }
            file.write(json.dumps(row) + "\n")
    own = ",".join(name for name in EXAMPLES if name != "loop.py")
    plain = good(factory("prompts", "add", "prompts.jsonl", "--heldout", "0", "--final", "0", "--json", plugins=own))
    assert plain["prompts"] == 8
    asked = ("generate", "--engine", "shouting", "--model", "m", "--run", "r", "--n", "1", "--json")
    assert good(factory(*asked, "-E", 'mark="! thanks"', plugins=own))["candidates"] == 8
    (examples / "no.yaml").write_text(
        "- {match: '', reply: Quiet rivers carry northern glass towards distant harbours.}\n"
    )
    assert good(factory("generate", "--engine", "scripted", "--model", "no.yaml", *asked[5:], plugins=own))
    judged = ("label", "--run", "r", "--judge", "verifier", "--judge", "polite", "-J", "polite.words=2")
    said = good(factory(*judged, "--json", plugins=own))
    assert {judge["judge"]: judge["verdicts"] for judge in said["judges"]} == {"verifier": 16, "polite": 16}
    helped = good(factory("label", "--run", "r", "--judge", "helpful", "--engine", "scripted", "--json", plugins=own))
    assert helped["judges"][0]["verdicts"] == 16
    sql = "SELECT judge, score, contains(detail, '\"met\":[true]') AS met FROM judgments WHERE NOT canary"
    rows = good(factory("query", sql, "--json", plugins=own))
    assert {row["score"] for row in rows if row["judge"] == "polite"} == {0.0, 1.0}  # both words, or none of them
    assert {row["met"] for row in rows if row["judge"] == "verifier"} == {True, False}  # a mark, or none
    paired = good(factory("pair", "--run", "r", "--strategy", "closest", "--lead", "polite", "--json", plugins=own))
    assert paired["preferences"] == 8
    training = ("train", "--run", "r", "--model", str(tiny_model), "--method", "squared_hinge", "-p", "beta=0.5")
    trained = good(factory(*training, "--set", "epochs=1", "--out", "policy", "--json", plugins=own))
    assert trained["rows"] == 8


def test_an_own_rule_and_recipe(factory: Factory, examples: Path) -> None:
    text = "name: mine\nplugins: [calm.py, polite.py]\npanel: [{judge: verifier}, {judge: polite}]\n"
    (examples / "deep").mkdir()
    recipe = examples / "deep" / "mine.yaml"
    recipe.write_text(f"{text}stop: {{any: [{{rule: calm, words: 9}}]}}\nevaluate: {{independent: false}}\n")
    shown = good(factory("recipe", "show", str(recipe), "--json"))
    assert shown["plugins"] == [str(examples / "calm.py"), str(examples / "polite.py")]
    assert shown["stop"]["any"][0] == {"rule": "calm", "lasting": 1, "words": 9.0}
    (examples / "calm.py").rename(examples / "deep" / "calm.py")
    assert good(factory("recipe", "show", str(recipe), "--json"))["plugins"][0] == str(examples / "deep" / "calm.py")
    refused = factory("recipe", "check", str(recipe), "--set", "plugins=[calmer.py]")
    assert refused.returncode == 2
    assert f"there is no file '{examples / 'calmer.py'}'" in refused.stderr


@pytest.mark.slow
def test_stages_in_children_have_them_and_the_run_keeps_them(
    factory: Factory, examples: Path, tiny_model: Path
) -> None:
    source = tiny_run.write_prompts(examples / "prompts.jsonl")
    panel = [{"judge": "polite", "options": {"words": 3}}, {"judge": "pairwise", "engine": {"kind": "scripted"}}]
    text = tiny_run.recipe_text(
        tiny_model, source, plugins=["polite.py", "calm.py"], panel=panel, isolate="always",
        stop={"max_rounds": 1, "any": [{"rule": "calm", "words": 1000}]}, evaluate={"max_tokens": 8, "limit": 4,
        "independent": False},
    )  # fmt: skip
    (examples / "mine.yaml").write_text(text)
    assert good(factory("run", "mine.yaml", "--run", "r", "--json"))["stopped_by"] == "max_rounds"
    told = json.loads(factory("report", "--run", "r", "--format", "json").stdout)
    kept = told["provenance"]["plugins"]
    assert kept == {
        str(examples / name): hashlib.sha256(EXAMPLES[name].encode()).hexdigest() for name in ("polite.py", "calm.py")
    }
    assert "polite" in {judge["judge"] for judge in told["rounds"][1]["agreement"]["judges"]}


def test_a_recipe_that_a_store_keeps_brings_nothing_in(factory: Factory, examples: Path) -> None:
    """Who reports on a store that came from somewhere runs no code of it."""
    (examples / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    text = "name: x\nplugins: [evil.py]\npanel: [{judge: verifier}]\nstop: {any: [{rule: evil}]}\n"
    with Store.open(examples / "store", create=True) as store:
        store.put_run("r", text, {})
    for command in (("report", "--run", "r", "--format", "md"), ("status",), ("status", "--run", "r")):
        factory(*command)
        assert not (examples / "ran").exists()
    (examples / "x.yaml").write_text(text)
    factory("recipe", "check", "x.yaml")
    assert (examples / "ran").exists()


def test_an_installed_package_brings_its_own(factory: Factory, examples: Path) -> None:
    (examples / "calm.py").rename(examples / "ours.py")
    folder = examples / "ours-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[preference_factory.plugins]\nours = ours\n")
    assert "plugin: ours: stopping rule calm" in " ".join(factory("doctor").stdout.split())


def test_options_of_a_function_are_checked_and_named(factory: Factory) -> None:
    base = ("--plugin", "polite.py", "recipe", "check", str(ROOT / "pipelines" / "quickstart.yaml"), "--set")
    wrong = factory(*base, "panel=[{judge: verifier}, {judge: polite, options: {words: many}}]")
    assert "words: must be a whole number, not 'many'" in wrong.stderr
    unknown = factory(*base, "panel=[{judge: verifier}, {judge: polite, options: {wards: 2}}]")
    assert "its options are words" in unknown.stderr


def test_the_doctor_lists_them_and_says_what_is_wrong(factory: Factory, examples: Path) -> None:
    (examples / "broken.py").write_text("\n\nraise OSError('no way')\n")
    (examples / "empty.py").write_text("import factory.judges.words\n")
    told = factory("--plugin", "polite.py", "--plugin", "calm.py", "doctor").stdout
    assert f"{examples / 'polite.py'}: judge polite\n" in told
    assert f"{examples / 'calm.py'}: stopping rule calm\n" in told
    broken = factory("doctor", plugins="broken.py").stdout
    assert re.search(r"fail +plugin: the plugin '.*broken.py' cannot be loaded: OSError: no way \(.*, line 3\)", broken)
    empty = factory("recipe", "show", "quickstart", plugins="empty.py")
    assert (empty.returncode, "enters nothing" in empty.stderr) == (2, True)
    unknown = factory("--plugin", "calmest", "recipe", "show", "quickstart")
    assert "No module named 'calmest'" in unknown.stderr
    assert "to do: name its file (ending in .py), or let Python find it (PYTHONPATH=.)" in unknown.stderr
    gone = factory("--plugin", "gone.py", "doctor")
    assert (gone.returncode, "there is no file" in gone.stderr) == (2, True)


def test_a_script_of_ones_own(examples: Path, tiny_model: Path) -> None:
    code = f"import loop; loop.main('s', {str(tiny_model)!r}, prompts=3, tokens=6)"
    done = subprocess.run([sys.executable, "-c", code], cwd=examples, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (examples / "s" / "mine" / "policy").is_dir()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a process."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    for name in ("_plugins", "_found"):
        monkeypatch.setattr(plugins, name, {})


def test_only_what_the_plugin_enters_is_its_own(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a module beside it; not what a module of the factory enters when it is first imported for it."""
    table: Registry[int] = Registry("thing")
    monkeypatch.setitem(sys.modules, "things", type(sys)("things"))
    sys.modules["things"].table = table  # type: ignore[attr-defined]
    (tmp_path / "beside.py").write_text("from things import table\ntable.add('two', 2)\n")
    (tmp_path / "one.py").write_text(
        "import beside\nfrom things import table\nassert 'two' in table.names()\ntable.add('one', 1)\n"
        "import factory.trust.consistency\n"
    )
    for name in [name for name in sys.modules if name == "factory.trust.consistency"]:
        monkeypatch.delitem(sys.modules, name)
    assert plugins.use(["one.py"], tmp_path) == [str(tmp_path / "one.py")]
    assert os.environ[plugins.VARIABLE] == str(tmp_path / "one.py")
    assert table.get("one") == 1
    [plugin] = plugins.load()
    assert plugin.entered == [("thing", "two"), ("thing", "one")]
    assert plugin.content() != plugins.Plugin("x", str(tmp_path / "beside.py")).content()
    assert plugins.load() is plugins.load()


def test_one_that_failed_fails_again_with_the_same_words(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it may have been entered: to run it again would tell of a name that is taken."""
    (tmp_path / "half.py").write_text(
        "from factory.judges import judges\njudges.add('half', object(), asks=False)\nraise KeyError('x')\n"
    )
    table: Registry[int] = Registry("thing")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "half.py"))
    told = []
    for _ in range(2):
        with pytest.raises(FactoryError, match="KeyError: 'x'") as raised:
            table.names()
        told.append(raised.value)
    assert told[0] is told[1]
    assert told[0].where == f"{tmp_path / 'half.py'}, line 3"
    from factory.judges import judges

    monkeypatch.delitem(judges._entries, "half")
    monkeypatch.delitem(judges._facts, "half")


def test_a_run_that_goes_on_with_a_changed_plugin_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse("name: x\npanel: [{judge: verifier}]\n", where="x")
    with Store.open(tmp_path / "store", create=True) as store:
        for folder, content, told in (("a", "1", False), ("b", "1", False), ("b", "2", True)):
            monkeypatch.setattr(runbook, "_plugins", lambda at=f"/{folder}/own.py", hashed=content: {at: hashed})
            runbook.open_run(store, recipe, "r")
            assert ("the plugin /b/own.py was changed since the run began" in capsys.readouterr().err) == told


def test_files_that_are_not_there_are_all_told_of(fresh: None) -> None:
    with pytest.raises(ConfigError) as raised:
        plugins.use(["a.py", "b.py", "some.module"])
    assert len(raised.value.faults) == 2
    assert os.environ[plugins.VARIABLE] == ""
