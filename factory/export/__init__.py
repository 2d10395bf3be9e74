"""Preferences, labels, judgments and candidates for other tools: a folder that `datasets.load_dataset(folder)` opens,
JSON lines, CSV, one DuckDB file with tables and views, or pandas.

Preferences and labels have the columns of TRL's conversational formats (prompt/chosen/rejected and
prompt/completion/label). An export is written beside its place and renamed: it is there as a whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.faults import FactoryError
from factory.query import QUOTED, Described, describe, extra_tables
from factory.query.render import as_csv, plain
from factory.query.views import VIEWS
from factory.registry import unknown_name
from factory.schema import TABLES, now
from factory.store import Store
from factory.store.columns import columns_of, decode, slim

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

    from factory.export.cards import Split
    from factory.report import RoundView, RunReport

EXPORTED = ("preferences", "labels", "judgments", "candidates")
FIRST = {"preferences": ("prompt", "chosen", "rejected"), "labels": ("prompt", "completion", "label")}
SPLITS = ("train", "heldout", "final")
SHARD = 200_000
"""Rows a Parquet file."""
MARK = "export.json"
"""What an exported folder holds, written last; `force` replaces only folders that have it."""
POLICY, STORE = "policy", "store"
_LEFT_OUT = frozenset({"README.md", "training.json"})  # of a policy's files: those that tell of folders of this machine
_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: rows of each table that has any."""

    out: str
    form: str
    rows: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def export(
    store: Store,
    out: Path | str,
    *,
    form: str = "dataset",
    tables: Sequence[str] | None = None,
    run: str | None = None,
    force: bool = False,
) -> ExportReport:
    """Write tables (by default preferences, labels, judgments and candidates; a DuckDB file: all) in one form.

    form: dataset | jsonl | csv | duckdb. run: only that run's rows. FactoryError: a wrong name, nothing to write, or
    `out` is there and may not be replaced.
    """
    if form not in _WRITERS:
        raise unknown_name("form of export", form, _WRITERS)
    place = Path(out).expanduser().absolute()
    _check_free(place, force)
    data = _collected(store, tables or (tuple(TABLES) if form == "duckdb" else EXPORTED), run)
    if form != "duckdb":
        data = {name: _without_tools(name, table) for name, table in data.items()}
    rows = {name: table.num_rows for name, table in data.items() if table.num_rows}
    if not rows:
        what = f"run {run} has no rows in these tables" if run else "these tables have no rows"
        raise FactoryError(f"there is nothing to export: {what}", where=str(store.folder), todo="`factory status`")
    with _whole(place) as folder:
        _WRITERS[form](store, data, folder)
        mark = {"program": "preference-factory", "form": form, "rows": rows, "run": run, "at": now().isoformat()}
        (folder / MARK).write_text(json.dumps(mark, indent=2) + "\n")
    return ExportReport(str(place), form, rows)


def to_pandas(store: Store, table: str, run: str | None = None) -> pd.DataFrame:
    """A table as a pandas frame, JSON columns decoded."""
    data = slim(store.table(table, where=_of_run(table, run)))
    frame: pd.DataFrame = data.to_pandas()
    for column in columns_of(table).values():
        if column.kind == "json":
            texts = data.column(column.name).to_pylist()
            frame[column.name] = [None if text is None else json.loads(text) for text in texts]
    return frame


def _of_run(table: str, run: str | None) -> dict[str, Any]:
    return {"run": run} if run is not None and "run" in columns_of(table) else {}


def _collected(store: Store, tables: Sequence[str], run: str | None) -> dict[str, pa.Table]:
    """Each table with TRL's columns first, and the split of its prompt where it has none of its own."""
    splits = {row["key"]: row["split"] for row in store.read("prompts", columns=["key", "split"])}
    return {name: _arranged(name, store.table(name, where=_of_run(name, run)), splits) for name in tables}


