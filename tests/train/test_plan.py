"""A plan made from shapes alone says what a real training then takes."""

from __future__ import annotations

import ctypes
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest

from factory.faults import FactoryError
from tests.train.conftest import completion_rows, label_rows, pair_rows
from train import losses
from train.batches import FixedRows, tokens_of
from train.config import LoraSpec, TrainConfig
from train.data import Encoded, PairRow
from train.plan import Rows, free_bytes, multiplied_a_second, plan
from train.policy import load_policy
from train.trainer import Trainer

ROWS = {"pairs": pair_rows, "scores": pair_rows, "labels": label_rows, "completions": completion_rows}


def planned(model: Path, rows: Any, config: TrainConfig, **more: Any) -> Any:
    options: dict[str, Any] = {"limit": 512, "rate": lambda device, dtype: 1e9} | more
    return plan(str(model), None, Rows(rows), config, **options)


@pytest.mark.parametrize("method", ["dpo", "kto", "sft", "reward_model", "orpo"])
@pytest.mark.parametrize("lora", [None, LoraSpec(r=4)], ids=["whole", "lora"])
def test_parameters_are_those_of_the_model(tiny_model: Path, method: str, lora: LoraSpec | None) -> None:
    config = TrainConfig(method=method, lora=lora, dtype="float32")
    data = losses.get(method).data
    head: Any = "score" if data == "scores" else "language"
    loaded = load_policy(str(tiny_model), lora=lora, dtype="float32", device="cpu", trainable=True, head=head)
    found = planned(tiny_model, ROWS[data](12), config)
    assert found.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert found.learning == sum(p.numel() for p in loaded.trainable().values())
    assert found.memory.weights == 4 * found.parameters
    assert (found.memory.gradients, found.memory.optimiser) == (4 * found.learning, 8 * found.learning)
    assert (found.rows, found.steps) == (12, 4)


def test_work_is_six_operations_a_parameter_and_token(tiny_model: Path) -> None:
    """Of a whole model without its head, which sees completions alone, and attention, which is small here."""
    rows = [PairRow((5,) * 40, (6,), (7,)) for _ in range(8)]
    found = planned(tiny_model, rows, TrainConfig(lora=None, epochs=3))
    body = found.parameters - 400 * 64
    assert found.tokens == 3 * sum(map(tokens_of, rows))
    assert found.operations == pytest.approx(6 * body * 3 * 8 * 40, rel=0.15)
    assert found.seconds > found.operations / 1e9


def test_what_the_reference_holds_already_costs_nothing(tiny_model: Path) -> None:
    rows = pair_rows(8)
    unscored = [Encoded(row.prompt, row.chosen) for row in rows]
    plans = [
        plan(str(tiny_model), None, Rows(rows, part), TrainConfig(), limit=512, rate=lambda device, dtype: 1e9)
        for part in ([], unscored[:4], unscored)
    ]
    assert plans[0].reference_operations == 0
    assert plans[0].seconds < plans[1].seconds < plans[2].seconds


def test_processes_share_what_is_held(tiny_model: Path) -> None:
    one, four = (planned(tiny_model, pair_rows(16), TrainConfig(lora=None), processes=n) for n in (1, 4))
    assert four.memory.gradients == one.memory.gradients // 4
    assert four.memory.optimiser == one.memory.optimiser // 4
    assert one.memory.weights // 4 < four.memory.weights < one.memory.weights
    assert four.micro_batch < one.micro_batch
    assert four.memory.activations < one.memory.activations


def test_recomputed_activations_take_less_room_and_more_work(tiny_model: Path) -> None:
    plain, again = (
        planned(tiny_model, pair_rows(16), TrainConfig(lora=None, checkpoint_activations=on)) for on in (False, True)
    )
    assert again.memory.activations < plain.memory.activations
    assert 1.1 < again.operations / plain.operations < 4 / 3


def test_what_does_not_fit_is_said_with_the_remedy(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(tiny_model, pair_rows(8), TrainConfig(lora=None)).notes == []
    monkeypatch.setattr("train.plan.free_bytes", lambda device: 1000)
    [note] = planned(tiny_model, pair_rows(8), TrainConfig(lora=None)).notes
    assert "micro_batch_tokens" in note
    assert "1.0 KiB" not in note
    told = planned(tiny_model, pair_rows(8), TrainConfig(lora=None)).to_json()
    assert told["memory"]["total"] > 1000
    assert told["notes"] == [note]


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="does not load"):
        planned(tmp_path, pair_rows(4), TrainConfig())


def test_the_machine_is_measured() -> None:
    assert multiplied_a_second("cpu", "float32") > 1e8
    assert free_bytes("cpu") > 2**20


# ------------------------------------------------------------------------------------------------- against a real run


def long_rows() -> list[PairRow]:
    draw = random.Random(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 390) for _ in range(count))

    return [PairRow(some(100), some(200), some(200)) for _ in range(4)]


def _resident(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))


def _run(model: str, folder: str, settings: dict[str, Any], pipe: Any) -> None:
    """How much the process grew over a training, from its loaded model to its fullest moment."""
    import torch

    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back at once, tensor by tensor
    torch.set_num_threads(1)
    config = TrainConfig(**settings)
    policy = load_policy(model, lora=config.lora, dtype="float32", device="cpu", trainable=True)

    def train(rows: list[PairRow], name: str) -> None:
        source = FixedRows(rows, config.batch_size, config.epochs, config.seed)
        Trainer(policy, source, config, Path(folder) / name).run()

    train(pair_rows(2), "warm")
    for parameter in policy.model.parameters():
        parameter.grad = None
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    train(long_rows(), "real")
    pipe.send(_resident("VmHWM") - before)


@pytest.mark.parametrize("again", [False, True], ids=["plain", "recomputed"])
@pytest.mark.parametrize("lora", [None, {"r": 8}], ids=["whole", "lora"])
def test_memory_is_that_of_a_real_training(tmp_path: Path, again: bool, lora: Any) -> None:
    """Gradients, optimiser and activations within a fifth of what the process grows by."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from /proc")
    from tiny_models import build_tiny_model
    from transformers import LlamaConfig, LlamaForCausalLM

    build_tiny_model(tmp_path / "model")
    told = LlamaConfig(
        vocab_size=400, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(told).save_pretrained(tmp_path / "model")
    settings = {"lora": lora, "dtype": "float32", "batch_size": 4, "epochs": 2, "micro_batch_tokens": 4000}
    settings |= {"checkpoint_activations": again, "method": "simpo", "threads": 1}
    found = planned(tmp_path / "model", long_rows(), TrainConfig(**settings), limit=4000)
    assert found.micro_batch == 2000

    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    child = context.Process(target=_run, args=(str(tmp_path / "model"), str(tmp_path), settings, there))
    child.start()
    there.close()
    grown = here.recv()
    child.join()
    wanted = found.memory.gradients + found.memory.optimiser + found.memory.activations
    assert wanted / 1.2 < grown < wanted * 1.2
