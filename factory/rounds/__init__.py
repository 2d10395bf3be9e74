"""Rounds: prompts, candidates, judgments, preferences, a policy, its evaluation, a decision; again and again.

`run` is the page to read first: one function, one line a stage. Every stage is idempotent and marked when done, so that
a run that was killed anywhere goes on with the same command. A round's report.json is written last; a round without one
is not done. What a run gives back is its champion, measured once on the `final` split.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from factory import console, crash
from factory.faults import FactoryError
from factory.recipe import dump
from factory.rounds import branching, live
from factory.rounds.branching import Point
from factory.rounds.isolation import give_back, in_child, shortage
from factory.rounds.runbook import Detail, Run, evidence_of, open_run, work_of
from factory.rounds.stages import WITH_MODEL, perform, stage_of
from factory.schema import Decision, PolicyReport, Round, digest, now
from factory.stopping import champion, decide
from factory.store.filesystem import write_whole

if TYPE_CHECKING:
    from factory.recipe import Recipe
    from factory.store import Store


def run(store: Store, recipe: Recipe, name: str, point: Point | None = None) -> Outcome:
    """All rounds of a recipe under one name, from wherever the last attempt stopped; a run that begins at a `point` of
    an earlier one shares what came before it."""
    with store.run_lock(name):
        flow = begin(store, recipe, name, point)
        do(flow, 0, "prompts")
        do(flow, 0, "evaluate")
        close(flow, 0)
        while goes_on(flow):
            number = flow.last + 1
            for step in flow.recipe.steps_of(number):
                do(flow, number, step.name)
            do(flow, number, "evaluate")
            close(flow, number)
        do(flow, flow.last, "final")
        return tell(flow)


def begin(store: Store, recipe: Recipe, name: str, point: Point | None) -> Run:
    """The run, opened, with what it shares taken over."""
    begun = None
    if point is not None:
        branching.check(store, recipe, point)
        origin = branching.opened(store, point.run).recipe
        begun = {"from": point._asdict() | {"changed": branching.changed(recipe, origin)}}
    flow = open_run(store, recipe, name, begun)
    kept = (store.get_run(name) or {}).get("info", {}).get("from")
    held = kept and Point(kept["run"], int(kept["round"]), kept["step"])
    if point is not None and not point.step and held != point:
        _keeps_to(name, held, point)
    if held is not None:
        branching.share(flow, held)
    return flow


def _keeps_to(name: str, held: Point | None, asked: Point) -> None:
    """A run goes on from the point that it was begun from, and its user is told. FactoryError: from none."""
    if held is None:
        raise FactoryError(
            f"run {name!r} was begun at its start, not from round {asked.round} of run {asked.run!r}",
            todo="give the new run another name with --run, or go on with this one without --from",
        )
    console.note(
        f"run {name} keeps to where it was begun: round {held.round} of {held.run}, not {asked.round} of {asked.run}"
    )


def goes_on(flow: Run) -> bool:
    """Is there another round? What an earlier run shares ends nothing: at least one round is the run's own."""
    return (flow.shared is not None and flow.last <= flow.shared) or not flow.decision.stop


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gives back: its champion, why it stopped, and the champion's gain on the `final` split."""

    run: str
    champion_round: int
    champion: str
    decision: Decision
    final: PolicyReport | None
    report: Path

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "run": self.run,
            "champion_round": self.champion_round,
            "champion": self.champion,
            "stopped_by": self.decision.rule,
            "reason": self.decision.reason,
            "final": self.final.to_json() if self.final else None,
            "report": str(self.report),
        }


def do(flow: Run, number: int, stage: str) -> Detail:
    """Do a stage unless it is done. What it says of itself is kept with its mark; a fault's reason too."""
    if (held := flow.done(number, stage)) is not None:
        return held
    console.note(live.heading(flow.store, flow.name, number, stage))
    flow.store.mark(flow.name, number, stage, "started", {"pid": os.getpid()})
    began, worked = time.monotonic(), _processor_seconds()
    try:
        detail = in_child(flow, number, stage) if _isolated(flow, stage) else _here(flow, number, stage)
    except Exception as error:
        fault = shortage(error, f"round {number}, {stage}")
        with suppress(FactoryError, OSError):  # a full disk has no room for the mark either
            reason = fault.text() if isinstance(fault, FactoryError) else f"{type(fault).__name__}: {fault}"
            flow.store.mark(flow.name, number, stage, "failed", {"reason": reason})
        if fault is error:
            raise
        raise fault from error
    crash.point("round.before_mark")
    took = {"seconds": time.monotonic() - began, "processor_seconds": _processor_seconds() - worked}
    flow.store.mark(flow.name, number, stage, "done", detail | {name: round(t, 2) for name, t in took.items()})
    crash.point("round.after_mark")
    return detail


