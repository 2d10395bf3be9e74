"""Options that several commands share, so that each has one name, one meaning and one help text."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from factory.console import note
from factory.faults import FactoryError
from factory.registry import unknown_name

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.engines import EngineSpec
    from factory.store import Store

LARGEST = 2**31 - 1
"""Of seeds and rounds: what every random generator and every table can hold."""
StoreFolder = Annotated[Path, typer.Option("--store", envvar="FACTORY_STORE", help="Folder of the store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Run = Annotated[str | None, typer.Option("--run", help="Name of the run; default: the newest that has the input.")]
NewRun = Annotated[str | None, typer.Option("--run", help="Name of the run; by default the command and the date.")]
RoundOf = Annotated[
    int | None, typer.Option("--round", min=0, max=LARGEST, help="Round of the run; default: its newest.")
]
RoundNumber = Annotated[int, typer.Option("--round", min=0, max=LARGEST, help="Round of the run.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=LARGEST, help="Seed of everything random.")]
EngineKind = Annotated[str, typer.Option("--engine", help="Engine: transformers | vllm | openai | scripted.")]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option("--engine-option", "-E", help="Option of the engine: base_url=http://...; repeatable."),
]
Model = Annotated[str, typer.Option("--model", help="Model folder, adapter folder or hub name.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0, max=5, help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.001, max=1, help="1 keeps the whole distribution.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many prompts.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", help="Only prompts that this holds for, in SQL: \"topic = 'tea' AND kept->>'lang' = 'en'\"."
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again also where the failure was permanent.")]
JudgeOptions = Annotated[
    list[str] | None,
    typer.Option("--judge-option", "-J", help="name.option=value; name.model=... asks another model; repeatable."),
]
CanaryShare = Annotated[
    float, typer.Option("--canary-share", min=0, max=0.5, help="Canaries among what a model judges; 0 plants none.")
]
KeepQuarantined = Annotated[
    bool, typer.Option("--keep-quarantined", help="Count also batches whose canaries fooled their judge.")
]
Engines = Annotated[
    int, typer.Option("--engines", min=1, max=1024, help="Engine processes, one for each GPU; they share the work.")
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", min=1, help="Most calls in flight at an endpoint (default: its option, 16)."),
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", min=0, help="Stop before the run has cost more US dollars.")
]
MaxTokensTotal = Annotated[
    int | None, typer.Option("--max-tokens-total", min=1, help="Stop before the run has used more tokens in all.")
]
UnsafeExec = Annotated[
    bool,
    typer.Option(
        "--unsafe-exec", help="Let code run without isolation where there is none; only for code that you trust."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be asked and what it costs; ask nothing.")]

STORE = Path("store")
EMBEDDED = "smollm2-135m-instruct"


@contextmanager
def opened(folder: Path, *, create: bool = False) -> Iterator[Store]:
    """The store of that folder, closed afterwards."""
    from factory.store import Store

    store = Store.open(folder, create=create)
    try:
        yield store
    finally:
        store.close()


def dated(command: str, run: str | None) -> str:
    """The run's name: as given, else the command's own name and today's date."""
    return run or f"{command}-{datetime.now(UTC):%Y-%m-%d}"


def kind_of(store: Store, run: str | None, split: str, kind: str | None) -> str:
    """The kind of answers meant: as given, else sample; where none were sampled, those that came with a data set."""
    if kind is not None:
        return kind
    where = {"split": split} | ({} if run is None else {"run": run})
    held = store.table("candidates", ["kind"], where).column("kind").unique().to_pylist()
    if "sample" in held or "given" not in held:
        return "sample"
    note("kind: given (no answers were sampled; --kind names another)")
    return "given"


def picked(store: Store, where: str | None) -> list[str] | None:
    """Keys of the prompts that --where holds for; None: it was not given."""
    from factory.query import prompts_where

    return None if where is None else prompts_where(store, where)


def newest(store: Store, table: str, run: str | None, *, split: str | None = None, kind: str = "sample") -> str:
    """The run's name: as given, else the newest that has rows in `table`.

    With a split, only of runs that have candidates of that kind to its prompts: those of an evaluation, or answers that
    came with a data set, are not what a judge is to label.
    """
    if run is not None:
        return run
    chosen: dict[str, Any] = {}
    if split is not None:
        chosen["run"] = _values(store, "candidates", "run", {"split": split, "kind": kind})
        if not chosen["run"]:
            raise _none(store, "candidates", {"split": split, "kind": kind})
    latest = store.table(table, ["run", "at"], chosen).group_by("run").aggregate([("at", "max")]).to_pylist()
    if not latest:
        raise _none(store, table, {} if split is None else {"split": split, "kind": kind})
    name = str(max(latest, key=lambda one: one["at_max"])["run"])
    note(f"run: {name} (the newest with {table}; --run names another)")
    return name


