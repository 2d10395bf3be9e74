"""What a run did, as one value: its rounds with all that was measured, its judges, its costs, pairs to read, and where
every number comes from.

`collect` reads it from the store, also of a run that is still at work. `factory/report/story.py` tells it in sentences,
`factory/report/page.py` makes one HTML file of it, `factory/report/markdown.py` Markdown, and `to_json` plain values.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.schema import Decision, Estimate, Judgment, PolicyReport, Preference, Round, digest

if TYPE_CHECKING:
    from factory.store import Store

PAIRS = 20
"""Pairs to read, in all."""
Row = dict[str, Any]

# ----------------------------------------------------------------------------------------------- what a report is of


class Training(NamedTuple):
    """A round's training in five numbers: margin and accuracy as means over the last quarter of its steps, and the
    changes of the log-probabilities of chosen and rejected answers, nats an answer. None: not logged."""

    steps: int
    margin: float | None
    accuracy: float | None
    chosen: float | None
    rejected: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One round. `decision` is None while it is at work."""

    round: int
    policy: str = ""
    report: PolicyReport | None = None
    preferences: int | None = None
    agreement: Mapping[str, Any] = field(default_factory=dict)
    decision: Decision | None = None
    gain_champion: Estimate | None = None
    """Pass rate minus that of the champion before it."""
    seconds: float = 0.0
    tokens: int = 0
    """Written and paid for in the round."""
    prompt_tokens: int = 0
    cost: float | None = 0.0
    """US dollars; None: the price of some answer is unknown."""
    stages: Mapping[str, float] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    """What the training says of itself: that it was left out, or warnings."""

    @property
    def training(self) -> Training | None:
        """The end of training, from its metrics."""
        return training_of(self.metrics)


class Vote(NamedTuple):
    """What one judge says of a pair. `p_chosen`: probability that the chosen answer is the better."""

    judge: str
    says: str  # chosen | rejected | tie
    p_chosen: float


class PairToRead(NamedTuple):
    """A preference, why it is shown (certain | disputed | drawn), and what each judge said of it."""

    why: str
    pair: Preference
    votes: tuple[Vote, ...] = ()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of answers: of held-out ones by round, and of those that were chosen and rejected."""

    heldout: Mapping[int, Sequence[int]] = field(default_factory=dict)
    chosen: Sequence[int] = ()
    rejected: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything that is told of a run."""

    run: str
    state: str
    recipe: str
    rounds: Sequence[RoundView]
    champion: int = 0
    final: PolicyReport | None = None
    final_start: PolicyReport | None = None
    panel: Mapping[str, Any] = field(default_factory=dict)
    """The judges over all rounds, as `agreement.JudgesReport.to_json` gives them; empty where nobody judged."""
    lengths: Lengths = field(default_factory=Lengths)
    studies: Sequence[Mapping[str, Any]] = ()
    """Best-of-n studies of the run."""
    pairs: Sequence[PairToRead] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> PolicyReport | None:
        """The start policy on held-out prompts."""
        return self.rounds[0].report if self.rounds else None

    @property
    def best(self) -> PolicyReport | None:
        """The champion on held-out prompts."""
        return next((view.report for view in self.rounds if view.round == self.champion), None)

    @property
    def decision(self) -> Decision | None:
        """The last decision made."""
        return next((view.decision for view in reversed(self.rounds) if view.decision), None)

    @property
    def cost(self) -> float | None:
        """US dollars of all rounds; None: the price of some answer is unknown."""
        costs = [view.cost for view in self.rounds]
        return None if None in costs else math.fsum(cost or 0.0 for cost in costs)

    def to_json(self) -> Row:
        """Plain JSON values; an estimate is [value, low, high], with null for what is not known."""
        whole: Row = _plain({f.name: getattr(self, f.name) for f in fields(self)})
        return whole


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Estimate):
        return [_plain(part) for part in value]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


# -------------------------------------------------------------------------------------------------------- collecting