def _processor_seconds() -> float:
    """Of all processors, by this process and its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def close(flow: Run, number: int) -> None:
    """Decide, and write the round's row and, last of all, its report."""
    reports = flow.reports
    if len(reports) > number:
        return
    report = round_report(flow, number)
    evidence = evidence_of([*reports, report])
    decision = decide(evidence, flow.recipe.stop)
    report["champion"] = champion(evidence, flow.recipe.stop) == number
    report["decision"] = {
        "stop": decision.stop,
        "rule": decision.rule,
        "reason": decision.reason,
        "evidence": dict(decision.evidence),
    }
    flow.store.append("rounds", [_row(flow.name, number, report)])
    flow.store.seal(force=True)
    crash.point("round.before_report")
    write_whole(flow.folder(number) / "report.json", json.dumps(report, ensure_ascii=False, indent=2))
    crash.point("round.after_report")
    console.note(f"round {number} · {'stop' if decision.stop else 'go on'}: {decision.reason}")


def round_report(flow: Run, number: int) -> Detail:
    """What a round did and measured, from what its stages said."""
    said = flow.details(number)
    measured = said["evaluate"]
    main = {stage: said.get(flow.recipe.main(stage, number) or "", {}) for stage in ("label", "pair", "train")}
    return {
        "round": number,
        "policy": flow.relative(flow.policy(number)),
        "began_with": flow.origin(number) if number > (flow.shared or 0) else None,
        "champion": False,
        "report": measured["report"],
        "gain_champion": measured.get("gain_champion"),
        "training": main["train"].get("training"),
        "trained_on": main["train"].get("trained_on"),
        "pairs": _found(main["pair"].get("pairs")),
        "labels": _outcome_of(main["label"].get("labels")),
        "agreement": main["label"].get("agreement"),
        "decision": None,
        **spent(flow, number),
        "seconds": round(sum(detail["seconds"] for detail in said.values()), 2),
        "stages": {stage: detail["seconds"] for stage, detail in said.items()},
    }


