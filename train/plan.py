"""What a training will take, before it starts: bytes a process, floating-point operations, seconds.

The model is built from its configuration alone, with tensors that have shapes and no contents (torch's fake tensors),
and the largest micro-batch of the real rows goes forward and backward through its first layer, and through two: what is
alive at once is their memory, what is multiplied their work, and all layers follow. Seconds come from the rate at which
this machine multiplies now.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from train import losses
from train.activations import checkpoint_activations
from train.batches import FixedRows, micro_batches, shares, tokens_of
from train.config import LoraSpec, TrainConfig
from train.data import Encoded
from train.logps import PackedForward, PlainForward
from train.packing import Group, UnpackableError
from train.policy import DTYPES, Head, mapped, new_adapter, resolve_device, resolve_dtype
from train.scores import ScoreForward
from train.shapes import of

LOOKED_AT = 3  # micro-batches of the first epoch whose work is counted; the others' follows from their tokens
OVERHEAD = 1.4  # of a whole step's time over its multiplications alone


class Memory(NamedTuple):
    """Bytes of one process, without what Python and torch's libraries hold. `activations`: of the largest micro-batch
    with its chunk of logits, at the fullest moment, without gradients of parameters."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    reference: int = 0  # another model, while it scores; it is gone when training begins

    @property
    def total(self) -> int:
        """At the fullest moment."""
        training = self.weights + self.gradients + self.optimiser + self.activations
        return max(training, self.weights + self.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See the module. `steps`, `tokens`: of all epochs. `operations`: floating-point, of all processes together, and
    those of the reference's pass over what is not held yet. `rate`: operations a second of one process, now. `room`:
    bytes that the device has free. `answers`, `sampled`: of a training on answers of its own, how many the policy
    writes and their tokens, at most; the time of writing them is not in `seconds`."""

    parameters: int
    learning: int
    dtype: str
    device: str
    processes: int
    rows: int
    steps: int
    tokens: int
    micro_batch: int  # tokens of the largest
    memory: Memory
    operations: float
    reference_operations: float
    rate: float
    room: int
    answers: int = 0
    sampled: int = 0

    @property
    def seconds(self) -> float:
        """From start to end, loading left out."""
        return OVERHEAD * (self.operations / self.processes + self.reference_operations) / self.rate

    @property
    def notes(self) -> list[str]:
        """What to know before it starts."""
        if self.memory.total <= self.room:
            return []
        most = max(self.memory._asdict().items(), key=lambda part: part[1])[0]
        remedy = {
            "weights": "take more processes, or dtype: bfloat16 with lora",
            "gradients": "train a lora adapter, or take more processes",
            "optimiser": "train a lora adapter, or take more processes",
            "activations": f"set micro_batch_tokens below {self.micro_batch}, a smaller max_length, or "
            "checkpoint_activations: true",
            "reference": "let the reference be the start, whose adapter is switched off",
        }[most]
        return [
            f"a process needs about {_size(self.memory.total)} and {_size(self.room)} are free: most of it are {most}. "
            f"To make it fit, {remedy}."
        ]

    def facts(self) -> dict[str, str]:
        """What to tell of it, by name, as a person reads it."""
        work = self.operations + self.reference_operations
        held = {name: size for name, size in self.memory._asdict().items() if size}
        several = f" in each of {self.processes} processes" if self.processes > 1 else ""
        return {
            "model": f"{self.parameters / 1e6:.1f}M parameters, {self.learning / 1e6:.1f}M learn, {self.dtype}",
            "data": f"{self.rows} rows, {self.steps} steps, {self.tokens} tokens, at most {self.micro_batch} at once",
            "memory": f"{_size(self.memory.total)} of {_size(self.room)} on {self.device}{several}",
            "of which": ", ".join(f"{name} {_size(size)}" for name, size in held.items()),
            "work": f"{work / 1e12:.3g} TFLOP, multiplied at {self.rate / 1e12:.3g} a second",
            "time": f"about {_span(self.seconds)}" + (", and that of sampling" if self.sampled else ""),
        } | ({"samples": f"{self.answers} answers, {self.sampled} tokens at most"} if self.sampled else {})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {
            "memory": self.memory._asdict() | {"total": self.memory.total},
            "seconds": self.seconds,
            "notes": self.notes,
        }


class Rows(NamedTuple):
    """What is trained on, and of it what the reference has yet to score."""

    rows: Sequence[Any]
    unscored: Sequence[Encoded] = ()


def as_supervised(config: TrainConfig) -> TrainConfig:
    """A training on answers that the policy samples as a plan sees it: one that learns those answers as they are, each
    batch `updates` times. What a critic takes besides, and a copy of the weights (ppo, bond), is not in it."""
    spec = config.online
    if spec is None:
        return config
    only_online = {"method", "parameters", "online", "add", "weighting", "kl_budget"}
    own = {"method": "sft", "epochs": spec.updates, "batch_size": spec.prompts * spec.n}
    return TrainConfig(**{**config.model_dump(exclude=only_online), **own})


def plan(
    base: str,
    adapter: str | None,
    data: Rows,
    config: TrainConfig,
    *,
    limit: int,
    processes: int = 1,
    other_reference: bool = False,
    rate: Callable[[str, str], float] | None = None,
) -> Plan:
    """Plan a training on rows of the store. `limit`: tokens of a micro-batch. `other_reference`: is the reference
    another model than the one in training? `rate`: (device, dtype) -> operations a second, measured by default.

    FactoryError: the model's configuration does not load.
    """
    device = resolve_device("auto")
    dtype = resolve_dtype(config.dtype, device, whole=config.lora is None)
    source = FixedRows(data.rows, config.batch_size, config.epochs, config.seed)
    parts = _parts(source, limit, processes)
    largest = max(parts, key=lambda rows: sum(map(tokens_of, rows)))
    sizes = _sizes(_model(base, adapter, config, dtype))
    one, two = (
        _work(_model(base, adapter, config, dtype, n), data, parts, largest, config, device, dtype) for n in (1, 2)
    )
    needed, a_token, scoring = (a + (sizes["layers"] - 1) * (b - a) for a, b in zip(one, two, strict=True))
    tokens = config.epochs * sum(map(tokens_of, data.rows))
    learning = sizes["learning"]
    weights = sizes["bytes"] // processes + (sizes["layer"] if processes > 1 else 0)
    return Plan(
        parameters=sizes["parameters"],
        learning=learning,
        dtype=dtype,
        device=device,
        processes=processes,
        rows=len(data.rows),
        steps=source.steps,
        tokens=tokens,
        micro_batch=sum(map(tokens_of, largest)),
        memory=Memory(
            weights, 4 * learning // processes, 8 * learning // processes, round(needed),
            reference=_base_parameters(sizes, config) * DTYPES[dtype].itemsize if other_reference else 0,
        ),
        operations=a_token * tokens,
        reference_operations=scoring,
        rate=(rate or multiplied_a_second)(device, dtype),
        room=free_bytes(device),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the model


def _model(base: str, adapter: str | None, config: TrainConfig, dtype: str, layers: int | None = None) -> nn.Module:
    """The model as it will be trained, or its first layers alone, on torch's meta device: shapes and nothing else."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    head: Head = "score" if losses.get(config.method).data == "scores" else "language"
    whole = config.lora is None
    with mapped(base), torch.device("meta"):
        told = AutoConfig.from_pretrained(base)
        if head == "score":
            told.num_labels = 1
        _shorten(told.get_text_config(), layers)
        kind = AutoModelForCausalLM if head == "language" else AutoModelForSequenceClassification
        model: Any = kind.from_config(told, dtype=torch.float32 if whole else DTYPES[dtype])
        if config.lora is not None:
            model = new_adapter(model, _ranks(adapter) or config.lora, 0, head)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    trained: nn.Module = model.train()
    return trained


def _shorten(told: Any, layers: int | None) -> None:
    """A configuration of the first layers alone."""
    if layers is None:
        return
    if told.num_hidden_layers > layers:
        told.num_hidden_layers = layers
        if getattr(told, "layer_types", None):
            told.layer_types = told.layer_types[:layers]


def _onto(model: nn.Module, device: str) -> None:
    """Give the model tensors of the device in the place of meta ones; shared ones stay shared. Under a fake mode they
    hold nothing."""
    made: dict[int, Any] = {}

    def like(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            learns = tensor.requires_grad
            made[id(tensor)] = nn.Parameter(empty, learns) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else like(parameter)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else like(buffer)


def _ranks(adapter: str | None) -> LoraSpec | None:
    """An adapter's own settings, where one learns on."""
    if adapter is None:
        return None
    from peft import PeftConfig

    with mapped(adapter):
        told: Any = PeftConfig.from_pretrained(adapter)
    targets = told.target_modules if isinstance(told.target_modules, str) else tuple(told.target_modules)
    return LoraSpec(r=told.r, alpha=told.lora_alpha, dropout=told.lora_dropout, target=targets)


def _sizes(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters, all and those that learn; bytes of all, and of the largest layer."""
    from train.processes import layers

    each, stacked = list(model.parameters()), layers(model)
    return {
        "layers": len(stacked),
        "parameters": sum(p.numel() for p in each),
        "learning": sum(p.numel() for p in each if p.requires_grad),
        "bytes": sum(p.numel() * p.element_size() for p in each),
        "layer": max((sum(p.numel() * p.element_size() for p in m.parameters()) for m in stacked), default=0),
    }


def _base_parameters(sizes: Mapping[str, int], config: TrainConfig) -> int:
    """Without the adapter that learns."""
    return sizes["parameters"] - (0 if config.lora is None else sizes["learning"])


# ----------------------------------------------------------------------------------------------------- work and memory


def _parts(source: FixedRows, limit: int, processes: int) -> list[list[Any]]:
    """The micro-batches of the first epoch."""
    return [
        part
        for step in range(source.per_epoch)
        for share in shares(source.batch(step).rows, processes)
        for part in micro_batches(share, limit)
    ]


class _Work(NamedTuple):
    """Bytes of the largest micro-batch, operations of a trained token, operations of the reference's pass."""

    needed: float
    a_token: float
    scoring: float


def _work(
    model: nn.Module, data: Rows, parts: Sequence[Sequence[Any]], largest: Sequence[Any], config: TrainConfig,
    device: str, dtype: str,
) -> _Work:  # fmt: skip
    looked_at = sorted(parts, key=lambda rows: sum(map(tokens_of, rows)))[:: max(1, len(parts) // LOOKED_AT)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        _onto(model, device)
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None  # what an earlier micro-batch has left
        with _Alive(model) as alive:
            _go_through(model, config, largest, device, dtype)
        with FlopCounterMode(display=False) as done:
            for rows in looked_at:
                _go_through(model, config, rows, device, dtype)
        scoring = _scoring(model, data.unscored, device, dtype)
    return _Work(
        alive.most, done.get_total_flops() / sum(tokens_of(row) for rows in looked_at for row in rows), scoring
    )


def _go_through(model: nn.Module, config: TrainConfig, rows: Sequence[Any], device: str, dtype: str) -> None:
    """A micro-batch forward and backward."""
    objective = losses.get(config.method)
    shape: Any = of(objective, config.parameters)
    with _precision(device, dtype):
        if objective.data == "scores":
            out = ScoreForward(model).scores([(r.prompt, answer) for r in rows for answer in (r.chosen, r.rejected)])
        else:
            out = _values(model, shape.groups(rows))
        torch.autograd.backward(out.sum())


def _scoring(model: nn.Module, rows: Sequence[Encoded], device: str, dtype: str) -> float:
    """Operations of the reference's pass, from some of the rows by their tokens."""
    if not rows:
        return 0.0
    picked = rows[:: max(1, len(rows) // LOOKED_AT)]
    with torch.no_grad(), FlopCounterMode(display=False) as done, _precision(device, dtype):
        for row in picked:
            _values(model, [Group(row.prompt_ids, [row.completion_ids])])
    whole, some = (sum(len(r.prompt_ids) + len(r.completion_ids) for r in part) for part in (rows, picked))
    return float(done.get_total_flops()) * whole / some


def _values(model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """Token log-probs, packed where the model allows it."""
    try:
        return PackedForward(model).token_logps(groups).values
    except (UnpackableError, TypeError):
        return PlainForward(model).token_logps(groups).values


def _precision(device: str, dtype: str) -> Any:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16" and device != "cpu")


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that are made and not yet let go, and the most that were at once. Parameters and their
    gradients do not count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        held = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
        self._seen = {t.untyped_storage()._cdata for t in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
        self.now -= size


# -------------------------------------------------------------------------------------------------------- the machine


def multiplied_a_second(device: str, dtype: str) -> float:
    """Operations a second of matrix products as a training has them, the median of a few, with the threads that torch
    has now."""
    rows, width = (512, 1024) if device == "cpu" else (8192, 4096)
    left, right = (torch.ones(shape, dtype=DTYPES[dtype], device=device) for shape in ((rows, width), (width, width)))
    times = []
    for _ in range(12):
        _wait(device)
        began = time.perf_counter()
        left @ right
        _wait(device)
        times.append(time.perf_counter() - began)
    return 2 * rows * width * width / statistics.median(times[2:])


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def free_bytes(device: str) -> int:
    """What the device has free; of a host, what the kernel says is available."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    found: Mapping[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a file on a disk
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.split(":")[0]}
    except OSError:
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return found["MemAvailable"]


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
