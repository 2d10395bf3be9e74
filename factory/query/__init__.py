"""SQL over the store: one SELECT, run in a process that can read nothing else, write nothing and not run away.

`run(store, "SELECT judge, count(*) FROM judgments GROUP BY 1")` gives a QueryResult; factory/query/render.py shows it.
The process is factory/query/sandbox.py; it sees the tables of factory/schema.py, `runs` and `marks`, and
factory/query/views.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.query.views import MARKS, MESSAGES, RUNS, VIEWS
from factory.schema import TABLES
from factory.store import parts
from factory.store.columns import clean, columns_of, from_bodies, slim
from factory.store.journal import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from factory.store import Store

SECONDS = 60.0
MEMORY = 2 << 30
MAX_BYTES = 256 << 20
QUOTED = frozenset({"at", "group"})
"""Columns whose names are words of SQL: they are written in double quotes."""
_SANDBOX = Path(__file__).with_name("sandbox.py")
_FRUGAL = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others set a gigabyte aside, which counts against the limit
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT", "TZ", "VIRTUAL_ENV")
_NO_FAULT_OF_PARTS = frozenset({"refused", "memory", "ParserException", "BinderException", "CatalogException"})
_TYPES = {
    "text": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "time": "TIMESTAMP",
    "messages": MESSAGES,
    "json": "VARCHAR",
}


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query gave. `cut` says in words that there was more, and how to get it; empty when this is all."""

    table: pa.Table
    cut: str
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        found: list[dict[str, Any]] = self.table.to_pylist()
        return found


class Described(NamedTuple):
    """A table or view with its columns, as `factory schema` prints it."""

    name: str
    kind: str  # table | view
    meaning: str
    columns: dict[str, tuple[str, str]]  # name: (type, meaning)


def describe() -> list[Described]:
    """Every table and view that a query may name, with type and meaning of each column."""
    tables = [
        Described(name, "table", _first_line(row.__doc__), {
            c.name: (_TYPES[c.kind], c.meaning) for c in columns_of(name).values()
        })
        for name, row in TABLES.items()
    ]  # fmt: skip
    tables += [
        Described("runs", "table", "Every run with its recipe.", RUNS),
        Described("marks", "table", "What the stages of the runs have said, in order of time.", MARKS),
    ]
    of_table = {entry.name: entry.columns for entry in tables}
    views = [Described(v.name, "view", v.meaning, v.columns or of_table[v.columns_of]) for v in VIEWS]
    return [d._replace(columns=_with_quoting(d.columns)) for d in tables + views]


def _with_quoting(columns: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    return {
        name: (kind, f'{meaning}; in SQL: "{name}"' if name in QUOTED else meaning)
        for name, (kind, meaning) in columns.items()
    }


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def parse_parameters(given: Sequence[str]) -> list[Any] | dict[str, Any]:
    """Parameters as typed on a command line: `name=value` for $name, bare values for ? in order.

    Numbers, true, false and null are read as such, all else is text. FactoryError: both kinds at once.
    """
    named = [text.partition("=") for text in given if text.partition("=")[0].isidentifier() and "=" in text]
    if not named:
        return [_value(text) for text in given]
    if len(named) < len(given):
        raise FactoryError("parameters are either all name=value or all bare values")
    return {name: _value(text) for name, _, text in named}


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, (bool, int, float)) else text


# ------------------------------------------------------------------------------------------------------- running


def run(
    store: Store,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    limit: int | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    max_bytes: int = MAX_BYTES,
) -> QueryResult:
    """Run one SELECT on a snapshot of the store.

    parameters: values for ? in order, or for $name by name. limit: rows at most; seconds: wall clock; memory: bytes of
    the process; max_bytes: of the result. FactoryError: the query is refused, wrong, too slow or too big;
    IntegrityError: a damaged part.
    """
    began = time.monotonic()
    _need_isolation()
    child = _start()  # it loads its libraries while the snapshot is taken here
    try:
        snapshot = store.snapshot()
        header, payload = _request(store, snapshot)
        header |= {
            "query": clean(query),
            "parameters": _sendable(parameters or []),
            "limit": limit,
            "max_bytes": max_bytes,
            "memory": memory,
            "processor_seconds": int(seconds * header["threads"]) + 10,
        }
        out, errors = child.communicate(json.dumps(header).encode() + b"\n" + payload, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise FactoryError(
            f"the query took longer than {seconds:g} seconds and was ended",
            todo="ask for less, or allow more time",
        ) from None
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    reply, stream = _reply(child.returncode, out, errors, memory)
    if "error" in reply:
        _raise(store, snapshot, reply, memory)
    return QueryResult(slim(_read(stream)), _cut(reply["cut"], limit, max_bytes), time.monotonic() - began)


def prompts_where(store: Store, condition: str) -> list[str]:
    """Keys of the prompts for which a condition in SQL holds, such as "topic = 'tea'", in order. FactoryError: it holds
    for none, or is no condition."""
    try:
        found = run(store, f"SELECT key FROM prompts WHERE (\n{condition}\n) ORDER BY key")  # noqa: S608
    except FactoryError as fault:
        raise FactoryError(
            fault.what, where=f"--where {condition}", todo="`factory schema prompts` lists columns"
        ) from None
    if found.cut:
        raise FactoryError(
            f"it holds for too many prompts ({found.cut})", where=f"--where {condition}", todo="ask for fewer"
        )
    keys: list[str] = found.table.column("key").to_pylist()
    if not keys:
        raise FactoryError(
            "this holds for no prompt of the store",
            where=f"--where {condition}",
            todo='see what there is: factory query "SELECT split, source, topic, count(*) FROM prompts GROUP BY ALL"',
        )
    return keys


def has_isolation() -> bool:
    """Can this system confine a process (module resource, with a limit on memory)?"""
    try:
        import resource
    except ImportError:
        return False
    return hasattr(resource, "RLIMIT_DATA")


def _need_isolation() -> None:
    if not has_isolation():
        raise FactoryError(
            "SQL cannot be run here: this system has no limits for a process (module resource)",
            todo="export with `factory export --format duckdb` and query that file with your own DuckDB",
        )


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", str(_SANDBOX)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | _FRUGAL,
        cwd="/",
        start_new_session=True,
    )


