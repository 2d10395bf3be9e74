"""Prompts, and preference data that was made elsewhere, into the store.

    sources.py records -> reading.py examples, by shapes.py -> entering.py rows of the store

Every row is read into one form (`shapes.py`), its prompt gets a group and by it a split (`splits.py`), and answers that
came with it become candidates of kind `given`, with preferences or labels that refer to them; scores and winners become
judgments of a judge of their own. A row that cannot be read is reported and left out; the others go in. Adding the same
data again adds nothing: every key is a hash of the content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from factory.faults import ConfigError, FactoryError
from factory.prompts.entering import BATCH, AddReport, Ledger, PromptStore, said_text
from factory.prompts.judged import Source
from factory.prompts.reading import Reader, check_mapping
from factory.prompts.scored import Scale
from factory.prompts.shapes import Example, mapped, shape_of
from factory.prompts.sources import Record, RowFault, bundled_prompts, open_source
from factory.prompts.splits import Shares
from factory.schema import Row

if TYPE_CHECKING:
    from factory.prompts.decontamination import Rule

RUN: Final = "given"
"""The run that preferences, labels, judgments and candidates from outside belong to."""
JUDGE: Final = "given"
"""The judge that scores and winners from outside go by, where nobody names another."""

SHARES: Final = Shares(heldout=0.15, final=0.05)
BUNDLED_SHARES: Final = Shares(heldout=0.25, final=0.15)  # a small set: more of it is needed to measure anything

_FEW_WORDS: Final = 4


def add_prompts(
    store: PromptStore,
    source: str,
    *,
    mapping: Mapping[str, str] | None = None,
    group_by: str | None = None,
    keep: Sequence[str] = (),
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
    prompts together in one split; `keep` columns that stay with new prompts, to pick them by. `heldout` and `final` are
    the shares of groups that go there (0.15 and 0.05 by default; 0.25 and 0.15 of a bundled set). At most `limit` rows
    are read. Answers that come without a label get `label`. Scores and winners become judgments by `judge`; `scale` has
    the ends of the scores' scale, without it they are rewards without ends. Rows whose prompt one of the sets named in
    `decontaminate` holds, by `rule` (`factory/prompts/decontamination.py`), are left out and counted. Prompts without a
    named group are held in memory until all are read, since near-duplicates may come late; all else is a stream.
    FactoryError when the source cannot be read, or when no row has a known shape.
    """
    fallback = BUNDLED_SHARES if bundled_prompts(source) else SHARES
    shares = Shares(
        fallback.heldout if heldout is None else heldout, fallback.final if final is None else final
    ).checked()
    check_mapping(mapping or {})
    opened = open_source(source, hub_config=hub_config, hub_split=hub_split)
    reader = Reader(mapping or {}, group_by, opened.name, keep)
    ledger = Ledger(store, opened.name, shares, Source(run, judge, scale))
    examples = map(partial(_labelled, label), reader.examples(islice(opened.rows, limit)))
    clear_of = [text for other in decontaminate for text in texts_of(other)]
    while batch := list(islice(examples, BATCH)):
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
    reader = Reader(mapping or {}, None, opened.name)
    rows = list(opened.rows)
    if faults := [row for row in rows if isinstance(row, RowFault)]:
        raise ConfigError([f"line {fault.line}: {fault.reason}" for fault in faults], where=source)
    records = [row for row in rows if isinstance(row, Record)]
    known = [r for r in records if shape_of(mapped(r.values, mapping or {}))]
    if known or mapping:
        found = [said_text(example.given.messages) for example in reader.examples(iter(known or records))]
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

    prompts = {str(i): said_text(example.given.messages) for i, example in enumerate(examples)}
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
