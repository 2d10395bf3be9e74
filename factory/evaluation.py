"""Evaluation: what a policy is worth on prompts that it was never trained on, and how far it has moved from the start.

The policy answers the split's prompts, the verifier grades the answers, and a scorer tells how likely the policy and
the start model find them: that gives the distance from the start (KL) and a measure of the answers that no label ever
rewarded (relevance). What is measured, and how, is in `factory/measures.py`; this module fetches, stores and puts
together. Answers, verdicts and log-probabilities are kept as they come, so that an evaluation that was cut off goes on
and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from factory import crash, measures
from factory.faults import FactoryError
from factory.judges import judges
from factory.measures import Graded, Scored
from factory.schema import (
    Candidate,
    Estimate,
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

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store
    from train.data import Encoded
    from train.policy import Policy

VERIFIER = "verifier"
NEUTRAL: Messages = [{"role": "user", "content": "Say something."}]
"""The prompt that an answer's prompt is compared with for relevance: it asks for nothing in particular."""


class Item(NamedTuple):
    """An answer in its context, to be scored. `ended`: the model ended it itself; else it was cut at its limit, and the
    end token is no part of it."""

    messages: Messages
    text: str
    ended: bool = True


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
    verifier: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> PolicyReport:
    """Answer the prompts of a split (the first `limit` of them by key, of those added by the time `until`) with
    `policy` through `engine`, `n` times each, and measure the answers.

    `baseline_round`: the round of this run whose answers to the same prompts are the ones to beat. `start`: the model
    that KL and relevance are measured from; without a scorer these two stay unmeasured. Scoring reads every answer
    three times, which on a CPU takes longer than writing it: `score_limit` is for that, the prompts (the first by key)
    whose answers are scored. `verifier`: options of the verifier that grades (code, unsafe_exec ...). FactoryError: the
    split has no prompts, or the baseline has no answers.
    """
    from factory.generation import generate

    prompts, sampling = held_prompts(store, split, limit, until), sampling or Sampling()
    keys = [prompt.key for prompt in prompts]
    generate(
        store,
        engine,
        run=run,
        round=round,
        keys=keys,
        n=n,
        sampling=sampling,
        seed=seed,
        purpose="evaluate",
        budget=budget,
        progress=progress,
    )
    crash.point("evaluate.after_answers")
    places = {place: key for prompt in prompts for place, key in _call_keys(engine, prompt, n, sampling, seed)}
    slots = answers_of(store, run=run, round=round, split=split, prompts=prompts, places=places)
    graded = grade(store, slots, verifier)
    crash.point("evaluate.after_verdicts")
    baseline = None if baseline_round is None else _baseline(store, run, baseline_round, split, prompts, verifier)
    scored = {prompt.key for prompt in prompts[:score_limit]}
    to_score = [slot for slot in slots if slot.prompt.key in scored]
    likelihoods = None if scorer is None else _likelihoods(scorer, policy, start, to_score)
    name = _name(store, policy)
    return report_of(Evidence(name, split, len(prompts), graded, baseline, likelihoods, seed))


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


def held_prompts(store: Store, split: str, limit: int | None = None, until: datetime | None = None) -> list[Prompt]:
    """The prompts of a split in the order of their keys: the first `limit` of those added by the time `until`."""
    prompts = [prompt for prompt in store.rows(Prompt, {"split": split}) if until is None or prompt.at <= until][:limit]
    if not prompts:
        raise FactoryError(
            f"there are no prompts in the split {split!r}", where=str(store.folder), todo="factory prompts add FILE"
        )
    return prompts


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
) -> list[Slot]:
    """The answers of an evaluated round, prompt by prompt and sample by sample; of several, the newest.

    `places`: the call key that each (prompt key, sample) must have; all of them are in the result, filled or not.
    Without it whatever the round holds for the prompts counts, and every prompt has as many places as any of them.
    """
    where = {"run": run, "round": round, "split": split, "kind": "sample"}
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
    request = Request(prompt.messages, sampling, n=n, seed=seed)
    rendered = engine.render(request)
    for sample in range(n):
        yield (prompt.key, sample), call_key(engine.identity, rendered, request, sample)


def grade(store: Store, slots: Sequence[Slot], options: Mapping[str, Any] | None = None) -> list[Graded]:
    """What the verifier says of each answer; its judgments are stored. A missing answer is graded as a failed one."""
    verifier: Any = judges.get(VERIFIER)(**(options or {}))
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
    """The answers to beat, and the name of the policy that gave them."""

    policy: str
    graded: list[Graded]


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
    return Baseline(_name(store, sorted(names)[-1]), grade(store, slots, verifier))


def _name(store: Store, policy: str) -> str:
    """A policy's name as it is kept: from the store's folder when it lies there, so that a store can be moved."""
    home, path = store.folder.resolve(), Path(policy)
    inside = path.exists() and path.resolve().is_relative_to(home)
    return str(path.resolve().relative_to(home)) if inside else policy


