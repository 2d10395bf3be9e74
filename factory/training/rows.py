"""The rows that a training learns from: read from the store, sifted, and turned into token ids.

    preferences, labels --what may be learnt--> text --train/data.py--> token ids, cut to the limits on length

Rows of prompts that are kept for measuring, rows without weight and rows that contradict each other are left out and
counted; so is what cannot be put into tokens.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from factory.faults import FactoryError
from factory.pairing import BALANCE, LabelBy
from factory.registry import unknown_name
from factory.schema import Label, Messages, Preference, Prompt, unique
from factory.training.best_of import Best, best
from train.config import BestSpec, TrainConfig

if TYPE_CHECKING:
    from factory.store import Store
    from train.conversations import Ids
    from train.data import Labelled, LabelRow
    from train.losses import Objective

log = logging.getLogger(__name__)

Judged = TypeVar("Judged", Preference, Label)
OTHER = {"preferences": "labels", "labels": "preferences"}
_TABLES = {"pairs": "preferences", "labels": "labels", "completions": "labels", "scores": "preferences"}


class Data(NamedTuple):
    """Rows as tokens; how many were cut, and by how many tokens in all; why others were left out."""

    rows: list[Any]
    truncated: int = 0
    truncated_tokens: int = 0
    skipped: Mapping[str, int] = {}
    best: Best | None = None  # where a prompt's best answers alone are learnt


class _Texts(NamedTuple):
    """Rows as text, how one becomes tokens, and what was taken where a prompt's best answers alone are learnt."""

    rows: Sequence[Any]
    encode: Callable[..., tuple[Any, int]]
    best: Best | None = None


def table_of(objective: Objective) -> str:
    """The table that an objective on data of the store reads."""
    return _TABLES[objective.data]


def stored(
    store: Store, objective: Objective, where: Mapping[str, Any], strategy: str | Sequence[str] | None, base: str,
    config: TrainConfig,
) -> Data:  # fmt: skip
    """The rows as tokens. `base`: the folder with the tokenizer. FactoryError: none is left, or rows of several
    strategies and none named."""
    from train.shapes import of

    table, skipped = table_of(objective), Counter[str]()
    picked = _of_strategy(store, table, where, strategy)
    texts = _texts(store, objective, picked, config, skipped)
    rows, cuts = _encoded(texts, base, config, skipped)
    if not rows:
        raise _nothing(store, table, picked, skipped, texts.best)
    _say(table, len(rows), cuts, skipped, texts.best)
    if objective.data == "labels" and (told := lopsided(rows, config.parameters)):
        log.warning("%s", told)
    shape = of(objective, config.parameters)
    whole = list(shape.completed(rows, config.seed, config.max_length))
    return Data(whole, len(cuts), sum(cuts), dict(skipped), texts.best)


def _texts(
    store: Store, objective: Objective, where: Mapping[str, Any], config: TrainConfig, skipped: Counter[str]
) -> _Texts:
    if objective.takes == "best":
        texts = _best(store, where, skipped, config.best or BestSpec(), config.seed)
    else:
        texts = READERS[objective.data](store, where, skipped)
    if config.train_on == "every_turn":
        return texts._replace(encode=partial(texts.encode, every_turn=True))
    return texts


def _encoded(texts: _Texts, base: str, config: TrainConfig, skipped: Counter[str]) -> tuple[list[Any], list[int]]:
    """The rows as tokens, and the tokens that were cut of each that was."""
    from train.conversations import RowError
    from train.data import Limits
    from train.policy import load_tokenizer

    tokenizer, limits = load_tokenizer(base), Limits(config.max_length, config.max_completion_length)
    rows: list[Any] = []
    cuts: list[int] = []
    for text in texts.rows:
        try:
            row, cut = texts.encode(tokenizer, text, limits)
        except RowError as fault:
            skipped[str(fault)] += 1
        else:
            rows.append(row)
            cuts += [cut] if cut else []
    return rows, cuts


def _say(table: str, rows: int, cuts: Sequence[int], skipped: Counter[str], taken: Best | None) -> None:
    if skipped:
        log.warning("%d %s are left out: %s", skipped.total(), table, dict(skipped))
    if cuts:
        log.warning("%d of %d rows are cut to the limits on length, by %d tokens in all", len(cuts), rows, sum(cuts))
    if taken is None:
        return
    if taken.without:
        log.warning("%d of %d prompts give nothing: %s", taken.without.total(), taken.prompts, dict(taken.without))
    if taken.single == taken.prompts:
        log.warning("every prompt has one answer: nothing was chosen from, which makes this sft on what passed")


