from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from store_rows import AT, call, candidate, judgment, prompt

from factory import query
from factory.faults import FactoryError, IntegrityError
from factory.query.views import VIEWS
from factory.schema import TABLES, Preference, digest
from factory.store import Store, columns, parts
from factory.store.journal import Pending


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Half sealed, half not: 8 prompts, 32 candidates, a verifier's judgments, one canary, calls with a retry."""
    with Store.open(tmp_path_factory.mktemp("query") / "store", create=True) as opened:
        for half in (range(16), range(16, 32)):
            opened.append("prompts", [prompt(i // 4) for i in half])
            opened.append("candidates", [candidate(i) for i in half])
            opened.append("judgments", [judgment(i, score=i / 32, score_low=0.0, score_high=1.0) for i in half])
            opened.append("calls", [call(i, cost=0.5 if i % 2 else None, round=i % 2) for i in half])
            if half.start == 0:
                opened.seal(force=True)
        opened.append("judgments", [judgment(99, canary=True, canary_name="empty", score=1.0)])
        opened.append("calls", [call(0, attempt=2, text="second"), call(40, failure="timeout", passing=True)])
        opened.put_run("r", "rounds: 1\n", {"seed": 3})
        opened.mark("r", 1, "label", "done", {"n": 2})
        yield opened


def rows(store: Store, text: str, parameters: Any = None, **more: Any) -> list[dict[str, Any]]:
    return query.run(store, text, parameters, **more).rows()


def test_the_statement_of_the_readme(store: Store) -> None:
    text = "SELECT judge, count(*), avg(p_a), avg(score) FROM judgments WHERE NOT canary GROUP BY 1"
    assert rows(store, text) == [
        {"judge": "verifier", "count_star()": 32, "avg(p_a)": None, "avg(score)": sum(range(32)) / 32 / 32}
    ]


def test_sealed_and_unsealed_rows_are_one_table(store: Store) -> None:
    assert rows(store, "SELECT count(*) n, count(DISTINCT key) k FROM candidates") == [{"n": 32, "k": 32}]
    assert len(store.sql("FROM prompts").rows()) == 8
    assert rows(store, "SELECT messages FROM prompts WHERE key = ?", [digest("prompt", 3)]) == [
        {"messages": [{"role": "user", "content": "question 3"}]}
    ]
    assert rows(store, "SELECT sampling->>'$.max_tokens' AS m FROM calls LIMIT 1") == [{"m": "8"}]


def test_committed_rows_are_seen_while_a_writer_is_at_work(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True) as store, store._journal.transaction(write=True) as db:
        assert rows(Store.open(tmp_path), "SELECT count(*) n FROM prompts") == [{"n": 0}]
        db.execute("SELECT 1")
    with Store.open(tmp_path) as store:
        store.append("prompts", [prompt(1)])
        assert rows(store, "SELECT count(*) n FROM prompts") == [{"n": 1}]


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("SELECT ? + ? AS x", [1, 2], 3),
        ("SELECT $b - $a AS x", {"a": 1, "b": 2}, 1),
        ("SELECT ? IS NULL AS x", [None], True),
        ("SELECT ?::VARCHAR AS x", ["'; DROP TABLE calls; --"], "'; DROP TABLE calls; --"),
        ("SELECT count(*) AS x FROM calls WHERE \"at\" <= ?", [AT], 34),
        ("SELECT count(*) AS x FROM calls WHERE \"at\" < $t", {"t": AT.replace(tzinfo=UTC)}, 0),
        ("SELECT $t AS x", {"t": "lone \ud800"}, "lone �"),
    ],
)  # fmt: skip
def test_parameters(store: Store, text: str, parameters: Any, expected: Any) -> None:
    assert rows(store, text, parameters) == [{"x": expected}]


def test_parameters_from_the_command_line() -> None:
    assert query.parse_parameters(["1", "a b", "2.5", "true", "null", "[1]", '"x"']) == [
        1, "a b", 2.5, True, None, "[1]", '"x"',
    ]  # fmt: skip
    assert query.parse_parameters(["run=r1", "n=3", "text=a=b"]) == {"run": "r1", "n": 3, "text": "a=b"}
    with pytest.raises(FactoryError, match="either all name=value"):
        query.parse_parameters(["a=1", "2"])
    with pytest.raises(FactoryError, match="not a list"):
        query._sendable([[1]])


@pytest.mark.parametrize("text", ["SELECT ?", "SELECT ? + ?"])
def test_a_parameter_too_few_is_said(store: Store, text: str) -> None:
    with pytest.raises(FactoryError, match=r"(?i)parameter"):
        rows(store, text, [1] if "+" in text else None)


# --------------------------------------------------------------------------------------------------------- limits


def test_a_row_limit_says_when_it_cut(store: Store) -> None:
    whole = query.run(store, "SELECT key FROM candidates ORDER BY key", limit=32)
    assert (whole.table.num_rows, whole.cut) == (32, "")
    part = query.run(store, "SELECT key FROM candidates ORDER BY key", limit=31)
    assert part.rows() == whole.rows()[:31]
    assert part.cut == "cut after 31 rows; there are more: raise --limit"
    assert query.run(store, "SELECT range AS r FROM range(10000)", limit=5000).table.num_rows == 5000
    assert query.run(store, "SELECT 1", limit=0).table.num_rows == 0
    endless = "SELECT range AS n FROM range(1000000000000)"  # only what is wanted is computed
    assert query.run(store, endless, limit=2, memory=3 << 28).rows() == [{"n": 0}, {"n": 1}]


def test_a_byte_limit_says_when_it_cut(store: Store) -> None:
    cut = query.run(store, "SELECT repeat('x', 1000) AS t FROM range(5000)", max_bytes=1 << 20)
    assert 0 < cut.table.num_rows <= 1048
    assert cut.cut == "cut after 1 MiB; there is more: pick fewer columns or rows"
    assert query.run(store, "SELECT repeat('x', 3000000) AS t", max_bytes=1 << 20).table.num_rows == 0


@pytest.mark.parametrize(
    "text",
    [
        "SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))",
        "SELECT count(*) FROM range(1000000000000) a, range(1000000) b WHERE a.range % 7 = b.range % 11",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
    ],
)
def test_a_query_without_end_is_ended(store: Store, text: str) -> None:
    with pytest.raises(FactoryError, match=r"longer than 1\.5 seconds"):
        rows(store, text, seconds=1.5)


ASKER = """
import sys
from factory.store import Store
with Store.open(sys.argv[1]) as store:
    store.sql("SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_query_does_not_outlive_the_process_that_asked(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", ASKER, str(store.folder)]) as asker:
        children: list[psutil.Process] = []
        while not (children and children[0].cpu_times().user > 1.0):  # past its start, in the query
            assert asker.poll() is None
            time.sleep(0.05)
            children = psutil.Process(asker.pid).children()
        asker.kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.parametrize(
    "text",
    [
        "SELECT list_sort(range(100000000))",
        "SELECT repeat('a', 4000000000)",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)",
    ],
)
def test_a_query_without_measure_is_refused_memory(store: Store, text: str) -> None:
    with pytest.raises(FactoryError, match=r"needs more than the 0\.75 GiB of memory"):
        rows(store, text, memory=3 << 28)


def test_an_ordinary_query_fits_in_little_memory(store: Store) -> None:
    assert rows(store, "SELECT count(*) AS n FROM range(1000000)", memory=3 << 28) == [{"n": 1000000}]
    assert len(rows(store, "FROM verdicts", memory=3 << 28)) == 8 * 6


# -------------------------------------------------------------------------------------------------------- hostile


HOSTILE = [
    "COPY (SELECT 1) TO '{folder}/x.csv'",
    "COPY candidates TO '{folder}/x.parquet' (FORMAT parquet)",
    "COPY candidates FROM '/etc/passwd'",
    "EXPORT DATABASE '{folder}/x'",
    "IMPORT DATABASE '{folder}/x'",
    "ATTACH '{folder}/x.db'",
    "ATTACH ':memory:' AS other",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_parquet('{folder}/tables/*/*.parquet')",
    "SELECT * FROM parquet_metadata('{folder}/tables/*/*.parquet')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '{folder}/journal.sqlite'",
    "SELECT * FROM sqlite_scan('{folder}/journal.sqlite', 'meta')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM read_csv('http://127.0.0.1:1/x')",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{folder}/x.csv''')",
    "SELECT * FROM query_table('/etc/passwd')",
    "SELECT getenv('HOME')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{folder}/x.duckdb_extension'",
    "FORCE INSTALL json",
    "UPDATE EXTENSIONS",
    "PRAGMA database_list",
    "PRAGMA enable_external_access = true",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "SET GLOBAL threads = 64",
    "SET VARIABLE x = 1",
    "CALL pragma_version()",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET s (TYPE s3)",
    "INSERT INTO candidates SELECT * FROM candidates",
    "UPDATE candidates SET text = ''",
    "DELETE FROM candidates",
    "DROP TABLE candidates",
    "ALTER TABLE candidates RENAME TO x",
    "WITH d AS (DELETE FROM candidates RETURNING *) SELECT * FROM d",
    "WITH d AS (INSERT INTO prompts SELECT * FROM prompts RETURNING *) SELECT * FROM d",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/x.csv'",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE candidates",
    "SELECT 1;; COPY (SELECT 1) TO '{folder}/x.csv'",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "USE memory",
    "",
    "   ",
    "-- nothing",
    "SELECT",
    "SELECT \x00",
    "SELECT * FROM nowhere",
    # variables of the confining program: no tables
    "SELECT * FROM request",
    "SELECT * FROM statements",
    "SELECT * FROM database",
    "SELECT * FROM table",
]

THROUGH_ONE_CHILD = """
import io, json, sys
sys.path.insert(0, sys.argv[1])
from factory.query import sandbox
sys.meta_path.insert(0, sandbox.WithoutPandas)
import duckdb, pyarrow.dataset
request = json.loads(sys.stdin.buffer.readline())
texts = request["query"]
sandbox.confine(request["memory"], 60)
database = sandbox.connect(request, sys.stdin.buffer)
for text in texts:
    try:
        table, _ = sandbox.answer(database, request | {"query": text})
        said = "allowed: " + str(table.to_pylist())
    except (sandbox.RefusedError, duckdb.Error) as error:
        said = "refused: " + str(error)
    print(json.dumps([text, said]), flush=True)
"""


def test_hostile_and_wrong_statements_are_refused(store: Store) -> None:
    """All in one confined process, locked once: none may undo the lock for those after it."""
    before = {p: p.read_bytes() for p in store.folder.rglob("*.parquet")}
    texts = [text.format(folder=store.folder) for text in HOSTILE]
    header, payload = query._request(store, store.snapshot())
    header |= {"query": texts, "parameters": [], "limit": None, "max_bytes": 1 << 20, "memory": 1 << 30}
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_ONE_CHILD, str(Path(query.__file__).parents[1])],
        input=json.dumps(header).encode() + b"\n" + payload, capture_output=True, check=False, env=query._FRUGAL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-600:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [text for text, _ in answers] == texts
    assert [(text, said) for text, said in answers if not said.startswith("refused: ")] == []
    assert "root:" not in done.stdout.decode()
    assert {p: p.read_bytes() for p in store.folder.rglob("*.parquet")} == before
    assert not list(store.folder.glob("x*"))


@pytest.mark.parametrize(
    "text",
    [
        "COPY (SELECT 1) TO '{folder}/x.csv'",
        "ATTACH '{folder}/x.db'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SET enable_external_access = true",
        "SELECT 1; SELECT 2",
        "WITH d AS (DELETE FROM candidates RETURNING *) SELECT * FROM d",
        "",
    ],
)
def test_what_is_refused_is_a_fault_of_the_user(store: Store, text: str) -> None:
    with pytest.raises(FactoryError, match="the query cannot be run") as caught:
        rows(store, text.format(folder=store.folder))
    assert caught.value.exit_code == 2


def test_the_settings_hold(store: Store) -> None:
    names = ("enable_external_access", "python_enable_replacements", "lock_configuration", "autoload_known_extensions")
    (row,) = rows(store, "SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in names))
    assert row == {name: name == "lock_configuration" for name in names}


def test_keys_of_the_environment_are_not_passed_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    passed: dict[str, Any] = {}
    real = subprocess.Popen

    def spy(*arguments: Any, **more: Any) -> Any:
        passed.update(more)
        return real(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", spy)
    assert rows(store, "SELECT 1 AS x") == [{"x": 1}]
    assert "OPENAI_API_KEY" not in passed["env"]
    assert set(passed["env"]) <= {*query._PASSED_ON, *query._FRUGAL}


def test_a_folder_with_modules_of_the_same_name_does_no_harm(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("duckdb", "pyarrow", "json", "factory"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    assert rows(store, "SELECT 1 AS x") == [{"x": 1}]


def test_the_process_loads_neither_pandas_nor_torch_nor_the_program() -> None:
    code = (
        "import io, json, sys\n"
        "from types import SimpleNamespace\n"
        "source = open(sys.argv[1]).read()\n"
        "space = {'__name__': 'sandbox'}\n"
        "exec(compile(source, 'sandbox', 'exec'), space)\n"
        "request = json.loads(sys.argv[2])\n"
        "sys.stdin = SimpleNamespace(buffer=io.BytesIO(json.dumps(request).encode() + b'\\n'))\n"
        "space['main']()\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    request = {
        "query": "SELECT 1 AS x", "parameters": [], "limit": None, "max_bytes": 1000, "memory": 1 << 30, "threads": 1,
        "processor_seconds": 60, "tables": [], "views": [],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(query._SANDBOX), json.dumps(request)],
        capture_output=True, check=True, cwd="/", env=query._FRUGAL,
    )  # fmt: skip
    loaded = set(json.loads(done.stderr))
    assert {"duckdb", "pyarrow.dataset"} <= loaded
    assert not loaded & {"pandas", "torch", "transformers", "datasets", "factory"}


def test_without_limits_for_a_process_nothing_is_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert not query.has_isolation()
    with pytest.raises(FactoryError, match=r"SQL cannot be run here[\s\S]*--format duckdb"):
        rows(store, "SELECT 1")


def test_a_process_that_breaks_is_our_own_mistake(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import sys\nsys.stdin.buffer.read()\nraise KeyError('odd')\n")
    monkeypatch.setattr(query, "_SANDBOX", tmp_path / "broken.py")
    with pytest.raises(RuntimeError, match="KeyError: 'odd'"):
        rows(store, "SELECT 1")


# --------------------------------------------------------------------------------------------------------- damage


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True) as store:
        store.append("candidates", [candidate(i, text=f"{i} " * 50) for i in range(500)])
        store.seal(force=True)
        (path,) = tmp_path.glob("tables/candidates/*.parquet")
        content = bytearray(path.read_bytes())
        found = 0
        for position in range(100, len(content) // 2, len(content) // 8):
            content[position] ^= 4
            path.write_bytes(content)
            with pytest.raises(IntegrityError, match="a sealed part of candidates is damaged") as caught:
                rows(store, "SELECT * FROM candidates")
            assert caught.value.where.endswith(path.name)
            content[position] ^= 4
            found += 1
        assert found >= 3
        content[-20] ^= 4
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match="footer"):
            rows(store, "SELECT 1")


def test_a_part_from_before_a_column_was_added(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True) as store:
        store.append("judgments", [judgment(i) for i in range(6)])
        last, bodies = store._journal.oldest("judgments", Pending(100, 1 << 20))
        old = columns.from_bodies("judgments", bodies).drop_columns(["canary", "detail", "aspect"])
        store._journal.enter(parts.write(tmp_path, "judgments", "part-old", old), last)
        store.append("judgments", [judgment(9, canary=True)])
        text = "SELECT canary, aspect, detail, count(*) AS n FROM judgments GROUP BY ALL ORDER BY 1"
        assert rows(store, text) == [
            {"canary": False, "aspect": "", "detail": None, "n": 6},
            {"canary": True, "aspect": "", "detail": None, "n": 1},
        ]


# --------------------------------------------------------------------------------------------------------- schema


def test_describe_is_what_the_tables_and_views_are(store: Store) -> None:
    described = {d.name: d for d in query.describe()}
    assert set(described) == {*TABLES, "runs", "marks"} | {v.name for v in VIEWS}
    assert sorted(r["name"] for r in rows(store, "SHOW TABLES")) == sorted(described)
    text = "SELECT table_name AS t, column_name AS c, data_type AS d FROM information_schema.columns"
    shown: dict[str, dict[str, str]] = {}
    for row in rows(store, text):
        shown.setdefault(row["t"], {})[row["c"]] = row["d"].replace('"', "")
    for name, entry in described.items():
        assert shown[name] == {c: kind for c, (kind, _) in entry.columns.items()}, name
        assert entry.meaning
        assert all(meaning for _, meaning in entry.columns.values())


def test_columns_that_need_quotes_say_so() -> None:
    import duckdb

    words = duckdb.sql("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'").fetchall()
    names = {name for d in query.describe() for name in d.columns}
    assert {w for (w,) in words} & names == query.QUOTED
    meanings = {name: meaning for d in query.describe() for name, (_, meaning) in d.columns.items()}
    assert meanings["group"].endswith('; in SQL: "group"')


# ---------------------------------------------------------------------------------------------------------- views


def test_cost_counts_every_attempt_and_unknown_prices(store: Store) -> None:
    found = rows(store, "FROM cost ORDER BY round")
    assert [(r["round"], r["calls"], r["failed"], r["cost"], r["unknown_prices"]) for r in found] == [
        (0, 18, 1, None, 17), (1, 16, 0, 8.0, 0),
    ]  # fmt: skip
    assert [(r["prompt_tokens"], r["completion_tokens"]) for r in found] == [(54, 36), (48, 32)]


def test_latest_calls_and_runs_and_marks(store: Store) -> None:
    key = digest("call", 0)
    assert rows(store, "SELECT attempt, text FROM latest_calls WHERE key = ?", [key]) == [
        {"attempt": 2, "text": "second"}
    ]
    assert rows(store, "SELECT run, recipe, info->>'$.seed' AS seed FROM runs") == [
        {"run": "r", "recipe": "rounds: 1\n", "seed": "3"}
    ]
    assert rows(store, "SELECT round, stage, state, detail, pid FROM marks") == [
        {"round": 1, "stage": "label", "state": "done", "detail": '{"n": 2}', "pid": os.getpid()}
    ]


def test_pairs_and_answers_can_be_read(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    pair = Preference(
        key="p", run="r", prompt=turns, chosen=[{"role": "assistant", "content": "Because."}],
        rejected=[{"role": "assistant", "content": "Why not?\nBecause."}], prompt_key="q", chosen_key="a",
        rejected_key="b", margin=0.5, at=datetime(2026, 1, 1),
    )  # fmt: skip
    with Store.open(tmp_path, create=True) as store:
        store.append("preferences", [pair])
        store.append("prompts", [prompt(1, messages=turns)])
        store.append("candidates", [candidate(1, prompt_key=digest("prompt", 1)), candidate(2, prompt_key="unknown")])
        assert rows(store, "SELECT prompt, chosen, rejected, margin FROM pairs_text") == [
            {"prompt": "system: Be brief.\nuser: Why?", "chosen": "Because.", "rejected": "Why not?\nBecause.",
             "margin": 0.5}
        ]  # fmt: skip
        assert rows(store, "SELECT prompt, answer FROM answers ORDER BY answer") == [
            {"prompt": "system: Be brief.\nuser: Why?", "answer": "answer 1"}, {"prompt": None, "answer": "answer 2"},
        ]  # fmt: skip
