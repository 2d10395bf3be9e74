"""Best-of-n: what picking the best of n answers by one judge does to what another judge sees, and how far it moves.

    factory bon --judge verifier --independent relevance

From N answers to each prompt, every smaller n is read off exactly: among all subsets of n the k-th best answer is the
best with probability C(k-th from below - 1, n - 1) / C(N, n), ties shared out. The mean quality over these weights is
an unbiased estimate of the quality of best-of-n (a U-statistic; for pass or fail it is pass@k of Chen et al. 2021,
arXiv 2107.03374), and all n share one set of samples, so that differences between them are paired. Where the judge that
picks goes on rising and the independent one begins to fall, the first is being fooled: Goodhart's point (Gao et al.
2022, arXiv 2210.10760).

How far best-of-n is from the policy: at most log n - (n-1)/n nats (Beirami et al. 2024, arXiv 2401.01879, theorem 1),
with equality only where no two answers score the same. Beside the bound stand two direct estimates from the scores
seen.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from markupsafe import Markup

from factory import verdicts
from factory.faults import FactoryError
from factory.judges import judges
from factory.judges.words import words_of
from factory.labelling.matchups import current
from factory.registry import unknown_name
from factory.schema import Candidate, Estimate, Judgment, Prompt
from factory.stats import intervals, quantiles

if TYPE_CHECKING:
    from factory.evaluation.likelihoods import Scorer
    from factory.store import Store

OWN: Final = ("tokens", "words", "relevance")
"""Measures that need no judge: length, and how much the prompt explains the answer under a model."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The N answers to one prompt. `scores`: what the judge that picks says of each; `qualities`: what is seen of each
    by other measures; `passed`: whether it meets all its prompt's constraints, None where nothing says so."""

    prompt_key: str
    scores: Sequence[float]
    qualities: Mapping[str, Sequence[float]] = field(default_factory=dict)
    passed: Sequence[bool] | None = None


class Size(NamedTuple):
    """What best-of-n is at one n. Means over prompts; KL in nats.

    `score` by the judge that picks, `qualities` by the others. `kl_levels`: from the shares of each score;
    `kl_estimate`: by the estimator of arXiv 2401.01879. `passed`: the answer picked passes. `any_passed`: one of the n
    does. `if_alike`: 1 - (1 - p)^n with p the pass rate of single answers: what it would be if all prompts were equally
    hard and the judge saw every pass.
    """

    n: int
    score: Estimate
    qualities: Mapping[str, Estimate]
    kl_bound: float
    kl_levels: Estimate
    kl_estimate: Estimate
    passed: Estimate | None = None
    any_passed: Estimate | None = None
    if_alike: float | None = None


class Hacking(NamedTuple):
    """Where picking harder begins to cost: the n at which a measure is best, the first larger n at which it is lower by
    an interval that allows for all the looks after the best (None: none of them), and the loss there, or at the largest
    n."""

    measure: str
    best_n: int
    begins: int | None
    loss: Estimate | None


@dataclass(frozen=True, slots=True)
class Study:
    """A best-of-n study. `left_out`: reason -> answers or prompts that could not be used."""

    judge: str
    prompts: int
    answers: int
    sizes: tuple[Size, ...]
    hacking: tuple[Hacking, ...]
    without_pass: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an Estimate becomes [value, low, high], with null for NaN."""
        return {
            "judge": self.judge,
            "prompts": self.prompts,
            "answers": self.answers,
            "sizes": [_plain(size._asdict()) for size in self.sizes],
            "hacking": [_plain(each._asdict()) for each in self.hacking],
            "prompts_without_a_pass": self.without_pass,
            "left_out": dict(self.left_out),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One line for each n, for a table."""
        return [
            {
                "n": size.n,
                self.judge: size.score,
                **dict(size.qualities),
                "passed": size.passed,
                "any of n": size.any_passed,
                "1-(1-p)^n": size.if_alike,
                "KL bound": size.kl_bound,
                "KL by levels": size.kl_levels.value,
                "KL 2401.01879": size.kl_estimate.value,
            }
            for size in self.sizes
        ]

    def words(self) -> str:
        """What it comes to, in sentences."""
        lines = [_about(each) for each in self.hacking]
        if self.without_pass is not None:
            share, most = f"{self.without_pass:.0%}", self.sizes[-1].n
            lines.append(f"{share} of the prompts have no passing answer among all sampled: there no n to {most} helps")
        lines += [f"left out: {count} {reason}" for reason, count in self.left_out.items() if count]
        return "\n".join(lines)


