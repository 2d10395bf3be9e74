"""Rows and policies of the tiny model for the trainer's tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.config import LoraSpec
from train.data import CompletionRow, LabelRow, PairRow, SampleRow, with_others
from train.policy import Policy, load_policy

SMALL = LoraSpec(r=4)


def ids(draw: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw.randrange(3, 390) for _ in range(draw.randint(least, most)))


def pair_rows(count: int, seed: int = 0) -> list[PairRow]:
    """Random pairs with made-up reference log-probs near those of the tiny model."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        good, bad = ids(draw, 1, 12), ids(draw, 1, 12)
        refs = (-6 * len(good) + draw.uniform(-2, 2), -6 * len(bad) + draw.uniform(-2, 2))
        heads = (-6 * min(len(good), len(bad)) + draw.uniform(-2, 2) for _ in range(2))
        prompt, weight = ids(draw, 2, 20), draw.choice([0.5, 1.0, 2.0])
        rows.append(PairRow(prompt, good, bad, *refs, weight, *heads, margin=draw.random()))
    return rows


def completion_rows(count: int, seed: int = 0) -> list[CompletionRow]:
    """Random answers to be learnt."""
    return [CompletionRow(row.prompt, row.chosen, row.weight) for row in pair_rows(count, seed)]


def label_rows(count: int, seed: int = 0) -> list[LabelRow]:
    """Random labelled answers, both kinds, each with another prompt's answer."""
    draw = random.Random(seed)
    rows = [LabelRow(ids(draw, 2, 20), ids(draw, 1, 12), i % 3 != 0) for i in range(count)]
    return [
        row._replace(ref=-6.0 * len(row.completion), ref_other=-6.0 * len(row.other) - 1)
        for row in with_others(rows, seed)
    ]


def sample_rows(count: int, seed: int = 0) -> list[SampleRow]:
    """Random answers as if sampled, up to three to a prompt, with what a critic said of their tokens: some log-ratios
    are clipped, some are not."""
    draw = random.Random(seed)

    def near(middle: float, apart: float, tokens: int) -> tuple[float, ...]:
        return tuple(middle + draw.uniform(-apart, apart) for _ in range(tokens))

    rows: list[SampleRow] = []
    prompt: tuple[int, ...] = ()
    for i in range(count):
        prompt = prompt if i % 3 else ids(draw, 2, 20)
        answer = ids(draw, 1, 12)
        size, reward = len(answer), draw.uniform(-1, 1)
        rows.append(
            SampleRow(
                prompt, answer, reward, (reward,) * size, near(-6, 0.3, size), near(-6, 0.3, size), near(0, 0.1, size),
                near(0.2, 0.5, size), draw.choice([0.5, 1.0, 2.0]),
            )
        )  # fmt: skip
    return rows


@pytest.fixture
def policy(tiny_model: Path) -> Callable[..., Policy]:
    """Load the tiny model to be trained: a LoRA adapter by default, all of it with lora=None."""

    def load(lora: LoraSpec | None = SMALL, dtype: Any = "float32", seed: int = 0, **more: Any) -> Policy:
        return load_policy(str(tiny_model), lora=lora, dtype=dtype, seed=seed, trainable=True, device="cpu", **more)

    return load