def lopsided(rows: Sequence[LabelRow], parameters: Mapping[str, Any]) -> str:
    """What to do where good answers weigh, all together, less than half or more than twice what 2402.01306 asks for
    in relation to bad ones (`BALANCE`); empty where they do not. One kind alone is another fault's."""
    good, bad = (sum(row.weight for row in rows if row.desirable is kind) for kind in (True, False))
    good, bad = good * parameters.get("desirable_weight", 1.0), bad * parameters.get("undesirable_weight", 1.0)
    low, high = BALANCE
    if not (good and bad) or low / 2 <= good / bad <= 2 * high:
        return ""
    what, name = ("bad", "undesirable_weight") if good > bad else ("good", "desirable_weight")
    right = parameters.get(name, 1.0) * (good / bad / high if good > bad else low * bad / good)
    return (
        f"good answers weigh {_short(good / bad)} times what bad ones do, so that the {what} ones teach little: "
        f"KTO's paper asks for {low:g} to {high:.3g} (2402.01306): factory pair --label-weights balanced, or "
        f"-p {name}={_short(right)} (in a recipe pair.label_weights, or train.config.parameters.{name})"
    )


def _short(value: float) -> str:
    """Two digits that count, written out: 0.013, 3, 210."""
    return f"{float(f'{value:.2g}'):g}"


def asked(store: Store, keys: Sequence[str] | None, base: str, config: TrainConfig) -> dict[Ids, Prompt]:
    """The prompts of an online training as tokens, those that leave no room for an answer left out."""
    from train.conversations import RowError, prompt_ids
    from train.policy import load_tokenizer

    where: dict[str, Any] = {"split": "train"} | ({} if keys is None else {"key": list(keys)})
    tokenizer = load_tokenizer(base)
    found: dict[Ids, Prompt] = {}
    refused: Counter[str] = Counter()
    for prompt in store.rows(Prompt, where):
        try:
            found[prompt_ids(tokenizer, prompt.messages, prompt.tools or ())] = prompt
        except RowError as fault:
            refused[str(fault)] += 1
    if refused:
        log.warning("%d prompts are left out: %s", refused.total(), dict(refused))
    kept = {ids: p for ids, p in found.items() if ids and (config.max_length is None or len(ids) < config.max_length)}
    if not kept:
        raise FactoryError("there are no prompts to sample answers to", todo="factory prompts add FILE")
    if len(kept) < len(found):
        log.warning("%d prompts are left out: empty, or longer than max_length", len(found) - len(kept))
    return kept


def _of_strategy(
    store: Store, table: str, where: Mapping[str, Any], strategy: str | Sequence[str] | None
) -> dict[str, Any]:
    """The conditions with those strategies; rows of several are one training only where they are named.

    FactoryError: rows of several strategies and none named, or one named that made none.
    """
    wanted = [strategy] if isinstance(strategy, str) else list(strategy or ())
    held = Counter(row["strategy"] for row in store.read(table, columns=["strategy"], where=where))
    if wanted:
        return {**where, "strategy": unique(_as_held(store, table, where, name, held) for name in wanted)}
    if len(held) > 1:
        raise FactoryError(
            f"these {table} were made in several ways: {_counted(held)}",
            where=", ".join(f"{key} {value}" for key, value in where.items()),
            todo="name the pairing to train on (--strategy NAME); name several to train on them together",
        )
    return dict(where)


def _as_held(store: Store, table: str, where: Mapping[str, Any], name: str, held: Counter[str]) -> str:
    """What the rows of a pairing go by in the table: its name, or in stores from before labels had that name the way to
    label. FactoryError: the table holds rows of others and none of its."""
    if not held or name in held:
        return name
    other = OTHER[table]
    if name not in {row["strategy"] for row in store.read(other, columns=["strategy"], where=_place(where))}:
        raise FactoryError(unknown_name(f"pairing with {table} there", name, held).what, todo="name one of these")
    ways = held.keys() & set(get_args(LabelBy)) if table == "labels" else set()
    if len(ways) == 1:
        return ways.pop()
    raise FactoryError(
        f"the pairing {name!r} made {other} and no {table} there; {table} are of: {_counted(held)}",
        todo=f"name one of these, or take a method that trains on {other} (`factory methods`)",
    )


def _place(where: Mapping[str, Any]) -> dict[str, Any]:
    return {key: where[key] for key in ("run", "round")}


def _counted(held: Counter[str]) -> str:
    return ", ".join(f"{name or 'none'} ({count})" for name, count in sorted(held.items()))


def _nothing(
    store: Store, table: str, where: Mapping[str, Any], skipped: Counter[str], taken: Best | None
) -> FactoryError:
    other, methods = OTHER[table], {"preferences": "kto or sft", "labels": "dpo or simpo"}[table]
    there = 0 if skipped else len(store.read(other, columns=["key"], where=_place(where)))
    reasons = "".join(f"; {count} left out: {reason}" for reason, count in skipped.items())
    if taken is not None and taken.without:
        why = ", ".join(f"{reason} ({count})" for reason, count in taken.without.items())
        return FactoryError(
            f"none of {taken.prompts} prompts has a best answer to learn{reasons}: {why}",
            where=", ".join(f"{key} {value}" for key, value in where.items()),
            todo="sample more answers (a higher n), or lower what is asked: best: {passing: false, min_score: 0.3}",
        )
    return FactoryError(
        f"there are no {table} to train on{reasons}",
        where=", ".join(f"{key} {value}" for key, value in where.items()),
        todo=f"there are {there} {other}: take a method on those, such as {methods}"
        if there
        else "make some with `factory label` and `factory pair`, or name another --run or --round",
    )


