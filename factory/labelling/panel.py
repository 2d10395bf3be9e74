"""A panel's members, and what each of them is shown: its matchups, in batches that canaries vouch for.

Pure but for the reading of scores. What is shown is a function of the candidates, the choice of matchups and the seed,
never of what is held already: a run that was killed hands out the same batches when it goes on.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from factory import verdicts
from factory.calls import Claims
from factory.faults import FactoryError
from factory.judges import Judge, LLMJudge, judges
from factory.judges.canaries import batches, plant
from factory.labelling import matchups as choosing
from factory.schema import Candidate, Judgment, Matchup, Prompt, digest

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store


@dataclass(frozen=True)
class PanelMember:
    """One judge of a panel: its name in the tables, the engine it asks (none for a program or a person), and its own
    choice of matchups where it differs from the panel's."""

    name: str
    judge: Judge | LLMJudge
    engine: Engine | None = None
    matchups: str | None = None
    prompts: int | None = None  # it sees the candidates of at most so many prompts, drawn by the seed
    registered: str = ""  # what kind of judge it is, whatever it is called here; "" for one that is not registered

    @classmethod
    def of(
        cls,
        judge: str,
        *,
        name: str | None = None,
        engine: Engine | None = None,
        matchups: str | None = None,
        prompts: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> PanelMember:
        """A registered judge by name, with its options. FactoryError names an unknown judge or option; ConfigError the
        options whose values are of another type than the judge's."""
        from factory.judges import options as needed

        build = judges.get(judge)
        called = name or judge
        options = _for_engine(build, engine, options or {})
        if "name" in (options or {}):
            raise FactoryError(f"judge {judge!r}: name is no option", todo="say name=judge where the panel is given")
        try:
            inspect.signature(build).bind(name=called, **(options or {}))
        except TypeError as fault:
            known = ", ".join(p for p in inspect.signature(build).parameters if p != "name")
            raise FactoryError(f"judge {judge!r}: {fault}", todo=f"its options are {known}") from fault
        needed.check(called, needed.typed(build, options or {}))
        return cls(called, build(name=called, **(options or {})), engine, matchups, prompts, judge)


def _for_engine(build: Callable[..., Any], engine: Engine | None, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, without a started answer where the engine cannot go on with one and the user asked for none."""
    cannot = engine is not None and getattr(engine, "continues", True) is False
    if cannot and "prefix" not in options and "prefix" in inspect.signature(build).parameters:
        return {**options, "prefix": ""}
    return options


@dataclass
class JudgeReport:
    """What one judge did in one call of `label`, counting what was answered now and what was held already."""

    judge: str
    kind: str
    matchups: int = 0
    verdicts: int = 0  # candidates scored, or pairs decided or tied
    ties: int = 0
    flips: int = 0  # pairs whose verdict changed with the order of showing
    failures: dict[str, int] = field(default_factory=dict)  # judgments by kind of failure
    canaries: int = 0
    fooled: int = 0  # canaries preferred to a real answer
    quarantined: int = 0  # judgments that do not count, since the canaries of their batch fooled the judge
    quarantine: str = ""  # why not
    judgments: int = 0  # rows new in the store
    calls: int = 0  # answers paid for
    reused: int = 0  # answers held already
    tokens: int = 0  # prompt and completion tokens paid for
    cost: float | None = 0.0  # US dollars; None when a price is unknown
    seconds: float = 0.0
    fault: str | None = None  # what ended this judge early


@dataclass(frozen=True)
class Work:
    """What is to be judged: the prompts' candidates of one kind, and where the judgments belong; and what the members
    of a panel have in common while they work."""

    store: Store
    run: str
    round: int
    seed: int
    canary_share: float
    prompts: Mapping[str, Prompt]
    candidates: Mapping[str, Sequence[Candidate]]  # by prompt key; both in order of key
    tie_margin: float = verdicts.TIE_MARGIN
    retry_failed: bool = False
    progress: Progress | None = None
    budget: Budget | None = None
    claims: Claims = field(default_factory=Claims)
    locks: dict[int, threading.Lock] = field(default_factory=dict)  # of engines that one thread at a time may use

    @property
    def ended(self) -> bool:
        """Is everybody to stop?"""
        return self.claims.ended.is_set()


class Shown(NamedTuple):
    """A matchup as it is put before a judge, in a batch."""

    matchup: Matchup
    batch: str


def locks_of(panel: Iterable[PanelMember]) -> dict[int, threading.Lock]:
    """A lock for each engine of a panel."""
    return {id(member.engine): threading.Lock() for member in panel if member.engine is not None}


def asks_model(judge: Judge | LLMJudge) -> TypeGuard[LLMJudge]:
    """Does the judge ask a model, rather than vote by itself?"""
    return hasattr(judge, "asks")


def is_shared(engine: Engine | None) -> bool:
    """May several threads use the engine at once? Only one that says so (`thread_safe`)."""
    return bool(getattr(engine, "thread_safe", False))


def reader_of(judge: Judge | LLMJudge) -> str:
    """Version of the judge's reader."""
    return str(getattr(judge, "reader", "1"))


def shown_to(work: Work, member: PanelMember, choice: choosing.Choice, lead: str | None) -> list[Shown]:
    """What the member is shown, in order of key. Judges that ask a model see it in batches, each with its canaries
    first; nobody talks a program over."""
    matchups = _matchups(work, member, choice, lead)
    if not asks_model(member.judge):
        return [Shown(matchup, "") for matchup in matchups]
    shown = [Shown(matchup, "") for matchup in matchups if matchup.a.failure is not None]  # nobody sees these
    usable = [matchup for matchup in matchups if matchup.a.failure is None]
    for places in batches(len(usable), work.canary_share):
        some = usable[places.start : places.stop]
        name = _batch(work, member, some)
        shown += [Shown(matchup, name) for matchup in [*plant(some, work.canary_share, work.seed), *some]]
    return shown


def _batch(work: Work, member: PanelMember, matchups: Sequence[Matchup]) -> str:
    """The name of a batch: what is in it and who judges it. Another model or reader makes another batch, as the
    canaries of one say nothing of the other."""
    model = member.engine.identity.content if member.engine is not None else ""
    places = [(m.a.key, m.b.key if m.b else None) for m in matchups]
    return digest("batch", work.run, work.round, member.name, model, reader_of(member.judge), places)


def _matchups(work: Work, member: PanelMember, choice: choosing.Choice, lead: str | None) -> list[Matchup]:
    """The judge's matchups, in order of key."""
    seen = _drawn(work, member.prompts)
    found: list[tuple[str, Candidate, Candidate | None]]
    if member.judge.kind == "pointwise":
        found = [(key, c, None) for key, group in seen.items() for c in group]
    else:
        scores = scores_of(work, lead) if choosing.needs_scores(choice) else {}
        found = [
            (key, a, b) for key, group in seen.items() for a, b in choosing.choose(group, choice, scores, work.seed)
        ]
    return [Matchup(work.prompts[key], a, b, secret=work.store.secret) for key, a, b in found]


def _drawn(work: Work, most: int | None) -> Mapping[str, Sequence[Candidate]]:
    """The candidates of at most `most` prompts, in order of key."""
    if most is None or most >= len(work.candidates):
        return work.candidates
    kept = set(sorted(work.candidates, key=lambda key: digest(work.seed, "seen", key))[:most])
    return {key: group for key, group in work.candidates.items() if key in kept}


def scores_of(work: Work, lead: str | None) -> Mapping[str, verdicts.Score | None]:
    """What the pointwise judge that comes first said."""
    held = work.store.rows(Judgment, {"run": work.run, "round": work.round, "judge": lead})
    return verdicts.read(held).scores.get(lead or "", {})
