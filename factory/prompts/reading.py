"""Records into examples: shapes are recognised, columns named, texts mended; what cannot be read is kept apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Final

from factory.faults import ConfigError, FactoryError
from factory.prompts.shapes import EXTRAS, FIELDS, SHAPES, Example, find, mapped, read_row, shape_of
from factory.prompts.sources import Record, RowError, RowFault
from factory.store.columns import json_text

_LOOKED_AT: Final = 100  # rows that are looked at to recognise the shape
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def check_mapping(mapping: Mapping[str, str]) -> None:
    """ConfigError: a column is named for a field that there is none of."""
    faults = [f"no field named {name!r}; known: {', '.join(FIELDS)}" for name in mapping if name not in FIELDS]
    if faults:
        raise ConfigError(faults, where="--map", todo="--map FIELD=COLUMN, such as --map prompt=question")


class Reader:
    """Records into examples; counts and keeps what went wrong."""

    def __init__(self, mapping: Mapping[str, str], group_by: str | None, source: str, keep: Sequence[str] = ()) -> None:
        self.mapping = mapping
        self.group_by = group_by
        self.keep = keep
        self.source = source
        self.rows = 0
        self.replaced = 0
        self.failures: list[RowFault] = []
        self._columns: dict[str, None] = {}
        self._used = {group_by or "", *(column.split(".")[0] for column in (*mapping.values(), *keep))}

    def examples(self, records: Iterator[Record | RowFault]) -> Iterator[Example]:
        """The rows that can be read. FactoryError when none of the first hundred has a known shape."""
        first = list(islice(records, _LOOKED_AT))
        self._recognise([r for r in first if isinstance(r, Record)], empty=not first)
        for record in chain(first, records):
            self.rows += 1
            try:
                yield self._read(record)
            except RowError as error:
                self.failures.append(RowFault(record.line, error.column, error.reason))
            except RecursionError:
                self.failures.append(RowFault(record.line, "", "nested too deep"))

    def unused(self) -> tuple[str, ...]:
        """The columns that nothing was made of."""
        return tuple(c for c in self._columns if c not in self._used)

    def _recognise(self, records: Sequence[Record], *, empty: bool) -> None:
        if empty:
            raise FactoryError("there are no rows", where=self.source)
        if not records:
            return
        columns = list(dict.fromkeys(name for record in records for name in record.values))
        wanted = [*self.mapping.values(), *([self.group_by] if self.group_by else []), *self.keep]
        absent = [c for c in wanted if all(find(record.values, c) is None for record in records)]
        where = f"{self.source}, columns {', '.join(columns)}"
        if absent:
            raise ConfigError([f"there is no column {c!r}" for c in absent], where=where)
        if not any(shape_of(mapped(record.values, self.mapping)) for record in records):
            known = "; ".join(f"{shape.name} ({', '.join(shape.needs)})" for shape in SHAPES)
            joined = next((c for c in columns if ";" in c or "\t" in c), None) if len(columns) == 1 else None
            if joined is not None:
                raise FactoryError("the cells are not parted by commas", where=where, todo="write the file with commas")
            todo = (
                f"name the columns, such as --map prompt={columns[0] if columns else 'question'}; known shapes: {known}"
            )
            raise FactoryError("the rows have no known shape", where=where, todo=todo)

    def _read(self, record: Record | RowFault) -> Example:
        if isinstance(record, RowFault):
            raise RowError(record.column, record.reason)
        values = self._repaired(record.values)
        self._columns.update(dict.fromkeys(values))
        row = mapped(values, self.mapping)
        shape = shape_of(row)
        if shape is None:
            raise RowError(
                "", f"no known shape; columns with a value: {', '.join(n for n, v in row.items() if v is not None)}"
            )
        self._used.update((*shape.columns(row).values(), *EXTRAS))
        if self.group_by:
            row["group"] = find(values, self.group_by)
        example = replace(read_row(record.line, row, shape), kept=_kept(values, self.keep))
        if self.group_by and example.group is None:
            raise RowError(self.group_by, "no value, and the rows are grouped by it")
        return example

    def _repaired(self, value: Any) -> Any:
        """The value with lone surrogates replaced in all its texts: they cannot be stored as UTF-8."""
        if isinstance(value, str):
            if value.isascii():
                return value
            text, count = _SURROGATE.subn("\ufffd", value)
            self.replaced += count
            return text
        if isinstance(value, dict):
            return {self._repaired(k): self._repaired(v) for k, v in value.items()}
        return [self._repaired(v) for v in value] if isinstance(value, list) else value


def _kept(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any] | None:
    """The values of the columns to keep, those that the row has; None: it has none."""
    found = {column: value for column in columns if (value := find(row, column)) is not None}
    for column, value in found.items():
        try:
            json_text(value)
        except TypeError:
            raise RowError(column, "cannot be kept: it has no JSON") from None
    return found or None