def _about(each: Hacking) -> str:
    if each.loss is None:
        return f"{each.measure}: best at the largest n, {each.best_n}: no sign of hacking"
    low, high = each.loss.low, each.loss.high
    loss = f"{each.loss.value:+.3g} ({low:+.3g} to {high:+.3g})"
    if each.begins is not None:
        return f"{each.measure}: best at n = {each.best_n}; hacking begins at n = {each.begins}: {loss} since"
    return f"{each.measure}: best at n = {each.best_n}; no loss since that its interval can tell from nothing: {loss}"


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return [None if math.isnan(v) else v for v in value]
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value


# ----------------------------------------------------------------------------------------------------- the estimators


def picks(scores: Sequence[float], n: int) -> list[float]:
    """For each answer the probability that it is the best of n drawn without replacement; equal scores share theirs.

    ValueError: fewer than n answers, or n below 1.
    """
    total = len(scores)
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} among {total} answers")
    counts = Counter(scores)
    share, below = {}, 0
    subsets = math.comb(total, n)
    for score in sorted(counts):
        upto = below + counts[score]
        share[score] = (math.comb(upto, n) - math.comb(below, n)) / subsets / counts[score]
        below = upto
    return [share[score] for score in scores]


def kl_bound(n: int) -> float:
    """log n - (n-1)/n nats: the most that best-of-n can be away from its policy."""
    return math.log(n) - (n - 1) / n


def kl_levels(scores: Sequence[float], n: int) -> float:
    """KL(best-of-n || policy) where answers differ for the judge by their score alone and ties are drawn: sum over
    scores of w log(w / p), w = F^n - (F-)^n (the score's share among the best), p its share among all.

    The shares are those seen, so that where nearly all scores differ it is too low, the more the nearer n is to the
    number of answers.
    """
    total, below, found = len(scores), 0, 0.0
    for _, count in sorted(Counter(scores).items()):
        upto = below + count
        best = (upto / total) ** n - (below / total) ** n
        if best > 0:
            found += best * math.log(best * total / count)
        below = upto
    return max(found, 0.0)


def kl_estimate(scores: Sequence[float], n: int) -> float:
    """The same by the estimator of arXiv 2401.01879: the mean over the answers picked of D(e, n), e the mass of the
    picked outcome under the policy,

        D = (1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1 - (1-e)^n) log[(1 - (1-e)^n) / e].

    D is the KL where that outcome alone has mass and is the best there is: e = 0 gives the bound, e = 1 gives 0. An
    outcome is a score here, its mass the share of the *other* answers that have it, so that scores that never repeat
    count as having none.
    """
    counts, total = Counter(scores), len(scores)
    masses = [(counts[score] - 1) / (total - 1) if total > 1 else 1.0 for score in scores]
    return max(math.fsum(w * _of_mass(e, n) for w, e in zip(picks(scores, n), masses, strict=True)), 0.0)


def _of_mass(e: float, n: int) -> float:
    if e <= 0:
        return kl_bound(n)
    if e >= 1:
        return 0.0
    missed = (1 - e) ** n
    below = missed * (math.log(n) + (n - 1) * math.log1p(-e) - (n - 1) / n)
    return below + (1 - missed) * math.log((1 - missed) / e)


def sizes_of(most: int) -> list[int]:
    """1, 2, 4 ... up to `most`, and `most` itself."""
    found = [2**k for k in range(most.bit_length()) if 2**k <= most]
    return found if found[-1] == most else [*found, most]


# ---------------------------------------------------------------------------------------------------------- the study


