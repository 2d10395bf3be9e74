"""The columns of every table: their types in Arrow, the check of each value, and the JSON text of a row.

All of it is derived from the dataclasses of factory/schema.py, so that a column is declared once. A row is kept in the
journal as one line of JSON, which Arrow's own reader turns into columns.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.registry import unknown_name
from factory.schema import TABLES, Call, Messages, Row

if TYPE_CHECKING:
    import pyarrow as pa

DONE, FAILED, PASSING = 0, 1, 2
"""State of a row: answered; failed for good; failed passingly. Only calls are ever other than DONE."""

_KINDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    datetime: "time",
    Messages: "messages",
    Any: "json",
}
_WANTED = {
    "text": "text",
    "integer": "a whole number of 64 bits",
    "number": "a number",
    "boolean": "true or false",
    "time": "a datetime",
    "messages": "a list of {role, content} with text in both, and perhaps name, tool_calls and tool_call_id",
    "json": "a value that has JSON",
}
_INT64 = 2**63


class Column(NamedTuple):
    """One column: `kind` is text, integer, number, boolean, time, messages or json (JSON text)."""

    name: str
    kind: str
    nullable: bool
    default: Any  # dataclasses.MISSING: the row must give it
    meaning: str

    @property
    def filler(self) -> Any:
        """What stands for the column in a row written before the column was there (None: null)."""
        return None if self.nullable or self.default is dataclasses.MISSING else self.default


class Encoded(NamedTuple):
    """A checked row, ready for the journal."""

    key: str
    attempt: int
    state: int
    body: str


@cache
def columns_of(table: str) -> dict[str, Column]:
    """The columns of a table in their order. FactoryError: no such table."""
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    row_type = TABLES[table]
    hints = typing.get_type_hints(row_type)
    return {f.name: _column(f, hints[f.name]) for f in dataclasses.fields(row_type)}


def _column(field: dataclasses.Field[Any], hint: Any) -> Column:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    bare = next(p for p in parts if p is not type(None))
    nullable = type(None) in parts or bare is Any
    return Column(field.name, _KINDS[bare], nullable, field.default, field.metadata["meaning"])


def known_column(table: str, name: str) -> Column:
    """The column of that name. FactoryError names the nearest."""
    known = columns_of(table)
    if name not in known:
        raise unknown_name(f"column of {table}", name, known)
    return known[name]


def has_attempts(table: str) -> bool:
    """Is a row of this table known by key and attempt, instead of by key alone?"""
    return table == Call.TABLE


# ------------------------------------------------------------------------------------------------------- writing


def clean(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD, so that it has UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode(table: str, row: Row | Mapping[str, Any]) -> Encoded:
    """Check a row against its table and write it as a line of JSON.

    FactoryError: a column that is unknown or left out, or a value that does not fit; it names table, column and value.
    """
    body = _checked_dict(table, row) if isinstance(row, Mapping) else _checked_row(table, row)
    if not body["key"]:
        raise FactoryError(f"a row of {table} has an empty key")
    text = _LINE.encode(body)
    if table != Call.TABLE:
        return Encoded(body["key"], 0, DONE, text)
    state = DONE if body["failure"] is None else PASSING if body["passing"] else FAILED
    return Encoded(body["key"], body["attempt"], state, text)


_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
Check = Callable[[Any], Any]


class Plan(NamedTuple):
    """How `encode` takes a row of a table: all values at once, and the names of its columns."""

    values: Callable[[Row], tuple[Any, ...]]
    names: tuple[str, ...]
    columns: tuple[Column, ...]


@cache
def _plan_of(table: str) -> Plan:
    known = columns_of(table)
    return Plan(operator.attrgetter(*known), tuple(known), tuple(known.values()))


class Open(NamedTuple):
    """The columns of which a value has to be looked at: text, for what is not ASCII, and others."""

    texts: tuple[Column, ...]
    others: tuple[Column, ...]


_AS_THEY_ARE = {"number": float, "boolean": bool}


@cache
def _open(table: str, types: tuple[type, ...]) -> Open:
    """What a row has to be checked for whose values have these types. Most rows of a table have the same."""
    typed = [(column, kind) for column, kind in zip(_plan_of(table).columns, types, strict=True)
             if kind is not _AS_THEY_ARE.get(column.kind) and not (kind is type(None) and column.nullable)]  # fmt: skip
    texts = tuple(column for column, kind in typed if column.kind == "text" and kind is str)
    return Open(texts, tuple(column for column, _ in typed if column not in texts))


def _checked_dict(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's values as JSON has them."""
    for name in row:
        known_column(table, name)
    return {name: _checked(table, column, row) for name, column in columns_of(table).items()}


