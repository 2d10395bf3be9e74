"""The loop: rows in, gradients, steps, checkpoints, a policy that has learnt.

A step takes one effective batch. Its gradient is that of sum(loss * weight) / sum(weight) over the whole of it: each
part that fits the memory adds its sum, and the division comes at the end, so that how the batch is cut does not matter.
A run that was killed goes on from its last checkpoint to the same bits (same machine, same number of threads).

Several processes (`train/processes.py`) are the same loop: each goes through its share of the rows, and what the step
is divided, clipped and measured by is of the whole batch in all of them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from factory import crash
from factory.faults import FactoryError
from factory.schema import digest
from train import checkpoint, losses, observers, shortages
from train.activations import checkpoint_activations
from train.batches import Batch, R, Source, micro_batches, shares, tokens_of
from train.checkpoint import Stamp
from train.compiling import compile_layers
from train.config import NOT_WHAT, TrainConfig
from train.data import LabelRow
from train.logps import causal_model, completion_logps
from train.metrics import Line, Metrics
from train.observers import Counter, Observers, Progress, Training
from train.packing import Group
from train.policy import Policy
from train.processes import Group as Processes, whole
from train.shapes import joined, of
from train.watches import all_of

log = logging.getLogger(__name__)

MICRO_TOKENS = {"cpu": 512}  # small enough for caches and memory; more is not faster there
ACCELERATOR_MICRO_TOKENS = 8192


class Trained(NamedTuple):
    """What a training leaves besides the policy: its metrics a step, and its warnings."""

    lines: list[Line]
    warnings: list[str]


@dataclass
class Moving:
    """The running mean of every reward so far: BCO's shift (arXiv 2404.04656, section 4.2). Kept in checkpoints.

    A step uses the mean of the steps before it, so that it does not depend on how its own batch is cut.
    """

    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """0 before there is any."""
        return self.total / self.count if self.count else 0.0

    def add(self, rewards: Tensor) -> None:
        """The rewards of one more step."""
        self.total += float(rewards.double().sum())
        self.count += len(rewards)


class Part(NamedTuple):
    """What the loop keeps of a micro-batch for the metrics; no gradients."""

    logps: Any
    outcome: Any
    loss: Tensor  # (rows,), further terms included

    def sent(self, counts: bool) -> Part:
        """For other processes: on the CPU, and empty where it does not count."""
        size = None if counts else 0

        def moved(fields: Any) -> Any:
            return fields._replace(**{n: t[:size].cpu() for n, t in fields._asdict().items() if t is not None})

        return Part(moved(self.logps), moved(self.outcome), self.loss[:size].cpu())


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of a step counted from 0: a linear rise over the warm-up, then constant, linear or half a cosine down to 0."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.learning_rate * factor


def micro_batch_tokens(config: TrainConfig, device: str) -> int:
    """As set, or what suits the device. A whole model gets twice as many on a CPU: each part makes gradients as large
    as the embeddings, twice where they are the head too."""
    usual = MICRO_TOKENS.get(device, ACCELERATOR_MICRO_TOKENS) * (2 if device == "cpu" and config.lora is None else 1)
    return config.micro_batch_tokens or usual


@dataclass
class Trainer:
    """A training: `run` it. `folder` gets metrics.jsonl and checkpoints/. `processes`: those that share the work; all
    of them run the same training, and the first one writes."""

    policy: Policy
    source: Source
    config: TrainConfig
    folder: Path
    model_hash: str = ""
    progress: Progress | None = None
    processes: Processes = field(default_factory=Processes)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objective = losses.get(self.config.method)
        self.objective.check(self.config.parameters)
        self.shape = of(self.objective, self.config.parameters)
        if self.config.checkpoint_activations:
            checkpoint_activations(self.policy.model)
        if self.config.compile:
            compile_layers(self.policy.model)
        self.moving = Moving()
        self.forward: Any = None
        self.critic = self._critic()
        self.weights = self.policy.trainable() | {f"critic.{n}": p for n, p in self._critic_parameters()}
        self.optimiser = torch.optim.AdamW(
            self.weights.values(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=self.policy.device.startswith(("cpu", "cuda")),  # one pass over each tensor in place of nine
        )
        self.limit = micro_batch_tokens(self.config, self.policy.device)
        self.watches = all_of(self.config)

    @cached_property
    def stamp(self) -> Stamp:
        """What this training is of: a checkpoint of another one is refused. Reading it goes over all rows."""
        config = self.config.model_dump(mode="json", exclude=set(NOT_WHAT))
        return Stamp(self.source.hash, digest(config), self.model_hash)

    def run(self) -> Trained:
        """Train to the end, from the last whole checkpoint if there is one."""
        if not self.source.steps:
            raise FactoryError("there are no rows to train on", todo="give a training at least one row")
        home = self.folder / "checkpoints"
        watchers = self._observers()
        with threads(self.config.threads):
            torch.manual_seed(self.config.seed + self.processes.rank)
            self.saved = begin = self._go_on(home)
            metrics = Metrics(self.folder / "metrics.jsonl", begin, written=self.processes.first)
            self.warnings = [text for line in metrics.lines for text in self.watches.see(line)]
            with watchers.watching(Training(self.folder, self.config, self.source.steps, begin)):
                for step in range(begin, self.source.steps):
                    line = self.step(step)
                    with shortages.room_for("metrics", self.folder):
                        metrics.add(line)
                    watchers.step(line, self._warned(line))
                    if self._saves_after(step):
                        with shortages.room_for("a checkpoint", home, ["writing-*"]):
                            self._save(home, step + 1)
                    crash.point("train.after_step")
            self._tell_if_idle(metrics.lines)
        return Trained(metrics.lines, self.warnings)

    def _tell_if_idle(self, lines: Sequence[Line]) -> None:
        """Warn where no step had anything to learn from, so that the policy is what it was."""
        if lines and all(line.get("rows") == 0 for line in lines):
            text = (
                f"none of {len(lines)} steps had anything to learn from: the policy is as it began. Take prompts whose "
                "answers differ in reward, a finer reward, more answers (n), or a higher temperature; the column "
                "`failure` of the table judgments says why answers have no reward."
            )
            self.warnings.append(text)
            log.warning(text)

    def _go_on(self, home: Path) -> int:
        """From the last whole checkpoint, if there is one; the steps that are done."""
        found = self.processes.from_first(lambda: checkpoint.newest(home, self.stamp))
        if found is None:
            return 0
        if found.processes == self.processes.size == 1:
            kept = checkpoint.load(found, self.weights, self.optimiser)
        else:
            from train import shards

            kept = shards.load(found, self.weights, self.optimiser, self.processes)
        self.moving = Moving(**kept["rewards"])
        self.source.restore(kept["source"])
        log.info("going on from step %d of %d", found.step, self.source.steps)
        return found.step

    def _save(self, home: Path, step: int) -> None:
        kept = {"rewards": vars(self.moving), "source": self.source.state()}
        if self.processes.size == 1:
            checkpoint.save(home, step, self.stamp, self.weights, self.optimiser, kept)
        else:
            from train import shards

            shards.save(home, step, self.stamp, self.weights, self.optimiser, kept, self.processes)

    def _saves_after(self, step: int) -> bool:
        """Every save_every steps and at the end, but not where the source could not go on."""
        due = (step + 1) // self.config.save_every > self.saved // self.config.save_every
        if not (due or step + 1 == self.source.steps) or not self.source.whole(step):
            return False
        self.saved = step + 1
        return True

    def _critic(self) -> nn.Module | None:
        """The value head of an objective that has one: 0 everywhere before it has learnt."""
        if not self.objective.critic:
            return None
        width = causal_model(self.policy.model).get_output_embeddings().weight.shape[1]
        head = nn.Linear(width, 1, device=self.policy.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.shape.critic = self.processes.sharded(head)
        return head

    def _critic_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [] if self.critic is None else list(self.critic.named_parameters())

    def step(self, step: int) -> Line:
        """One optimiser step; its line of metrics. FactoryError when the loss or the gradient is not finite."""
        began = time.monotonic()
        batch = self.source.batch(step)
        if not batch.rows:
            return self._nothing(step, batch, began)
        parameters, own = self._through_model(step, batch.rows)
        parts = [part for each in self.processes.gather(own) for part in each]
        logps, outcome = joined([p.logps for p in parts]), joined([p.outcome for p in parts])
        self.moving.add(self.shape.rewards(outcome))
        total = outcome.weight.sum()
        loss = float((torch.cat([p.loss for p in parts]) * outcome.weight).sum() / total)
        norm = self._gradient_norm(float(total))
        self._stop_unless_finite(step, loss, norm)
        rate = learning_rate(self.config, step, self.source.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        line: Line = {"step": step + 1, "epoch": batch.epoch, "loss": loss, "grad_norm": norm, "learning_rate": rate}
        line |= self._measured(logps, outcome) | {name: float(parameters[name]) for name in self.objective.supplied}
        line |= batch.said
        seconds = time.monotonic() - began
        tokens = sum(tokens_of(row) for row in batch.rows)
        return line | {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}

    def _measured(self, logps: Any, outcome: Any) -> dict[str, float]:
        """The shape's means over the batch; log-ratios only where there is a reference to take them to."""
        means: dict[str, float] = self.shape.metrics(logps, outcome)
        if self.objective.reference:
            return means
        return {name: value for name, value in means.items() if not name.startswith("logratios/")}

    def _through_model(self, step: int, rows: Sequence[Any]) -> tuple[dict[str, Any], list[Part]]:
        """The objective's parameters, and all rows forward and backward; in smaller parts where memory runs out, which
        changes no more than the gradient's last digits."""
        while True:
            try:
                self._settle(rows)
                self.policy.model.train()
                parameters = {**self.config.parameters, **self._supplied(rows)}
                return parameters, [self._part(each, parameters, counts=n) for each, n in self._shared_out(rows)]
            except (RuntimeError, MemoryError) as fault:
                if not shortages.of_memory(fault):
                    raise
            self.optimiser.zero_grad(set_to_none=True)  # here the fault, and all that it held, is gone
            shortages.free_memory()
            self._take_less(step, rows)

    def _take_less(self, step: int, rows: Sequence[Any]) -> None:
        """Halve the tokens that go through at once. FactoryError where that cannot be."""
        together = min(self.limit, sum(map(tokens_of, rows)))
        longest = max(map(tokens_of, rows))
        if self.processes.size > 1 or together <= longest:
            raise FactoryError(
                f"out of memory at step {step + 1}, with {together} tokens at once and a longest row of {longest}",
                where=self.policy.device,
                todo=f"set micro_batch_tokens: {max(1, together // 2)}, a smaller max_length, or "
                "checkpoint_activations: true; the last checkpoint is kept",
            )
        self.limit = max(longest, together // 2)
        log.warning(
            "out of memory at step %d: going on with %d tokens at once (micro_batch_tokens)", step + 1, self.limit
        )

    def _nothing(self, step: int, batch: Batch, began: float) -> Line:
        """The line of a step whose batch taught nothing (all answers of a prompt alike, or none judged)."""
        line: Line = {"step": step + 1, "epoch": batch.epoch, "rows": 0, **batch.said}
        return line | {"seconds": time.monotonic() - began}

    def _shared_out(self, rows: Sequence[R]) -> list[tuple[list[R], bool]]:
        """This process's micro-batches; after them, where another process has more, rows that do not count (False): all
        must go through the model as often."""
        own = list(micro_batches(shares(rows, self.processes.size)[self.processes.rank], self.limit))
        missing = self.processes.most(len(own)) - len(own)
        return [(part, True) for part in own] + [([min(rows, key=tokens_of)], False) for _ in range(missing)]

    def _part(self, rows: Sequence[Any], parameters: dict[str, Any], *, counts: bool = True) -> Part:
        """Forward and backward of one micro-batch: adds the gradient of its sum(loss * weight). One that does not count
        adds 0, and leaves nothing for the metrics."""
        weighting = self.config.weighting
        with self.policy.precision():
            seen = self.processes.through(lambda: self.shape.seen(self.forward, rows, spread=weighting != "none"))
        logps = self.shape.logps(rows, seen)
        outcome = self.objective(logps, **parameters)
        weight = outcome.weight.detach() * torch.tensor([row.weight for row in rows], device=outcome.weight.device)
        loss = outcome.loss
        if weighting != "none":
            usual = self.shape.alignment(rows, seen)
            weight, loss = (weight * usual, loss) if weighting == "wpo" else (weight, loss * usual)
        outcome = outcome._replace(weight=weight)
        if "sft" in self.config.add:
            loss = loss + self.config.add["sft"] * self.shape.sft(logps)
        (loss * weight * counts).sum().backward()
        part = Part(joined([logps]), joined([outcome]), loss.detach())
        return part if self.processes.size == 1 else part.sent(counts)

    def _supplied(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Parameters that the objective wants from the loop."""
        makers: dict[str, Callable[[Sequence[Any]], Tensor]] = {"kl": self._baseline, "shift": self._shift}
        return {name: makers[name](rows) for name in self.objective.supplied}

    def _shift(self, rows: Sequence[Any]) -> Tensor:
        """BCO's, from the steps before."""
        return torch.tensor(self.moving.mean, device=self.policy.device)

    def _baseline(self, rows: Sequence[Any]) -> Tensor:
        """KTO's, over the mismatched pairs of the whole batch."""
        other = [row._replace(completion=row.other) for row in rows if isinstance(row, LabelRow) and row.other]
        self.policy.model.eval()
        sums = []
        with torch.no_grad(), self.policy.precision():
            for part, counts in self._shared_out(other):
                groups = [Group(row.prompt, (row.completion,)) for row in part]
                found = self.processes.through(partial(completion_logps, self.forward, groups)).cpu()
                refs = torch.tensor([row.ref_other for row in part])
                sums.append(torch.stack([found, refs])[:, : None if counts else 0])
        self.policy.model.train()
        sums = [each for part in self.processes.gather(sums) for each in part]
        policy, ref = torch.cat(sums, dim=1) if sums else torch.zeros(2, 0)
        return losses.kto_baseline(policy, ref)

    def _gradient_norm(self, total: float) -> float:
        """Divide the gradients by the batch's weight, clip them, and say what their norm was before."""
        for parameter in self.weights.values():
            if parameter.grad is not None:
                parameter.grad.div_(total)
        limit = math.inf if self.config.clip is None else self.config.clip
        return float(whole(torch.nn.utils.clip_grad_norm_(self.weights.values(), limit)))

    def _settle(self, rows: Sequence[Any]) -> None:
        """How this model is gone through, settled on the first rows of its own data that come."""
        if self.forward is None:
            ordered = sorted(rows, key=tokens_of)
            sample = [ordered[-1], *ordered[:3]]
            with torch.no_grad(), self.policy.precision():
                self.forward = self.processes.through(lambda: self.shape.way(self.policy.model, sample))

    def _stop_unless_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise FactoryError(
            f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite at step {step + 1} "
            f"(loss {loss:g}, gradient norm {norm:g})",
            where=str(self.folder / "metrics.jsonl"),
            todo="lower learning_rate, clip more, or train in float32; the last checkpoint is kept",
        )

    def _observers(self) -> Observers:
        """Those that are told: of the first process, all."""
        if not self.processes.first:
            return Observers()
        bar = [] if self.progress is None else [Counter(self.progress)]
        return Observers([*bar, *map(observers.named, self.config.observers)])

    def _warned(self, line: Line) -> list[str]:
        """What a step warns of; it is logged and kept."""
        texts = self.watches.see(line)
        for text in texts:
            self.warnings.append(text)
            log.warning(text)
        return texts


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch with so many CPU threads for a while; None: as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
