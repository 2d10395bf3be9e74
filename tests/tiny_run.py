"""A whole run in seconds: the tiny model, sixteen prompts, two rounds; in a process of its own that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

from factory import crash

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "transformers", "peft", "pyarrow.dataset", "factory.rounds", "factory.training", "factory.evaluation"]
)
NOT_COMPARED = {"at", "latency", "attempt", "seconds"}
STAGE_TIMES = {"seconds", "stages", "tokens_per_second", "began", "pid"}


def write_prompts(path: Path, count: int = 32) -> Path:
    """A JSONL of instructions with constraints, two a topic."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            line = {
                "prompt": f"Tell me about thing number {i}. Do not use commas.",
                "topic": f"thing {i}",
                "task": "tell",
                "constraints": [{"kind": "no_commas"}],
            }
            file.write(json.dumps(line) + "\n")
    return path


def recipe_text(model: Path, source: Path, **overrides: Any) -> str:
    """A recipe of two rounds: the tiny model samples, a scripted judge leads beside the verifier, DPO with LoRA."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "seed": 1,
        "model": str(model),
        "engine": {"kind": "transformers", "options": {"dtype": "float32", "threads": 1, "batch_size": 8}},
        "prompts": {"source": str(source), "per_round": 6},
        "generate": {"n": 3, "max_tokens": 8},
        "panel": [{"judge": "pairwise", "engine": {"kind": "scripted"}}, {"judge": "verifier"}],
        "pair": {"strategy": "all", "lead": "pairwise"},
        "train": {
            "config": {
                "method": "dpo",
                "epochs": 1,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "lora": {"r": 4},
                "dtype": "float32",
                "threads": 1,
                "save_every": 1,
            }
        },
        "evaluate": {"max_tokens": 8, "limit": 4},
        "stop": {"max_rounds": 2, "any": [{"rule": "label_starvation", "minimum": 2}]},
        "isolate": "never",
    }
    return json.dumps(recipe | overrides)


def _run(store: str, text: str, crash_at: str, log: str) -> None:
    os.environ[crash.VARIABLE] = crash_at
    with Path(log).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    from factory import recipe as recipes, store as stores
    from factory.rounds import run
    from factory.store import Store

    stores.secrets.token_bytes = lambda count: bytes(count or 0)  # equal fences in every store, so that stores compare
    with Store.open(store, create=True) as opened:
        run(opened, recipes.parse(text, where="tiny"), "tiny")


def start(store: Path, text: str, crash_at: str = "") -> Any:
    """The run as a process that was just started."""
    process = CONTEXT.Process(target=_run, args=(str(store), text, crash_at, str(store.parent / f"{store.name}.log")))
    process.start()
    return process


def finish(store: Path, text: str, crash_at: str = "") -> int:
    """The exit code of the run; -9 when it was killed."""
    process = start(store, text, crash_at)
    process.join(300)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the run hangs; its log: {log_of(store)}")
    return int(process.exitcode)


def log_of(store: Path) -> str:
    """What the run printed."""
    path = store.parent / f"{store.name}.log"
    return path.read_text(encoding="utf-8")[-4000:] if path.exists() else "(none)"


def run_with_random_kills(store: Path, text: str, seed: int, longest: float, kills: int = 1) -> int:
    """Kill the run `kills` times after random times up to `longest` seconds, then let it end; how many kills struck."""
    draw, struck = random.Random(seed), 0
    for _ in range(kills):
        process = start(store, text)
        process.join(draw.uniform(0, longest))
        if process.exitcode is None:
            process.kill()
            struck += 1
        process.join()
    code = finish(store, text)
    assert code == 0, log_of(store)
    return struck


def timed(store: Path, text: str) -> float:
    """Seconds of an uninterrupted run."""
    began = time.monotonic()
    assert finish(store, text) == 0, log_of(store)
    return time.monotonic() - began


def tables_of(store: Path) -> dict[str, list[dict[str, Any]]]:
    """Every table without times and attempts, and without the store's own path: what must be equal after a kill."""
    from factory.schema import TABLES
    from factory.store import Store

    with Store.open(store) as opened:
        return {table: [_timeless(row, store) for row in opened.read(table)] for table in TABLES}


def attempts_of(store: Path) -> list[tuple[str, int]]:
    """Key and attempt of every call: nothing may be paid twice."""
    from factory.store import Store

    with Store.open(store) as opened:
        return [(row["key"], row["attempt"]) for row in opened.read("calls", columns=["key", "attempt"])]


def _timeless(row: dict[str, Any], store: Path) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name not in NOT_COMPARED}
    text = json.dumps(_without_times(kept), sort_keys=True, default=str).replace(str(store.resolve()), "STORE")
    return dict(json.loads(text))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in STAGE_TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


# -------------------------------------------------------------------------------------------------- bundled recipes

RULES = """
- {match: Write it anew, reply: [A better answer without any., "Another answer, and better."]}
- {match: "Score: <", reply: ["It says something.\\nScore: 1", "It is good.\\nScore: 4", "It will do.\\nScore: 3"]}
- {match: judgments, asks: true, answer_logprobs: {A: -0.2, B: -2.0}}
"""


def scripted(part: dict[str, Any], rules: Path) -> dict[str, Any]:
    """A judge that asks a model asks a scripted one; programs stay as they are."""
    from factory.judges import judges

    if part["judge"] == "verifier":  # a random model's words have no substance
        part = part | {"options": {"least": 0}}
    asks = judges.facts(part["judge"])["asks"]
    return part | {"engine": {"kind": "scripted", "model": str(rules)}} if asks else part


def shrunk(name: str, model: Path, prompts: Path, rules: Path, **more: Any) -> str:
    """A bundled recipe at the size of a test, as YAML (JSON is YAML): what it does stays."""
    from factory import recipe as recipes

    data = recipes.load(name).model_dump(mode="json")
    data |= {"model": str(model), "name": "tiny", "isolate": "never", "seed": 1}
    data["engine"] = {"kind": "transformers", "options": {"dtype": "float32", "threads": 1, "batch_size": 8}}
    data["prompts"] |= {"source": str(prompts), "per_round": 6}
    data["generate"] |= {"n": 3, "max_tokens": 8}
    data["revise"] |= {"max_tokens": 8}
    data["evaluate"] |= {"n": 1, "max_tokens": 8, "limit": 4, "score_limit": 2}
    data["stop"] = {"max_rounds": 1, "any": []}
    data["panel"] = [scripted(part, rules) for part in data["panel"]]
    if data["train"]["reward"]:
        data["train"]["reward"] = [scripted(part, rules) for part in data["train"]["reward"]]
    small = {"batch_size": 4, "dtype": "float32", "threads": 1, "save_every": 1, "epochs": 1}
    for config in [data["train"]["config"], *(s["set"].get("train.config", {}) for s in data["stages"])]:
        config |= small
        config["lora"] = {"r": 4}
        if config.get("online"):
            config["online"] |= {"steps": 2, "prompts": 4, "n": 3, "max_tokens": 6}
    for step in data["stages"]:
        if step["stage"] == "revise":  # a random model's critiques are none
            step["set"]["engine"] = {"kind": "scripted", "model": str(rules)}
        if "panel" in step["set"]:
            step["set"]["panel"] = [scripted(part, rules) for part in step["set"]["panel"]]
    return json.dumps(data | more)


def short_prompts(path: Path, count: int = 32) -> Path:
    """A JSONL of instructions that some of a random model's eight tokens meet."""
    limit = [{"kind": "max_words", "count": 2}]
    lines = [{"prompt": f"Tell me about thing {i}.", "topic": f"t{i}", "constraints": limit} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path
