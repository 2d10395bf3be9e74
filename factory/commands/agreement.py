"""The command that measures the judges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from factory import console
from factory.commands import options

if TYPE_CHECKING:
    from factory.trust.calibration import Calibration
    from factory.trust.escalation import Escalated
    from factory.trust.evidence import Evidence

SHOWN = 10  # escalated pairs in the text; the sheet and the JSON have all


def agreement(
    run: options.Run = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, max=options.LARGEST, help="One round; all by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the candidates' prompts.")] = "train",
    level: Annotated[
        Literal["nominal", "ordinal", "interval"],
        typer.Option(help="What a verdict is: a word, one of a < tie < b, or p_a itself."),
    ] = "nominal",
    prior: Annotated[
        float, typer.Option(min=0, help="Ranking: so many made-up even comparisons of every two compared models.")
    ] = 0.0,
    keep_quarantined: options.KeepQuarantined = False,
    gold: Annotated[
        str | None, typer.Option(help="People's verdicts: a .csv or .jsonl, or a judge of the run, such as human.")
    ] = None,
    risk: Annotated[float, typer.Option(help="Gold: share of a believed judge's verdicts that may be wrong.")] = 0.2,
    confidence: Annotated[float, typer.Option(help="Gold: how sure that risk must be.")] = 0.9,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, help="Gold: what a person costs more than a judge, in advantage.")
    ] = 0.2,
    escalate: Annotated[
        Path | None, typer.Option(help="Write the pairs most worth a person's time as a sheet: OUT.csv or .jsonl.")
    ] = None,
    most: Annotated[int, typer.Option("--escalate-most", min=1, help="Pairs on the sheet at most.")] = 50,
    seed: options.Seed = 0,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """How far the judges agree, what habits they have, how they rank the models, and how they stand against people."""
    from factory.trust.agreement import of_evidence
    from factory.trust.calibration import calibrate
    from factory.trust.evidence import gather
    from factory.trust.gold import find_gold
    from factory.trust.habits import spending

    options.check_file(escalate, "--escalate")
    with options.opened(store) as opened:
        kind = options.kind_of(opened, run, split, None) if run is None else "sample"
        name = options.newest(opened, "judgments", run, split=split, kind=kind)
        found = gather(opened, run=name, round=round_number, split=split, keep_quarantined=keep_quarantined)
        report = of_evidence(found, level=level, prior=prior, seed=seed, spent=spending(opened, found))
        result: dict[str, Any] = {"run": name} | report.to_json()
        texts = [report.text()]
        known = None
        if gold is not None:
            truth = find_gold(gold, found)
            against = calibrate(found, truth, risk=risk, delta=1 - confidence, epsilon=epsilon, seed=seed)
            result["gold"] = against.to_json()
            texts.append(against.text())
            known = (against, list(truth.pairs()))
        if escalate is not None:
            chosen = _escalated(found, known, most)
            from factory.trust.escalation import write

            written = write(opened, found, chosen, escalate, seed=seed)
            result["escalated"] = {"sheet": str(escalate), "pairs": [one.row() for one in chosen]}
            texts.append(_told(chosen, written, escalate))
    console.emit(result, as_json=as_json, text="\n\n".join(texts))


def _escalated(found: Evidence, known: tuple[Calibration, list[tuple[str, str]]] | None, most: int) -> list[Escalated]:
    """The pairs for people; what gold says of the judges counts where there is gold."""
    from factory.trust.escalation import escalate

    if known is None:
        return escalate(found, most=most)
    against, pairs = known
    return escalate(
        found,
        most=most,
        known=pairs,
        weights=against.weights(),
        thresholds={limit.judge: limit.threshold for limit in against.thresholds if limit.gold},
        judges=[stats.judge for stats in against.judges],
    )


def _told(chosen: list[Escalated], written: int, sheet: Path) -> str:
    more = f" (the first {SHOWN})" if len(chosen) > SHOWN else ""
    short = ("candidate_a", "candidate_b", "prompt_key")
    rows = [one.row() | {name: getattr(one, name)[:12] for name in short} for one in chosen[:SHOWN]]
    return f"{written} pairs for people in {sheet}{more}\n{console.table(rows)}"
