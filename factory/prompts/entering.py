"""Examples into rows of the store: prompts with their groups and splits, and what was given with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Final, Protocol

from factory.prompts.judged import Source, Verdicts, given_key, judgments_of, margin_of
from factory.prompts.shapes import Example, Given
from factory.prompts.sources import RowFault
from factory.prompts.splits import SPLITS, Shares, group_of, most_guarded, split_of
from factory.schema import Candidate, Judgment, Label, Message, Messages, Preference, Prompt, Row, digest, now

BATCH: Final = 2000  # rows written in one commit
_ADDED: Final = {"split": list(SPLITS)}  # not what judges were asked


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
        """The report as a person reads it; failures with the same reason are told together."""
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
            lines.append(f"  columns not used: {', '.join(self.unused)} (--keep COLUMN keeps one with new prompts)")
        lines += [f"  {count} {note}" for note, count in notes.items() if count]
        return "\n".join(lines + _reasons(self.failures))


REASONS = 10
"""Reasons for which rows were left out that are told, each with the first of its rows."""


def _reasons(failures: Sequence[RowFault]) -> list[str]:
    """A line for each reason, in the order of the rows: one row of it, and how many there are."""
    counts = Counter((fault.column, fault.reason) for fault in failures)
    first: dict[tuple[str, str], int] = {}
    for fault in failures:
        first.setdefault((fault.column, fault.reason), fault.line)
    told = [
        f"    line {line}{f' and {counts[why] - 1:,} more' if counts[why] > 1 else ''}: " + ": ".join(filter(None, why))
        for why, line in list(first.items())[:REASONS]
    ]
    return told + (
        [f"    and for {len(first) - REASONS:,} other reasons: --json has all"] if len(first) > REASONS else []
    )


class Ledger:
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
            for start in range(0, len(waiting), BATCH):
                rows = _Rows()
                for key, example in waiting[start : start + BATCH]:
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
        labels = clusters([said_text(m) for m in chain((row["messages"] for row in held), new.values())])
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


def said_text(messages: Messages) -> str:
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
        kept=example.kept,
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