def _arranged(name: str, data: pa.Table, splits: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    first = FIRST.get(name, ())
    data = data.select([*first, *(c for c in data.column_names if c not in first)])
    if "split" in data.column_names or "prompt_key" not in data.column_names:
        return data
    found = [splits.get(key) or SPLITS[0] for key in data.column("prompt_key").to_pylist()]
    return data.append_column("split", pa.array(found, pa.string()))


def _without_tools(name: str, data: pa.Table) -> pa.Table:
    """The table without what is there for calls of tools, where nobody calls any."""
    if name in FIRST and data.column("tools").null_count == data.num_rows:
        data = data.drop_columns("tools")
    return slim(data)


# --------------------------------------------------------------------------------------------------------- place


def _check_free(place: Path, force: bool) -> None:
    """Nothing of the user's is ever overwritten: only, with `force`, an earlier export."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    ours = (place / MARK).is_file() if place.is_dir() else place.suffix == ".duckdb"
    if not ours:
        raise FactoryError("the place is taken by something that is no export", where=str(place), todo="name another")
    if not force:
        raise FactoryError("there is an export already", where=str(place), todo="name another place, or add --force")


@contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when all is written. A place named *.duckdb is a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        yield made
        made.chmod(0o777 & ~_umask())
        if place.suffix == ".duckdb":
            (made / _DUCKDB).replace(place)
        else:
            _swap(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _swap(made: Path, place: Path) -> None:
    if not place.exists():
        made.rename(place)
        return
    old = made.with_name(f"{made.name}-old")
    place.rename(old)
    made.rename(place)
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ------------------------------------------------------------------------------------------------------- dataset


def _write_dataset(store: Store, data: Mapping[str, pa.Table], folder: Path) -> None:
    """One configuration a table, one split a split of the prompts, and a card that says so."""
    from factory.export import cards

    shown = {name: table for name, table in data.items() if table.num_rows}
    files = {name: _write_splits(table, folder / name) for name, table in shown.items()}
    (folder / "README.md").write_text(cards.dataset_card(store, shown, files), encoding="utf-8")


def _write_splits(data: pa.Table, folder: Path) -> list[Split]:
    """Write the rows of each split; the splits that have any."""
    import pyarrow.compute as pc

    folder.mkdir()
    if "split" not in data.column_names:
        return [_write_shards(data, folder, SPLITS[0])]
    present = pc.unique(data.column("split")).to_pylist()
    ordered = [s for s in SPLITS if s in present] + sorted(s for s in present if s not in SPLITS)
    return [_write_shards(data.filter(pc.field("split") == split), folder, split) for split in ordered]


def _write_shards(data: pa.Table, folder: Path, split: str) -> Split:
    import pyarrow.parquet as pq

    from factory.export.cards import Split

    count, on_disk = max(1, -(-data.num_rows // SHARD)), 0
    for index in range(count):
        path = folder / f"{split}-{index:05d}-of-{count:05d}.parquet"
        shard = data.slice(index * SHARD, SHARD)
        pq.write_table(shard, path, compression="zstd", write_page_checksum=True, row_group_size=_AT_ONCE)
        on_disk += path.stat().st_size
    return Split(split, data.num_rows, data.nbytes, on_disk)


# ------------------------------------------------------------------------------------------------------------ policy


def export_policy(
    store: Store, out: Path | str, *, run: str, number: int | None = None, force: bool = False
) -> ExportReport:
    """Copy the policy of a run's round (by default its champion) with a card of its own. FactoryError: that round
    trained none, or `out` may not be replaced."""
    from factory import report as reports
    from factory.export import cards

    place = Path(out).expanduser().absolute()
    _check_free(place, force)
    collected = reports.collect(store, run)
    chosen = collected.champion if number is None else number
    source = _policy_folder(store, collected, chosen, asked=number is not None)
    with _whole(place) as folder:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in _LEFT_OUT:
                shutil.copyfile(path, folder / path.name)
        (folder / "README.md").write_text(cards.model_card(collected, chosen, folder), encoding="utf-8")
        mark = {"program": "preference-factory", "form": POLICY, "run": run, "round": chosen, "at": now().isoformat()}
        (folder / MARK).write_text(json.dumps(mark, indent=2) + "\n")
    return ExportReport(str(place), POLICY, {})


def export_store(store: Store, out: Path | str, *, force: bool = False) -> ExportReport:
    """A copy of the whole store, which is one itself, as it is at one moment: also while a run writes to it, when a
    plain copy of its files may be torn. FactoryError: `out` may not be replaced."""
    place = Path(out).expanduser().absolute()
    _check_free(place, force)
    with _whole(place) as folder:
        store.copy(folder)
        with Store.open(folder) as copied:
            rows = {name: count for name, count in copied.counts().items() if count}
        mark = {"program": "preference-factory", "form": STORE, "rows": rows, "run": None, "at": now().isoformat()}
        (folder / MARK).write_text(json.dumps(mark, indent=2) + "\n")
    return ExportReport(str(place), STORE, rows)


def _policy_folder(store: Store, collected: RunReport, number: int, *, asked: bool) -> Path:
    view = next((view for view in collected.rounds if view.round == number), None)
    trained = [view.round for view in collected.rounds if _trained(store, view)]
    rounds = ", ".join(map(str, trained)) or "none"
    if view is None:
        raise FactoryError(f"run {collected.run!r} has no round {number}", todo=f"rounds that trained one: {rounds}")
    if not _trained(store, view):
        what = f"round {number} trained no policy" if asked else "the champion is the start policy, as it was"
        raise FactoryError(what, where=str(store.run_folder(collected.run)), todo=f"--round N; with one: {rounds}")
    return store.folder / view.policy


def _trained(store: Store, view: RoundView) -> bool:
    """Did the round make a policy of its own?"""
    folder = store.folder / view.policy
    return bool(view.policy) and folder.is_dir() and folder.parent.name == f"round-{view.round}"


def only_here(folder: Path) -> str | None:
    """The base of an adapter that lies in a folder of this machine, so that nobody else could load it; None: it is
    none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    base = str(json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    return base if Path(base).is_absolute() or base.startswith((".", "~")) else None


# --------------------------------------------------------------------------------------------- lines, CSV, DuckDB


def _write_jsonl(store: Store, data: Mapping[str, pa.Table], folder: Path) -> None:
    for name, table in data.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for batch in _batches(table):
                lines = (json.dumps(plain(row), ensure_ascii=False) + "\n" for row in decode(name, batch))
                file.writelines(lines)


def _write_csv(store: Store, data: Mapping[str, pa.Table], folder: Path) -> None:
    for name, table in data.items():
        with (folder / f"{name}.csv").open("wb") as file:
            for index, batch in enumerate(_batches(table)):
                content = as_csv(batch)
                file.write(content if index == 0 else content[content.index(b"\r\n") + 2 :])


def _batches(data: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, max(data.num_rows, 1), _AT_ONCE):
        yield data.slice(start, _AT_ONCE)


_DUCKDB = "store.duckdb"


def _write_duckdb(store: Store, data: Mapping[str, pa.Table], folder: Path) -> None:
    """Tables, the views over them, and the meaning of each as a comment."""
    import duckdb

    described = {entry.name: entry for entry in describe()}
    with duckdb.connect(str(folder / _DUCKDB)) as database:
        for name, table in (dict(data) | extra_tables(store)).items():
            database.register("incoming", table)
            database.execute(f'CREATE TABLE "{name}" AS SELECT * FROM incoming')  # noqa: S608
            database.unregister("incoming")
            _comment(database, described[name])
        for view in VIEWS:
            try:
                database.execute(f'CREATE VIEW "{view.name}" AS {view.sql}')
            except duckdb.CatalogException:  # a table it needs was not asked for
                continue
            database.execute(f"COMMENT ON VIEW \"{view.name}\" IS '{_quoted(view.meaning)}'")


def _comment(database: duckdb.DuckDBPyConnection, entry: Described) -> None:
    database.execute(f"COMMENT ON TABLE \"{entry.name}\" IS '{_quoted(entry.meaning)}'")
    for column, (_, meaning) in entry.columns.items():
        text = meaning.removesuffix(f'; in SQL: "{column}"') if column in QUOTED else meaning
        database.execute(f'COMMENT ON COLUMN "{entry.name}"."{column}" IS \'{_quoted(text)}\'')


def _quoted(text: str) -> str:
    return text.replace("'", "''")


_WRITERS: dict[str, Callable[[Store, Mapping[str, Any], Path], None]] = {
    "dataset": _write_dataset,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "duckdb": _write_duckdb,
}
FORMS = tuple(_WRITERS)