# ------------------------------------------------------------------------------------------------------ likelihoods


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Scores of the answers there are, in one order. `policy` is None for the start policy itself."""

    clusters: list[str]
    policy: list[Scored] | None
    start: list[Scored]
    neutral: list[Scored]


def _likelihoods(scorer: Scorer, policy: str, start: str, slots: Sequence[Slot]) -> Likelihoods:
    """Each answer under the policy and under the start model, and under the start model after the neutral prompt."""
    given = [(slot.prompt, slot.answer) for slot in slots if slot.answer is not None and not slot.answer.failure]
    items = [Item(prompt.messages, answer.text, answer.finish_reason != "length") for prompt, answer in given]
    ours = None if policy == start else scorer.score(policy, items)
    under_start = scorer.score(start, [*items, *(item._replace(messages=NEUTRAL) for item in items)])
    clusters = [prompt.key for prompt, _ in given]
    return Likelihoods(clusters, ours, under_start[: len(items)], under_start[len(items) :])


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
        keys = [digest(model_hash, dtype, row.prompt_ids, row.completion_ids) for row in rows]
        wanted = {key: row for key, row in zip(keys, rows, strict=True) if row.completion_ids}
        missing = set(self.store.missing("logps", wanted))
        if missing:
            loaded = load_policy(files.base, files.adapter, dtype=self.dtype, device=device)
            self._compute(loaded, wanted, missing, model_hash)
        held = {row.key: Scored(row.logprob, row.tokens) for row in self.store.rows(Logp, {"key": list(wanted)})}
        return [held.get(key, Scored(0.0, 0)) for key in keys]

    def _compute(self, loaded: Policy, wanted: Mapping[str, Encoded], missing: set[str], model_hash: str) -> None:
        """Score what is missing and keep each batch as it is done."""
        from train.logps import score

        keys, rows = list(wanted), list(wanted.values())
        with loaded.precision():
            for batch in score(loaded.model, rows, needed=lambda i: keys[i] in missing):
                found = zip(batch.rows, batch.logps, strict=True)
                self.store.append("logps", [_logp(keys[i], model_hash, loaded.dtype, *sums) for i, sums in found])
                crash.point("evaluate.after_scores")


def _logp(key: str, model_hash: str, dtype: str, logprob: float, tokens: int) -> Logp:
    return Logp(key=key, model_hash=model_hash, dtype=dtype, logprob=logprob, tokens=tokens, at=now())


def encoded(tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
    """Answers as token ids. An empty answer is its end token alone; an answer that was cut has none."""
    from train.conversations import end_ids, prompt_ids
    from train.data import Encoded

    end = end_ids(tokenizer)

    def one(item: Item) -> Encoded:
        text = tokenizer(item.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Encoded(prompt_ids(tokenizer, item.messages), (*text, *(end if item.ended else ())))

    return [one(item) for item in items]


# ------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a report is made of."""

    policy: str
    split: str
    prompts: int
    graded: list[Graded]
    baseline: Baseline | None
    likelihoods: Likelihoods | None
    seed: int = 0


def report_of(evidence: Evidence) -> PolicyReport:
    """The measures of one policy's answers. No I/O."""
    graded, baseline, seed = evidence.graded, evidence.baseline, evidence.seed
    moved, about = _distances(evidence.likelihoods, seed)
    return PolicyReport(
        policy=evidence.policy,
        split=evidence.split,
        prompts=evidence.prompts,
        answers=len(graded),
        failures=sum(1 for answer in graded if answer.failure),
        pass_rate=measures.pass_rate(graded, seed=seed),
        score=measures.mean_score(graded, seed=seed),
        win_rate=baseline and measures.win_rate(graded, baseline.graded, seed=seed),
        baseline=baseline.policy if baseline else "",
        gain=baseline and measures.gain(graded, baseline.graded, seed=seed),
        tokens=measures.mean_tokens(graded, seed=seed),
        words=measures.mean_words(graded, seed=seed),
        relevance=about,
        distinct_2=measures.distinct_2(answer.text for answer in graded if not answer.failure),
        kl_sequence=moved and moved.sequence,
        kl_token=moved and moved.token,
        scored=len(evidence.likelihoods.start) if evidence.likelihoods else 0,
        by_constraint=measures.by_kind(graded, seed=seed),
    )


def _distances(found: Likelihoods | None, seed: int) -> tuple[measures.Divergence | None, Estimate | None]:
    """KL from the start (exactly zero for the start policy) and relevance."""
    if found is None or not found.start:
        return None, None
    about = measures.relevance(found.start, found.neutral, found.clusters, seed=seed)
    if found.policy is None:
        return measures.Divergence(Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0)), about
    return measures.divergence(found.policy, found.start, found.clusters, seed=seed), about
