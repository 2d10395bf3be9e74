"""A small real training by each of seven methods, and what it does to answers on held-out prompts.

    python benchmarks/methods.py [--folder methods] [--only dpo kto ...] [--small]

Everything is done by plain `factory` commands, which are printed as they are given: one store with answers of the
embedded 135M model to the bundled prompts, verdicts of the verifier, counts of words, and four pairings; then a LoRA
training by each method and its measure. Of policies that is the pass rate on held-out prompts against the start's, of
a reward model the share of held-out pairs in which it finds the answer that its teacher prefers. The table comes last,
in Markdown, with 95% intervals over prompts. Minutes are processor minutes of the training's command.

What is done is kept in the folder: the same command again goes on, and prints the same table at the end. `--small` is a
smoke test of a few steps; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FACTORY = Path(sys.executable).with_name("factory")
SAMPLING = ("--temperature", "0.8", "--top-p", "0.95")


class Size(NamedTuple):
    """How much of everything. `fewer`: settings that make every training short."""

    prompts: int = 312
    heldout: int = 96
    answers: int = 8
    max_tokens: int = 80
    scored: int = 24
    fewer: tuple[str, ...] = ()
    fewer_online: tuple[str, ...] = ()


FULL = Size()
SMALL = Size(
    prompts=16, heldout=4, answers=2, max_tokens=24, scored=2, fewer=("--set", "epochs=1", "--set", "lora={r: 2}"),
    fewer_online=("--online", "steps=1", "--online", "prompts=2", "--online", "n=2", "--online", "max_tokens=16"),
)  # fmt: skip

CLEAR = ("--run", "data", "--strategy", "clear")
TWICE = ("--set", "epochs=2", "--set", "batch_size=8", "--set", "learning_rate=1e-3")
METHODS: dict[str, tuple[str, ...]] = {
    "dpo": (*CLEAR, *TWICE, "-p", "beta=0.1", "--add", "sft=0.2"),
    "kto": (*CLEAR, *TWICE),
    "orpo": ("--run", "data", "--strategy", "best_worst", *TWICE, "-p", "beta=0.5"),
    "simpo": (
        "--run", "data", "--strategy", "best_worst", *TWICE, "-p", "beta=2.5", "-p", "gamma=0.5", "--add", "sft=1",
    ),
    "grpo": (
        "--reward", "verifier", "--set", "learning_rate=1e-3", "--online", "steps=24", "--online", "prompts=4",
        "--online", "n=8", "--online", "max_tokens=80",
    ),
    "raft": ("--run", "data", "--strategy", "best_worst", *TWICE, "--set", "epochs=3", "--set", "best={ties: all}"),
    "reward_model": ("--set", "epochs=1", "--set", "batch_size=16", "--set", "learning_rate=5e-4"),
}  # fmt: skip
TEACHERS = {"verifier": "all", "words": "longer"}
"""Whom reward models learn from, and the pairing of what each prefers."""


class Done(NamedTuple):
    """What a command gave, and its processor seconds."""

    result: Any
    seconds: float


class Runner:
    """Gives commands in the folder, shows them, and keeps what each gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "given").mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, *arguments: str) -> Done:
        """The result of `factory ARGUMENTS --json`; from the file where it is kept when it was given before."""
        print(f"factory {shlex.join(arguments)}", file=sys.stderr, flush=True)
        kept = self.folder / "given" / f"{name}.json"
        if kept.exists():
            held = json.loads(kept.read_text(encoding="utf-8"))
            if held["arguments"] != list(arguments):
                raise SystemExit(f"{kept} is of another command: name another --folder, or delete it")
            return Done(held["result"], held["seconds"])
        done = self._give(arguments)
        said = {"arguments": arguments, "result": done.result, "seconds": done.seconds}
        kept.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        return done

    def _give(self, arguments: Sequence[str]) -> Done:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(
            [str(FACTORY), *arguments, "--json"], cwd=self.folder, stdout=subprocess.PIPE, check=False, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if ran.returncode not in (0, 1) or not ran.stdout:
            raise SystemExit(f"factory {shlex.join(arguments)} ended with {ran.returncode}")
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Done(json.loads(ran.stdout), seconds)


def make_data(factory: Runner, size: Size) -> None:
    """Prompts, answers, verdicts, pairs and labels; and answers to the held-out prompts with their verdicts."""
    tokens = ("--max-tokens", str(size.max_tokens))
    factory("prompts", "prompts", "add", "verifiable")
    factory("generate", "generate", "--run", "data", "--n", "4", *SAMPLING, *tokens, "--limit", str(size.prompts))
    factory("label", "label", "--run", "data", "--judge", "verifier", "--judge", "words")
    by_rules = ("pair", "--run", "data", "--lead", "verifier")
    factory("pair", *by_rules)
    factory("pair-clear", *by_rules, "--min-margin", "1", "--label-by", "pairs", "--name", "clear")
    factory("pair-all", *by_rules, "--strategy", "all", "--label-by", "none")
    factory("pair-longer", "pair", "--run", "data", "--lead", "words", "--label-by", "none", "--name", "longer")
    held = ("--run", "held", "--split", "heldout")
    many = ("--n", "4", "--limit", str(size.heldout))
    factory("generate-held", "generate", *held, *many, *SAMPLING, *tokens)
    factory("label-held", "label", *held, "--judge", "verifier", "--judge", "words")


def evaluate(factory: Runner, size: Size, name: str, *model: str) -> dict[str, Any]:
    """A policy's report on the held-out prompts; the start's own without a model."""
    report: dict[str, Any] = factory(
        f"evaluate-{name}", "evaluate", *model, "--run", f"evaluate-{name}", "--n", str(size.answers), *SAMPLING,
        "--max-tokens", str(size.max_tokens), "--limit", str(size.heldout), "--score-limit", str(size.scored),
    ).result  # fmt: skip
    return report


def train(factory: Runner, size: Size, name: str) -> Done:
    """A policy in policies/NAME."""
    fewer = size.fewer_online if "--online" in METHODS[name] else size.fewer
    return factory(f"train-{name}", "train", "--method", name, *METHODS[name], *fewer, "--out", f"policies/{name}")


def teach(factory: Runner, size: Size, teacher: str) -> Done:
    """A reward model of what the teacher prefers, in policies/of-TEACHER."""
    data = ("--run", "data", "--strategy", TEACHERS[teacher])
    return factory(
        f"train-of-{teacher}", "train", "--method", "reward_model", *data, *METHODS["reward_model"], *size.fewer,
        "--out", f"policies/of-{teacher}",
    )  # fmt: skip


def found_better(factory: Runner, teacher: str) -> list[float]:
    """The share of held-out pairs in which the reward model finds the answer that its teacher finds: an estimate."""
    held, name = ("--run", "held", "--split", "heldout"), f"of_{teacher}"
    model = ("-J", f"{name}.model=policies/of-{teacher}/policy")
    factory(f"label-of-{teacher}", "label", *held, "--judge", f"{name}=reward_model", *model)
    told = factory(f"agreement-of-{teacher}", "agreement", *held, "--gold", teacher).result
    (against,) = [row for row in told["gold"]["judges"] if row["judge"] == name]
    accuracy: list[float] = against["accuracy"]
    return accuracy


# ------------------------------------------------------------------------------------------------------- the table


def row_of_policy(factory: Runner, size: Size, name: str, start: dict[str, Any]) -> list[str]:
    """A line of the table: one policy."""
    trained = train(factory, size, name)
    report = evaluate(factory, size, name, "--model", f"policies/{name}/policy")
    return [
        name, str(trained.result["steps"]), "pass rate", points(start["pass_rate"]), points(report["pass_rate"]),
        points(report["gain"], sign="+"), figures(report["kl_sequence"]), figures(report["tokens"]),
        figures(report["relevance"]), f"{report['distinct_2']:.2f}", f"{trained.seconds / 60:.1f}",
    ]  # fmt: skip


def row_of_scorer(factory: Runner, size: Size, teacher: str) -> list[str]:
    """A line of the table: a reward model, whose measure begins at a coin's."""
    trained = teach(factory, size, teacher)
    accuracy = found_better(factory, teacher)
    gain = points([end - 0.5 for end in accuracy], sign="+")
    moved = ["", "", "", ""]
    minutes = f"{trained.seconds / 60:.1f}"
    name = f"reward_model of {teacher}"
    return [name, str(trained.result["steps"]), "pairs right", "50", points(accuracy), gain, *moved, minutes]


def points(estimate: Sequence[float] | None, sign: str = "") -> str:
    """An estimate (value, low, high) between 0 and 1, in points."""
    return "unknown" if estimate is None else _with_interval([100 * end for end in estimate], sign)


def figures(estimate: Sequence[float] | None) -> str:
    """An estimate (value, low, high) as it is."""
    return "unknown" if estimate is None else _with_interval(estimate)


def _with_interval(estimate: Sequence[float], sign: str = "") -> str:
    value, low, high = (f"{end:{sign}.1f}" for end in estimate)
    return f"{value} ({low} to {high})"


HEAD = ["method", "steps", "measure", "before, %", "after, %", "gain, points", "KL, nats an answer", "tokens",
        "relevance", "distinct-2", "minutes"]  # fmt: skip


def main() -> None:
    """Do what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("methods"))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--small", action="store_true")
    told = parser.parse_args()
    os.environ.pop("FACTORY_STORE", None)
    factory, size = Runner(told.folder.resolve()), SMALL if told.small else FULL
    make_data(factory, size)
    policies = [name for name in told.only if name != "reward_model"]
    start = evaluate(factory, size, "start") if policies else {}
    rows = [row_of_policy(factory, size, name, start) for name in policies]
    teachers = TEACHERS if "reward_model" in told.only else ()
    rows += [row_of_scorer(factory, size, teacher) for teacher in teachers]
    for cells in (HEAD, ["---"] * len(HEAD), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
