"""The command line end to end, in one process: each command, its JSON, its faults and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from typer.testing import CliRunner, Result

from factory.cli import app
from factory.commands import options
from factory.store import Store

RUNNER = CliRunner()
SCRIPT = """
- match: 'Tell me about'
  reply:
    - A plain answer about many small things that people know well
    - Yes, well, this one, as you see, has commas in it everywhere
    - Another plain answer which says a little about everyday matters
"""


def factory(*arguments: str) -> Result:
    return RUNNER.invoke(app, list(arguments))


def good(*arguments: str) -> Any:
    """The JSON that a command prints; it must exit with 0."""
    result = factory(*arguments, "--json")
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with prompts, candidates of a scripted model, judgments of two judges, preferences and labels."""
    folder = tmp_path_factory.mktemp("cli")
    script = folder / "script.yaml"
    script.write_text(SCRIPT)
    where = str(folder / "store")
    prompts = tiny_run.write_prompts(folder / "prompts.jsonl")
    assert good("prompts", "add", str(prompts), "--store", where)["prompts"] == 32
    made = good(
        "generate", "--engine", "scripted", "--model", str(script), "--n", "3", "--run", "hand", "--store", where
    )
    assert made["candidates"] > 0
    label = ("label", "--judge", "verifier", "--judge", "pairwise", "--engine", "scripted", "--model", "scripted")
    assert factory(*label, "--run", "hand", "--store", where).exit_code in (0, 1)
    paired = good("pair", "--run", "hand", "--lead", "verifier", "--store", where)
    assert paired["preferences"] > 0
    return where


def test_generate_again_asks_nothing(store: str) -> None:
    script = str(Path(store).parent / "script.yaml")
    again = good("generate", "--engine", "scripted", "--model", script, "--n", "3", "--run", "hand", "--store", store)
    assert again["reused"] == again["candidates"]


def test_commands_take_the_newest_round_of_a_run_unless_told(store: str, tmp_path: Path) -> None:
    script, copy = str(Path(store).parent / "script.yaml"), str(tmp_path / "store")
    shutil.copytree(store, copy)
    sampled = ("generate", "--engine", "scripted", "--model", script, "--n", "2", "--run", "hand", "--round", "3")
    assert good(*sampled, "--seed", "5", "--store", copy)["candidates"] > 0
    assert good("label", "--judge", "verifier", "--run", "hand", "--store", copy)["judges"][0]["judgments"] > 0
    good("pair", "--run", "hand", "--store", copy)
    sql = "SELECT DISTINCT round FROM judgments ORDER BY 1"
    assert json.loads(factory("query", sql, "--format", "json", "--store", copy).stdout) == [{"round": 0}, {"round": 3}]
    none = factory("label", "--judge", "verifier", "--run", "nobody", "--store", copy)
    assert none.exit_code == 2
    assert "no candidates" in none.stderr


def test_the_verifier_prefers_answers_without_commas(store: str) -> None:
    sql = "SELECT chosen[1].content AS chosen, rejected[1].content AS rejected FROM preferences"
    rows = json.loads(factory("query", sql, "--format", "json", "--store", store).stdout)
    assert rows
    assert all("," not in row["chosen"] and "," in row["rejected"] for row in rows)


def test_the_query_of_the_readme_runs(store: str) -> None:
    sql = "SELECT judge, count(*), avg(p_a), avg(score) FROM judgments WHERE NOT canary GROUP BY 1"
    table = factory("query", sql, "--store", store)
    assert table.exit_code == 0, table.output
    assert "verifier" in table.stdout
    assert "pairwise" in table.stdout


def test_a_cut_query_says_so_on_stderr(store: str) -> None:
    result = factory("query", "SELECT key FROM candidates", "--limit", "2", "--format", "csv", "--store", store)
    assert len(result.stdout.splitlines()) == 3
    assert "2" in result.stderr
    assert "limit" in result.stderr


def test_a_query_with_parameters_and_a_file(store: str, tmp_path: Path) -> None:
    out = tmp_path / "answer.parquet"
    sql = "SELECT count(*) AS n FROM candidates WHERE sample = $sample"
    result = factory("query", sql, "-p", "sample=1", "--format", "parquet", "--out", str(out), "--store", store)
    assert result.exit_code == 0, result.output
    import pyarrow.parquet as pq

    assert pq.read_table(out).to_pylist()[0]["n"] > 0


