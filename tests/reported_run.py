"""A made-up run as a report has it, and its parts."""

from __future__ import annotations

from datetime import datetime
from html.parser import HTMLParser
from typing import Any

from factory.report import (
    Lengths,
    PairToRead,
    RoundView,
    RunReport,
    Vote,
)
from factory.schema import (
    Candidate,
    Decision,
    Estimate,
    PolicyReport,
    Preference,
    Prompt,
    Round,
    digest,
)
from factory.stats import intervals
from factory.store import Store

RECIPE = "name: quickstart\npanel:\n  - judge: verifier\n  - judge: pairwise\npair: {lead: verifier}\n"


AT = datetime(2026, 1, 2, 3, 4, 5)


HOSTILE = (
    "<script>alert('x')</script>",
    '"><img src=x onerror="alert(1)">',
    "</div></details><style>*{display:none}</style>",
    "{{ 7 * 7 }} {% raw %}",
    "مرحبا بالعالم \u202e txet",
    "\x00\x1b[31m\x07 bell",
    "\ud800 lone",
)


def measured(passes: int, **values: Any) -> PolicyReport:
    base: dict[str, Any] = {
        "pass_rate": intervals.wilson(passes, 100),
        "tokens": Estimate(50.0, 47.0, 53.0),
        "relevance": Estimate(0.9, 0.8, 1.0),
        "distinct_2": 0.8,
        "kl_sequence": Estimate(3.0, 2.0, 4.0),
        "by_constraint": {"title": intervals.wilson(passes // 2, 50), "max_words": intervals.wilson(passes // 2, 50)},
    }
    return PolicyReport("policy", "heldout", 100, 100, 0, **(base | values))


def metrics(chosen: float, rejected: float, steps: int = 8) -> list[dict[str, Any]]:
    """Log-probs that change by so much in all, evenly."""
    return [
        {
            "step": i,
            "loss": 0.6,
            "rewards/margins": 0.1 * i,
            "rewards/accuracies": 0.5 + 0.05 * i,
            "logps/chosen": -50 + chosen * i / (steps - 1),
            "logps/rejected": -52 + rejected * i / (steps - 1),
        }
        for i in range(steps)
    ]


def preference(
    i: int, *, chosen: str = "good", rejected: str = "bad", asked: str = "Say it.", **values: Any
) -> Preference:
    row: dict[str, Any] = {
        "key": digest("pair", i),
        "run": "r",
        "round": 1,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "prompt_key": digest(i),
        "chosen_key": digest(i, "c"),
        "rejected_key": digest(i, "r"),
        "margin": 0.5,
        "agreement": 0.5,
        "judges": 2,
        "at": AT,
    }
    return Preference(**(row | values))


AGREEMENT: dict[str, Any] = {
    "judges": [
        {
            "judge": "pairwise",
            "kind": "pairwise",
            "judgments": 200,
            "failure_rate": [0.01, 0.0, 0.02],
            "verdicts": 100,
            "tie_rate": [0.1, 0.05, 0.15],
            "flip_rate": [0.71, 0.6, 0.8],
            "first_position": [0.86, 0.8, 0.9],
            "longer_wins": [None, None, None],
            "fooled_rate": [0.4, 0.2, 0.6],
        }
    ],
    "pairs": [
        {
            "judge": "pairwise",
            "other": "verifier",
            "pairs": 100,
            "percent": [0.41, 0.32, 0.51],
            "cohen_kappa": [0.03, -0.1, 0.2],
            "krippendorff_alpha": [None, None, None],
        }
    ],
}


def run_report(**changes: Any) -> RunReport:
    """Two rounds: 14%, then 39% on 100 held-out prompts."""
    start = measured(14, kl_sequence=Estimate(0.0, 0.0, 0.0))
    best = measured(39, gain=intervals.paired_rates(10, 29, 4, 57), win_rate=intervals.wins_and_losses(40, 50, 10))
    rounds = [
        RoundView(round=0, report=start, seconds=60.0, decision=Decision(False, "", "no round to compare yet")),
        RoundView(
            round=1,
            report=best,
            seconds=240.0,
            preferences=51,
            agreement=AGREEMENT,
            metrics=metrics(2.0, -9.0),
            stages={"generate": 100.0, "train": 90.0},
            decision=Decision(True, "max_rounds", "1 of at most 1 round done"),
        ),
    ]
    base: dict[str, Any] = {
        "run": "r",
        "state": "done",
        "recipe": RECIPE,
        "rounds": rounds,
        "champion": 1,
        "final": measured(35, gain=Estimate(0.21, 0.11, 0.3)),
        "final_start": measured(14),
        "pairs": [PairToRead("drawn", preference(i), (Vote("verifier", "chosen", 0.9),)) for i in range(3)],
        "panel": AGREEMENT,
        "lengths": Lengths({0: [5, 9, 12], 1: [9, 12, 30]}, [30, 20], [10, 12]),
        "provenance": {"begun": AT, "versions": {"torch": "2.13.0"}, "prompts": {"heldout": 100}, "answers": 200},
    }
    return RunReport(**(base | changes))


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def heldout(i: int) -> Prompt:
    messages: Any = [{"role": "user", "content": f"topic {i}"}]
    return Prompt(key=digest(i), messages=messages, split="heldout", group=str(i), at=AT)


def answer(i: int) -> Candidate:
    failure = "timeout" if i == 0 else None
    values = {"prompt_key": digest(i), "split": "heldout", "model": "m", "model_hash": "ab" * 16, "tokens": 5}
    return Candidate(key=digest("answer", i), run="r", round=1, failure=failure, at=AT, **values)  # type: ignore[arg-type]


def close_round(store: Store, number: int, passes: int) -> None:
    measures = measured(passes, gain=Estimate(0.25, 0.15, 0.35) if number else None)
    decision: dict[str, Any] = {
        "stop": number == 1,
        "rule": "max_rounds" if number else "",
        "reason": f"{number} of 1",
        "evidence": {},
    }
    kept = {
        "round": number,
        "policy": f"policy {number}",
        "champion": True,
        "report": measures.to_json(),
        "pairs": {"preferences": 30} if number else None,
        "agreement": AGREEMENT if number else None,
        "training": {"warnings": ["both fall"]} if number else None,
        "decision": decision,
        "seconds": 60.0,
        "stages": {"evaluate": 60.0},
    }
    row = Round(
        key=digest("r", number),
        run="r",
        round=number,
        policy=f"policy {number}",
        champion=True,
        report=kept,
        decision="stop" if number else "go on",
        at=AT,
    )
    store.append("rounds", [row])
    for stage in ("evaluate", "train", "pair"):
        store.mark("r", number, stage, "done", {"seconds": 20.0})
