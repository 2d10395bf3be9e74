"""The stages of a round: each takes a run and a round's number, does one library call, and says what it did.

`perform` does one by the name of its step, with that step's settings. A stage may be run again at any time: what the
store holds by key is neither asked nor written twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from factory import console
from factory.faults import FactoryError
from factory.recipe import FRAME
from factory.rounds.preflight import labelled_by
from factory.rounds.runbook import Detail, Run
from factory.schema import Judgment, PolicyReport, Prompt, digest, now

if TYPE_CHECKING:
    from factory.engines import Engine
    from factory.labelling import PanelMember
    from factory.recipe import PanelPart, RewardJudge
    from factory.training.rewards import RewardPart, Rewards


NO_FINAL = "there are no prompts in the split 'final'"


def add_prompts(run: Run, number: int) -> Detail:
    """Put the recipe's prompts into the store ("store": what it holds already)."""
    from factory.prompts import add_prompts as add

    part = run.recipe.prompts
    if part.source != "store":
        add(run.store, part.source, group_by=part.group_by)
    until = now().isoformat()
    counts = dict.fromkeys(("train", "heldout", "final"), 0)
    for prompt in run.store.rows(Prompt):
        counts[prompt.split] += 1
    for split in ("train", "heldout"):
        if not counts[split]:
            raise FactoryError(
                f"there are no prompts in the split {split!r}", where=part.source, todo="factory prompts add FILE"
            )
    if not counts["final"]:
        console.note(f"{NO_FINAL}: nothing will confirm the gain on held-out prompts")
    left_out = {split: _near_train(run, split) for split in ("heldout", "final") if counts[split]}
    keys = {split: [p.key for p in run.store.rows(Prompt) if p.split == split] for split in counts}
    data = {split: digest(sorted(found)) for split, found in keys.items()}
    return {"prompts": counts, "until": until, "left_out": left_out, "data": data}


def _near_train(run: Run, split: str) -> int:
    """How many prompts of a split are too near one of the train split to measure anything by; they are left out."""
    from factory.evaluation.held import prompts_that_measure

    near = prompts_that_measure(run.store, split).left_out
    if near:
        console.note(f"{near} prompts of the split {split!r} are near prompts of the train split and are left out")
    return near


def generate(run: Run, number: int) -> Detail:
    """Sample candidates from the current policy on this round's prompts."""
    from factory.generation import generate as sample

    part, keys = run.here.generate, drawn(run, number)
    with ExitStack() as stack:
        engine = stack.enter_context(closing(run.engine(run.current(number), run.here.engine)))
        counter = stack.enter_context(console.progress("candidates", len(keys) * part.n))
        report = sample(
            run.store,
            engine,
            run=run.name,
            round=number,
            keys=keys,
            n=part.n,
            sampling=part.sampling(),
            seed=run.here.seed + number,
            kind=part.kind,
            budget=run.budget(),
            progress=counter,
        )
    return {"candidates": report.to_json()}


def revise(run: Run, number: int) -> Detail:
    """Let the current policy criticise its answers by a constitution, and write them anew."""
    from factory.revision import revise as revise_drafts

    part = run.here.revise
    with ExitStack() as stack:
        engine = stack.enter_context(closing(run.engine(run.current(number), run.here.engine)))
        counter = stack.enter_context(console.progress("critiques and revisions"))
        report = revise_drafts(
            run.store,
            engine,
            run=run.name,
            round=number,
            constitution=part.constitution,
            principles=part.principles,
            rounds=part.rounds,
            examples=part.examples,
            sampling=part.sampling(),
            seed=run.here.seed + number,
            budget=run.budget(),
            progress=counter,
        )
    return {"revisions": report.to_json()}


