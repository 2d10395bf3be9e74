"""Options of `factory train --online` that say who rewards the policy's own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from factory.commands import options
from factory.faults import FactoryError

if TYPE_CHECKING:
    from factory.engines import EngineSpec
    from factory.training.rewards import Rewards

Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="Judge that rewards sampled answers: JUDGE, JUDGE=WEIGHT, NAME=JUDGE or NAME=JUDGE=WEIGHT; several are "
        "summed by weight. Default: verifier.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--reward-option", help="Option of such a judge: name.option=value (of a lone one option=value)."),
]
Model = Annotated[
    str | None,
    typer.Option("--reward-model", help="Model that such judges ask; default: the one training begins with."),
]
EngineKind = Annotated[
    str, typer.Option("--reward-engine", help="Its engine: transformers | vllm | openai | scripted.")
]
EngineOptions = Annotated[
    list[str] | None, typer.Option("--reward-engine-option", help="Option of that engine: base_url=...; repeatable.")
]
Matchups = Annotated[
    str, typer.Option("--reward-matchups", help="Pairs of a prompt's answers that pairwise judges see: all | random:k.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Ask judges again also where a failure was permanent.")
]


def rewards(
    given: list[str] | None, chosen: list[str] | None, spec: EngineSpec, *, own_model: str | None, matchups: str,
    unsafe_exec: bool,
) -> Rewards:  # fmt: skip
    """What the options describe. `own_model`: of --reward-model, for judges that are models themselves too.
    FactoryError names what is wrong."""
    from dataclasses import replace

    from factory.judges import judges
    from factory.training.rewards import RewardPart, Rewards

    named = _named(given or ["verifier"])
    wanted = options.by_judge(_qualified(chosen, list(named)), list(named), "--reward-option")
    parts = []
    for name, (judge, weight) in named.items():
        facts, own = judges.facts(judge), wanted[name]
        engine = replace(spec, model=str(own.pop("model", spec.model))) if facts["asks"] else None
        if facts.get("model") and own_model is not None:
            own.setdefault("model", own_model)
        if judge == "verifier" and unsafe_exec:
            own["unsafe_exec"] = True
        parts.append(RewardPart(judge=judge, name=name, weight=weight, options=own, engine=engine, matchups=matchups))
    return Rewards(parts=tuple(parts))


def _named(given: list[str]) -> dict[str, tuple[str, float]]:
    """Judge and weight by name. FactoryError: one that cannot be read, or two of a name."""
    found: dict[str, tuple[str, float]] = {}
    for text in given:
        words = text.split("=")
        weight = _number(words[-1]) if len(words) > 1 else None
        judge = words[:-1] if weight is not None else words
        if not all(words) or not 1 <= len(judge) <= 2:
            raise FactoryError(
                f"--reward {text!r} cannot be read", todo="write JUDGE, JUDGE=WEIGHT or NAME=JUDGE=WEIGHT"
            )
        if judge[0] in found:
            raise FactoryError(f"two rewards are called {judge[0]!r}", todo=f"name one: --reward other={judge[-1]}")
        found[judge[0]] = (judge[-1], 1.0 if weight is None else weight)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _qualified(chosen: list[str] | None, names: list[str]) -> list[str]:
    """Options with their judge's name, which a lone one's may lack."""
    if len(names) > 1:
        return chosen or []
    return [text if text.startswith(f"{names[0]}.") else f"{names[0]}.{text}" for text in chosen or []]
