"""Evaluation: what a policy is worth on prompts that it was never trained on, and how far it has moved from the start.

The policy answers the split's prompts, the verifier grades the answers, and a scorer tells how likely the policy and
the start model find them: that gives the distance from the start (KL) and a measure of the answers that no label ever
rewarded (relevance). What is measured, and how, is in `factory/evaluation/measures.py`; this module fetches, stores
and puts together. Answers, verdicts and log-probabilities are kept as they come, so that an evaluation that was cut
off goes on and gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from factory import crash
from factory.evaluation import length_control, measures, policy_health
from factory.evaluation.judged import Labellers, Versus, is_independent, judged
from factory.evaluation.measures import Graded, Scored
from factory.evaluation.policy_health import Weighed
from factory.faults import FactoryError
from factory.judges import judges as known_judges
from factory.prompts import decontamination
from factory.schema import (
    Candidate,
    Estimate,
    Judged,
    Judgment,
    Logp,
    Matchup,
    Messages,
    PolicyReport,
    Prompt,
    Request,
    Sampling,
    call_key,
    digest,
    now,
)
from factory.stats import confidence_sequences, intervals

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.labelling.panel import PanelMember
    from factory.store import Store
    from train.data import Encoded
    from train.policy import Policy

VERIFIER = "verifier"
TEMPERED = "tempered"
"""KL is measured on answers of another temperature than 1, or of a cut distribution: it is a log-ratio there."""
UNTEMPERED = "policy"
"""KL is measured on answers of the policy as it is."""
NEUTRAL: Messages = [{"role": "user", "content": "Say something."}]
"""The prompt that an answer's prompt is compared with for relevance: it asks for nothing in particular."""


class Item(NamedTuple):
    """An answer in its context, to be scored. `ended`: the model ended it itself; else it was cut at its limit, and the
    end token is no part of it."""

    messages: Messages
    text: str
    ended: bool = True
    tools: tuple[Any, ...] = ()

    @classmethod
    def of(cls, prompt: Prompt, answer: Candidate) -> Item:
        """A candidate in the context that it was sampled in."""
        return cls(prompt.messages, answer.text, answer.finish_reason != "length", tuple(prompt.tools or ()))


class Scorer(Protocol):
    """Tells how likely a policy finds answers."""

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        """The log-probability of each answer under `policy`, in order."""


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

    `baseline_round`: the round of this run whose answers to the same prompts are the ones to beat. `start`: the model
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
    ask = _Ask(store, engine, run, round, split, seed, budget, progress)
    slots = ask.answers(prompts, n, sampling)
    graded = grade(store, slots, verifier)
    crash.point("evaluate.after_verdicts")
    baseline = None if baseline_round is None else _baseline(store, run, baseline_round, split, prompts, verifier)
    scored = prompts[:score_limit]
    keys = {prompt.key for prompt in scored}
    to_score = [slot for slot in slots if slot.prompt.key in keys]
    probing = probes is not None and _is_tempered(sampling)
    probed = ask.answers(scored[:probes], 1, _untempered(sampling), kind="probe") if probing and scorer else None
    likelihoods = None if scorer is None else _likelihoods(scorer, policy, start, to_score, probed)
    pairs = [] if scorer is None or baseline is None else _weighed(scorer, policy, start, baseline, keys)
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
            policy=_name(store, policy),
            split=split,
            prompts=prompts,
            graded=graded,
            baseline=baseline,
            likelihoods=likelihoods,
            seed=seed,
            tempered=_is_tempered(sampling) and probed is None,
            pairs=pairs,
            judged=said,
            labelled_by=labelled_by,
            near_trained=left_out,
            look=look,
        )
    )


@dataclass(frozen=True, slots=True)
class _Ask:
    """Where answers come from and belong."""

    store: Store
    engine: Engine
    run: str
    round: int
    split: str
    seed: int
    budget: Budget | None
    progress: Progress | None

    def answers(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, *, kind: str = "sample") -> list[Slot]:
        """`n` answers to each prompt; what is held is not asked for again."""
        from factory.generation import generate

        generate(
            self.store,
            self.engine,
            run=self.run,
            round=self.round,
            keys=[prompt.key for prompt in prompts],
            n=n,
            sampling=sampling,
            seed=self.seed,
            purpose="evaluate",
            kind=kind,
            budget=self.budget,
            progress=self.progress,
        )
        crash.point("evaluate.after_answers")
        places = {
            place: key for prompt in prompts for place, key in _call_keys(self.engine, prompt, n, sampling, self.seed)
        }
        return answers_of(
            self.store, run=self.run, round=self.round, split=self.split, prompts=prompts, places=places, kind=kind
        )


