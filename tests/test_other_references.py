"""A reference that is another model: taken where it reads the same tokens, refused where it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import build_tiny_model
from training_rows import CONFIG, preference, prompt

from factory.faults import FactoryError
from factory.store import Store
from factory.training import train_policy
from train.config import OnlineSpec, TrainConfig


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("preferences", [preference(i) for i in range(4)])
        opened.append("prompts", [prompt(i, "train") for i in range(4)])
        yield opened


def with_letters_swapped(model: Path, folder: Path) -> Path:
    """The model with another tokenizer: what was an e is an a."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    words = told["model"]["vocab"]
    words["e"], words["a"] = words["a"], words["e"]
    path.write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.mark.parametrize("online", [False, True])
def test_a_reference_that_reads_other_tokens_is_refused(
    online: bool, store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    other = with_letters_swapped(tiny_model, tmp_path / "other")
    config: TrainConfig = CONFIG
    if online:
        config = CONFIG.model_copy(update={"online": OnlineSpec(steps=1, prompts=2, n=2, max_tokens=2)})
    with pytest.raises(FactoryError, match="reads other tokens") as caught:
        train_policy(
            store, run="r", rounds=[1], start=str(tiny_model), reference=str(other), out=tmp_path / "out", config=config
        )
    assert str(other) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_model_with_the_same_tokens_is_a_reference(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    found = train_policy(
        store, run="r", rounds=[1], start=str(tiny_model), reference=str(other), out=tmp_path / "out", config=CONFIG
    )
    assert abs(found.first["logratios/chosen"]) > 0.1
