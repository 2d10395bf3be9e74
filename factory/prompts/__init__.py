"""Prompts, and preference data that was made elsewhere, into the store.

    factory prompts add FILE|HUB-NAME|BUNDLED

Every row is read into one form (`shapes.py`), its prompt gets a group and by it a split (`splits.py`), and answers that
came with it become candidates of kind `given`, with preferences or labels that refer to them; scores and winners become
judgments of a judge of their own. A row that cannot be read is reported and left out; the others go in. Adding the same
data again adds nothing: every key is a hash of the content.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, Protocol

from factory.faults import ConfigError, FactoryError
from factory.prompts.judged import Source, Verdicts, given_key, judgments_of, margin_of
from factory.prompts.scored import Scale
from factory.prompts.shapes import EXTRAS, FIELDS, SHAPES, Example, Given, RowError, find, mapped, read_row, shape_of
from factory.prompts.sources import Record, RowFault, bundled_prompts, open_source
from factory.prompts.splits import SPLITS, Shares, group_of, most_guarded, split_of
from factory.schema import Candidate, Judgment, Label, Message, Messages, Preference, Prompt, Row, digest, now

if TYPE_CHECKING:
    from factory.prompts.decontamination import Rule

RUN: Final = "given"
"""The run that preferences, labels, judgments and candidates from outside belong to."""
JUDGE: Final = "given"
"""The judge that scores and winners from outside go by, where nobody names another."""

SHARES: Final = Shares(heldout=0.15, final=0.05)
BUNDLED_SHARES: Final = Shares(heldout=0.25, final=0.15)  # a small set: more of it is needed to measure anything

_ADDED: Final = {"split": list(SPLITS)}  # not what judges were asked
_LOOKED_AT: Final = 100  # rows that are looked at to recognise the shape
_BATCH: Final = 2000  # rows written in one commit
_FEW_WORDS: Final = 4
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class PromptStore(Protocol):
    """What is needed of a store."""

    def append(self, table: str, rows: Iterable[Row | Mapping[str, Any]]) -> int:
        """Add the rows whose key is new; their number."""

    def read(
        self, table: str, *, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a table."""