def label(run: Run, number: int) -> Detail:
    """Let the panel judge this round's candidates."""
    from factory.labelling import label as label_candidates
    from factory.trust import agreement

    part = run.here.label
    where = {"run": run.name, "round": number, "split": part.split, "kind": part.kind}
    if not run.store.read("candidates", columns=["key"], where=where):
        return {"labels": None, "skipped": f"there are no candidates of kind {part.kind} to prompts in {part.split}"}
    with ExitStack() as stack:
        panel = _panel(run, number, stack)
        counter = stack.enter_context(console.progress("judgments"))
        report = label_candidates(
            run.store,
            panel,
            run=run.name,
            round=number,
            split=part.split,
            kind=part.kind,
            seed=run.here.seed + number,
            budget=run.budget(),
            progress=counter,
        )
    between = agreement.report(run.store, run=run.name, round=number, seed=run.recipe.seed)
    return {"labels": report.to_json(), "agreement": between.to_json()}


def collect(run: Run, number: int) -> Detail:
    """Make candidates of a judge's written judgments."""
    from factory.meta_judging import collect as collect_judgments

    part = run.here.collect
    report = collect_judgments(
        run.store, run=run.name, round=number, judge=part.judge, longest=part.longest, questions=part.questions
    )
    return {"collected": asdict(report)}


def pair(run: Run, number: int) -> Detail:
    """Turn judgments into preferences and labels."""
    from factory.pairing import Filters, pair as make_pairs
    from factory.rounds.preflight import labels_of
    from factory.trust import consistency

    part, seed, lead = run.here.pair, run.here.seed + number, run.here.lead
    if reason := _nothing_to_pair(run, number):
        console.note(f"note: nothing to pair: {reason}")
        return {"pairs": None, "skipped": reason}
    alike = None
    if part.weights == "consistency" and part.previous is not None:
        found = consistency.measure(run.store, run=run.name, round=number, judge=lead or "", previous=part.previous)
        alike = found.weights()
    report = make_pairs(
        run.store,
        run=run.name,
        round=number,
        strategy=part.strategy,
        combine=part.combine,
        lead=lead,
        break_ties=part.break_ties,
        judge_weights=part.judge_weights,
        judge_families=part.judge_families,
        filters=Filters.of(part),
        weights=part.weights,
        consistency=alike,
        labels=labels_of(part),
        split=part.split,
        kind=part.kind,
        quarantine=part.quarantine,
        name=part.name,
        flip=part.flip,
        seed=seed,
    )
    for warning in report.warnings:
        console.note(f"note: {warning}")
    return {"pairs": report.to_json()}


def _nothing_to_pair(run: Run, number: int) -> str | None:
    """Why there is nothing that pairs could be made of; None where there is."""
    from factory import verdicts
    from factory.pairing import strategies

    part = run.here.pair
    lineage = bool(strategies.facts(part.strategy).get("lineage"))
    kind = "revision" if lineage else part.kind
    where = {"run": run.name, "round": number, "split": part.split, "kind": kind}
    if not run.store.read("candidates", columns=["key"], where=where):
        return f"there are no candidates of kind {kind} to prompts in {part.split}"
    said = run.store.rows(Judgment, {"run": run.name, "round": number})
    if lineage or verdicts.read(said, quarantine=part.quarantine).judges():
        return None
    fooled = len(verdicts.quarantined(said)) if part.quarantine else 0
    return f"canaries fooled the judges in all {fooled} batches" if fooled else "no judge said anything of use"


