"""Commands that make policies and measure them."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from factory import console
from factory.commands import options, rewarding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from factory.schema import PolicyReport

LOCAL = {"transformers", "vllm"}
"""Engines whose model lies here, so that KL and relevance can be scored."""
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


def train(
    method: Annotated[
        str,
        typer.Option(help="Objective: dpo, kto, orpo, simpo, sft, raft, reward_model, grpo ... (`factory methods`)."),
    ] = "dpo",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the trainer, e.g. learning_rate=2e-4; repeatable.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Parameter of the objective, e.g. beta=0.1; repeatable.")
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", help="A further term and its weight, e.g. sft=0.2; repeatable.")
    ] = None,
    online: Annotated[
        list[str] | None,
        typer.Option("--online", help="Train on answers that the policy samples: steps=50, n=4 ...; repeatable."),
    ] = None,
    reward: rewarding.Judges = None,
    reward_option: rewarding.Options = None,
    reward_model: rewarding.Model = None,
    reward_engine: rewarding.EngineKind = "transformers",
    reward_engine_option: rewarding.EngineOptions = None,
    reward_matchups: rewarding.Matchups = "all",
    canary_share: options.CanaryShare = 0.02,
    unsafe_exec: options.UnsafeExec = False,
    retry_failed: rewarding.RetryFailed = False,
    concurrency: options.Concurrency = None,
    max_cost: options.MaxCost = None,
    max_tokens_total: options.MaxTokensTotal = None,
    model: options.Model = options.EMBEDDED,
    reference: Annotated[
        str | None, typer.Option(help="The frozen reference; by default the model that training begins with.")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            help="Train on the rows of these pairings by name (`pair --name`, else its strategy); repeatable.",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this host; on GPUs one each.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts that train together.")] = 1,
    node: Annotated[int, typer.Option(min=0, help="Which of the hosts this is, from 0.")] = 0,
    rendezvous: Annotated[str, typer.Option(help="host:port of node 0, where several hosts meet.")] = "",
    wait: Annotated[int, typer.Option(min=1, help="Seconds that hosts wait for each other.")] = 1800,
    plan: Annotated[bool, typer.Option("--plan", help="Print what it would take; train nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the policy; by default the run's round folder.")] = None,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Train a policy on a run's preferences or labels, or on answers of its own (--online). The same command again goes
    on from the last checkpoint."""
    from factory.training import config_of, help_train, needs, plan_training, train_policy
    from train.launching import Launch

    together = Launch(processes=processes, nodes=nodes, node=node, rendezvous=rendezvous, wait=wait)
    if nodes > 1 and not plan:
        together.check()
        _quiet_meeting()
        console.note(f"node {node} of {nodes} meets the others at {rendezvous} (waits for up to {wait} s)")
    if node:
        help_train(together)
        return
    settings = options.settings(setting, "--set")
    if online:
        settings["online"] = {**(settings.get("online") or {}), **options.settings(online, "--online")}
    if add:
        settings["add"] = {**(settings.get("add") or {}), **options.settings(add, "--add")}
    config = config_of(method=method, settings=settings, parameters=options.settings(parameter, "--param"))
    with options.opened(store) as opened:
        table = needs(config)
        name = options.dated("train", run) if config.online else options.newest(opened, table, run)
        number = round_number or 0 if config.online else options.newest_round(opened, table, name, round_number)
        wanted: dict[str, Any] = {"run": name, "rounds": [number], "start": model, "reference": reference or model}
        wanted |= {"config": config, "strategy": strategy, "processes": together if together.size > 1 else None}
        if plan:
            found = plan_training(opened, **wanted)
            for note in found.notes:
                console.note(f"note: {note}")
            console.emit(found.to_json(), as_json=as_json, text=console.facts(found.facts()))
            return
        rewards = None
        if config.online:
            spec = options.spec(reward_engine, reward_model or model, reward_engine_option, concurrency=concurrency)
            rewards = rewarding.rewards(
                reward, reward_option, spec, own_model=reward_model, matchups=reward_matchups, unsafe_exec=unsafe_exec
            )
            rewards = replace(
                rewards,
                canary_share=canary_share,
                retry_failed=retry_failed,
                max_cost=max_cost,
                max_tokens=max_tokens_total,
            )
        with opened.run_lock(name), console.progress("training steps") as counter:
            result = train_policy(
                opened,
                **wanted,
                out=out or opened.run_folder(name) / f"round-{number}",
                reward=rewards,
                progress=counter,
            )
    console.emit(result.to_json(), as_json=as_json, text=console.facts(result.to_json()))


def _quiet_meeting() -> None:
    """Load torch so that this process does not tell of each try to meet with a stack of C++. The workers, which load it
    anew, tell all: what NCCL says there is how a training on several hosts is mended."""
    level = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "FATAL")
    import torch  # noqa: F401 - it reads the level when it is loaded

    if level is None:
        del os.environ[LOG_LEVEL]


def methods(as_json: options.AsJson = False) -> None:
    """Every objective that a policy can be trained by, with its parameters."""
    from train.losses.catalogue import about

    found = about()
    rows = [
        {"method": each.name, "data": each.data, "reference": each.reference, "what it is": each.line} for each in found
    ]
    console.emit([each.to_json() for each in found], as_json=as_json, text=console.table(rows))