def _checked_row(table: str, row: Row) -> dict[str, Any]:
    """The same of a dataclass, which gives every column: the way of nearly all rows, so it has no detours."""
    if type(row) is not TABLES[table]:
        raise FactoryError(f"a row for the table {table} is a {TABLES[table].__name__}, not a {type(row).__name__}")
    plan = _plan_of(table)
    values = plan.values(row)
    body = dict(zip(plan.names, values, strict=True))
    texts, others = _open(table, tuple(map(type, values)))
    for column in texts:
        if not (text := body[column.name]).isascii():
            body[column.name] = clean(text)
    for column in others:
        try:
            body[column.name] = _CHECKS[column.kind](body[column.name])
        except (TypeError, ValueError):
            body[column.name] = _checked(table, column, body)
    return body


def _checked(table: str, column: Column, values: Mapping[str, Any]) -> Any:
    value = values.get(column.name, column.default)
    if value is None and column.nullable:
        return None
    check = _CHECKS[column.kind]
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        if value is dataclasses.MISSING:
            what = f"a row of {table} has no {column.name}"
            raise FactoryError(what, todo=f"give it: {column.meaning}") from None
        if type(value).__module__ == "numpy" and hasattr(value, "item") and value.size == 1:
            return _checked(table, column, {column.name: value.item()})
        raise _misfit(table, column, value) from error


def _misfit(table: str, column: Column, value: Any) -> FactoryError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    null = " or null" if column.nullable else ""
    return FactoryError(
        f"{table}.{column.name}: expected {_WANTED[column.kind]}{null}, got {shown} ({type(value).__name__})",
        todo=f"{column.name} is: {column.meaning}",
    )


def _text(value: Any) -> str:
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise TypeError
    return clean(value)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -_INT64 <= value < _INT64:
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _time(value: Any) -> str:
    if not isinstance(value, datetime):
        raise TypeError
    utc: datetime = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat("T", "microseconds")


def _messages(value: Any) -> list[dict[str, str]]:
    """As JSON lines have them: the calls of a turn are JSON text there."""
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return [_message(turn) for turn in value]


_TURN = ("role", "content")
_OF_TOOLS = ("name", "tool_call_id", "tool_calls")  # what a turn may have besides


def _message(turn: Any) -> dict[str, str]:
    if not isinstance(turn, Mapping) or not turn.keys() >= set(_TURN):
        raise TypeError
    plain = {"role": _text(turn["role"]), "content": _text(turn["content"])}
    return plain if len(turn) == len(_TURN) else plain | _of_tools(turn)


def _of_tools(turn: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in turn.items():
        if name in _OF_TOOLS:
            found[name] = _calls(value) if name == "tool_calls" else _text(value)
        elif name not in _TURN:
            raise TypeError
    return found


def _calls(value: Any) -> str:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(call, Mapping) for call in value):
        raise TypeError
    return json_text(list(value))


def json_text(value: Any) -> str:
    """Strict JSON of a value: numbers that JSON lacks (NaN, infinities) become null, lone surrogates U+FFFD."""
    try:
        text = _STRICT.encode(value)
    except ValueError:
        text = _STRICT.encode(_finite(value))
    return clean(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError


_STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return _finite(_plain(value)) if type(value).__module__ == "numpy" else value


_CHECKS: dict[str, Check] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "time": _time,
    "messages": _messages,
    "json": json_text,
}

# ------------------------------------------------------------------------------------------------------- reading


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The table's Arrow schema. Every field may be null: an older part lacks the younger columns."""
    import pyarrow as pa

    kinds = {
        "text": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "time": pa.timestamp("us"),
        "messages": pa.list_(pa.struct([(name, pa.string()) for name in (*_TURN, *_OF_TOOLS)])),
        "json": pa.string(),
    }
    return pa.schema([(c.name, kinds[c.kind]) for c in columns_of(table).values()])


