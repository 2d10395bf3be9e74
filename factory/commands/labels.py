"""The command that puts candidates before judges."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from factory.engines import EngineSpec
    from factory.labelling import LabelReport, PanelMember

JUDGES = (
    "verifier | words | pairwise | rating | rubric | constitutional | self_reward | meta_judge | reward_model | "
    "implicit | human; NAME=JUDGE gives it a name. Several are a panel, the first leads."
)


CURES = {
    "no_verdict": "the text is not one answer alone: -J {name}.form=json, -J {name}.reasoning=first, or another model",
    "low_mass": "little probability is on valid answers: another -J {name}.prefix, or a larger model",
    "cut": "its answer is longer than its max_tokens: -J {name}.max_tokens=N",
    "unsupported": "this endpoint goes on with no turn that was begun: -J {name}.prefix=''",
    "too_long": "prompt and answers are longer than the model takes",
}
"""What helps against frequent failures of a judge."""


def label(
    judge: Annotated[list[str], typer.Option("--judge", help=JUDGES)],
    judge_option: options.JudgeOptions = None,
    model: options.Model = options.EMBEDDED,
    engine: options.EngineKind = "transformers",
    engine_option: options.EngineOptions = None,
    engines: options.Engines = 1,
    concurrency: options.Concurrency = None,
    matchups: Annotated[
        str, typer.Option(help="Pairs that pairwise judges see: all | against_best | verifier_ties | random:k.")
    ] = "all",
    split: Annotated[str, typer.Option(help="Split of the candidates' prompts.")] = "train",
    kind: Annotated[
        str | None, typer.Option(help="Kind of the candidates: revision | judgment ...; default: sample, else given.")
    ] = None,
    canary_share: options.CanaryShare = 0.02,
    unsafe_exec: options.UnsafeExec = False,
    retry_failed: options.RetryFailed = False,
    max_cost: options.MaxCost = None,
    max_tokens_total: options.MaxTokensTotal = None,
    seed: options.Seed = 0,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    dry_run: options.DryRun = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Let judges say what they think of a run's candidates. The same command again goes on where it stopped."""
    from factory.labelling import label as label_candidates, plan

    named = named_judges(judge)
    chosen = options.by_judge(judge_option, list(named), "--judge-option")
    if unsafe_exec:
        for name in (name for name, which in named.items() if which == "verifier"):
            chosen[name]["unsafe_exec"] = True
    spec = options.spec(engine, model, engine_option, engines=engines, concurrency=concurrency)
    with ExitStack() as stack:
        opened = stack.enter_context(options.opened(store))
        kind = options.kind_of(opened, run, split, kind)
        found = options.newest(opened, "candidates", run, split=split, kind=kind)
        number = options.newest_round(opened, "candidates", found, round_number, split=split, kind=kind)
        panel = panel_of(named, chosen, spec, (matchups, kind), stack)
        wanted: dict[str, Any] = {"run": found, "round": number, "split": split, "kind": kind, "seed": seed}
        wanted |= {"canary_share": canary_share, "retry_failed": retry_failed}
        if dry_run:
            planned = [row.to_json() for row in plan(opened, panel, **wanted)]
            said = {"run": found, "judges": planned} | options.priced(spec)
            console.emit(said, as_json=as_json, text=f"{console.table(planned)}\n\ncost: {said['cost']}")
            return
        stack.enter_context(opened.run_lock(found))
        budget = options.budget(max_cost, max_tokens_total)
        counter = stack.enter_context(console.progress("judgments"))
        report = label_candidates(opened, panel, **wanted, budget=budget, progress=counter)
    _tell(panel, report)
    console.emit({"run": found} | report.to_json(), as_json=as_json, text=console.table(report.rows()))
    if report.failures:
        raise typer.Exit(1)


def _tell(panel: Sequence[PanelMember], report: LabelReport) -> None:
    """What ended a judge early, why judgments failed, and people's verdicts that were on nothing shown."""
    for row in report.judges:
        if row.fault:
            console.note(f"error: {row.judge}: {row.fault}")
        for reason, count in sorted(row.failures.items(), key=lambda each: -each[1]):
            cure = CURES.get(reason, "").format(name=row.judge)
            console.note(f"note: {row.judge}: {count} failed: {reason}" + (f" ({cure})" if cure else ""))
    for member in panel:
        if unheard := getattr(member.judge, "unheard", 0):
            console.note(f"note: {member.name}: {unheard} verdicts of the file are on answers that were not shown")


def named_judges(given: list[str]) -> dict[str, str]:
    """Judges by the name they go by: "verifier", or "strict=verifier"."""
    found: dict[str, str] = {}
    for text in given:
        name, sign, which = text.partition("=")
        if not name or (sign and not which):
            raise FactoryError(f"--judge {text!r} names no judge", todo="write JUDGE, or NAME=JUDGE")
        if name in found:
            raise FactoryError(f"two judges are called {name!r}", todo=f"give each its own name: --judge other={name}")
        found[name] = which if sign else name
    return found


def panel_of(
    named: dict[str, str],
    chosen: dict[str, dict[str, Any]],
    spec: EngineSpec,
    shown: tuple[str, str],
    stack: ExitStack,
) -> list[PanelMember]:
    """The members with their engines; those that ask the same model share one. `shown`: matchups, kind of answers."""
    from dataclasses import replace

    from factory.engines import Engine, build
    from factory.judges import judges
    from factory.labelling import PanelMember

    (matchups, kind), built = shown, dict[str, Engine]()
    panel = []
    for name, which in named.items():
        asked = None
        needed = judges.facts(which).get("kind", kind)
        if needed != kind:
            raise FactoryError(f"{which} judges candidates of kind {needed}, not {kind}", todo=f"add --kind {needed}")
        if judges.facts(which)["asks"]:
            model = str(chosen[name].pop("model", spec.model))
            if model not in built:
                built[model] = stack.enter_context(closing(build(replace(spec, model=model))))
            asked = built[model]
        member = PanelMember.of(which, name=name, engine=asked, matchups=matchups, options=chosen[name])
        close = getattr(member.judge, "close", None)
        if close is not None:
            stack.callback(close)
        panel.append(member)
    return panel


def collect(
    judge: Annotated[str, typer.Option(help="The judge whose judgments are collected.")] = "self_reward",
    longest: Annotated[int | None, typer.Option(min=1, help="Leave out judgments of more characters.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="At most so many questions, the widest apart.")] = None,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Make candidates of a judge's written judgments: `label --judge meta_judge --kind judgment --split judging`."""
    from factory.meta_judging import collect as collect_judgments

    with options.opened(store) as opened:
        found = options.newest(opened, "judgments", run, split="train")
        number = options.newest_round(opened, "judgments", found, round_number)
        with opened.run_lock(found):
            report = collect_judgments(
                opened, run=found, round=number, judge=judge, longest=longest, questions=questions
            )
    result = {"run": found} | asdict(report)
    console.emit(result, as_json=as_json, text=console.facts(result))