def merge(
    policy: Annotated[str, typer.Argument(help="Folder of an adapter.")],
    out: Annotated[Path, typer.Option(help="New folder for the whole model.")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="How it is stored; auto: as its base is.")
    ] = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Write an adapter and its base as one whole model."""
    from factory.training import merge as write

    write(policy, out, dtype=dtype)
    console.emit({"policy": str(out)}, as_json=as_json, text=f"policy: {out}")


def evaluate(
    model: options.Model = options.EMBEDDED,
    baseline: Annotated[str, typer.Option(help="Policy to win against and to measure KL from.")] = options.EMBEDDED,
    split: Annotated[str, typer.Option(help="heldout | final")] = "heldout",
    n: Annotated[int, typer.Option("--n", min=1, help="Answers a prompt.")] = 1,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 256,
    limit: options.Limit = None,
    score_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Measure KL and relevance on the answers to so many prompts; all by default."),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts answered once more at temperature 1 for KL, where --temperature is another."),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", help="A judge that compares with the baseline's answers; as in `label`; repeatable."),
    ] = None,
    judge_option: options.JudgeOptions = None,
    labelled_by: Annotated[
        list[str] | None,
        typer.Option(
            "--labelled-by", help="Judge that labelled the training data (default: those of the policy's run)."
        ),
    ] = None,
    unsafe_exec: options.UnsafeExec = False,
    engine: options.EngineKind = "transformers",
    engine_option: options.EngineOptions = None,
    engines: options.Engines = 1,
    concurrency: options.Concurrency = None,
    max_cost: options.MaxCost = None,
    max_tokens_total: options.MaxTokensTotal = None,
    seed: options.Seed = 0,
    run: options.NewRun = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Measure a policy on held-out prompts against a baseline: pass and win rate, lengths, KL, relevance."""
    from factory.commands.labels import named_judges, panel_of
    from factory.engines import build
    from factory.evaluation import evaluate as evaluate_policy
    from factory.evaluation.judged import labellers_of
    from factory.evaluation.likelihoods import ModelScorer
    from factory.schema import Sampling

    name = options.dated("evaluate", run)
    budget = options.budget(max_cost, max_tokens_total)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
    with ExitStack() as stack:
        opened = stack.enter_context(options.opened(store))
        stack.enter_context(opened.run_lock(name))
        report, first = None, None
        who = dict.fromkeys(labelled_by, "") if labelled_by else labellers_of(opened, model)
        named = named_judges(judge or [])
        asked = options.spec(engine, baseline, engine_option, concurrency=concurrency)
        chosen = options.by_judge(judge_option, list(named), "--judge-option")
        panel = panel_of(named, chosen, asked, ("all", "sample"), stack)
        for number, policy in enumerate(dict.fromkeys((baseline, model))):
            spec = options.spec(engine, policy, engine_option, engines=engines, concurrency=concurrency)
            built = stack.enter_context(closing(build(spec)))
            first = first or built
            with console.progress(f"answers of {policy}") as counter:
                report = evaluate_policy(
                    opened,
                    run=name,
                    round=number,
                    policy=policy,
                    split=split,
                    engine=built,
                    start=baseline,
                    baseline_round=0 if number else None,
                    baseline_engine=first if number else None,
                    n=n,
                    sampling=sampling,
                    seed=seed,
                    limit=limit,
                    scorer=ModelScorer(opened) if engine in LOCAL else None,
                    score_limit=score_limit,
                    probes=probes,
                    verifier={"unsafe_exec": unsafe_exec},
                    judges=panel if number else [],
                    labelled_by=who,
                    budget=budget,
                    progress=counter,
                )
    if report is None:
        return
    shown = {"run": name} | {field.name: getattr(report, field.name) for field in fields(report)}
    kinds = [{"constraint": kind, "pass_rate": rate} for kind, rate in shown.pop("by_constraint").items()]
    tables = [kinds, *(_lines(shown.pop(name)) for name in ("judged", "slices"))]
    text = "\n\n".join([console.facts(shown), *(console.table(rows) for rows in tables if rows)])
    console.emit({"run": name} | report.to_json(), as_json=as_json, text=text)
    _caution(report)
    if report.failures:
        raise typer.Exit(1)


def _lines(parts: Sequence[Any]) -> list[dict[str, Any]]:
    """Parts of a report as lines of a table."""
    return [{field.name: getattr(part, field.name) for field in fields(part)} for part in parts]


def _caution(report: PolicyReport) -> None:
    """What a reader of the numbers has to know."""
    if report.independent is False:
        console.note("note: all that measures here also labelled: --judge names one that did not")
    if report.scored and report.kl_sequence is None:
        console.note("note: no KL is measured: the policy and its baseline split texts into different tokens")
    if report.kl_on == "tempered":
        console.note("note: KL is a log-ratio on tempered answers: --probes measures it on answers of temperature 1")
    if report.near_trained:
        console.note(f"note: {report.near_trained} prompts of the split are near prompts of the train split: left out")