def spent(flow: Run, number: int) -> dict[str, Any]:
    """What a round was billed: tokens written and read, and dollars (None: the price of some answer is unknown).

    Answers that another run paid for are not billed again; calls that failed without a price cost nothing.
    """
    columns = ["completion_tokens", "prompt_tokens", "cost", "failure"]
    rows = flow.store.read("calls", columns=columns, where={"run": flow.name, "round": number})
    costs = [row["cost"] for row in rows if row["cost"] is not None or row["failure"] is None]
    return {
        "tokens": sum(row["completion_tokens"] for row in rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "cost": None if None in costs else sum(costs),
    }


def _outcome_of(labels: Detail | None) -> Detail | None:
    """What the panel said, without what this attempt had to do for it: a killed round reports the same."""
    if labels is None:
        return None
    effort = {"judgments", "calls", "reused", "tokens", "cost", "seconds"}
    judges = [{name: value for name, value in judge.items() if name not in effort} for judge in labels["judges"]]
    return labels | {"judges": judges}


def _found(pairs: Detail | None) -> Detail | None:
    """What pairing found, without how much of it this attempt had to write: a killed round reports the same."""
    return pairs and {name: value for name, value in pairs.items() if name not in {"written", "labels_written"}}


def tell(flow: Run) -> Outcome:
    """Write the page that tells the run, and hand back what came out."""
    from factory import report

    _point_at_champion(flow)
    page = report.write(flow.store, flow.name)
    said = flow.done(flow.last, "final") or {}
    return Outcome(
        run=flow.name,
        champion_round=flow.champion,
        champion=flow.policy(flow.champion),
        decision=flow.decision,
        final=PolicyReport.from_json(said["report"]) if said.get("report") else None,
        report=page,
    )


def _point_at_champion(flow: Run) -> None:
    """STORE/runs/RUN/champion leads to the policy that the run gives back, whatever came after it."""
    policy, link = Path(flow.policy(flow.champion)), flow.home / "champion"
    draft = flow.home / f".champion.{os.getpid()}"
    draft.unlink(missing_ok=True)
    if policy.is_relative_to(flow.home):
        draft.symlink_to(policy.relative_to(flow.home), target_is_directory=True)
        draft.replace(link)
    else:
        link.unlink(missing_ok=True)  # the start is the best


def progress_of(store: Store, name: str) -> dict[str, Any]:
    """Where a run is: its state, its stages with their states, tries and seconds, the last decision, and what its
    numbers depend on."""
    latest: dict[tuple[int, str], dict[str, Any]] = {}
    tries: Counter[tuple[int, str]] = Counter()
    faults: dict[tuple[int, str], str] = {}
    for mark in store.marks(name):
        place = mark["round"], mark["stage"]
        latest[place] = mark
        tries[place] += mark["state"] == "started"
        if mark["state"] == "failed":
            faults[place] = (mark["detail"] or {}).get("reason", "")
    rows = [
        {
            "round": number,
            "stage": stage,
            "state": mark["state"],
            "seconds": (mark["detail"] or {}).get("seconds"),
            "tries": tries[number, stage],
            "note": (mark["detail"] or {}).get("skipped") or _shared(mark) or faults.get((number, stage)),
        }
        for (number, stage), mark in latest.items()
    ]
    closed = store.read("rounds", columns=["round", "decision", "rule", "reason"], where={"run": name})
    last = max(closed, key=lambda row: int(row["round"]), default=None)
    state = _state(rows, held=store.is_locked(name))
    return {"run": name, "state": state, "stages": rows, "decision": last, "provenance": provenance(store, name)}


def _shared(mark: dict[str, Any]) -> str | None:
    origin = (mark["detail"] or {}).get("shared")
    return f"shared with {origin}" if origin else None


def provenance(store: Store, name: str) -> dict[str, Any]:
    """What a run's numbers depend on: the whole recipe, versions, models with their hashes, seed, hashes of the prompts
    by split, of each training's data and policy; and the run that it shares rounds with."""
    held = store.get_run(name) or {"recipe": "", "info": {}}
    done = [mark for mark in store.marks(name) if mark["state"] == "done"]
    said = [(mark, mark["detail"] or {}) for mark in done]
    return {
        "recipe": yaml.safe_load(held["recipe"] or "{}"),
        **{key: held["info"].get(key) for key in ("versions", "models", "plugins", "seed", "threads", "began", "from")},
        "data": next((detail["data"] for _, detail in said if "data" in detail), None),
        "trainings": [
            {"round": mark["round"], "stage": mark["stage"], **detail["identity"]}
            for mark, detail in said
            if detail.get("identity")
        ],
    }


def unfinished(store: Store, recipe: Recipe) -> str | None:
    """The newest run of this recipe that was named by a day and is not done: it was cut off, maybe before midnight."""
    work, dated = work_of(dump(recipe)), re.compile(re.escape(recipe.name) + r"-\d{4}-\d\d-\d\d")
    named = [run for run in store.runs() if dated.fullmatch(str(run["run"]))]
    found = [str(run["run"]) for run in named if work_of(run["recipe"]) == work]
    return next((name for name in sorted(found, reverse=True) if progress_of(store, name)["state"] != "done"), None)


def _state(rows: list[dict[str, Any]], *, held: bool) -> str:
    if any(row["stage"] == "final" and row["state"] == "done" for row in rows):
        return "done"
    if held:
        return "at work"
    if rows and rows[-1]["state"] == "failed":
        return "failed: the same command tries again"
    return "cut off: the same command goes on"


def _here(flow: Run, number: int, stage: str) -> Detail:
    try:
        return perform(flow, number, stage)
    finally:
        give_back()


def _isolated(flow: Run, stage: str) -> bool:
    if stage_of(flow, stage) not in WITH_MODEL or flow.recipe.isolate == "never":
        return False
    return flow.recipe.isolate == "always" or _has_gpu()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _row(name: str, number: int, report: Detail) -> Round:
    measured = PolicyReport.from_json(report["report"])
    return Round(
        key=digest(name, number),
        run=name,
        round=number,
        policy=report["policy"],
        champion=report["champion"],
        pass_rate=measured.pass_rate and measured.pass_rate.value,
        pass_low=measured.pass_rate and measured.pass_rate.low,
        pass_high=measured.pass_rate and measured.pass_rate.high,
        win_rate=measured.win_rate and measured.win_rate.value,
        kl=measured.kl_sequence and measured.kl_sequence.value,
        relevance=measured.relevance and measured.relevance.value,
        mean_tokens=measured.tokens and measured.tokens.value,
        preferences=(report["pairs"] or {}).get("preferences", 0),
        decision="stop" if report["decision"]["stop"] else "go on",
        rule=report["decision"]["rule"],
        reason=report["decision"]["reason"],
        report=report,
        at=now(),
    )
