"""Engines are built from a specification; a wrong word is answered with the nearest right one."""

from __future__ import annotations

import pytest

from factory.engines import BurstEngine, EngineSpec, build
from factory.faults import FactoryError


def test_an_engine_is_built_with_its_options() -> None:
    engine = build(EngineSpec("openai", "gpt", {"base_url": "http://localhost:1/v1/", "concurrency": 3}))
    assert engine.identity[:2] == ("openai", "gpt")
    assert isinstance(engine, BurstEngine)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (EngineSpec("scriptd", "m"), "did you mean 'scripted'"),
        (EngineSpec("openai", "m", {"base_ulr": "x"}), "did you mean 'base_url'"),
        (EngineSpec("transformers", "m", {"dtyp": "x"}), "did you mean 'dtype'"),
        (EngineSpec("openai", ""), "needs a model"),
    ],
)
def test_a_wrong_specification_is_answered_with_the_right_word(spec: EngineSpec, said: str) -> None:
    with pytest.raises(FactoryError, match=said):
        build(spec)