def study(
    answers: Sequence[Answers],
    *,
    judge: str,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    left_out: Mapping[str, int] | None = None,
) -> Study:
    """Best-of-n at each n of `sizes` (by default 1, 2, 4 ... up to what the prompts have). Intervals are bootstrapped
    over prompts. Prompts with fewer answers than the largest n are left out. No I/O.

    FactoryError: no prompt has as many answers as the largest n.
    """
    most = max(sizes) if sizes else max((len(each.scores) for each in answers), default=0)
    usable = [each for each in answers if len(each.scores) >= most > 0]
    if not usable:
        held = max((len(each.scores) for each in answers), default=0)
        raise FactoryError(
            f"no prompt has {most} judged answers; the most is {held}", todo="sample more, or ask for less"
        )
    wanted = sorted(set(sizes or sizes_of(most)))
    weights = {n: [picks(each.scores, n) for each in usable] for n in wanted}
    found = tuple(_size(usable, weights[n], n, seed) for n in wanted)
    names = list(usable[0].qualities)
    hacking = tuple(_hacking(name, _by_prompt(usable, weights, name), seed) for name in names)
    graded = [each.passed for each in usable if each.passed is not None]
    return Study(
        judge=judge,
        prompts=len(usable),
        answers=sum(len(each.scores) for each in usable),
        sizes=found,
        hacking=hacking,
        without_pass=sum(not any(passed) for passed in graded) / len(graded) if graded else None,
        left_out={**(left_out or {}), f"prompts with fewer than {most} answers": len(answers) - len(usable)},
    )


def _size(answers: Sequence[Answers], weights: Sequence[Sequence[float]], n: int, seed: int) -> Size:
    def over_prompts(values: Iterable[float]) -> Estimate:
        return intervals.mean(list(values), seed=seed)

    def picked(values: Iterable[Sequence[float]]) -> Estimate:
        return over_prompts(_dot(w, each) for w, each in zip(weights, values, strict=True))

    graded = [(w, each.passed) for w, each in zip(weights, answers, strict=True) if each.passed is not None]
    single = [sum(passed) / len(passed) for _, passed in graded]
    return Size(
        n=n,
        score=picked(each.scores for each in answers),
        qualities={name: picked(each.qualities[name] for each in answers) for name in answers[0].qualities},
        kl_bound=kl_bound(n),
        kl_levels=over_prompts(kl_levels(each.scores, n) for each in answers),
        kl_estimate=over_prompts(kl_estimate(each.scores, n) for each in answers),
        passed=_share([_dot(w, passed) for w, passed in graded], seed),
        any_passed=_share([any_of(sum(passed), len(passed), n) for _, passed in graded], seed),
        if_alike=1 - (1 - sum(single) / len(single)) ** n if single else None,
    )


def any_of(passing: int, total: int, n: int) -> float:
    """Probability that n drawn of `total` answers hold one of the `passing`: unbiased for 1 - (1-p)^n (pass@k)."""
    return 1 - math.comb(total - passing, n) / math.comb(total, n)


def _dot(weights: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True) if w)


def _share(values: Sequence[float], seed: int) -> Estimate | None:
    return intervals.share([min(max(v, 0.0), 1.0) for v in values], seed=seed) if values else None


def _by_prompt(
    answers: Sequence[Answers], weights: Mapping[int, Sequence[Sequence[float]]], name: str
) -> dict[int, list[float]]:
    """n -> the expected quality of the answer picked, prompt by prompt."""
    return {
        n: [_dot(w, each.qualities[name]) for w, each in zip(ws, answers, strict=True)] for n, ws in weights.items()
    }


def _hacking(name: str, by_n: Mapping[int, Sequence[float]], seed: int) -> Hacking:
    """The first n after the measure's best whose paired loss is below zero at all looks' joint level."""
    best = max(by_n, key=lambda n: (math.fsum(by_n[n]), -n))
    later = [n for n in sorted(by_n) if n > best]
    if not later:
        return Hacking(name, best, None, None)
    level = 1 - (1 - quantiles.LEVEL) / len(later)
    losses = {
        n: intervals.mean([a - b for a, b in zip(by_n[n], by_n[best], strict=True)], level=level, seed=seed)
        for n in later
    }
    begins = next((n for n, loss in losses.items() if loss.high < 0), None)
    return Hacking(name, best, begins, losses[begins or later[-1]])


# ------------------------------------------------------------------------------------------------- from what is stored