def _request(store: Store, snapshot: Mapping[str, Snapshot]) -> tuple[dict[str, Any], bytes]:
    """The part of the request that describes the tables, and their unsealed rows as Arrow streams."""
    tables, streams = [], []
    for name, found in snapshot.items():
        parts.check_footers(store.folder, found.parts)
        absent = parts.absent_columns(name, found.parts)
        streams.append(_stream(from_bodies(name, found.bodies)))
        tables.append({
            "name": name,
            "paths": [str(store.folder / part.path) for part in found.parts],
            "fill": {c.name: _literal(c.filler) for c in columns_of(name).values()
                     if c.name in absent and c.filler is not None},
            "size": len(streams[-1]),
        })  # fmt: skip
    for name, data in extra_tables(store).items():
        streams.append(_stream(data))
        tables.append({"name": name, "paths": [], "fill": {}, "size": len(streams[-1])})
    header = {
        "tables": tables,
        "views": [[view.name, view.sql] for view in VIEWS],
        "threads": min(os.cpu_count() or 1, 4),
    }
    return header, b"".join(streams)


def _literal(value: Any) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _stream(data: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def extra_tables(store: Store) -> dict[str, pa.Table]:
    """What the journal alone holds, as tables: runs and marks."""
    runs = [run | {"info": json.dumps(run["info"])} for run in store.runs()]
    marks = [mark | {"detail": json.dumps(mark["detail"])} for mark in store.marks()]
    return {"runs": _records(RUNS, runs), "marks": _records(MARKS, marks)}


def _records(columns: Mapping[str, tuple[str, str]], rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    kinds = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "TIMESTAMP": pa.timestamp("us")}
    return pa.Table.from_pylist(rows, schema=pa.schema([(n, kinds[kind]) for n, (kind, _) in columns.items()]))


def _sendable(parameters: Sequence[Any] | Mapping[str, Any]) -> Any:
    if isinstance(parameters, Mapping):
        return {name: _scalar(value) for name, value in parameters.items()}
    return [_scalar(value) for value in parameters]


def _scalar(value: Any) -> Any:
    if isinstance(value, datetime):
        utc = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
        return {"time": utc.isoformat()}
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise FactoryError(f"a parameter is text, a number, true, false, null or a time, not a {type(value).__name__}")


# -------------------------------------------------------------------------------------------------------- answer


def _reply(code: int, out: bytes, errors: bytes, memory: int) -> tuple[dict[str, Any], bytes]:
    """The child's answer; a child that ended without one was stopped by its limits."""
    line, found, stream = out.partition(b"\n")
    if found:
        reply: dict[str, Any] = json.loads(line)
        return reply, stream
    if code == -signal.SIGXCPU:
        raise FactoryError("the query used more processor time than it may", todo="ask for less")
    if code < 0 or b"MemoryError" in errors or b"bad_alloc" in errors:
        return {"error": "out of memory", "kind": "memory"}, b""
    raise RuntimeError(f"the query's process ended with {code}: {errors.decode(errors='replace')[-2000:]}")


def _raise(store: Store, snapshot: Mapping[str, Snapshot], reply: Mapping[str, Any], memory: int) -> None:
    if reply["kind"] == "memory":
        raise FactoryError(
            f"the query needs more than the {memory / 2**30:.3g} GiB of memory that it may use",
            todo="aggregate, or pick fewer rows and columns",
        )
    if reply["kind"] not in _NO_FAULT_OF_PARTS:
        for part in (part for found in snapshot.values() for part in found.parts):
            fault = parts.fault(store.folder, part)
            if fault:
                raise parts.broken(part, fault)
    todo = "`factory schema` lists tables and columns"
    if reply["kind"] == "ParserException":
        todo += '; the columns "at" and "group" are written in double quotes'
    raise FactoryError(f"the query cannot be run: {reply['error']}", todo=todo)


def _read(stream: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(stream).read_all()


def _cut(why: str, limit: int | None, max_bytes: int) -> str:
    if why == "rows":
        return f"cut after {limit:,} rows; there are more: raise --limit"
    if why == "bytes":
        return f"cut after {max_bytes >> 20:,} MiB; there is more: pick fewer columns or rows"
    return ""
