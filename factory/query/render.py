"""The result of a query as text for people (table), as JSON, as CSV (RFC 4180), or as a Parquet file.

Answers of models are hostile text: in the table, control characters are written as escapes, so that none reaches the
terminal.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from factory.console import visible
from factory.registry import unknown_name

if TYPE_CHECKING:
    import pyarrow as pa

MIN_COLUMN = 8
"""Columns are not narrowed below this many characters."""


def render(data: pa.Table, form: str, *, width: int | None = None) -> bytes:
    """`data` in the form table, json, jsonl, csv or parquet. width: characters that a line of the table may have (None:
    any).

    FactoryError: no such form.
    """
    if form not in _FORMS:
        raise unknown_name("format", form, _FORMS)
    if form == "table":
        return as_text(data, width).encode()
    return _FORMS[form](data)


def plain(value: Any) -> Any:
    """A value of Arrow as one of JSON: times in ISO 8601, whole decimals as integers, NaN and infinities null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        turn = value.keys() >= {"role", "content"}  # of a conversation: only what it has
        return {key: plain(inner) for key, inner in value.items() if not (turn and inner is None)}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def _names(data: pa.Table) -> list[str]:
    """Column names, made distinct: SELECT 1 AS a, 2 AS a gives a and a_2."""
    names: list[str] = []
    for name in data.column_names:
        distinct, count = name, 1
        while distinct in names:
            count += 1
            distinct = f"{name}_{count}"
        names.append(distinct)
    return names


def _rows(data: pa.Table) -> list[list[Any]]:
    lists = [column.to_pylist() for column in data.columns]
    return [[plain(value) for value in row] for row in zip(*lists, strict=True)]


def as_json(data: pa.Table) -> bytes:
    """A JSON list with one object a line."""
    return ("[" + ",\n ".join(_objects(data)) + "]\n").encode()


def as_jsonl(data: pa.Table) -> bytes:
    """A JSON object a line."""
    return "".join(f"{line}\n" for line in _objects(data)).encode()


def _objects(data: pa.Table) -> list[str]:
    names = _names(data)
    return [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in _rows(data)]


def as_csv(data: pa.Table) -> bytes:
    """CSV with a header; null is empty, lists and structures are JSON."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_names(data))
    writer.writerows([[_cell(value) for value in row] for row in _rows(data)])
    return out.getvalue().encode()


def as_parquet(data: pa.Table) -> bytes:
    """A Parquet file, zstd, with page checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(data.rename_columns(_names(data)), sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return repr(value) if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------------- table


def as_text(data: pa.Table, width: int | None = None) -> str:
    """Aligned columns with a line under the header; numbers to the right, in six digits."""
    names, rows = [visible(name) for name in _names(data)], _rows(data)
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(names))]
    cells = [[_shown(value) for value in row] for row in rows]
    widths = [max([_breadth(name), *(_breadth(row[i]) for row in cells)]) for i, name in enumerate(names)]
    if width is not None:
        widths = _narrowed(widths, width - 2 * (len(widths) - 1))
    lines = [names, ["-" * w for w in widths], *cells]
    return "".join(_line(line, widths, right) for line in lines)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(_cell(value)) if value is not None else ""


def _breadth(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _narrowed(widths: Sequence[int], room: int) -> list[int]:
    """The same cap on all columns, the greatest with which the line fits (or the least that can be read)."""
    cap = max(MIN_COLUMN, room)
    while cap > MIN_COLUMN and sum(min(w, cap) for w in widths) > room:
        cap -= 1
    return [min(w, cap) for w in widths]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    fitted = [_fitted(cell, width, at_right) for cell, width, at_right in zip(cells, widths, right, strict=True)]
    return "  ".join(fitted).rstrip() + "\n"


def _fitted(cell: str, width: int, at_right: bool) -> str:
    if _breadth(cell) > width:
        while _breadth(cell) > width - 1:
            cell = cell[: min(len(cell) - 1, width)]
        cell += "…"
    blanks = " " * (width - _breadth(cell))
    return blanks + cell if at_right else cell + blanks


_FORMS: dict[str, Callable[[pa.Table], bytes]] = {
    "table": lambda data: as_text(data).encode(),
    "json": as_json,
    "jsonl": as_jsonl,
    "csv": as_csv,
    "parquet": as_parquet,
}
FORMS = tuple(_FORMS)