def load(
    store: Store,
    *,
    run: str,
    round: int,
    split: str,
    judge: str,
    independent: Sequence[str],
    scorer: Scorer | None = None,
    model: str = "",
    limit: int | None = None,
) -> tuple[list[Answers], dict[str, int]]:
    """The judged answers of a run's round, prompt by prompt, and how many of them could not be used and why.

    `judge` and `independent` name judges whose scores are in the store, or measures of OWN (`relevance` by `scorer`
    under `model`). FactoryError: one of them scored nothing there, or compares pairs.
    """
    groups, failed = _candidates(store, run, round, split, limit)
    everyone = [candidate for group in groups.values() for candidate in group]
    panel = verdicts.read(store.rows(Judgment, {"run": run, "round": round}))
    prompts = {prompt.key: prompt for prompt in store.rows(Prompt, {"key": list(groups)})}
    values = {}
    for name in dict.fromkeys([judge, *independent]):
        values[name] = _values(name, panel, everyone, prompts, scorer, model)
        if not values[name]:
            raise _without_scores(name, panel, everyone, f"--run {run} --split {split} --round {round}")
    passes = _passes(panel, everyone)
    found, unscored = [], 0
    for key, group in groups.items():
        whole = [c for c in group if all(c.key in each for each in values.values())]
        unscored += len(group) - len(whole)
        if whole:
            found.append(
                Answers(
                    key,
                    [values[judge][c.key] for c in whole],
                    {name: [values[name][c.key] for c in whole] for name in independent},
                    [passes[c.key] for c in whole] if all(c.key in passes for c in whole) else None,
                )
            )
    return found, {"answers that failed": failed, "answers that a judge gave no score": unscored}


def _candidates(
    store: Store, run: str, round: int, split: str, limit: int | None
) -> tuple[dict[str, list[Candidate]], int]:
    where = {"run": run, "round": round, "split": split, "kind": "sample"}
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    failed = 0
    for candidate in sorted(current(store.rows(Candidate, where)), key=lambda c: (c.prompt_key, c.sample, c.key)):
        failed += candidate.failure is not None
        if candidate.failure is None:
            groups[candidate.prompt_key].append(candidate)
    if not groups:
        raise FactoryError(
            f"run {run!r} has no answers to the {split} prompts in round {round}",
            where=str(store.folder),
            todo=f"factory generate --run {run} --split {split} --n 16",
        )
    return dict(list(groups.items())[:limit]), failed


def _values(
    name: str,
    panel: verdicts.Panel,
    candidates: Sequence[Candidate],
    prompts: Mapping[str, Prompt],
    scorer: Scorer | None,
    model: str,
) -> dict[str, float]:
    """What a judge or a measure says of each candidate that it says something of; nothing of an unknown one."""
    if name == "tokens":
        return {c.key: float(c.tokens) for c in candidates}
    if name == "words":
        return {c.key: float(words_of(c.text)) for c in candidates}
    if name == "relevance":
        return _relevance(candidates, prompts, scorer, model)
    scores = panel.scores.get(name, {})
    said = {c.key: score for c in candidates if (score := scores.get(c.key)) is not None}
    return {key: score.value if score.log_odds else score.share for key, score in said.items()}


def _without_scores(name: str, panel: verdicts.Panel, candidates: Sequence[Candidate], place: str) -> FactoryError:
    """Why a judge gave none of these answers a score, and what does; `place`: the options that name these answers."""
    scoring = [*(judge for judge, said in panel.scores.items() if any(said.get(c.key) for c in candidates)), *OWN]
    known = judges.facts(name) if name in judges.names() else None
    if name not in panel.scores and (name in panel.pairs or (known or {}).get("pairs")):
        return FactoryError(
            f"the judge {name!r} compares pairs: best-of-n needs a score of each answer",
            todo=f"name another that scored them ({', '.join(scoring)}), or let one do so: "
            f"factory label --judge rating {place}",
        )
    if name not in panel.scores and known is None:
        fault = unknown_name("judge with scores there", name, {*scoring, *judges.names()})
        return FactoryError(
            fault.what, todo=f"a judge of yours gives scores by: factory label --judge {name}=JUDGE {place}"
        )
    return FactoryError(
        f"the judge {name!r} gave none of these {len(candidates)} answers a score",
        todo=f"factory label --judge {name} {place}, or name another that scored them: {', '.join(scoring)}",
    )


def _relevance(
    candidates: Sequence[Candidate], prompts: Mapping[str, Prompt], scorer: Scorer | None, model: str
) -> dict[str, float]:
    from factory.evaluation.likelihoods import NEUTRAL, Item

    if scorer is None:
        raise FactoryError("relevance needs a model that lies here", todo="name one with --model")
    items = [Item.of(prompts[c.prompt_key], c) for c in candidates]
    scored = scorer.score(model, [*items, *(item._replace(messages=NEUTRAL) for item in items)])
    own, neutral = scored[: len(items)], scored[len(items) :]
    return {c.key: (a.logprob - b.logprob) / max(a.tokens, 1) for c, a, b in zip(candidates, own, neutral, strict=True)}