def train(run: Run, number: int) -> Detail:
    """Train the next policy; skipped, with the reason, when there is too little to train on."""
    from factory.training import needs, train_policy
    from train.launching import Launch

    part, seed = run.here.train, run.here.seed + number
    wanted, least = needs(part.config), run.recipe.stop.min_preferences
    strategy, read = None, dict[str, Any](table=wanted, rows=None)
    if wanted != "prompts":
        made = _made(run, number, wanted)
        strategy, read["rows"] = sorted(made), made.total()
        if made.total() < least:
            return {"training": None, "trained_on": read, "skipped": f"{made.total()} {wanted} are fewer than {least}"}
    begin = run.current(number) if part.begin_from == "round" else run.recipe.model
    threads = part.config.threads or run.threads
    with ExitStack() as stack:
        counter = stack.enter_context(console.progress("training steps"))
        result = train_policy(
            run.store,
            run=run.name,
            rounds=range(1, number + 1) if part.all_rounds else [number],
            start=begin,
            reference=run.recipe.model if part.reference == "start" else begin,
            out=run.out(number),
            config=part.config.model_copy(update={"seed": seed, "threads": threads}),
            strategy=strategy,
            prompts=drawn(run, number) if strategy is None else None,
            reward=_reward(run, number) if strategy is None else None,
            processes=Launch(processes=part.processes) if part.processes > 1 else None,
            progress=counter,
        )
    kept = json.loads((run.out(number) / "policy" / "training.json").read_text(encoding="utf-8"))
    return {"training": result.to_json(), "trained_on": read, "identity": kept["identity"]}


def _made(run: Run, number: int, table: str) -> Counter[str]:
    """Rows to train on by pairing; for a method that learns good answers alone, the good ones."""
    from train import losses

    part = run.here.train
    rounds = list(range(1, number + 1)) if part.all_rounds else [number]
    names = list(part.pairings or run.here.pair.trained_on(table))
    where: dict[str, Any] = {"run": run.name, "round": rounds, "strategy": names}
    if losses.get(part.config.method).data == "completions":
        where["label"] = True
    return Counter(str(row["strategy"]) for row in run.store.read(table, columns=["strategy"], where=where))


def _reward(run: Run, number: int) -> Rewards | None:
    """The judges that reward the policy's own answers; None: the verifier as it is."""
    from factory.training.rewards import Rewards

    parts, spent = run.here.train.reward, run.recipe.budget
    if parts is None:
        return None
    rewarding = tuple(_rewarding(run, number, part) for part in parts)
    return Rewards(parts=rewarding, max_cost=spent.max_cost, max_tokens=spent.max_tokens)


def _rewarding(run: Run, number: int, part: RewardJudge) -> RewardPart:
    """One judge that rewards, with the engine of one that asks a model."""
    from factory.engines import EngineSpec
    from factory.judges import judges
    from factory.training.rewards import RewardPart

    model, options = _asked(run, number, part)
    engine = part.engine or run.here.engine
    spec = EngineSpec(engine.kind, engine.model or model, dict(engine.options), engine.count)
    return RewardPart(
        judge=part.judge,
        name=part.name or "",
        weight=part.weight,
        options=options,
        engine=spec if judges.facts(part.judge)["asks"] else None,
        matchups=part.matchups,
    )


def _asked(run: Run, number: int, part: PanelPart) -> tuple[str, dict[str, Any]]:
    """The model that judges, and the judge's options with the names of models in them."""
    from factory.judges import judges

    before = run.base(max(run.origin(number), 1))
    names = {"policy": run.current(number), "previous": before, "start": run.recipe.model}
    facts, options = judges.facts(part.judge), dict(part.options)
    whose = part.model or facts.get("whose", "start")
    model = names.get(whose, whose)
    if facts.get("model"):
        options.setdefault("model", model)
    if facts.get("reference"):
        options["reference"] = names.get(options.get("reference", "start"), options.get("reference"))
    return model, options


def evaluate(run: Run, number: int) -> Detail:
    """Measure the round's policy on held-out prompts, against the start and against the champion so far."""
    from factory.evaluation import compare

    report = _measure(run, number, "heldout", 0 if number else None)
    detail: Detail = {"report": report.to_json()}
    if number:
        best, limit = run.champion, run.recipe.evaluate.limit
        against = compare(
            run.store,
            run=run.name,
            round=number,
            baseline_round=best,
            limit=limit,
            until=run.until,
            verifier=run.verifier,
            seed=run.recipe.seed,
        )
        detail |= {"against_champion": best, "gain_champion": against.gain and list(against.gain)}
    return detail