def test_agreement_names_both_judges(store: str) -> None:
    report = good("agreement", "--run", "hand", "--store", store)
    strict = factory("agreement", "--run", "hand", "--json", "--store", store).stdout
    assert json.loads(strict, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == report
    assert {judge["judge"] for judge in report["judges"]} == {"verifier", "pairwise"}
    assert "verifier" in factory("agreement", "--run", "hand", "--store", store).stdout


def test_schema_tells_every_table() -> None:
    names = {entry["name"] for entry in good("schema")}
    assert {"prompts", "calls", "candidates", "judgments", "preferences", "labels", "logps", "rounds", "cost"} <= names
    assert "probability that a is the better" in factory("schema", "judgments").stdout
    assert factory("schema", "judgmnts").exit_code == 2


def test_export_loads_with_datasets(store: str, tmp_path: Path) -> None:
    assert good("export", str(tmp_path / "out"), "--store", store)["form"] == "dataset"
    from datasets import load_dataset

    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert {"prompt", "chosen", "rejected"} <= set(loaded.column_names)


def test_train_and_evaluate_by_hand(store: str, tiny_model: Path) -> None:
    quick = ("--set", "epochs=1", "--set", "lora={r: 2}", "--set", "threads=1", "--set", "dtype=float32")
    trained = good("train", "--model", str(tiny_model), "--run", "hand", *quick, "--store", store)
    assert trained["method"] == "dpo"
    policy = trained["policy"]
    assert (Path(policy) / "adapter_model.safetensors").is_file()
    kto = good("train", "--method", "kto", "--model", str(tiny_model), "--run", "hand", "--round", "0", *quick,
               "--out", str(Path(store).parent / "kto"), "--store", store)  # fmt: skip
    assert kto["rows"] > trained["rows"]
    few = ("--limit", "3", "--max-tokens", "6", "--top-p", "0.9", "-E", "threads=1", "-E", "dtype=float32")
    measured = good(
        "evaluate", "--model", policy, "--baseline", str(tiny_model), *few, "--score-limit", "2", "--run", "measured",
        "--store", store
    )  # fmt: skip
    assert (measured["answers"], measured["scored"]) == (3, 2)
    how = good("query", "SELECT DISTINCT sampling FROM calls WHERE purpose = 'evaluate'", "--store", store)
    assert [json.loads(row["sampling"])["top_p"] for row in how] == [0.9]
    assert measured["kl_sequence"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["label", "--judge", "verifer"], 2, "did you mean 'verifier'"),
        (["label", "--judge", "polite"], 2, "bring your own: factory --plugin FILE"),
        (["generate", "--engine", "transfomers"], 2, "did you mean 'transformers'"),
        (["pair", "--strategy", "best"], 2, "best_worst"),
        (["train", "--method", "simppo"], 2, "did you mean 'simpo'"),
        (["train", "--set", "epochs=none"], 2, "epochs"),
        (["query", "DROP TABLE prompts"], 2, ""),
        (["run", "quickstart", "--dry-run", "--from", "round-1"], 2, "--dry-run plans whole runs"),
        (["run", "quickstrat", "--dry-run"], 2, "did you mean 'quickstart'"),
        (["run", "quickstart", "--run", "given"], 2, "holds the answers and verdicts that were brought in"),
        (["status", "--run", "nothing"], 2, "no run named"),
        (["generate", "--split", "nothing"], 2, "no prompts"),
        (["generate", "--engine", "openai", "--model", "m", "-E", "base_url="], 2, "base_url: no value"),
        (["label", "--judge", "verifier", "-J", "least=3"], 2, "does not name its judge"),
        (["label", "--judge", "verifier", "-J", "verifer.least=3"], 2, "did you mean 'verifier'"),
        (["query", "SELECT 1", "--out", "/nowhere/at/all.csv"], 2, "/nowhere/at/all.csv"),
        (["export", "/proc/nothing"], 2, "/proc/"),
        (["run", "quickstart", "--dry-run", "--set", "pair.strategy=best_wurst"], 2, "did you mean 'best_worst'"),
    ],
)
def test_faults_say_what_to_do_and_have_their_code(store: str, arguments: list[str], code: int, said: str) -> None:
    result = factory(*arguments, "--store", store)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "error: " in result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--seed", str(2**63)],
        ["generate", "--round", str(2**63)],
        ["generate", "--top-p", "0"],
        ["generate", "--temperature", "1e400"],
        ["evaluate", "--temperature", "nan"],
        ["train", "--set", f"seed={2**63}"],
        ["recipe", "show", "quickstart", "--set", f"seed={2**63}"],
    ],
)
def test_numbers_that_nothing_can_hold_are_refused_at_once(arguments: list[str]) -> None:
    result = factory(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""


def test_a_missing_store_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    result = factory("query", "SELECT 1", "--store", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "to do:" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("command", "flag", "suffix"),
    [
        (("query", "SELECT 1"), "--out", ".csv"),
        (("bon", "--run", "hand", "--split", "train"), "--out", ".svg"),
        (("agreement", "--run", "hand"), "--escalate", ".csv"),
        (("report", "--run", "hand"), "--out", ".html"),
    ],
)
def test_a_file_whose_folder_is_not_there_is_refused_first(
    store: str, tmp_path: Path, command: tuple[str, ...], flag: str, suffix: str
) -> None:
    """`report` has no rounds to tell of here, which would come later."""
    missing = tmp_path / "not there"
    file = missing / f"x{suffix}"
    result = factory(*command, flag, str(file), "--store", store)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: the folder of {flag} is not there\n  where: {file}\n")
    assert f"mkdir -p '{missing}'" in result.stderr
    assert not missing.exists()
    (tmp_path / f"folder{suffix}").mkdir()
    onto = factory(*command, flag, str(tmp_path / f"folder{suffix}"), "--store", store)
    assert onto.exit_code == 2
    assert f"{flag} names a folder" in onto.stderr


HOLDER = """
import sys
from factory.store import Store
with Store.open(sys.argv[1]) as store, store.run_lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("held", ["generate", "--engine", "scripted", "--run", "held"]),
        ("given", ["prompts", "add", "verifiable"]),  # two at once could put paraphrases into different splits
    ],
)
def test_a_held_run_is_exit_code_4(store: str, name: str, arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = factory(*arguments, "--store", store)
        holder.communicate("")
    assert result.exit_code == 4, result.output
    assert str(holder.pid) in result.stderr


def test_one_question_to_an_endpoint_that_is_not_there_is_exit_code_3(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.engines.endpoints.FIRST_PAUSE", 0.001)
    asked = ("--engine", "openai", "--model", "m", "-E", "base_url=http://127.0.0.1:9/v1", "--limit", "1", "--n", "1")
    result = factory("generate", *asked, "--run", "gone", "--store", store)
    assert result.exit_code == 3, result.output
    assert "the endpoint cannot be reached" in result.stderr
    assert "http://127.0.0.1:9/v1" in result.stderr
    counted = factory(
        "query", "SELECT count(*) AS n FROM calls WHERE run = 'gone'", "--format", "json", "--store", store
    )
    assert json.loads(counted.stdout) == [{"n": 0}]


def test_a_damaged_part_is_exit_code_5(store: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from factory.store import Store

    copy = tmp_path / "store"
    with Store.open(store) as opened:
        opened.seal(force=True)
    shutil.copytree(store, copy)
    part = next((copy / "tables" / "candidates").glob("*.parquet"))
    group = pq.ParquetFile(part).metadata.row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "text")
    raw = bytearray(part.read_bytes())
    raw[column.dictionary_page_offset + column.total_compressed_size - 3] ^= 0xFF  # in the last page of the texts
    part.write_bytes(bytes(raw))
    assert factory("query", "SELECT * FROM candidates", "--store", str(copy)).exit_code == 5
    assert factory("doctor", "--store", str(copy)).exit_code == 1


def test_a_dry_run_asks_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    plan = good("run", "quickstart", "--dry-run", "--store", str(tmp_path / "store"))
    assert plan["calls_at_most"] > 0
    assert plan["prompts"]["heldout"] >= 90
    assert not (tmp_path / "store").exists()


def test_a_plan_says_whether_the_models_prices_are_known(store: str, tmp_path: Path) -> None:
    asked = ["generate", "--dry-run", "--engine", "openai", "--model", "m", "--store", store]
    for model, known in (("m", True), ("another", False)):
        table = tmp_path / f"{model}.yaml"
        table.write_text(f"{model}: {{prompt: 1, completion: 2}}")
        cost = good(*asked, "-E", f"prices={table}")["cost"]
        assert cost.startswith("by the tokens") == known
        assert ("no prices of 'm'" in cost) == (not known)


def test_doctor_works_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = factory("doctor")
    assert result.exit_code == 0, result.output
    assert "python" in result.stdout


def test_recipes_are_listed_shown_and_checked(tmp_path: Path) -> None:
    assert "quickstart" in {row["recipe"] for row in good("recipe", "list")}
    assert good("recipe", "show", "quickstart", "--set", "seed=99")["seed"] == 99
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\npanel: []\nwrong: 1\n")
    result = factory("recipe", "check", str(bad))
    assert result.exit_code == 2
    assert "wrong" in result.stderr
    assert "panel" in result.stderr


def test_commands_by_hand_take_the_newest_run_that_sampled_and_no_evaluation(store: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "store")
    shutil.copytree(store, copy)
    measured = factory("evaluate", "--engine", "scripted", "--limit", "2", "--run", "later", "--store", copy)
    assert measured.exit_code == 0, measured.output
    assert "pass_rate" in measured.stdout
    given = tmp_path / "given.jsonl"
    given.write_text('{"prompt": "Which is it?", "chosen": "this one", "rejected": "that one"}\n')
    assert good("prompts", "add", str(given), "--store", copy)["preferences"] == 1
    for command in (["label", "--judge", "verifier"], ["agreement"], ["pair", "--lead", "verifier"]):
        assert good(*command, "--store", copy)["run"] == "hand"


def test_a_report_of_single_commands_says_that_there_are_no_rounds(store: str) -> None:
    told = factory("report", "--run", "hand", "--store", store)
    assert (told.exit_code, "'hand' was made by single commands" in told.stderr) == (2, True)
    assert "no run named 'nobody'" in factory("report", "--run", "nobody", "--store", store).stderr


def test_the_newest_run_is_found_in_columns_and_not_row_by_row(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table may have millions of rows, and each command that names no run asks."""
    monkeypatch.setattr(Store, "read", None)
    with Store.open(store) as opened:
        assert options.newest(opened, "judgments", None, split="train") == "hand"
        assert options.newest_round(opened, "judgments", "hand", None, split=None) == 0


def test_answers_from_outside_are_labelled_paired_and_compared_without_naming_their_kind(tmp_path: Path) -> None:
    rows, where = tmp_path / "scored.jsonl", str(tmp_path / "store")
    lines = [{"prompt": f"Why {n}?", "completion": "word " * k, "score": k} for n in ("this", "that") for k in (1, 2)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--heldout", "0", "--final", "0", "--store", where)
    assert good("prompts", "add", str(rows), "--scale", "0:2", "--judge", "mine", *options)["judgments"] == 4
    assert good("label", "--judge", "words", "--store", where)["run"] == "given"
    assert good("agreement", "--gold", "mine", "--store", where)["run"] == "given"
    assert good("pair", "--lead", "mine", "--store", where)["preferences"] == 2


def test_demonstrations_are_labels_to_learn(tmp_path: Path) -> None:
    rows, where = tmp_path / "demos.jsonl", str(tmp_path / "store")
    rows.write_text('{"instruction": "Why?", "output": "Because."}\n')
    train = ("train", "--method", "sft", "--store", where)
    good("prompts", "add", str(rows), "--store", where)
    refused = factory(*train)
    assert (refused.exit_code, "prompts add FILE --label true" in refused.output) == (2, True)
    assert good("prompts", "add", str(rows), "--label", "true", "--store", where)["labels"] == 1


def test_a_judge_whose_judgments_failed_is_told_of_with_what_helps(store: str, tmp_path: Path) -> None:
    copy, script = str(tmp_path / "store"), tmp_path / "unsure.yaml"
    shutil.copytree(store, copy)
    script.write_text("- asks: true\n  answer_logprobs: {A: -9, B: -9}\n")
    judge = ("--judge", "unsure=pairwise", "--engine", "scripted", "--model", str(script))
    told = factory("label", *judge, "--store", copy)
    assert told.exit_code == 1
    assert " failed: low_mass (little probability is on valid answers: another -J unsure.prefix" in told.stderr


def test_a_query_writes_all_rows_in_the_form_that_the_file_s_name_says(store: str, tmp_path: Path) -> None:
    many = "SELECT range AS n FROM range(1200)"
    lines, comma = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    for out in (lines, comma):
        assert factory("query", many, "--out", str(out), "--store", store).exit_code == 0
    assert [json.loads(line)["n"] for line in lines.read_text().splitlines()] == list(range(1200))
    assert comma.read_text().splitlines() == ["n", *map(str, range(1200))]
    printed = factory("query", many, "--format", "csv", "--store", store)
    assert (len(printed.stdout.splitlines()), "cut after 1,000 rows" in printed.stderr) == (1001, True)
    wrong = factory("query", many, "--out", str(tmp_path / "rows.xls"), "--store", store)
    assert (wrong.exit_code, "no format named 'xls'" in wrong.stderr) == (2, True)


def test_status_tells_of_what_single_commands_made(store: str) -> None:
    said = factory("status", "--store", store).stdout
    assert said.startswith("no runs yet")
    [line] = [line.split() for line in said.splitlines() if line.startswith("hand")]
    counts = ("candidates", "judgments", "preferences", "labels")
    asked = ", ".join(f"(SELECT count(*) FROM {table} WHERE run = 'hand') AS {table}" for table in counts)
    [held] = good("query", f"SELECT {asked}", "--store", store)
    assert line == ["hand", *(str(held[table]) for table in counts)]


def test_the_start_is_measured_and_not_compared_with_itself(store: str) -> None:
    told = good("evaluate", "--engine", "scripted", "--limit", "2", "--run", "alone", "--store", store)
    assert told["pass_rate"][0] == 1
    assert (told.get("gain"), told.get("win_rate")) == (None, None)


def test_evaluations_of_one_day_do_not_share_their_baselines(store: str) -> None:
    """They share a run's name by default; the first baseline comes again after another, and is held already."""
    told = [
        good("evaluate", "--engine", "scripted", "--model", "p", "--baseline", name, "--limit", "2", "--store", store)
        for name in ("a", "b", "a")
    ]
    assert len({each["run"] for each in told}) == 1
    assert [each["baseline"] for each in told] == ["a", "b", "a"]


def test_an_interval_is_shown_as_one(store: str) -> None:
    shown = factory("evaluate", "--engine", "scripted", "--limit", "2", "--run", "shown", "--store", store).stdout
    line = next(line for line in shown.splitlines() if line.startswith("pass_rate"))
    assert line.split(maxsplit=1)[1] == "1 [0.342, 1]"


def test_prompts_come_first_in_the_help() -> None:
    shown = factory("--help").stdout
    assert shown.index("prompts ") < shown.index("generate ")


def test_every_command_has_help_and_json() -> None:
    shown = factory("--help").stdout
    for command in ("prompts", "generate", "label", "pair", "agreement", "train", "evaluate", "run", "status", "recipe",
                    "query", "schema", "export", "report", "doctor"):  # fmt: skip
        assert command in shown
    for command in ("generate", "label", "pair", "agreement", "train", "evaluate", "run", "status", "query", "schema",
                    "export", "report", "doctor", "prompts add", "recipe list", "recipe show",
                    "recipe check"):  # fmt: skip
        assert "--json" in factory(*command.split(), "--help").stdout


def test_a_meta_judge_is_not_given_plain_answers(store: str) -> None:
    said = factory("label", "--judge", "meta_judge", "--engine", "scripted", "--store", store)
    assert said.exit_code == 2
    assert "judges candidates of kind judgment" in said.output


@pytest.mark.parametrize("name", ["=verifier", "strict="])
def test_a_judge_is_named_whole(store: str, name: str) -> None:
    said = factory("label", "--judge", name, "--store", store)
    assert said.exit_code == 2
    assert "names no judge" in said.output


@pytest.mark.parametrize("level", [None, "INFO"])
def test_workers_of_several_hosts_tell_what_torch_has_to_say(
    level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the launcher is silenced: what NCCL says in a worker is how a training on several hosts is mended."""
    seen: list[str | None] = []
    monkeypatch.setattr("factory.training.help_train", lambda how: seen.append(os.environ.get("TORCH_CPP_LOG_LEVEL")))
    if level is None:
        monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", level)
    told = factory("train", "--nodes", "2", "--node", "1", "--rendezvous", "localhost:29500")
    assert told.exit_code == 0, told.output
    assert seen == [level]