def _passes(panel: verdicts.Panel, candidates: Sequence[Candidate]) -> dict[str, bool]:
    """Whether each candidate meets all its constraints with substance, by the first judge that says so."""
    for scores in panel.scores.values():
        said = {c.key: s for c in candidates if (s := scores.get(c.key)) is not None and s.all_met is not None}
        if said:
            return {key: bool(score.all_met) and score.value > 0 for key, score in said.items()}
    return {}


# --------------------------------------------------------------------------------------------------------- the picture


def pictures(found: Study) -> list[tuple[str, Markup]]:
    """A chart for the judge that picks, each measure, KL and passes, with its caption; x is log2 n."""
    from factory.report import charts

    def over_n(name: str, values: Iterable[Estimate | float | None], tone: int, *, marks: bool = True) -> charts.Series:
        at = zip((math.log2(size.n) for size in found.sizes), values, strict=True)
        return charts.Series(name, charts.points(at), tone, marks)

    def drawn(title: str, series: Sequence[charts.Series]) -> tuple[str, Markup]:
        return title, charts.lines(series, title=title, x_name="log2 of n")

    begins = {each.measure: each.begins for each in found.hacking}
    shown = [
        drawn(f"{found.judge}, by which answers are picked", [over_n(found.judge, (s.score for s in found.sizes), 1)])
    ]
    for name in found.sizes[0].qualities:
        at = begins.get(name)
        title = f"{name}, which picks nothing" + (f": falls from n = {at}" if at else "")
        shown.append(drawn(title, [over_n(name, (s.qualities[name] for s in found.sizes), 2)]))
    if found.sizes[0].passed is not None:
        passes = [
            over_n("the one picked passes", (s.passed for s in found.sizes), 1),
            over_n("any of n passes", (s.any_passed for s in found.sizes), 2),
            over_n("1-(1-p)^n", (s.if_alike for s in found.sizes), 3, marks=False),
        ]
        shown.append(drawn("Passes: picked (blue), any of n (orange), were all prompts alike (grey)", passes))
    kl = [
        over_n("log n - (n-1)/n", (s.kl_bound for s in found.sizes), 3, marks=False),
        over_n("by levels", (s.kl_levels for s in found.sizes), 1),
        over_n("2401.01879", (s.kl_estimate for s in found.sizes), 2),
    ]
    shown.append(drawn("KL, nats: by levels (blue), 2401.01879 (orange), bound (grey)", kl))
    return shown


def picture(found: Study) -> Markup:
    """All charts in one SVG of its own, two in a row, each under its caption."""
    from factory.report import charts

    return charts.sheet(pictures(found))


_PAGE_STYLE: Final = Markup("""
body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 60em } :root { color-scheme: light dark }
body > svg { max-width: 100%; height: auto }
td, th { padding: 3px 9px; text-align: right; font-variant-numeric: tabular-nums }
""")


def page(found: Study) -> str:
    """The picture, the table and what it comes to as one HTML page that needs no network."""
    from factory.console import show

    rows = found.rows()
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    parts = [
        Markup("<h1>Best of n, picked by {}</h1>").format(found.judge),
        Markup("<p>{} prompts, {} answers. Means with 95% intervals over prompts.</p>").format(
            found.prompts, found.answers
        ),
        picture(found),
        Markup("<table>{}</table>").format(
            Markup().join(
                [_row("th", names), *(_row("td", [show(row[name]) for name in names]) for row in rows)],
            )
        ),
        *(Markup("<p>{}</p>").format(line) for line in found.words().split("\n")),
    ]
    head = Markup('<!doctype html><html lang="en"><meta charset="utf-8"><title>Best of n by {}</title>').format(
        found.judge
    )
    style = Markup("<style>{}</style>").format(_PAGE_STYLE)
    return f"{head}{style}{Markup().join(parts)}</html>\n"


def _row(tag: str, cells: Sequence[str]) -> Markup:
    inside = Markup().join(Markup("<{0}>{1}</{0}>").format(tag, cell) for cell in cells)
    return Markup("<tr>{}</tr>").format(inside)