def newest_round(
    store: Store, table: str, run: str, number: int | None, *, split: str | None = None, kind: str = "sample"
) -> int:
    """The round's number: as given, else the last of the run that has rows in `table` (with a split: candidates of that
    kind there)."""
    if number is not None:
        return number
    where = {"run": run} if split is None else {"run": run, "split": split, "kind": kind}
    found = _values(store, table, "round", where)
    if not found:
        raise _none(store, table, where)
    return int(found[-1])


def _values(store: Store, table: str, column: str, where: Mapping[str, Any]) -> list[Any]:
    """The different values of a column, sorted; counted as a column, since a table may have millions of rows."""
    return sorted(store.table(table, [column], where).column(column).unique().to_pylist())


def _none(store: Store, table: str, wanted: Mapping[str, Any]) -> FactoryError:
    """No rows of a table are as `wanted` (run, split, kind): what there is in their place."""
    run, split = wanted.get("run"), wanted.get("split")
    who = "the store" if run is None else f"run {run!r}"
    of = "" if split is None else f" of kind {wanted['kind']!r} to prompts in the split {split!r}"
    there = _there(store, table, run, by_split=split is not None)
    todo = f"{NEEDS[table]}; there are: {', '.join(there)}" if there else NEEDS[table]
    return FactoryError(f"{who} has no {table}{of} yet", where=str(store.folder), todo=todo)


def _there(store: Store, table: str, run: str | None, *, by_split: bool) -> list[str]:
    """What a table holds: of the run the candidates by kind and split, else the runs."""
    rows = store.read(table, columns=["run", *(["split", "kind"] if by_split and table == "candidates" else [])])
    own = [row for row in rows if run in {None, row["run"]}]
    if own and "split" in own[0]:
        counts = Counter((row["split"], row["kind"]) for row in own)
        return [f"{count:,} of kind {kind!r} in {split!r}" for (split, kind), count in sorted(counts.items())]
    return [f"run {name!r}" for name in sorted({row["run"] for row in rows})[:MOST_NAMED]]


MOST_NAMED = 5
"""Runs that an error names."""
NEEDS = {
    "candidates": "make some with `factory generate`",
    "judgments": "make some with `factory label`",
    "preferences": "make some with `factory pair`",
    "labels": "make some with `factory pair`, or of answers of a data set with `factory prompts add FILE --label true`",
    "rounds": "make some with `factory run`",
}


def check_file(file: Path | None, flag: str) -> None:
    """A command that ends with writing this file asks first. FactoryError: its folder is not there, or it is one."""
    if file is None:
        return
    if file.is_dir():
        raise FactoryError(f"{flag} names a folder", where=str(file), todo=f"name a file in it: {flag} {file}/NAME")
    if not file.absolute().parent.is_dir():
        raise FactoryError(
            f"the folder of {flag} is not there",
            where=str(file),
            todo=f"mkdir -p {shlex.quote(str(file.parent))}",
        )


def spec(
    kind: str, model: str, given: list[str] | None, *, engines: int = 1, concurrency: int | None = None
) -> EngineSpec:
    """The engine that a command's options describe."""
    from factory.engines import EngineSpec

    chosen = settings(given, "--engine-option")
    if concurrency is not None:
        chosen["concurrency"] = concurrency
    return EngineSpec(kind, model, chosen, engines)


def budget(max_cost: float | None, max_tokens: int | None) -> Budget | None:
    """The budget of a command's options; None where there is none."""
    from factory.budget import Budget

    return None if max_cost is None and max_tokens is None else Budget(max_cost, max_tokens)


def priced(chosen: EngineSpec) -> dict[str, str]:
    """What a plan says of the cost of such an engine."""
    from factory.budget import priced as is_priced
    from factory.engines import engines

    if not engines.facts(chosen.kind).get("paid"):
        return {"cost": "nothing is paid for"}
    known = "by the tokens that the endpoint counts"
    return {"cost": known if is_priced(chosen) else f"unknown: no prices of {chosen.model!r} are given"}


def settings(pairs: list[str] | None, flag: str) -> dict[str, Any]:
    """key=value options as a mapping; values are read as YAML."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        key, sign, raw = pair.partition("=")
        if not sign or not key:
            raise FactoryError(f"{flag} {pair!r} is not of the form key=value")
        if not raw.strip():
            raise FactoryError(
                f"{flag} {key}: no value", todo=f"write {key}=\"''\" for an empty text, {key}=null for none"
            )
        try:
            found[key] = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise FactoryError(f"{flag} {key}: {raw!r} is not a YAML value", todo="quote the value") from error
    return found


def by_judge(pairs: list[str] | None, judges: Sequence[str], flag: str) -> dict[str, dict[str, Any]]:
    """judge.option=value settings as options of each judge. FactoryError: one that is of no judge of the panel."""
    found: dict[str, dict[str, Any]] = {judge: {} for judge in judges}
    for key, value in settings(pairs, flag).items():
        judge, dot, option = key.partition(".")
        if not dot or not option:
            raise FactoryError(f"{flag} {key!r} does not name its judge", todo=f"write {judges[0]}.{key}=...")
        if judge not in found:
            raise unknown_name("judge in the panel", judge, judges)
        found[judge][option] = value
    return found
