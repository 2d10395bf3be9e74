"""Several processes that train one model: each holds a shard of it, and each takes a share of every batch.

FSDP2 (`fully_shard`) shards the layers and the rest of the model, frozen base included; a layer is whole while it is
gone through. The gradient is the sum over the processes, divided by the weight of the whole batch: what one process
would have had, however the rows were shared out.

Every process must go through the model as often as the others, or all wait for ever: `Group.most` says how often that
is, and the loop fills up with rows that weigh nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from factory.faults import FactoryError
from train.config import LoraSpec

if TYPE_CHECKING:
    from train.policy import DTypeName, Head, Policy

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Whole(nn.Module):
    """A model in which any code may run with its parameters unsharded: FSDP opens what its root's forward encloses,
    and log-probs use the head and the layers' model directly."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], T]) -> T:
        """What `call` returns; a tensor of its own, as FSDP hangs the backward pass on it."""
        found = call()
        return cast(T, found.clone()) if isinstance(found, Tensor) and found._is_view() else found


@dataclass
class Group:
    """The processes of a training, seen from one of them. Without arguments: one process by itself."""

    rank: int = 0
    size: int = 1
    root: Any = None  # the sharded model

    @property
    def first(self) -> bool:
        """Is this the process that writes?"""
        return self.rank == 0

    def through(self, call: Callable[[], T]) -> T:
        """Go through the model in `call`, as often as the other processes do."""
        if self.root is None:
            return call()
        found: T = self.root(call)
        if not torch.is_grad_enabled():
            self.root.reshard()  # no backward pass will do it
        return found

    def sharded(self, module: M) -> M:
        """The module, which is no part of the model, with its gradients summed over the processes as the model's are.
        All of them must go through it as often."""
        if self.root is not None:
            from torch.distributed.device_mesh import init_device_mesh

            _shard(module, init_device_mesh(next(module.parameters()).device.type, (self.size,)))
        return module

    def gather(self, own: T) -> list[T]:
        """Everyone's, in order of rank; tensors must be on the CPU."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found

    def most(self, count: int) -> int:
        """The largest of everyone's counts."""
        return max(self.gather(count))

    def from_first(self, call: Callable[[], T]) -> T:
        """What `call` gives in the first process; a FactoryError that it raises there is raised in all."""
        if self.size == 1:
            return call()
        box: list[Any] = [None]
        if self.first:
            try:
                box = [(call(), None)]
            except FactoryError as fault:
                box = [(None, fault)]
        dist.broadcast_object_list(box, src=0)
        found, raised = box[0]
        if raised is not None:
            raise raised
        return cast(T, found)

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)


@contextmanager
def joined() -> Iterator[Group]:
    """The group that the launcher made of this process and the others: gloo, and nccl between GPUs, one each."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield Group(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after a fault: the others would be waited for


# ------------------------------------------------------------------------------------------------------- sharding


def load_sharded(
    group: Group, base: str, adapter: str | None, *, lora: LoraSpec | None, dtype: DTypeName, seed: int,
    base_name: str | None = None, head: Head = "language",
) -> Policy:  # fmt: skip
    """`load_policy` for training, sharded over the group. Each process reads the model into the CPU's memory and keeps
    its shard, on its device."""
    from train.policy import load_policy, resolve_device, resolve_dtype

    device = resolve_device("auto")
    kind = resolve_dtype(dtype, device, whole=lora is None)
    held: DTypeName = "float32" if lora is None or kind == "float32" else "bfloat16"
    policy = load_policy(
        base, adapter, lora=lora, dtype=held, device="cpu", trainable=True, seed=seed, base_name=base_name, head=head
    )
    return shard(group, replace(policy, device=device, dtype=kind))


def shard(group: Group, policy: Policy) -> Policy:
    """The policy with its parameters sharded over the group, which from then on goes `through` it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    mixed = MixedPrecisionPolicy()
    if policy.dtype == "bfloat16" and policy.device != "cpu":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(policy.device, (group.size,))
    root = Whole(policy.model)
    for module in (*layers(policy.model), root):
        _shard(module, mesh, mp_policy=mixed)
    group.root = root
    return policy


def _shard(module: nn.Module, mesh: Any, **how: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    sharded: Any = fully_shard(module, mesh=mesh, **how)
    sharded.set_gradient_divide_factor(1.0)  # the sum: the loop divides by the weight of the whole batch
    sharded.set_force_sum_reduction_for_comms(True)


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers says are not to be split, the outermost of each: a transformer's layers."""
    from train.logps import causal_model

    names = set(causal_model(model)._no_split_modules or ())
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if type(module).__name__ in names and not inside:
            found[path] = module
    return list(found.values())


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; any other as it is. Every process of its group must call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast(Tensor, gather())


def gathered(group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of the tensors on the CPU of the first process; empty in the others. A tensor under two names stays one."""
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in seen:
            full = whole(tensor.detach())
            seen[id(tensor)] = full.cpu() if group.first else full[:0]
        if group.first:
            found[name] = seen[id(tensor)]
    return found