def _is_tempered(sampling: Sampling) -> bool:
    """Are answers drawn from another distribution than the policy's own? One cut at its limit or at a stop is drawn
    from it as far as it goes."""
    return sampling.temperature != 1 or sampling.top_p < 1 or sampling.top_k > 0


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
    ours, theirs = (_baseline(store, run, number, split, prompts, verifier) for number in (round, baseline_round))
    return Comparison(
        measures.win_rate(ours.graded, theirs.graded, seed=seed), measures.gain(ours.graded, theirs.graded, seed=seed)
    )


class Held(NamedTuple):
    """The prompts that measure, in the order of their keys, and how many more of the split stand too near one that may
    be trained on."""

    prompts: list[Prompt]
    left_out: int


def held_prompts(store: Store, split: str, limit: int | None = None, until: datetime | None = None) -> list[Prompt]:
    """The prompts of a split: the first `limit` of those added by the time `until`. A prompt that is the same as one of
    the train split, or nearly (`factory/prompts/decontamination.py`), is left out: the policy may have been trained on
    it."""
    return prompts_that_measure(store, split, limit, until).prompts


def prompts_that_measure(store: Store, split: str, limit: int | None = None, until: datetime | None = None) -> Held:
    """`held_prompts`, and how many were left out. FactoryError: the split has none, or none that is clear."""
    prompts = _added(store, split, until)
    if not prompts:
        raise FactoryError(
            f"there are no prompts in the split {split!r}", where=str(store.folder), todo="factory prompts add FILE"
        )
    if split == "train":
        return Held(prompts[:limit], 0)
    near = {hit.key for hit in decontamination.near_trained(prompts, _added(store, "train", until))}
    clear = [prompt for prompt in prompts if prompt.key not in near]
    if not clear:
        raise FactoryError(
            f"every prompt of the split {split!r} is near one of the split 'train'",
            where=str(store.folder),
            todo="add other prompts; factory decontaminate shows which",
        )
    return Held(clear[:limit], len(near))


def _added(store: Store, split: str, until: datetime | None) -> list[Prompt]:
    return [prompt for prompt in store.rows(Prompt, {"split": split}) if until is None or prompt.at <= until]


# ---------------------------------------------------------------------------------------------- answers and grades


class Slot(NamedTuple):
    """A place for an answer: the sample-th answer to a prompt; None: nothing came back."""

    prompt: Prompt
    sample: int
    answer: Candidate | None


def answers_of(
    store: Store,
    *,
    run: str,
    round: int,
    split: str,
    prompts: Sequence[Prompt],
    places: Mapping[tuple[str, int], str] | None = None,
    kind: str = "sample",
) -> list[Slot]:
    """The answers of an evaluated round, prompt by prompt and sample by sample; of several, the newest.

    `places`: the call key that each (prompt key, sample) must have; all of them are in the result, filled or not.
    Without it whatever the round holds for the prompts counts, and every prompt has as many places as any of them.
    """
    where = {"run": run, "round": round, "split": split, "kind": kind}
    found: dict[tuple[str, int], Candidate] = {}
    for answer in sorted(store.rows(Candidate, where), key=lambda c: (c.at, c.key)):
        place = answer.prompt_key, answer.sample
        if places is None or places.get(place) == answer.call_key:
            found[place] = answer
    wanted = {prompt.key for prompt in prompts}
    most = 1 + max((sample for key, sample in places or found if key in wanted), default=-1)
    return [Slot(prompt, i, found.get((prompt.key, i))) for prompt in prompts for i in range(most)]


def _call_keys(
    engine: Engine, prompt: Prompt, n: int, sampling: Sampling, seed: int
) -> Iterator[tuple[tuple[str, int], str]]:
    """The keys of this evaluation's own calls, so that answers asked with another seed or sampling are not mixed in."""
    request = Request(prompt.messages, sampling, n=n, seed=seed, tools=tuple(prompt.tools or ()))
    rendered = engine.render(request)
    for sample in range(n):
        yield (prompt.key, sample), call_key(engine.identity, rendered, request, sample)


def grade(store: Store, slots: Sequence[Slot], options: Mapping[str, Any] | None = None) -> list[Graded]:
    """What the verifier says of each answer; its judgments are stored. A missing answer is graded as a failed one."""
    verifier: Any = known_judges.get(VERIFIER)(**(options or {}))
    shown = [Matchup(slot.prompt, slot.answer) for slot in slots if slot.answer is not None]
    with closing(verifier):
        verdicts = list(verifier.vote(shown))
    store.append("judgments", verdicts)
    by_answer = {verdict.candidate_a: verdict for verdict in verdicts}
    return [_graded(slot, by_answer.get(slot.answer.key) if slot.answer else None) for slot in slots]