def from_bodies(table: str, bodies: Sequence[str]) -> pa.Table:
    """Journal lines as Arrow columns, in their order; columns that a line lacks are filled."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    schema = arrow_schema(table)
    if not bodies:
        return schema.empty_table()
    lines = "\n".join(bodies)
    if any(mark in lines for mark in (":NaN", ":Infinity", ":-Infinity")):  # JSON proper has no such numbers
        return fill(table, pa.Table.from_pylist([_parsed(table, body) for body in bodies], schema=schema))
    data = lines.encode()
    longest = max(len(body) for body in bodies) * 4  # bytes of UTF-8 at most
    found = arrow_json.read_json(
        io.BytesIO(data),
        read_options=arrow_json.ReadOptions(block_size=min(max(longest + 2, 1 << 20), _INT32)),
        parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    return fill(table, found)


_INT32 = 2**31 - 1


def _parsed(table: str, body: str) -> dict[str, Any]:
    values = json.loads(body)
    for column in columns_of(table).values():
        if column.kind == "time" and values.get(column.name) is not None:
            values[column.name] = datetime.fromisoformat(values[column.name])
    return {name: values.get(name) for name in columns_of(table)}


def fill(table: str, data: pa.Table) -> pa.Table:
    """`data` with the default in place of every null of a column that cannot be null (it was added later)."""
    import pyarrow.compute as pc

    for index, name in enumerate(data.column_names):
        filler = columns_of(table)[name].filler
        if filler is not None and data.column(index).null_count:
            data = data.set_column(index, data.schema.field(index), pc.fill_null(data.column(index), filler))
    return data


def decode(table: str, data: pa.Table) -> list[dict[str, Any]]:
    """Arrow rows as dicts of Python values, JSON columns and calls of tools decoded."""
    data = slim(data)
    lists = {name: data.column(name).to_pylist() for name in data.column_names}
    for column in columns_of(table).values():
        if column.kind == "json" and (name := column.name) in lists:
            lists[name] = [None if text is None else json.loads(text) for text in lists[name]]
        if column.kind == "messages" and (name := column.name) in lists and _are_turns(data.column(name).type):
            lists[name] = [None if turns is None else [_whole(turn) for turn in turns] for turns in lists[name]]
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _whole(turn: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in turn.items() if value is not None}
    return found | {"tool_calls": json.loads(found["tool_calls"])} if "tool_calls" in found else found


def slim(data: pa.Table) -> pa.Table:
    """The same rows; conversations in which nobody calls a tool have role and content alone."""
    import pyarrow as pa

    plain = pa.list_(pa.struct([(name, pa.string()) for name in _TURN]))
    for index, field in enumerate(data.schema):
        if _are_turns(field.type) and not _has_tools(data.column(index)):
            data = data.set_column(index, field.name, data.column(index).cast(plain))
    return data


def _are_turns(kind: pa.DataType) -> bool:
    """Turns with all that they may have?"""
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) and kind.value_type.names == [*_TURN, *_OF_TOOLS]
    )


def _has_tools(column: pa.ChunkedArray) -> bool:
    """Does any turn have more than a role and its content?"""
    import pyarrow.compute as pc

    turns = pc.list_flatten(column)
    return any(pc.struct_field(turns, name).null_count < len(turns) for name in _OF_TOOLS)


def condition(table: str, where: Mapping[str, Any], absent: Iterable[str] = ()) -> Any:
    """`where` as an Arrow expression (None: no condition): equality, `in` for lists, tuples and sets, None for null.

    `absent`: columns that some part lacks; there their filler is compared. FactoryError: unknown or unfit column.
    """
    import pyarrow.compute as pc

    found: Any = None
    for name, value in where.items():
        column = known_column(table, name)
        if column.kind in ("messages", "json"):
            raise FactoryError(f"{table}.{name} holds {column.kind}: rows cannot be picked by it")
        field = pc.field(name)
        if name in absent and column.filler is not None:
            field = pc.coalesce(field, pc.scalar(column.filler))
        one = _matches(table, column, field, value)
        found = one if found is None else found & one
    return found


def _matches(table: str, column: Column, field: Any, value: Any) -> Any:
    import pyarrow as pa

    many = isinstance(value, (list, tuple, set, frozenset))
    values = list(value) if many else [value]
    present = [_comparable(table, column, v) for v in values if v is not None]
    found = field.isin(pa.array(present, type=arrow_schema(table).field(column.name).type))
    return found | field.is_null() if len(present) < len(values) else found


def _comparable(table: str, column: Column, value: Any) -> Any:
    checked = _checked(table, column, {column.name: value})
    return datetime.fromisoformat(checked) if column.kind == "time" else checked
