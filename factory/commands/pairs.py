"""The command that makes preferences and labels of judgments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError

if TYPE_CHECKING:
    from factory.store import Store

KINDS = "Kinds of candidates, such as revision; default: sample, else given; repeatable."


def pair(
    strategy: Annotated[
        str,
        typer.Option(
            help="best_worst | max_margin | best_random | mu_2sigma | moderate_margin | tie_aware | random | all | "
            "draft_revision."
        ),
    ] = "best_worst",
    combine: Annotated[
        str,
        typer.Option(
            help="How the panel becomes one verdict: lead | mean | majority | weighted | one_coin | dawid_skene | "
            "dependent."
        ),
    ] = "lead",
    lead: Annotated[str | None, typer.Option(help="The judge that decides when combine is lead.")] = None,
    judge: Annotated[
        list[str] | None, typer.Option("--judge", help="Hear these judges alone; repeatable. Default: all.")
    ] = None,
    judge_weight: Annotated[
        list[str] | None, typer.Option("--judge-weight", help="judge=weight, for combine weighted; repeatable.")
    ] = None,
    judge_family: Annotated[
        list[str] | None, typer.Option("--judge-family", help="judge=family, for combine dependent; repeatable.")
    ] = None,
    break_ties: Annotated[bool, typer.Option(help="Where the lead ties, the other judges decide.")] = False,
    min_margin: Annotated[float, typer.Option(min=0, max=1, help="Smallest margin that makes a preference.")] = 0.0,
    max_margin: Annotated[float, typer.Option(min=0, max=1, help="Largest margin that does.")] = 1.0,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the judges that side with the verdict.")
    ] = 0.0,
    min_probability: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability that the chosen is the better.")
    ] = 0.0,
    max_entropy: Annotated[float | None, typer.Option(min=0, help="Most entropy of the verdict, nats.")] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of the chosen, as a share of the scale.")
    ] = None,
    near_duplicates: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Drop answers that share so much of their word trigrams with another."),
    ] = None,
    max_length_ratio: Annotated[
        float | None, typer.Option(min=1, help="The longer answer is at most so many times as long.")
    ] = None,
    length_balanced: Annotated[
        bool, typer.Option(help="Drop pairs until chosen answers are as long as rejected ones.")
    ] = False,
    per_prompt: Annotated[int | None, typer.Option(min=1, help="At most so many preferences a prompt.")] = None,
    confirm: Annotated[
        bool, typer.Option(help="draft_revision: only where the judges find the revision better.")
    ] = False,
    weights: Annotated[
        Literal["none", "margin", "probability", "consistency"],
        typer.Option(help="Weight of a preference in training."),
    ] = "none",
    previous: Annotated[
        str | None, typer.Option(help="weights consistency: the judge whose ranking the lead's is compared with.")
    ] = None,
    label_by: Annotated[
        Literal["threshold", "quantile", "pairs", "none"], typer.Option(help="How answers become unpaired labels.")
    ] = "threshold",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Score from which an answer is desirable.")] = 0.5,
    quantiles: Annotated[
        tuple[float, float], typer.Option(help="label-by quantile: undesirable up to, desirable from.")
    ] = (0.25, 0.75),
    label_weights: Annotated[
        Literal["none", "distance", "balanced"], typer.Option(help="Weight of a label in training.")
    ] = "none",
    flip: Annotated[
        float,
        typer.Option(min=0, max=1, help="Label noise on purpose: turn about this share of preferences and labels."),
    ] = 0.0,
    named: Annotated[
        str | None,
        typer.Option("--name", help="Name of its preferences and labels in the tables; default: the strategy."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help=KINDS)] = None,
    split: Annotated[str, typer.Option(help="Split of the candidates' prompts.")] = "train",
    where: options.Where = None,
    keep_quarantined: options.KeepQuarantined = False,
    seed: options.Seed = 0,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Make preferences and unpaired labels of the judgments. Ties make none; every pair left out has its reason."""
    from factory.pairing import Filters, LabelRule, pair as make_pairs, strategies

    filters = Filters(
        min_margin=min_margin,
        max_margin=max_margin,
        min_agreement=min_agreement,
        min_probability=min_probability,
        max_entropy=max_entropy,
        min_score=min_score,
        near_duplicates=near_duplicates,
        max_length_ratio=max_length_ratio,
        length_balanced=length_balanced,
        per_prompt=per_prompt,
        confirm=confirm,
    )
    with options.opened(store) as opened:
        table = "candidates" if strategies.facts(strategy).get("lineage") else "judgments"
        lone = options.kind_of(opened, run, split, None) if not kind else kind[0]
        name = options.newest(opened, table, run, split=split, kind="given" if lone == "given" else "sample")
        number = options.newest_round(opened, table, name, round_number)
        report = make_pairs(
            opened,
            run=name,
            round=number,
            strategy=strategy,
            combine=combine,
            lead=lead,
            break_ties=break_ties,
            judges=judge,
            judge_weights=options.settings(judge_weight, "--judge-weight") or None,
            judge_families=options.settings(judge_family, "--judge-family") or None,
            filters=filters,
            weights=weights,
            consistency=_consistency(opened, name, number, weights, (lead, previous)),
            labels=LabelRule(label_by, threshold, quantiles, label_weights),
            split=split,
            kind=kind or lone,
            quarantine=not keep_quarantined,
            name=named,
            prompts=options.picked(opened, where),
            flip=flip,
            seed=seed,
        )
    for warning in report.warnings:
        console.note(f"note: {warning}")
    result = {"run": name} | report.to_json()
    console.emit(result, as_json=as_json, text=console.facts(result))


def _consistency(
    store: Store, run: str, number: int, weights: str, judges: tuple[str | None, str | None]
) -> dict[str, float] | None:
    """CREAM's weights, where they are wanted."""
    from factory.trust import consistency

    if weights != "consistency":
        return None
    judge, previous = judges
    if judge is None or previous is None:
        raise FactoryError("weights by consistency compare two judges", todo="name them: --lead JUDGE --previous JUDGE")
    return consistency.measure(store, run=run, round=number, judge=judge, previous=previous).weights()