def _graded(slot: Slot, verdict: Judgment | None) -> Graded:
    prompt, sample, answer = slot
    if answer is None or answer.failure:
        failure = answer.failure if answer else "missing"
        if not prompt.constraints:
            return Graded(prompt.key, sample, failure=failure)
        kinds = {str(constraint["kind"]): 0.0 for constraint in prompt.constraints}
        return Graded(prompt.key, sample, failure=failure, score=0.0, passed=False, kinds=kinds)
    if verdict is None or verdict.score is None:
        return Graded(prompt.key, sample, answer.text, answer.tokens)
    detail = verdict.detail or {}
    passed = bool(detail.get("all_met")) and bool(detail.get("substance", True))
    return Graded(
        prompt.key, sample, answer.text, answer.tokens, None, verdict.score, passed, dict(detail.get("by_kind") or {})
    )


class Baseline(NamedTuple):
    """The answers to beat, what they are worth, and the name of the policy that gave them."""

    policy: str
    graded: list[Graded]
    slots: list[Slot]


def _baseline(
    store: Store, run: str, round: int, split: str, prompts: Sequence[Prompt], verifier: Mapping[str, Any] | None
) -> Baseline:
    slots = answers_of(store, run=run, round=round, split=split, prompts=prompts)
    names = {slot.answer.model for slot in slots if slot.answer}
    if not names:
        raise FactoryError(
            f"round {round} of run {run!r} has no answers to the {split} prompts to compare with",
            where=str(store.folder),
            todo=f"evaluate round {round} on {split} first",
        )
    return Baseline(_name(store, sorted(names)[-1]), grade(store, slots, verifier), slots)


def _name(store: Store, policy: str) -> str:
    """A policy's name as it is kept: from the store's folder when it lies there, so that a store can be moved."""
    home, path = store.folder.resolve(), Path(policy)
    inside = path.exists() and path.resolve().is_relative_to(home)
    return str(path.resolve().relative_to(home)) if inside else policy


