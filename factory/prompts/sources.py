"""Rows from where data lies: JSONL, JSON, CSV and Parquet files, and whatever `datasets.load_dataset` reads.

Files are read as a stream, a row at a time (a .json file that is one list is read whole). A row that cannot be read is
a `RowFault` in its place in the stream; a source that cannot be read at all is a FactoryError.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from factory.faults import FactoryError
from factory.resources import bundled

Values = dict[str, Any]


class Record(NamedTuple):
    """One row: its line in the file (its number, counted from 1, where there are no lines) and its columns."""

    line: int
    values: Values


class RowFault(NamedTuple):
    """A row that is left out, and why. `column` is empty where the whole row is at fault."""

    line: int
    column: str
    reason: str


class RowError(Exception):
    """A row that cannot be read: the column at fault and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"{column}: {reason}")
        self.column = column
        self.reason = reason


class Source(NamedTuple):
    """A data source: the name that its rows are kept under, and its rows."""

    name: str
    rows: Iterator[Record | RowFault]


def bundled_prompts(name: str) -> Path | None:
    """The file of a bundled set of prompts, if there is one of that name."""
    path = bundled("pipelines") / "prompts" / f"{name}.jsonl"
    return path if re.fullmatch(r"[\w-]+", name) and path.is_file() else None


def open_source(source: str, *, hub_config: str | None = None, hub_split: str = "train") -> Source:
    """The rows of a file, a bundled set, a folder that `datasets.load_dataset` reads, or a data set of the hub.

    A file or folder of that name comes before a bundled set, and that before the hub. FactoryError when there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return Source(path.name, _read_file(path))
    if path.is_dir():
        return Source(path.resolve().name, _read_hub(str(path), hub_config, hub_split))
    own = bundled_prompts(source)
    if own:
        return Source(source, _read_file(own))
    if _reader_of(path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise FactoryError("there is no such file", where=source, todo="check the path")
    return Source(":".join(filter(None, (source, hub_config))), _read_hub(source, hub_config, hub_split))


# --------------------------------------------------------------------------------------------------------- files


def _reader_of(path: Path) -> Callable[[Path], Iterator[Record | RowFault]] | None:
    suffixes = [s.lower() for s in path.suffixes]
    ending = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    return _READERS.get(ending)


def _read_file(path: Path) -> Iterator[Record | RowFault]:
    reader = _reader_of(path)
    if reader is None:
        known = ", ".join(sorted(_READERS))
        raise FactoryError(f"files ending in {path.suffix!r} are not read; known: {known}", where=str(path))
    return _told_where(reader, path)


def _told_where(reader: Callable[[Path], Iterator[Record | RowFault]], path: Path) -> Iterator[Record | RowFault]:
    try:
        yield from reader(path)
    except (OSError, EOFError) as error:
        raise FactoryError(f"the file cannot be read: {error}", where=str(path)) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return path.open("rb")


def _read_jsonl(path: Path) -> Iterator[Record | RowFault]:
    with _open(path) as stream:
        for line, raw in enumerate(stream, 1):
            if raw.strip(b" \t\r\n\xef\xbb\xbf"):
                yield _json_row(line, raw)


def _json_row(line: int, raw: bytes) -> Record | RowFault:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return RowFault(line, "", "not UTF-8")
    except json.JSONDecodeError as error:
        return RowFault(line, "", f"not JSON: {error.msg} at character {error.colno}")
    except (ValueError, RecursionError) as error:
        return RowFault(line, "", f"not JSON: {error}")
    return _row(line, value)


def _row(line: int, value: Any) -> Record | RowFault:
    if not isinstance(value, dict):
        return RowFault(line, "", f"a row must be an object with columns, not {type(value).__name__}")
    return Record(line, value)


def _read_json(path: Path) -> Iterator[Record | RowFault]:
    """A list of rows, an object that holds one such list, or JSON lines under another name."""
    with _open(path) as stream:
        first = stream.readline()
        if isinstance(_json_row(1, first), Record) and stream.read(1):
            yield from _read_jsonl(path)
            return
    with _open(path) as stream:
        yield from _rows_of(_json_value(stream.read(), path), path)


def _json_value(raw: bytes, path: Path) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FactoryError(f"the file is not JSON: {error}", where=str(path)) from error


def _rows_of(value: Any, path: Path) -> Iterator[Record | RowFault]:
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
        value = lists[0] if len(lists) == 1 and "messages" not in value and "conversations" not in value else [value]
    if not isinstance(value, list):
        raise FactoryError("the file holds no list of rows", where=str(path))
    yield from (_row(number, row) for number, row in enumerate(value, 1))


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Record | RowFault]:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as raw:
        # A byte that is not UTF-8 comes through as a lone surrogate, which is replaced and counted later on.
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        line = 1
        while (cells := _next_cells(reader, line)) is not None:
            if isinstance(cells, RowFault):
                yield cells
            elif header is None:
                header = _header(cells, path)
            elif cells:
                yield _csv_row(line, header, cells)
            line = reader.line_num + 1


def _header(names: list[str], path: Path) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FactoryError(f"the column {twice[0]!r} is there twice", where=str(path), todo="give each its own name")
    return names


def _next_cells(reader: Any, line: int) -> list[str] | RowFault | None:
    try:
        cells: list[str] | None = next(reader, None)
    except csv.Error as error:
        return RowFault(line, "", f"not CSV: {error}")
    return cells


def _csv_row(line: int, header: list[str], cells: list[str]) -> Record | RowFault:
    if len(cells) != len(header):
        return RowFault(line, "", f"{len(cells)} cells in a table of {len(header)} columns")
    return Record(line, {name: _cell(cell) for name, cell in zip(header, cells, strict=True)})


def _cell(cell: str) -> Any:
    """An empty cell is no value; a JSON list of objects (messages, constraints) is what it says; else the text."""
    if not cell:
        return None
    if cell.lstrip()[:1] == "[":
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            return value
    return cell


def _read_tsv(path: Path) -> Iterator[Record | RowFault]:
    return _read_csv(path, "\t")


def _read_text(path: Path) -> Iterator[Record | RowFault]:
    """A prompt a line."""
    with _open(path) as raw:
        for line, text in enumerate(io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape"), 1):
            if text.strip():
                yield Record(line, {"prompt": text.strip()})


def _read_parquet(path: Path) -> Iterator[Record | RowFault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(number, values)
    except pa.ArrowException as error:
        raise FactoryError(f"the Parquet file cannot be read after row {number}: {error}", where=str(path)) from error


def _read_arrow(path: Path) -> Iterator[Record | RowFault]:
    return _loaded("arrow", str(path), "train", data_files=str(path))


_READERS: Final[dict[str, Callable[[Path], Iterator[Record | RowFault]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


# ----------------------------------------------------------------------------------------------------------- hub


def _read_hub(name: str, config: str | None, split: str) -> Iterator[Record | RowFault]:
    return _loaded(name, name, split, **({"name": config} if config else {}))


def _loaded(loader: str, where: str, split: str, **options: Any) -> Iterator[Record | RowFault]:
    import datasets

    try:
        rows = datasets.load_dataset(loader, split=split, **options)
    except ImportError:
        raise
    except Exception as error:  # whatever a builder of the hub raises, the user is told where and what
        todo = "check the name, --hub-config and --hub-split, and the network"
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise FactoryError(f"the data set cannot be loaded: {first}", where=where, todo=todo) from error
    yield from (Record(number, dict(values)) for number, values in enumerate(rows, 1))