def final(run: Run, number: int) -> Detail:
    """Open the `final` split once: the champion against the start, on prompts that no decision has read."""
    best = run.champion
    if not run.prompts("final"):
        return {"champion": best, "start": None, "report": None, "skipped": NO_FINAL}
    start = _measure(run, 0, "final", None, scored=False)
    report = _measure(run, best, "final", 0, scored=False) if best else None
    return {"champion": best, "start": start.to_json(), "report": report and report.to_json()}


STAGES: Mapping[str, Callable[[Run, int], Detail]] = {
    "prompts": add_prompts,
    "generate": generate,
    "revise": revise,
    "label": label,
    "collect": collect,
    "pair": pair,
    "train": train,
    "evaluate": evaluate,
    "final": final,
}
WITH_MODEL = frozenset({"generate", "revise", "label", "train", "evaluate", "final"})


def stage_of(run: Run, step: str) -> str:
    """The stage that a step is."""
    return step if step in FRAME else run.recipe.step(step).stage


def perform(run: Run, number: int, step: str) -> Detail:
    """Do one step of a round, with its settings."""
    return STAGES[stage_of(run, step)](run.at(step), number)


def drawn(run: Run, number: int) -> list[str]:
    """The keys of a round's prompts: a seeded order of the train split, taken in turn, begun again at its end."""
    keys = [prompt.key for prompt in run.prompts("train")]
    order = sorted(keys, key=lambda key: digest(run.here.seed, key))
    size = min(run.here.prompts.per_round, len(order))
    start = (number - 1) * size
    return [order[i % len(order)] for i in range(start, start + size)]


def _panel(run: Run, number: int, stack: ExitStack) -> list[PanelMember]:
    """The panel with its engines; members that ask the same model share one."""
    shared: dict[str, Engine] = {}
    return [_member(run, number, part, shared, stack) for part in run.here.panel]


def _member(run: Run, number: int, part: PanelPart, shared: dict[str, Engine], stack: ExitStack) -> PanelMember:
    """One judge with its engine (of `shared`, if one of the same kind is there), closed with the stack."""
    from factory.judges import judges
    from factory.labelling import PanelMember

    (model, options), engine = _asked(run, number, part), None
    if judges.facts(part.judge)["asks"]:
        spec = part.engine or run.here.engine
        key = digest(model, spec.model_dump())
        engine = shared.get(key) or stack.enter_context(closing(run.engine(model, spec)))
        shared[key] = engine
    member = PanelMember.of(
        part.judge, name=part.name, engine=engine, matchups=part.matchups, prompts=part.prompts, options=options
    )
    if hasattr(member.judge, "close"):
        stack.callback(member.judge.close)
    return member


def _measure(run: Run, number: int, split: str, baseline: int | None, *, scored: bool = True) -> PolicyReport:
    from factory.evaluation import evaluate as evaluate_policy
    from factory.evaluation.likelihoods import ModelScorer

    part, policy = run.recipe.evaluate, run.policy(number)
    with ExitStack() as stack:
        engine = stack.enter_context(closing(run.engine(policy)))
        counter = stack.enter_context(console.progress(f"{split} answers of round {number}"))
        return evaluate_policy(
            run.store,
            run=run.name,
            round=number,
            policy=policy,
            split=split,
            engine=engine,
            start=run.recipe.model,
            baseline_round=baseline,
            n=part.n,
            sampling=part.sampling(),
            seed=run.recipe.seed,
            limit=part.limit,
            until=run.until,
            scorer=ModelScorer(run.store) if scored else None,
            score_limit=part.score_limit,
            probes=part.probes,
            verifier=run.verifier,
            judges=[_member(run, number, part.judge, {}, stack)] if part.judge and baseline is not None else [],
            labelled_by=labelled_by(run.recipe),
            look=1 if split == "final" else max(number, 1),  # which is opened once
            budget=run.budget(),
            progress=counter,
        )