# ------------------------------------------------------------------------------------------------------ likelihoods


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Scores of answers. `clusters`, `policy`, `start` are of those that KL is measured on, in one order (`policy` is
    None for the start policy itself); `about`, `prompted`, `neutral` of those that relevance is measured on."""

    clusters: list[str]
    policy: list[Scored] | None
    start: list[Scored]
    about: list[str]
    prompted: list[Scored]
    neutral: list[Scored]


def _likelihoods(
    scorer: Scorer, policy: str, start: str, slots: Sequence[Slot], probed: Sequence[Slot] | None
) -> Likelihoods:
    """Each answer under the policy and under the start model, and under the start model after the neutral prompt; of
    the probes, where there are some, what KL needs."""
    about, items = _items(slots)
    clusters, moved = (about, items) if probed is None else _items(probed)
    ours = None if policy == start else scorer.score(policy, moved)
    extra = [] if probed is None else moved
    under_start = scorer.score(start, [*items, *(item._replace(messages=NEUTRAL) for item in items), *extra])
    prompted, neutral = under_start[: len(items)], under_start[len(items) : 2 * len(items)]
    own = prompted if probed is None else under_start[2 * len(items) :]
    return Likelihoods(clusters, ours, own, about, prompted, neutral)


def _items(slots: Sequence[Slot]) -> tuple[list[str], list[Item]]:
    """The answers there are, to be scored, and the keys of their prompts."""
    given = [(slot.prompt, slot.answer) for slot in slots if slot.answer is not None and not slot.answer.failure]
    return [prompt.key for prompt, _ in given], [Item.of(prompt, answer) for prompt, answer in given]


def _weighed(scorer: Scorer, policy: str, start: str, baseline: Baseline, keys: Collection[str]) -> list[Weighed]:
    """Of each prompt of `keys` the best and the worst of the baseline's answers, by the verifier, where they differ,
    under the policy and under the start. The same pairs every round: what is looked at is the policy, not its
    answers."""
    pairs = _best_and_worst(baseline, keys)
    if not pairs or policy == start:
        return []
    _, items = _items([slot for pair in pairs for slot in pair])
    ours, before = scorer.score(policy, items), scorer.score(start, items)
    return [
        Weighed(pair[0].prompt.key, ours[2 * i], ours[2 * i + 1], before[2 * i], before[2 * i + 1])
        for i, pair in enumerate(pairs)
    ]


def _best_and_worst(baseline: Baseline, keys: Collection[str]) -> list[tuple[Slot, Slot]]:
    by_prompt: dict[str, list[tuple[float, Slot]]] = {}
    for slot, grade_ in zip(baseline.slots, baseline.graded, strict=True):
        if slot.prompt.key in keys and grade_.score is not None and grade_.failure is None:
            by_prompt.setdefault(slot.prompt.key, []).append((grade_.score, slot))
    found = []
    for graded in by_prompt.values():
        best, worst = max(graded, key=lambda g: g[0]), min(graded, key=lambda g: g[0])
        if best[0] > worst[0]:
            found.append((best[1], worst[1]))
    return found


class ModelScorer:
    """Scores with the models themselves; log-probabilities are kept in the store by model, dtype and token ids.

    The text is tokenised anew, so that answers of any engine can be scored; where it does not spell the tokens that
    were sampled (a character cut in two, an odd split), KL is off by that answer's difference. A model is loaded only
    where something is missing, and a batch that was cut off is scored whole again, so that the numbers come out the
    same. dtype `auto` takes bfloat16 where the device multiplies it.
    """

    def __init__(
        self, store: Store, *, device: str = "auto", dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> None:
        self.store = store
        self.device = device
        self.dtype = dtype

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        """The log-probability of each answer under `policy`, in order; of one without tokens, 0 over 0 tokens."""
        from factory.resources import content_hash, model_files
        from train.policy import load_policy, load_tokenizer, resolve_device, resolve_dtype

        files = model_files(policy)
        device = resolve_device(self.device)
        dtype = resolve_dtype(self.dtype, device, whole=False)
        model_hash = content_hash(files, dtype)
        rows = encoded(load_tokenizer(files.base), items)
        keys = [digest(model_hash, dtype, row.prompt_ids, row.completion_ids, "by token") for row in rows]
        wanted = {key: row for key, row in zip(keys, rows, strict=True) if row.completion_ids}
        missing = set(self.store.missing("logps", wanted))
        if missing:
            loaded = load_policy(files.base, files.adapter, dtype=self.dtype, device=device)
            self._compute(loaded, wanted, missing, model_hash)
        held = {
            row.key: Scored(row.logprob, row.tokens, tuple(row.by_token or ()))
            for row in self.store.rows(Logp, {"key": list(wanted)})
        }
        return [held.get(key, Scored(0.0, 0, ())) for key in keys]

    def _compute(self, loaded: Policy, wanted: Mapping[str, Encoded], missing: set[str], model_hash: str) -> None:
        """Score what is missing and keep each batch as it is done."""
        from train.logps import score

        keys, rows = list(wanted), list(wanted.values())
        with loaded.precision():
            for batch in score(loaded.model, rows, needed=lambda i: keys[i] in missing):
                found = zip(batch.rows, batch.logps, batch.by_token, strict=True)
                kept = [_logp(keys[i], model_hash, loaded.dtype, *sums, each) for i, sums, each in found]
                self.store.append("logps", kept)
                crash.point("evaluate.after_scores")


def _logp(key: str, model_hash: str, dtype: str, logprob: float, tokens: int, by_token: Sequence[float]) -> Logp:
    rounded = [round(value, 6) for value in by_token]
    return Logp(key=key, model_hash=model_hash, dtype=dtype, logprob=logprob, tokens=tokens, by_token=rounded, at=now())


def encoded(tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
    """Answers as token ids. An empty answer is its end token alone; an answer that was cut has none."""
    from train.conversations import end_ids, prompt_ids
    from train.data import Encoded

    end = end_ids(tokenizer)

    def one(item: Item) -> Encoded:
        text = tokenizer(item.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Encoded(prompt_ids(tokenizer, item.messages, item.tools), (*text, *(end if item.ended else ())))

    return [one(item) for item in items]


# ------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a report is made of."""

    policy: str
    split: str
    prompts: list[Prompt]
    graded: list[Graded]
    baseline: Baseline | None
    likelihoods: Likelihoods | None
    seed: int = 0
    tempered: bool = False
    pairs: Sequence[Weighed] = ()
    judged: Sequence[Judged] = ()
    labelled_by: Labellers | None = None
    near_trained: int | None = None
    look: int = 1