def collect(store: Store, run: str) -> RunReport:
    """What the store holds of a run, done or at work. FactoryError: there is no such run."""
    held = store.get_run(run)
    closed = {row.round: row for row in store.rows(Round, {"run": run})}
    if held is None and not closed:
        raise _no_rounds(store, run)
    marks = store.marks(run)
    said: dict[int, dict[str, Row]] = {}
    for mark in marks:
        if mark["state"] == "done":
            said.setdefault(mark["round"], {})[mark["stage"]] = dict(mark["detail"] or {})
    numbers = sorted({*closed, *said})
    folder = store.run_folder(run)
    views = [_view(n, closed.get(n), said.get(n, {}), folder / f"round-{n}" / "metrics.jsonl") for n in numbers]
    final = next((details["final"] for details in said.values() if "final" in details), None)
    preferences = store.rows(Preference, {"run": run})
    columns = ["key", "round", "split", "kind", "model", "model_hash", "failure", "tokens"]
    candidates = store.read("candidates", columns=columns, where={"run": run})
    return RunReport(
        run=run,
        state=_state(store, run, marks, final),
        recipe=held["recipe"] if held else "",
        rounds=views,
        champion=max((n for n, row in closed.items() if row.champion), default=0),
        final=_report((final or {}).get("report")),
        final_start=_report((final or {}).get("start")),
        panel=_panel(store, run),
        lengths=lengths_of(candidates, preferences),
        studies=read_studies(folder),
        pairs=with_votes(store, run, pairs_to_read(preferences)),
        provenance=_provenance(store, held, (said.get(0) or {}).get("prompts") or {}, candidates, preferences),
    )


def _no_rounds(store: Store, run: str) -> FactoryError:
    """The error for a run that nothing is known of, or that single commands made."""
    if any(store.table(table, ["key"], {"run": run}).num_rows for table in ("candidates", "preferences", "labels")):
        what = f"run {run!r} was made by single commands: it has no rounds to report"
        return FactoryError(
            what, where=str(store.folder), todo="`factory agreement`, `factory query`; or `factory run`"
        )
    return FactoryError(f"no run named {run!r}", where=str(store.folder), todo="factory status lists the runs")


def _view(number: int, row: Round | None, said: Mapping[str, Row], metrics: Path) -> RoundView:
    kept = dict(row.report or {}) if row else {}
    decision = kept.get("decision")
    pairs = kept.get("pairs") or said.get("pair", {}).get("pairs") or {}
    labels = said.get("label", {})
    return RoundView(
        round=number,
        policy=row.policy if row else "",
        report=_report(kept.get("report") or said.get("evaluate", {}).get("report")),
        preferences=pairs.get("preferences"),
        agreement=kept.get("agreement") or labels.get("agreement") or {},
        decision=Decision(**decision) if decision else None,
        gain_champion=estimate_of(kept.get("gain_champion") or said.get("evaluate", {}).get("gain_champion")),
        seconds=float(kept.get("seconds") or sum(detail.get("seconds") or 0.0 for detail in said.values())),
        tokens=int(kept.get("tokens") or 0),
        prompt_tokens=int(kept.get("prompt_tokens") or 0),
        cost=kept.get("cost", 0.0),
        stages=kept.get("stages") or {stage: detail.get("seconds") or 0.0 for stage, detail in said.items()},
        metrics=read_metrics(metrics),
        notes=[
            *_origin(number, kept.get("began_with")),
            *_notes(kept.get("training") or said.get("train", {}).get("training"), said.get("train", {})),
        ],
    )


def _origin(number: int, origin: int | None) -> list[str]:
    """What a round began with, where that is not what the round before gave."""
    if origin is None or origin == number - 1:
        return []
    return [f"it began with {f'the policy of round {origin}' if origin else 'the start policy'}, the best until then"]


def _notes(training: Mapping[str, Any] | None, stage: Mapping[str, Any]) -> list[str]:
    left_out = [f"no training: {stage['skipped']}"] if stage.get("skipped") else []
    return left_out + [str(warning) for warning in (training or {}).get("warnings") or ()]


def _report(data: Mapping[str, Any] | None) -> PolicyReport | None:
    return PolicyReport.from_json(data) if data else None


def estimate_of(value: Any) -> Estimate | None:
    """An estimate as it is kept in JSON, [value, low, high] with null for NaN."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3 or value[0] is None:
        return None
    return Estimate(*(math.nan if bound is None else float(bound) for bound in value))


def name_of_model(name: str) -> str:
    """A model's name as strangers may see it: of a path of this machine the last two parts."""
    path = Path(name)
    return "/".join(path.parts[-2:]) if path.is_absolute() or name.count("/") > 1 else name


