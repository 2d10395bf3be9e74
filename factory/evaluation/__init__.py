"""Evaluation: what a policy is worth on prompts that it was never trained on, and how far it has moved from the start.

    held.py prompts -> answers.py answers, grades -> likelihoods.py how likely they are -> reporting.py the report

The policy answers the split's prompts, the verifier grades the answers, and a scorer tells how likely the policy and
the start model find them: that gives the distance from the start (KL) and a measure of the answers that no label ever
rewarded (relevance). What is measured, and how, is in `measures.py`; this module is the call. Answers, verdicts and
log-probabilities are kept as they come, so that an evaluation that was cut off goes on and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import crash
from factory.evaluation import measures
from factory.evaluation.answers import Asking, Slot, are_the_same, baseline_of, grade, places_of, policy_name
from factory.evaluation.held import held_prompts, prompts_that_measure
from factory.evaluation.judged import Labellers, Versus, judged
from factory.evaluation.likelihoods import Scorer, likelihoods_of, weighed
from factory.evaluation.reporting import Evidence, report_of
from factory.schema import Estimate, PolicyReport, Sampling

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.labelling.panel import PanelMember
    from factory.store import Store


class Comparison(NamedTuple):
    """One policy's answers against another's on the same prompts. None: no prompt that both answered has a grade."""

    win_rate: Estimate | None
    gain: Estimate | None


def evaluate(
    store: Store,
    *,
    run: str,
    round: int,
    policy: str,
    split: str,
    engine: Engine,
    start: str,
    baseline_round: int | None = None,
    baseline_engine: Engine | None = None,
    n: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    limit: int | None = None,
    until: datetime | None = None,
    scorer: Scorer | None = None,
    score_limit: int | None = None,
    probes: int | None = None,
    verifier: Mapping[str, Any] | None = None,
    judges: Sequence[PanelMember] = (),
    labelled_by: Labellers | None = None,
    look: int = 1,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> PolicyReport:
    """Answer the prompts of a split (the first `limit` of them by key, of those added by the time `until`) with
    `policy` through `engine`, `n` times each, and measure the answers.

    `baseline_round`: the round of this run whose answers to the same prompts are the ones to beat; with
    `baseline_engine` those alone that it gives when it is asked in the same way, where the round may hold those of
    other evaluations besides. `start`: the model
    that KL and relevance are measured from; without a scorer these two stay unmeasured. Scoring reads every answer
    three times, which on a CPU takes longer than writing it: `score_limit` is for that, the prompts (the first by key)
    whose answers are scored. `probes`: where `sampling` is tempered or cut, KL and entropy are measured on one more
    answer of temperature 1 to each of so many prompts; without it on the answers themselves, which gives a log-ratio.

    `verifier`: options of the verifier that grades (code, unsafe_exec ...). `judges`: others that compare the answers
    with the baseline's. `labelled_by`: who labelled what the policy was trained on, to tell which of these are
    independent. `look`: how many times these prompts have been looked at with this one, for the intervals that allow
    for it. FactoryError: the split has no prompts, or the baseline has no answers.
    """
    prompts, left_out = prompts_that_measure(store, split, limit, until)
    sampling = sampling or Sampling()
    ask = Asking(store, engine, run, round, split, seed, budget, progress)
    slots = ask.answers(prompts, n, sampling)
    graded = grade(store, slots, verifier)
    crash.point("evaluate.after_verdicts")
    baseline = None
    if baseline_round is not None:
        asked = None if baseline_engine is None else places_of(baseline_engine, prompts, n, sampling, seed)
        baseline = baseline_of(store, run, baseline_round, split, prompts, verifier, asked)
    scored = prompts[:score_limit]
    keys = {prompt.key for prompt in scored}
    to_score = [slot for slot in slots if slot.prompt.key in keys]
    probing = probes is not None and sampling.is_tempered
    probed = ask.answers(scored[:probes], 1, _untempered(sampling), kind="probe") if probing and scorer else None
    likelihoods = None if scorer is None else likelihoods_of(scorer, policy, start, to_score, probed)
    pairs = [] if scorer is None or baseline is None else weighed(scorer, policy, start, baseline, keys)
    versus = [] if baseline is None else _versus(slots, baseline.slots)
    said = [
        judged(
            store, member, versus, run=run, round=round, labelled_by=labelled_by, seed=seed, budget=budget,
            progress=progress,
        )
        for member in (judges if versus else ())
    ]  # fmt: skip
    return report_of(
        Evidence(
            policy=policy_name(store, policy),
            split=split,
            prompts=prompts,
            graded=graded,
            baseline=baseline,
            likelihoods=likelihoods,
            seed=seed,
            tempered=sampling.is_tempered and probed is None,
            pairs=pairs,
            judged=said,
            labelled_by=labelled_by,
            near_trained=left_out,
            look=look,
            unchanged=baseline is not None and are_the_same(slots, baseline.slots),
        )
    )


def _untempered(sampling: Sampling) -> Sampling:
    return replace(sampling, temperature=1.0, top_p=1.0, top_k=0)


def _versus(ours: Sequence[Slot], theirs: Sequence[Slot]) -> list[Versus]:
    """The answers of the same number to the same prompt, where both sides have a place."""
    other = {(slot.prompt.key, slot.sample): slot.answer for slot in theirs}
    return [
        Versus(slot.prompt, slot.answer, other[slot.prompt.key, slot.sample])
        for slot in ours
        if (slot.prompt.key, slot.sample) in other
    ]


def compare(
    store: Store,
    *,
    run: str,
    round: int,
    baseline_round: int,
    split: str = "heldout",
    limit: int | None = None,
    until: datetime | None = None,
    verifier: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Comparison:
    """Win rate and gain of one evaluated round over another, from the answers in the store: nothing is asked."""
    prompts = held_prompts(store, split, limit, until)
    ours, theirs = (baseline_of(store, run, number, split, prompts, verifier) for number in (round, baseline_round))
    wins = measures.win_rate(ours.graded, theirs.graded, seed=seed)
    gain = measures.gain(ours.graded, theirs.graded)
    if are_the_same(ours.slots, theirs.slots):
        return Comparison(wins and measures.EVEN, gain and measures.NOTHING)
    return Comparison(wins, gain)
