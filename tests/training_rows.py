"""Rows of the tests of trainings, and a small training of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory.schema import Candidate, Label, Message, Preference, Prompt, digest, now
from factory.store import Store
from factory.training import train_policy
from train.config import LoraSpec, TrainConfig

CONFIG = TrainConfig(learning_rate=1e-2, batch_size=4, threads=1, dtype="float32", lora=LoraSpec(r=4), save_every=2)
WORDS = ("sea", "river", "bread", "music", "glass", "story", "answer", "letter", "mountain", "sentence")


def said(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def asked(i: int) -> list[Message]:
    return [{"role": "user", "content": f"Tell me something about {WORDS[i % 10]} number {i}."}]


def preference(i: int, chosen: str = "", rejected: str = "Never.", round: int = 1) -> Preference:
    return Preference(
        key=digest("preference", i, round), run="r", round=round, prompt=asked(i),
        chosen=said(chosen or f"The {WORDS[i % 10]} is old."), rejected=said(rejected), prompt_key=str(i),
        chosen_key=f"c{i}", rejected_key=f"d{i}", margin=1.0, at=now(),
    )  # fmt: skip


def label(i: int) -> Label:
    return Label(
        key=digest("label", i), run="r", round=1, prompt=asked(i), completion=said(f"{WORDS[i % 10]}, {i}."),
        label=i % 2 == 0, prompt_key=str(i), candidate_key=f"c{i}", weight=1.0 + i % 2, at=now(),
    )  # fmt: skip


def candidate(key: str, finish_reason: str) -> Candidate:
    return Candidate(
        key=key, run="r", round=1, prompt_key="0", split="train", model="tiny", finish_reason=finish_reason, at=now()
    )


def prompt(i: int, split: str) -> Prompt:
    return Prompt(key=str(i), messages=asked(i), split=split, group=str(i), at=now())


def train(store: Store, start: Path | str, out: str, config: TrainConfig = CONFIG, **more: Any) -> Any:
    settings: dict[str, Any] = {"run": "r", "rounds": [1], "out": store.folder / out, "config": config}
    return train_policy(store, start=str(start), **(settings | more))
