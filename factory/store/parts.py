"""Sealed parts: immutable Parquet files, zstd, with a checksum in every page.

A part is written to a temporary file, synced and renamed; it exists once the journal's manifest names it, with the
SHA-256 of the whole file and of its footer. Every read checks the footer (which Parquet itself leaves unguarded) and
the pages; `fault` checks the whole file.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import crash
from factory.faults import FactoryError, IntegrityError
from factory.store.columns import arrow_schema, columns_of
from factory.store.filesystem import sync, write_durably

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

ROW_GROUP = 10_000
_TAIL = 8  # a Parquet file ends with the footer's length in four bytes and the letters PAR1


class Part(NamedTuple):
    """An entry of the manifest. `path` is relative to the store; `footer` is the SHA-256 of the file's footer."""

    path: str
    table: str
    rows: int
    bytes: int
    sha256: str
    footer: str
    columns: tuple[str, ...]


def write(store: Path, table: str, name: str, data: pa.Table) -> Part:
    """Write `data` durably as STORE/tables/<table>/<name>.parquet. It is no part until the manifest has it.

    FactoryError: the disk does not take it; its rows stay in the journal.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, compression="zstd", write_page_checksum=True, row_group_size=ROW_GROUP)
    content = sink.getvalue().to_pybytes()
    path = store / "tables" / table / f"{name}.parquet"
    try:
        _place(path, content)
    except OSError as error:
        raise FactoryError(
            f"a part of {table} cannot be written: {error.strerror}",
            where=str(path),
            todo="free some space; nothing is lost: its rows are in the journal, and the next seal takes them",
        ) from error
    return Part(
        path=path.relative_to(store).as_posix(),
        table=table,
        rows=data.num_rows,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        footer=hashlib.sha256(_footer_of(content[-_TAIL:], content)).hexdigest(),
        columns=tuple(data.column_names),
    )


def _place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    crash.point("store.seal.before_write")
    write_durably(temporary, content)
    crash.point("store.seal.after_write")
    temporary.replace(path)
    sync(path.parent)
    crash.point("store.seal.after_rename")


def _footer_of(tail: bytes, content: bytes) -> bytes:
    length = int.from_bytes(tail[:4], "little")
    return content[-(length + _TAIL) :]


# ------------------------------------------------------------------------------------------------------ checking


def check_footers(store: Path, listed: Iterable[Part]) -> None:
    """IntegrityError if a part is gone, has another size, or its footer has changed. Reads a few kilobytes a part."""
    for part in listed:
        found = _footer_fault(store / part.path, part)
        if found:
            raise broken(part, found)


def _footer_fault(path: Path, part: Part) -> str:
    try:
        size = path.stat().st_size
        if size != part.bytes:
            return f"it has {size} bytes instead of {part.bytes}"
        with path.open("rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            length = int.from_bytes(file.read(_TAIL)[:4], "little") + _TAIL
            file.seek(-min(length, size), os.SEEK_END)
            same = hashlib.sha256(file.read()).hexdigest() == part.footer
    except OSError as error:
        return str(error.strerror)
    return "" if same else "its footer does not match its checksum"


def fault(store: Path, part: Part) -> str:
    """What is wrong with a part by its size and SHA-256; empty when it is whole. Reads the whole file."""
    path = store / part.path
    try:
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
        size = path.stat().st_size
    except OSError as error:
        return str(error.strerror)
    if size != part.bytes:
        return f"it has {size} bytes instead of {part.bytes}"
    return "" if same else "it does not match its SHA-256"


def broken(part: Part, why: str) -> IntegrityError:
    """The error for a part that is not what was written."""
    return IntegrityError(
        f"a sealed part of {part.table} is damaged: {why}",
        where=part.path,
        todo="restore that file from a backup, or start another store; `factory doctor` lists every damaged part",
    )


def orphans(store: Path, listed: Iterable[Part]) -> list[Path]:
    """Files among the parts that the manifest does not name: what a killed seal left. No reader looks at them."""
    named = {store / part.path for part in listed}
    return sorted(p for p in (store / "tables").glob("*/*") if p.suffix in (".parquet", ".tmp") and p not in named)


# ------------------------------------------------------------------------------------------------------- reading


def dataset(store: Path, table: str, listed: Sequence[Part]) -> ds.FileSystemDataset:
    """The listed parts as one dataset of the table's present columns; a column that a part lacks reads as null."""
    import pyarrow.dataset as ds

    scan = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=scan)
    return ds.dataset([str(store / p.path) for p in listed], schema=arrow_schema(table), format=form)


def without(store: Path, part: Part, keys: Collection[str]) -> pa.Table | None:
    """The rows of a part whose keys are none of these; None: it holds none of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with guarded(store, [part]):
        held = dataset(store, part.table, [part]).to_table()
    others = pc.invert(pc.is_in(held.column("key"), value_set=pa.array(keys, pa.string())))
    left = held.filter(others)
    return left if left.num_rows < held.num_rows else None


class Places:
    """Where the keys of sealed parts lie: a part never changes, so that its keys are read once. What is wanted of a
    few keys then costs their row groups, and not the whole table."""

    def __init__(self) -> None:
        self._keys: dict[str, pa.ChunkedArray] = {}

    def narrowed(self, data: ds.FileSystemDataset, keys: Collection[str]) -> ds.FileSystemDataset:
        """The row groups of a dataset that hold any of the keys."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        wanted = pa.array(keys, pa.string())
        found = [self._groups(fragment, data.schema, wanted) for fragment in data.get_fragments()]
        return ds.FileSystemDataset(
            [some for some in found if some is not None], data.schema, data.format, data.filesystem
        )

    def _groups(self, fragment: ds.ParquetFileFragment, schema: pa.Schema, wanted: pa.Array) -> Any:
        """The part's row groups with any of them; None: there is none."""
        import pyarrow.compute as pc

        keys = self._keys.get(fragment.path)
        if keys is None:
            keys = self._keys[fragment.path] = fragment.to_table(schema=schema, columns=["key"]).column("key")
        hits = pc.indices_nonzero(pc.is_in(keys, value_set=wanted)).to_numpy()
        if not hits.size:
            return None
        ends = list(accumulate(group.num_rows for group in fragment.row_groups))
        return fragment.subset(row_group_ids=sorted({bisect_right(ends, hit) for hit in hits.tolist()}))


def absent_columns(table: str, listed: Iterable[Part]) -> set[str]:
    """Columns of the table that some part was written without."""
    return {name for part in listed for name in columns_of(table) if name not in part.columns}


@contextmanager
def guarded(store: Path, listed: Sequence[Part]) -> Iterator[None]:
    """Read parts within: a failure that a damaged part explains becomes an IntegrityError that names it."""
    import pyarrow as pa

    check_footers(store, listed)
    try:
        yield
    except (OSError, pa.ArrowException):
        for part in listed:
            found = fault(store, part)
            if found:
                raise broken(part, found) from None
        raise
