"""The process in which a user's SQL runs. Started by factory/query/ as a script, never imported by the program.

DuckDB's own settings do not contain a query (its memory limit and interrupts miss long-running functions), so the
operating system does: no file can be written, memory and processor time are limited, and the parent kills at the
deadline. The tables are Arrow datasets of exactly the parts that the manifest lists; DuckDB itself can open nothing.

In: a line of JSON, then the unsealed rows as Arrow streams. Out: a line of JSON, then the result as an Arrow stream.
It takes what it knows from the request alone, so that nothing of the program has to be loaded.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

READ_ONLY = ("SELECT", "EXPLAIN")
SETTINGS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class RefusedError(Exception):
    """The query is not one that may be run."""


class WithoutPandas:
    """An import hook: pyarrow and duckdb look for pandas, half a second that no query needs."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Deny pandas, leave all else to the other finders."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not loaded here", name=name)


def end_with_parent() -> None:
    """On Linux: the kernel kills this process when its parent is gone, also by a kill that could not clean up."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def confine(memory: int, seconds: int) -> None:
    """Limit this process for good: bytes of memory, seconds of processor time, no file written, no core dumped."""
    import resource

    limits = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def connect(request: dict[str, Any], payload: BinaryIO) -> duckdb.DuckDBPyConnection:
    """An in-memory database with the request's tables and views, locked."""
    import duckdb

    settings = {"threads": request["threads"], "memory_limit": f"{request['memory'] * 6 // 10}B"}
    database = duckdb.connect(":memory:", config=settings)
    for table in request["tables"]:
        _register(database, table, payload.read(table["size"]))
    for name, select in request["views"]:
        database.execute(f'CREATE VIEW "{name}" AS {select}')
    for setting in SETTINGS:
        database.execute(setting)
    return database


def _register(database: duckdb.DuckDBPyConnection, table: dict[str, Any], stream: bytes) -> None:
    """A table is the union of its sealed parts and its unsealed rows; what old parts lack is filled."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    unsealed = pa.ipc.open_stream(stream).read_all()
    scan = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=scan)
    sources = [ds.dataset(unsealed)]
    if table["paths"]:
        sources.insert(0, ds.dataset(table["paths"], schema=unsealed.schema, format=form))
    data = ds.dataset(sources) if len(sources) > 1 else sources[0]
    if not table["fill"]:
        database.register(table["name"], data)
        return
    database.register(f"{table['name']}_as_sealed", data)
    filled = ", ".join(f'coalesce("{name}", {literal}) AS "{name}"' for name, literal in table["fill"].items())
    database.execute(
        f'CREATE VIEW "{table["name"]}" AS SELECT * REPLACE ({filled}) FROM "{table["name"]}_as_sealed"'  # noqa: S608
    )


def answer(database: duckdb.DuckDBPyConnection, request: dict[str, Any]) -> tuple[pa.Table, str]:
    """The result, cut to the wanted rows and bytes, and what cut it ("rows", "bytes" or nothing)."""
    statements = database.extract_statements(request["query"])
    if len(statements) != 1:
        raise RefusedError(f"one statement at a time, not {len(statements)}")
    kind = _kind(statements[0])
    if kind not in READ_ONLY:
        raise RefusedError(f"a query only reads: SELECT, WITH, FROM, DESCRIBE or EXPLAIN, not {kind}")
    found = database.sql(statements[0], params=_parameters(request["parameters"]) or None)  # streams, unlike execute
    return cut(found.to_arrow_reader(2048), request["limit"], request["max_bytes"])


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # kinds that DuckDB knows and its Python module does not
        return "a statement of another kind"


def _parameters(given: Any) -> Any:
    if isinstance(given, dict):
        return {name: _parameter(value) for name, value in given.items()}
    return [_parameter(value) for value in given]


def _parameter(value: Any) -> Any:
    return datetime.fromisoformat(value["time"]) if isinstance(value, dict) else value


def cut(reader: pa.RecordBatchReader, limit: int | None, max_bytes: int) -> tuple[pa.Table, str]:
    """Read until the end, `limit` rows or `max_bytes` bytes, and say which cut it."""
    import pyarrow as pa

    batches: list[pa.RecordBatch] = []
    rows, size, why = 0, 0, ""
    for batch in reader:
        if limit is not None and rows + batch.num_rows > limit:
            batch, why = batch.slice(0, limit - rows), "rows"
        while batch.num_rows and size + batch.nbytes > max_bytes:
            batch, why = batch.slice(0, batch.num_rows // 2), "bytes"
        batches.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if why:
            break
    return pa.Table.from_batches(batches, reader.schema), why


def main() -> None:
    """Read one request, answer it, end."""
    sys.meta_path.insert(0, WithoutPandas)
    end_with_parent()
    import warnings

    import duckdb
    import pyarrow as pa
    import pyarrow.dataset  # loaded before the limits, while the parent prepares the request

    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.buffer.readline())
    confine(request["memory"], request["processor_seconds"])
    try:
        database = connect(request, sys.stdin.buffer)
        result, why = answer(database, request)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
        _reply({"cut": why}, sink.getvalue())
    except RefusedError as refusal:
        _reply({"error": str(refusal), "kind": "refused"})
    except (MemoryError, duckdb.OutOfMemoryException, pa.ArrowMemoryError):
        _reply({"error": "out of memory", "kind": "memory"})
    except (duckdb.Error, pa.ArrowException, OSError, ValueError) as error:
        _reply({"error": str(error), "kind": type(error).__name__})


def _reply(header: dict[str, Any], payload: Any = b"") -> None:
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # all is said: what an orderly end would free goes with the process