def _to_learn_from(store: Store, rows: list[Judged], skipped: Counter[str]) -> list[Judged]:
    """The rows whose prompt is not kept for measuring (data that was brought in has prompts of every split), that weigh
    something, and that no other row contradicts."""
    kept_away = store.read("prompts", columns=["key", "split"], where={"split": ["heldout", "final"]})
    split = {prompt["key"]: prompt["split"] for prompt in kept_away}
    skipped.update(f"its prompt is in the split {split[row.prompt_key]!r}" for row in rows if row.prompt_key in split)
    rows = [row for row in rows if row.prompt_key not in split]
    heavy = [row for row in rows if row.weight > 0 and math.isfinite(row.weight)]
    if len(heavy) < len(rows):
        skipped["its weight is not above 0"] += len(rows) - len(heavy)
    claims = {_claim(row) for row in heavy}
    sound = [row for row in heavy if _opposite(_claim(row)) not in claims]
    if len(sound) < len(heavy):
        skipped["another row says the opposite"] += len(heavy) - len(sound)
    return sound


def _claim(row: Judged) -> tuple[str | bool, str | bool]:
    """What a row says: that one answer is better than another, or that an answer is desirable or not."""
    return (row.chosen_key, row.rejected_key) if isinstance(row, Preference) else (row.candidate_key, row.label)


def _opposite(claim: tuple[str | bool, str | bool]) -> tuple[str | bool, str | bool]:
    first, second = claim
    return (first, not second) if isinstance(second, bool) else (second, first)


def _pairs(store: Store, where: Mapping[str, Any], skipped: Counter[str]) -> _Texts:
    """The preferences."""
    from train.conversations import Answer, answer_of
    from train.data import Pair, pair_row

    found = _to_learn_from(store, store.rows(Preference, where), skipped)
    cut = _cut(store, [key for row in found for key in (row.chosen_key, row.rejected_key)])

    def answer(messages: Messages, key: str) -> Answer:
        return answer_of(messages, ended=key not in cut)

    pairs = [
        Pair(
            r.prompt, answer(r.chosen, r.chosen_key), answer(r.rejected, r.rejected_key), r.weight, r.margin, _tools(r)
        )
        for r in found
    ]
    return _Texts(pairs, pair_row)


def _labels(store: Store, where: Mapping[str, Any], skipped: Counter[str]) -> _Texts:
    """The labels."""
    from train.data import label_row

    return _Texts(_labelled(store, _to_learn_from(store, store.rows(Label, where), skipped)), label_row)


def _labelled(store: Store, rows: Sequence[Label]) -> list[Labelled]:
    from train.conversations import answer_of
    from train.data import Labelled

    cut = _cut(store, [row.candidate_key for row in rows])
    return [
        Labelled(r.prompt, answer_of(r.completion, ended=r.candidate_key not in cut), r.label, r.weight, _tools(r))
        for r in rows
    ]


def _completions(store: Store, where: Mapping[str, Any], skipped: Counter[str]) -> _Texts:
    """The desirable answers."""
    from train.data import completion_row

    sound = _to_learn_from(store, store.rows(Label, where), skipped)
    return _Texts(_labelled(store, [row for row in sound if row.label]), completion_row)


def _best(store: Store, where: Mapping[str, Any], skipped: Counter[str], wanted: BestSpec, seed: int) -> _Texts:
    """The best answer to each prompt."""
    from train.data import completion_row

    taken = best(_to_learn_from(store, store.rows(Label, where), skipped), wanted, seed)
    texts = [text._replace(desirable=True) for text in _labelled(store, taken.rows)]
    return _Texts(texts, completion_row, taken)


def _scored(store: Store, where: Mapping[str, Any], skipped: Counter[str]) -> _Texts:
    """The preferences, as a reward model reads them."""
    from train.data import scored_row

    return _pairs(store, where, skipped)._replace(encode=scored_row)


READERS = {"pairs": _pairs, "labels": _labels, "completions": _completions, "scores": _scored}


def _tools(row: Preference | Label) -> tuple[Any, ...]:
    """Schemas of what its answers may call."""
    return tuple(row.tools or ())


def _cut(store: Store, candidates: Iterable[str]) -> set[str]:
    """The candidates that ran into their limit: they have no end token to learn from."""
    rows = store.read("candidates", columns=["key", "finish_reason"], where={"key": unique(k for k in candidates if k)})
    return {row["key"] for row in rows if row["finish_reason"] == "length"}