def report_of(evidence: Evidence) -> PolicyReport:
    """The measures of one policy's answers. No I/O."""
    graded, baseline, seed = evidence.graded, evidence.baseline, evidence.seed
    texts = [answer.text for answer in graded if not answer.failure]
    return PolicyReport(
        policy=evidence.policy,
        split=evidence.split,
        prompts=len(evidence.prompts),
        answers=len(graded),
        failures=sum(1 for answer in graded if answer.failure),
        pass_rate=measures.pass_rate(graded, seed=seed),
        score=measures.mean_score(graded, seed=seed),
        tokens=measures.mean_tokens(graded, seed=seed),
        words=measures.mean_words(graded, seed=seed),
        distinct_1=measures.distinct(texts, 1),
        distinct_2=measures.distinct(texts, 2),
        distinct_3=measures.distinct(texts, 3),
        self_bleu=policy_health.self_bleu(texts),
        broken=policy_health.broken(graded, {prompt.key: prompt.messages for prompt in evidence.prompts}, seed=seed),
        implicit=policy_health.implicit(evidence.pairs, seed=seed),
        implicit_pairs=len(evidence.pairs),
        by_constraint=measures.by_kind(graded, seed=seed),
        slices=measures.slices(graded, baseline and baseline.graded, _cuts(evidence.prompts, graded), seed=seed),
        judged=tuple(evidence.judged),
        independent=_independent(evidence),
        near_trained=evidence.near_trained,
        look=evidence.look,
        **(_against(evidence, baseline) if baseline else {}),
        **(_distances(evidence.likelihoods, evidence) if evidence.likelihoods else {}),
    )


def _against(evidence: Evidence, baseline: Baseline) -> dict[str, Any]:
    """What is said of the answers against the baseline's."""
    graded, seed = evidence.graded, evidence.seed
    spent = (1 - intervals.LEVEL) * 6 / (math.pi * evidence.look) ** 2  # of the allowance of all looks together
    wins, gains = measures.wins_by_prompt(graded, baseline.graded), measures.gains_by_prompt(graded, baseline.graded)
    return {
        "win_rate": measures.win_rate(graded, baseline.graded, seed=seed),
        "length_controlled": length_control.win_rate(measures.compared(graded, baseline.graded), seed=seed),
        "gain": measures.gain(graded, baseline.graded, seed=seed),
        "baseline": baseline.policy,
        "win_rate_anytime": confidence_sequences.sequence([wins], alpha=spent, low=0.0, high=1.0) if wins else None,
        "gain_anytime": confidence_sequences.sequence([gains], alpha=spent) if gains else None,
    }


def _cuts(prompts: Sequence[Prompt], graded: Sequence[Graded]) -> dict[str, dict[str, str]]:
    """How the prompts are cut into slices: by source, by their length, and by the mean length of the answers to
    them."""
    lengths: dict[str, list[int]] = {}
    for answer in graded:
        if answer.failure is None:
            lengths.setdefault(answer.prompt_key, []).append(answer.tokens)
    return {
        "source": {prompt.key: prompt.source or "unknown" for prompt in prompts},
        "prompt words": {
            prompt.key: measures.bucket(len(decontamination.said(prompt.messages).split()), measures.PROMPT_WORDS)
            for prompt in prompts
        },
        "answer tokens": {
            key: measures.bucket(sum(each) / len(each), measures.ANSWER_TOKENS) for key, each in lengths.items()
        },
    }


def _independent(evidence: Evidence) -> bool | None:
    """Does anything that gives a rate here not label?"""
    if evidence.labelled_by is None:
        return None
    graded = any(answer.passed is not None for answer in evidence.graded)
    verifier = graded and bool(is_independent(VERIFIER, VERIFIER, "", evidence.labelled_by))
    return verifier or any(each.independent for each in evidence.judged)


def _distances(found: Likelihoods, evidence: Evidence) -> dict[str, Any]:
    """KL from the start (exactly zero for the start policy), entropy and relevance."""
    seed, clusters = evidence.seed, found.clusters
    if not found.start:
        return {}
    none = measures.Divergence(Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0))
    moved = measures.divergence(found.policy, found.start, clusters, seed=seed) if found.policy else none
    third = measures.divergence_k3(found.policy, found.start, clusters, seed=seed) if found.policy else none
    return {
        "kl_sequence": moved and moved.sequence,
        "kl_token": moved and moved.token,
        "kl3_sequence": third and third.sequence,
        "kl3_token": third and third.token,
        "kl_on": TEMPERED if evidence.tempered else UNTEMPERED,
        "entropy": policy_health.entropy(found.policy or found.start, clusters, seed=seed),
        "relevance": measures.relevance(found.prompted, found.neutral, found.about, seed=seed),
        "scored": len(found.start),
    }