def _state(store: Store, run: str, marks: Sequence[Row], final: Row | None) -> str:
    if final is not None:
        return "done"
    if store.is_locked(run):
        return "at work"
    return "failed" if marks and marks[-1]["state"] == "failed" else "cut off"


def read_metrics(path: Path) -> list[Row]:
    """The lines of a metrics.jsonl; a last line that is still being written is left out, and no file is no lines."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def read_studies(folder: Path) -> list[Row]:
    """The best-of-n studies that the run's folder holds, by name of file; one that is being written is left out."""
    found = []
    for path in sorted(folder.glob("bon*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(data, dict):
            found.append(data)
    return found


def keep_study(store: Store, run: str, study: Mapping[str, Any]) -> Path:
    """Keep a best-of-n study (plain JSON, with its round and judge) with the run that it is of; one of the same round
    and judge is replaced."""
    from factory.store.filesystem import write_whole

    name = digest(study["round"], study["judge"])[:8]
    path = store.run_folder(run) / f"bon-{study['round']}-{name}.json"
    write_whole(path, json.dumps(study, ensure_ascii=False, indent=2))
    return path


def _panel(store: Store, run: str) -> Row:
    """The judges of the candidates that were labelled, all rounds together."""
    from factory.trust import agreement

    labelled = store.read("judgments", columns=["run"], where={"run": run})
    if not labelled:
        return {}
    try:
        return agreement.report(store, run=run, split="train").to_json()
    except FactoryError:  # only held-out answers were judged so far
        return {}


def lengths_of(candidates: Sequence[Row], preferences: Sequence[Preference]) -> Lengths:
    """Tokens of held-out samples by round, and of the answers of preferences; answers from outside have no count."""
    heldout: defaultdict[int, list[int]] = defaultdict(list)
    tokens: dict[str, int] = {}
    for row in candidates:
        if row["failure"] is None and row["tokens"]:
            tokens[row["key"]] = row["tokens"]
            if row["split"] == "heldout" and row["kind"] == "sample":
                heldout[row["round"]].append(row["tokens"])
    both = [(tokens[p.chosen_key], tokens[p.rejected_key]) for p in preferences if _counted(p, tokens)]
    return Lengths(dict(sorted(heldout.items())), [chosen for chosen, _ in both], [rejected for _, rejected in both])


def _counted(pair: Preference, tokens: Mapping[str, int]) -> bool:
    return pair.chosen_key in tokens and pair.rejected_key in tokens


# ------------------------------------------------------------------------------------------------------ pairs to read


def pairs_to_read(preferences: Sequence[Preference], count: int = PAIRS) -> list[PairToRead]:
    """Three in ten the most certain, three in ten the most disputed, the others drawn by the hash of their keys, so
    that nobody picked them. No pair twice; ties are broken by the hash."""
    third = round(0.3 * count)
    judged = [pair for pair in preferences if pair.judges > 1 and pair.agreement is not None and pair.agreement < 1]
    disputed = sorted(judged, key=_dispute)[:third]
    taken = {pair.key for pair in disputed}
    certain = sorted((p for p in preferences if p.key not in taken), key=_certainty)[:third]
    taken |= {pair.key for pair in certain}
    left = sorted((p for p in preferences if p.key not in taken), key=lambda pair: digest("page", pair.key))
    groups = {"certain": certain, "disputed": disputed, "drawn": left[: count - len(taken)]}
    return [PairToRead(why, pair) for why, group in groups.items() for pair in group]


def _dispute(pair: Preference) -> tuple[float, float, float, str]:
    return pair.agreement or 0.0, -(pair.entropy or 0.0), pair.margin, digest("page", pair.key)


def _certainty(pair: Preference) -> tuple[float, float, float, str]:
    agreed = pair.agreement if pair.agreement is not None else 0.0
    return -agreed, pair.entropy if pair.entropy is not None else math.inf, -pair.margin, digest("page", pair.key)


def with_votes(store: Store, run: str, pairs: Sequence[PairToRead]) -> list[PairToRead]:
    """The pairs with what each judge said of them."""
    from factory import verdicts

    keys = sorted({shown.pair.prompt_key for shown in pairs})
    if not keys:
        return []
    panel = verdicts.read(store.rows(Judgment, {"run": run, "prompt_key": keys}))
    return [shown._replace(votes=_votes(panel, shown.pair)) for shown in pairs]


def _votes(panel: Any, pair: Preference) -> tuple[Vote, ...]:
    a, b = sorted((pair.chosen_key, pair.rejected_key))
    found = []
    for judge in panel.judges():
        verdict = panel.verdict(judge, (a, b))
        if verdict is not None:
            p = verdict.p_a if a == pair.chosen_key else 1 - verdict.p_a
            winner = {"a": a, "b": b}.get(verdict.verdict)
            says = "tie" if winner is None else "chosen" if winner == pair.chosen_key else "rejected"
            found.append(Vote(judge, says, p))
    return tuple(found)


# --------------------------------------------------------------------------------------------------------- provenance


def _provenance(
    store: Store, held: Row | None, began: Row, candidates: Sequence[Row], preferences: Sequence[Preference]
) -> Row:
    info = (held or {}).get("info", {})
    prompts = _prompts(store, began.get("until"))
    splits = Counter(row["split"] for row in prompts)
    answers = [row for row in candidates if row["kind"] != "given"]
    return {
        "begun": held["at"] if held else None,
        "versions": dict(info.get("versions", {})),
        "plugins": dict(info.get("plugins", {})),
        "threads": info.get("threads"),
        "prompts": {split: splits[split] for split in ("train", "heldout", "final") if split in splits},
        "sources": dict(sorted(Counter(row["source"] for row in prompts if row["source"]).items())),
        "hashes": _hashes(prompts, preferences),
        "answers": len(answers),
        "failed answers": sum(1 for row in answers if row["failure"]),
        "answer tokens": sum(row["tokens"] for row in answers),
        "models": sorted({(row["round"], row["split"], row["model"], row["model_hash"]) for row in candidates}),
    }


def _prompts(store: Store, until: str | None) -> list[Row]:
    """The prompts of a run: those that were there when it began."""
    rows = store.read("prompts", columns=["key", "split", "source", "at"])
    last = datetime.fromisoformat(until) if until else None
    return [row for row in rows if last is None or row["at"] <= last]


def _hashes(prompts: Iterable[Row], preferences: Iterable[Preference]) -> dict[str, str]:
    """What the data was: a hash over the sorted keys of a split's prompts and of a round's preferences; a key is itself
    a hash of the content."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in prompts:
        found[f"prompts, {row['split']}"].append(row["key"])
    for pair in preferences:
        found[f"preferences, round {pair.round}"].append(pair.key)
    return {name: digest(sorted(keys)) for name, keys in sorted(found.items())}


# ------------------------------------------------------------------------------------------------------------ training


def training_of(metrics: Sequence[Mapping[str, Any]]) -> Training | None:
    """A training's numbers from its metrics; None where none were logged."""
    steps = [row for row in metrics if any(name in row for name in ("loss", "rewards/margins", "logps/chosen"))]
    if not steps:
        return None
    quarter = max(1, len(steps) // 4)

    def end(name: str) -> float | None:
        return _mean_of(steps[-quarter:], name)

    def change(side: str) -> float | None:
        ratio = f"logratios/{side}"  # to the reference, of the same answers: batches that differ do not blur it
        before = _mean_of(steps[:1], ratio) if ratio in steps[0] else _mean_of(steps[:quarter], f"logps/{side}")
        after = end(ratio if ratio in steps[0] else f"logps/{side}")
        return None if before is None or after is None or len(steps) < 2 else after - before

    return Training(len(steps), end("rewards/margins"), end("rewards/accuracies"), change("chosen"), change("rejected"))


def _mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


# ------------------------------------------------------------------------------------------------------------- writing


FORMS = ("html", "md", "json", "svg")


def written(report: RunReport, form: str) -> str:
    """The report as one file of FORMS; of svg the charts of what was measured. FactoryError: there are none yet."""
    if form == "json":
        return json.dumps(report.to_json(), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    from factory.report import figures, markdown, page

    if form == "svg":
        return str(figures.sheet_of_measures(report))
    return markdown.render(report) if form == "md" else page.render(report)


def write(store: Store, run: str) -> Path:
    """Write the run's report.html, whole or not at all; the file."""
    from factory.store.filesystem import write_whole

    path = store.run_folder(run) / "report.html"
    write_whole(path, written(collect(store, run), "html"))
    return path