@dataclass(slots=True)
class AddReport:
    """What was added, and what was not."""

    source: str
    rows: int = 0
    """Rows read, faulty ones included."""
    prompts: int = 0
    """New prompts in the store."""
    known: int = 0
    """Prompts of the source that the store had already."""
    duplicates: int = 0
    """Rows dropped because an earlier row of the source says the same."""
    candidates: int = 0
    """New given answers."""
    preferences: int = 0
    labels: int = 0
    judgments: int = 0
    """New scores and winners."""
    endless: int = 0
    """Of them scores for which no scale was named: they are taken for rewards without ends."""
    splits: dict[str, int] = field(default_factory=dict)
    """New prompts by split."""
    groups: int = 0
    """Groups of the new prompts."""
    shapes: dict[str, int] = field(default_factory=dict)
    """Rows by shape."""
    decontaminated: int = 0
    """Rows left out since a set named in `decontaminate` holds their prompt."""
    bridged: int = 0
    """New prompts near prompts of different splits; they went to the most guarded of these."""
    replaced: int = 0
    """Broken characters (lone surrogates, bytes that are not UTF-8) replaced by U+FFFD."""
    unused: tuple[str, ...] = ()
    """Columns of the source that nothing was made of."""
    failures: tuple[RowFault, ...] = ()
    """Rows left out, each with its line, column and reason."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "failures": [f._asdict() for f in self.failures], "unused": list(self.unused)}

    def text(self) -> str:
        """The report as a person reads it; of many failures the first ten."""
        made = {"given answers": self.candidates, "preferences": self.preferences, "labels": self.labels}
        made["judgments"] = self.judgments
        parts = [f"{count} {name}" for name, count in made.items() if count]
        lines = [f"{self.source}: {', '.join([f'{self.prompts} new prompts in {self.groups} groups', *parts])}"]
        lines += ["  splits: " + ", ".join(f"{split} {self.splits.get(split, 0)}" for split in SPLITS)]
        notes = {
            "prompts were in the store already": self.known,
            "rows repeat earlier ones and were dropped": self.duplicates,
            "rows were left out: a set that they are kept clear of holds their prompt": self.decontaminated,
            "prompts are near prompts of different splits; they went to the one least trained on": self.bridged,
            "broken characters were replaced": self.replaced,
            "scores have no scale and are taken for rewards without ends; --scale LOW:HIGH names one": self.endless,
            "rows were left out:": len(self.failures),
        }
        if self.unused:
            lines.append(f"  columns not used: {', '.join(self.unused)}")
        lines += [f"  {count} {note}" for note, count in notes.items() if count]
        lines += [f"    line {f.line}: {f.column + ': ' if f.column else ''}{f.reason}" for f in self.failures[:10]]
        return "\n".join(lines)


def add_prompts(
    store: PromptStore,
    source: str,
    *,
    mapping: Mapping[str, str] | None = None,
    group_by: str | None = None,
    heldout: float | None = None,
    final: float | None = None,
    hub_config: str | None = None,
    hub_split: str = "train",
    limit: int | None = None,
    run: str = RUN,
    label: bool | None = None,
    judge: str = JUDGE,
    scale: Scale | None = None,
    decontaminate: Sequence[str] = (),
    rule: Rule | None = None,
) -> AddReport:
    """Read prompts and preference data from `source` (a file, a bundled set or a hub name) into the store.

    `mapping` names the source's column for a field ({"prompt": "question"}); `group_by` the column whose value keeps
    prompts together in one split. `heldout` and `final` are the shares of groups that go there (0.15 and 0.05 by
    default; 0.25 and 0.15 of a bundled set). At most `limit` rows are read. Answers that come without a label get
    `label`. Scores and winners become judgments by `judge`; `scale` has the ends of the scores' scale, without it they
    are rewards without ends. Rows whose prompt one of the sets named in `decontaminate` holds, by `rule`
    (`factory/prompts/decontamination.py`), are left out and counted. Prompts without a named group are held in memory
    until all are read, since near-duplicates may come late; all else is a stream.
    FactoryError when the source cannot be read, or when no row has a known shape.
    """
    fallback = BUNDLED_SHARES if bundled_prompts(source) else SHARES
    shares = Shares(
        fallback.heldout if heldout is None else heldout, fallback.final if final is None else final
    ).checked()
    _check_mapping(mapping or {})
    opened = open_source(source, hub_config=hub_config, hub_split=hub_split)
    reader = _Reader(mapping or {}, group_by, opened.name)
    ledger = _Ledger(store, opened.name, shares, Source(run, judge, scale))
    examples = map(partial(_labelled, label), reader.examples(islice(opened.rows, limit)))
    clear_of = [text for other in decontaminate for text in texts_of(other)]
    while batch := list(islice(examples, _BATCH)):
        ledger.take(_clear(batch, clear_of, rule, ledger.report) if clear_of else batch)
    ledger.settle()
    report = ledger.report
    report.rows, report.replaced, report.unused = reader.rows, reader.replaced, reader.unused()
    report.failures = tuple(sorted([*reader.failures, *ledger.failures]))
    return report


def _labelled(label: bool | None, example: Example) -> Example:
    """The example, its answer under the label where it has one and no other."""
    given = example.given
    if label is None or given.answer is None or given.label is not None:
        return example
    return replace(example, given=given._replace(label=label))


def texts_of(source: str, *, mapping: Mapping[str, str] | None = None, hub_split: str = "train") -> list[str]:
    """The prompts of a file, a bundled set or a data set of the hub as texts, to test others against. Of rows without a
    known shape (a benchmark's, say) every text that is longer than a few words. FactoryError: it cannot be read, a row
    of it cannot (what is not read is not tested), or it holds no text."""
    opened = open_source(source, hub_split=hub_split)
    reader = _Reader(mapping or {}, None, opened.name)
    rows = list(opened.rows)
    if faults := [row for row in rows if isinstance(row, RowFault)]:
        raise ConfigError([f"line {fault.line}: {fault.reason}" for fault in faults], where=source)
    records = [row for row in rows if isinstance(row, Record)]
    known = [r for r in records if shape_of(mapped(r.values, mapping or {}))]
    if known or mapping:
        found = [_said_text(example.given.messages) for example in reader.examples(iter(known or records))]
    else:
        found = [text for r in records for text in _long_texts(r.values)]
    if not found:
        raise FactoryError("there are no texts to test against", where=source, todo="name the column of the prompts")
    return found


def _long_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value.split()) >= _FEW_WORDS:
            yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _long_texts(each)


def _clear(examples: Sequence[Example], texts: Sequence[str], rule: Rule | None, report: AddReport) -> list[Example]:
    """The examples whose prompt the texts do not hold."""
    from factory.prompts.decontamination import find

    prompts = {str(i): _said_text(example.given.messages) for i, example in enumerate(examples)}
    hit = {found.key for found in find(prompts, texts, rule)}
    report.decontaminated += len(hit)
    return [example for i, example in enumerate(examples) if str(i) not in hit]


class _Nowhere:
    """A store that keeps nothing."""

    def append(self, table: str, rows: Iterable[Row | Mapping[str, Any]]) -> int:
        return sum(1 for _ in rows)

    def read(
        self, table: str, *, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        return []


def survey(source: str, *, group_by: str | None = None) -> AddReport:
    """What adding `source` to an empty store would report; nothing is kept."""
    return add_prompts(_Nowhere(), source, group_by=group_by)


def _check_mapping(mapping: Mapping[str, str]) -> None:
    faults = [f"no field named {name!r}; known: {', '.join(FIELDS)}" for name in mapping if name not in FIELDS]
    if faults:
        raise ConfigError(faults, where="--map", todo="--map FIELD=COLUMN, such as --map prompt=question")


# ------------------------------------------------------------------------------------------------ rows to examples


class _Reader:
    """Records into examples; counts and keeps what went wrong."""

    def __init__(self, mapping: Mapping[str, str], group_by: str | None, source: str) -> None:
        self.mapping = mapping
        self.group_by = group_by
        self.source = source
        self.rows = 0
        self.replaced = 0
        self.failures: list[RowFault] = []
        self._columns: dict[str, None] = {}
        self._used = {group_by or "", *(column.split(".")[0] for column in mapping.values())}

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
        wanted = [*self.mapping.values(), *([self.group_by] if self.group_by else [])]
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
        if not self.group_by:
            return read_row(record.line, row, shape)
        row["group"] = find(values, self.group_by)
        example = read_row(record.line, row, shape)
        if example.group is None:
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


# ------------------------------------------------------------------------------------------------ examples to rows


class _Ledger:
    """Examples into rows of the store: the split of each prompt is decided here, once."""

    def __init__(self, store: PromptStore, source: str, shares: Shares, judged: Source) -> None:
        self.store = store
        self.run = judged.run
        self.source = source
        self.judged = judged
        self._verdicts = Verdicts(store, judged)
        self.shares = shares
        self.report = AddReport(source)
        self.failures: list[RowFault] = []
        held = store.read("prompts", columns=["key", "split", "group", "constraints", "rubric"], where=_ADDED)
        self._held = {row["key"] for row in held}
        self._split = {row["key"]: row["split"] for row in held}
        self._group_split = {row["group"]: row["split"] for row in held}
        self._constraints = {row["key"]: digest(row["constraints"]) for row in held if row["constraints"]}
        self._rubrics = {row["key"]: digest(row["rubric"]) for row in held}
        self._labels: dict[str, bool] = {}
        self._said: set[str] = set()
        self._groups: set[str] = set()
        self._known: set[str] = set()
        self._waiting: list[tuple[str, Example]] = []

    def take(self, examples: Iterable[Example]) -> None:
        """Write those whose split is known by their prompt or group; keep the others for `settle`."""
        rows = _Rows()
        for example in examples:
            key = prompt_key(example)
            if not self._is_new(key, example):
                continue
            group = group_of(example.group, example.topic, example.task)
            if key in self._split or group is not None:
                self._enter(rows, key, example, group or "")
            else:
                self._waiting.append((key, example))
        self._write(rows)

    def settle(self) -> None:
        """Cluster the prompts that have no named group, together with the store's, and write them."""
        waiting = self._waiting
        if waiting:
            groups = self._clusters()
            for start in range(0, len(waiting), _BATCH):
                rows = _Rows()
                for key, example in waiting[start : start + _BATCH]:
                    self._enter(rows, key, example, groups.get(key, ""))
                self._write(rows)
        self.report.groups = len(self._groups)
        self.report.known = len(self._known)

    def _is_new(self, key: str, example: Example) -> bool:
        self.report.shapes[example.shape] = self.report.shapes.get(example.shape, 0) + 1
        said = digest(key, example.given[1:], example.reference, example.constraints, example.rubric)
        if said in self._said:
            self.report.duplicates += 1
            return False
        self._said.add(said)
        mine = digest(example.constraints)
        if example.constraints and self._constraints.setdefault(key, mine) != mine:
            reason = "the same prompt is there already, with other constraints"
            self.failures.append(RowFault(example.line, "constraints", reason))
            return False
        rubric = digest(example.rubric)
        if self._rubrics.setdefault(key, rubric) != rubric and example.rubric:
            reason = "the same prompt is there already, with another rubric or with none"
            self.failures.append(RowFault(example.line, "rubric", reason))
            return False
        return self._agrees(key, example) and self._is_judged_alike(key, example)

    def _is_judged_alike(self, key: str, example: Example) -> bool:
        """Do the row's scores and winner stand on their scale, and contradict no earlier ones?"""
        fault = self._verdicts.fault(judgments_of(example.given, key, self.judged))
        if fault:
            self.failures.append(RowFault(example.line, "", fault))
        return not fault

    def _agrees(self, key: str, example: Example) -> bool:
        """Is the row's label, if it has one, the only one of this answer? A second, other label is a failure."""
        label, text = example.given.label, example.given.answer
        if label is None or text is None:
            return True
        if not self._labels:
            self._labels = {r["key"]: r["label"] for r in self.store.read("labels", columns=["key", "label"])}
        if self._labels.setdefault(label_key(self.run, key, text), label) == label:
            return True
        self.failures.append(RowFault(example.line, "label", "the same answer is there already, with the other label"))
        return False

    def _enter(self, rows: _Rows, key: str, example: Example, group: str) -> None:
        if key in self._held:
            self._known.add(key)
        elif key not in self._split:
            split = self._group_split.setdefault(group, split_of(group, self.shares))
            self._split[key] = split
            self._groups.add(group)
            rows.prompts.append(_prompt_row(key, example, split, group, self.source))
        rows.add_given(example, key, self._split[key], self.judged, self.source)

    def _clusters(self) -> dict[str, str]:
        """The group of each waiting prompt: that of the store's prompts near it, else a new one."""
        from factory.prompts.near_duplicates import clusters

        held = self.store.read("prompts", columns=["key", "messages", "split", "group"], where=_ADDED)
        new = {key: example.given.messages for key, example in self._waiting if key not in self._split}
        keys = [row["key"] for row in held] + list(new)
        labels = clusters([_said_text(m) for m in chain((row["messages"] for row in held), new.values())])
        near: dict[int, dict[str, str]] = {}
        for label, row in zip(labels, held, strict=False):
            near.setdefault(label, {})[row["group"]] = row["split"]
        names: dict[int, str] = {}
        for key, label in zip(keys[len(held) :], labels[len(held) :], strict=True):
            names[label] = min(names.get(label, key), key)
        bridging = {label: len(set(groups.values())) > 1 for label, groups in near.items()}
        self.report.bridged = sum(bridging.get(label, False) for label in labels[len(held) :])
        chosen = {label: _guarding(near[label]) if label in near else f"cluster={names[label]}" for label in names}
        return {key: chosen[label] for key, label in zip(keys[len(held) :], labels[len(held) :], strict=True)}

    def _write(self, rows: _Rows) -> None:
        report = self.report
        report.prompts += self.store.append("prompts", rows.prompts) if rows.prompts else 0
        splits = Counter(row.split for row in rows.prompts)
        report.splits = {split: report.splits.get(split, 0) + splits[split] for split in SPLITS}
        report.candidates += self.store.append("candidates", rows.candidates) if rows.candidates else 0
        report.preferences += self.store.append("preferences", rows.preferences) if rows.preferences else 0
        report.labels += self.store.append("labels", rows.labels) if rows.labels else 0
        report.judgments += self.store.append("judgments", rows.judgments) if rows.judgments else 0
        report.endless += sum(row.score is not None and row.score_low is None for row in rows.judgments)


def _guarding(groups: Mapping[str, str]) -> str:
    """Of the groups (and their splits) near a prompt, the first by name in the most guarded split."""
    split = most_guarded(groups.values())
    return min(group for group, its in groups.items() if its == split)


def _said_text(messages: Messages) -> str:
    """What is compared between prompts: all but the system's turns, which whole data sets share."""
    return "\n".join(m["content"] for m in messages if m["role"] != "system")


def prompt_key(example: Example) -> str:
    """The key of its prompt; tools are a part of it where there are any."""
    return digest(example.given.messages, *([example.tools] if example.tools else []))


def _prompt_row(key: str, example: Example, split: str, group: str, source: str) -> Prompt:
    return Prompt(
        key=key,
        messages=example.given.messages,
        split=split,
        group=group,
        topic=example.topic,
        task=example.task,
        constraints=example.constraints,
        reference=example.reference,
        rubric=example.rubric,
        source=source,
        tools=example.tools,
        at=now(),
    )


@dataclass(slots=True)
class _Rows:
    """Rows to be written together."""

    prompts: list[Prompt] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    judgments: list[Judgment] = field(default_factory=list)

    def add_given(self, example: Example, prompt_key: str, split: str, judged: Source, source: str) -> None:
        """The answers given with a prompt, and what was said of them."""
        given, run = example.given, judged.run

        def candidate(text: str, model: str = "") -> str:
            key = given_key(run, prompt_key, text)
            self.candidates.append(
                Candidate(
                    key=key, run=run, prompt_key=prompt_key, split=split, kind="given", model=model or source,
                    text=text, finish_reason="stop", at=now(),
                )
            )  # fmt: skip
            return key

        for said in given.said:
            candidate(said.text, said.model)
        self.judgments += judgments_of(given, prompt_key, judged)

        if given.chosen is not None and given.rejected is not None:
            keys = candidate(given.chosen), candidate(given.rejected)
            made = _preference_row(given, given.chosen, given.rejected, keys, prompt_key, run, source)
            self.preferences.append(replace(made, tools=example.tools, margin=margin_of(given, judged.scale)))
        if given.answer is not None:
            key = candidate(given.answer)
            if given.label is not None:
                label = _label_row(given, given.answer, given.label, key, prompt_key, run, source)
                self.labels.append(replace(label, tools=example.tools))


def _turn(text: str) -> Messages:
    return [Message(role="assistant", content=text)]


def _preference_row(
    given: Given, chosen: str, rejected: str, keys: tuple[str, str], prompt_key: str, run: str, source: str
) -> Preference:
    return Preference(
        key=digest(run, 0, prompt_key, chosen, rejected, "given"),
        run=run,
        prompt=given.messages,
        chosen=_turn(chosen),
        rejected=_turn(rejected),
        prompt_key=prompt_key,
        chosen_key=keys[0],
        rejected_key=keys[1],
        margin=1.0,
        strategy="given",
        source=source,
        at=now(),
    )


def label_key(run: str, prompt_key: str, text: str) -> str:
    """The key of the label that was given with an answer; the label itself is no part of it."""
    return digest(run, 0, prompt_key, text, "given")


def _label_row(given: Given, text: str, label: bool, key: str, prompt_key: str, run: str, source: str) -> Label:
    return Label(
        key=label_key(run, prompt_key, text),
        run=run,
        prompt=given.messages,
        completion=_turn(text),
        label=label,
        prompt_key=prompt_key,
        candidate_key=key,
        strategy="given",
        source=source,
        at=now(),
    )
