"""What each technique of the trainer brings by itself: the same work with it and without it.

    python benchmarks/techniques.py                              all of them, some minutes
    python benchmarks/techniques.py --only shared --rounds 3     those with "shared" in their name, medians of three
    python benchmarks/techniques.py --width 512 --layers 8 --vocabulary 152000 --pairs 16

A random Llama, one CPU thread, float32 unless said otherwise. Each side is a process of its own, forked after the
imports; on and off take turns. Printed: processor seconds and peak memory (what the process grew by, model and
gradients included) with the technique over those without, so that less than 1 is a gain; and by how much the two differ
in what they computed (relative; the sum of all log-probs, or the step's gradient norm). What has no switch in the
trainer is given its plain alternative here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from train_vs_trl import build_model, pairs, peak_megabytes

from train import logps
from train.batches import FixedRows, micro_batches
from train.config import LoraSpec, TrainConfig
from train.data import Encoded, PairRow
from train.logps import Forward, PackedForward, PlainForward, TokenLogps, lengths_of
from train.packing import Group, Layout, pack, packed_attention_on
from train.policy import Policy, load_policy
from train.trainer import Trainer

Args = argparse.Namespace
Run = Callable[[], float]
LORA = LoraSpec(r=16, alpha=32)
TOGETHER = 512  # tokens that go through the model at once
ANSWERS = 8  # of a group of samples


class Sample(NamedTuple):
    """What one side took, and a number of what it computed."""

    seconds: float
    megabytes: float
    value: float


class Technique(NamedTuple):
    """`on` and `off` load what they need and return the work that is measured."""

    name: str
    on: Callable[[Args], Run]
    off: Callable[[Args], Run]


# ------------------------------------------------------------------------------------------------------- the work


def policy_of(args: Args, *, lora: LoraSpec | None = None, dtype: Any = "float32") -> Policy:
    """The random model, to be trained."""
    return load_policy(args.model, lora=lora, dtype=dtype, device="cpu", trainable=True)


def rows_of(args: Args) -> list[PairRow]:
    """The pairs, each answer with its end token."""
    return [PairRow(tuple(p), (*c, 2), (*r, 2)) for p, c, r in pairs(args)]


def encoded(rows: Sequence[PairRow]) -> list[Encoded]:
    """Both answers of each pair."""
    return [Encoded(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]


def shared(rows: Sequence[PairRow]) -> list[Group]:
    """A prompt with both its answers."""
    return [Group(row.prompt, (row.chosen, row.rejected)) for row in rows]


def apart(groups: Sequence[Group]) -> list[Group]:
    """A prompt for every answer."""
    return [Group(group.prompt, (answer,)) for group in groups for answer in group.completions]


def samples(rows: Sequence[PairRow]) -> list[Group]:
    """The pairs' answers as if a policy had sampled them, `ANSWERS` to a prompt."""
    answers = [answer for row in rows for answer in (row.chosen, row.rejected)]
    parts = [answers[i : i + ANSWERS] for i in range(0, len(answers), ANSWERS)]
    return [Group(row.prompt, part) for row, part in zip(rows, parts, strict=False)]


def in_parts(rows: Sequence[PairRow]) -> list[list[Group]]:
    """As the loop cuts a step."""
    return [shared(part) for part in micro_batches(rows, TOGETHER)]


def there_and_back(way: Forward, parts: Sequence[Sequence[Group]]) -> float:
    """The gradient of the sum of all log-probs, a part at a time; that sum."""
    total = 0.0
    for part in parts:
        loss = way.token_logps(part).values.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def pairwise(args: Args, *, way: Callable[[nn.Module], Forward] = PackedForward, lora: LoraSpec | None = None) -> Run:
    """Forward and backward of all pairs."""
    forward = way(policy_of(args, lora=lora).model)
    return partial(there_and_back, forward, in_parts(rows_of(args)))


def under(context: Callable[[], AbstractContextManager[Any]], build: Callable[[Args], Run]) -> Callable[[Args], Run]:
    """The same work while a context is open."""

    def built(args: Args) -> Run:
        run = build(args)

        def within() -> float:
            with context():
                return run()

        return within

    return built


# -------------------------------------------------------------------------------------------- the plain alternatives


class HeadEverywhere(PackedForward):
    """The head at every place of the packed row, as a model's own forward has it."""

    def token_logps(
        self, groups: Sequence[Group], *, spread: bool = False, critic: nn.Module | None = None
    ) -> TokenLogps:
        """Of the completions of all groups, in order."""
        row = pack(groups, self._head.weight.device)
        with packed_attention_on(self._causal):
            out = self._causal.base_model(
                input_ids=row.ids, position_ids=row.positions, packed_layout=Layout(row.stretches), use_cache=False
            )
        hidden = out.last_hidden_state[0]
        values = plain_log_softmax(hidden, self._head)[row.predicts, row.targets]
        return TokenLogps(values, lengths_of(groups, values))


class Padded:
    """Every answer in a row of its own, padded to the longest of the part; the head at the answers' places."""

    name = "padded"

    def __init__(self, model: nn.Module) -> None:
        self._causal: Any = model

    def token_logps(
        self, groups: Sequence[Group], *, spread: bool = False, critic: nn.Module | None = None
    ) -> TokenLogps:
        """Of the completions of all groups, in order."""
        rows = [(list(group.prompt), list(answer)) for group in groups for answer in group.completions]
        width = max(len(p) + len(a) for p, a in rows)
        ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in rows])
        seen = torch.tensor([[i < len(p) + len(a) for i in range(width)] for p, a in rows]).long()
        hidden = self._causal.base_model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        wanted = torch.cat([hidden[i, len(p) - 1 : len(p) + len(a) - 1] for i, (p, a) in enumerate(rows)])
        targets = torch.tensor([token for _, answer in rows for token in answer])
        values = logps.chunked_logps(wanted, self._causal.get_output_embeddings(), targets)
        return TokenLogps(values, lengths_of(groups, values))


def plain_log_softmax(hidden: Tensor, head: nn.Linear) -> Tensor:
    """(tokens, words) by autograd: the logits, their log-softmax and the gradient of each are there at once."""
    return F.linear(hidden, head.weight, head.bias).log_softmax(-1)


def whole_logits(hidden: Tensor, head: nn.Linear, targets: Tensor, rows: int | None = None) -> Tensor:
    """`chunked_logps` without chunks."""
    return plain_log_softmax(hidden, head).gather(-1, targets[:, None])[:, 0]


def made_again(hidden: Tensor, head: nn.Linear, targets: Tensor, rows: int | None = None) -> Tensor:
    """`chunked_logps` in chunks that autograd computes again on the way back."""
    size = max(16, logps.CHUNK_BYTES // (4 * head.weight.shape[0]))
    parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    found: list[Tensor] = [checkpoint(whole_logits, h, head, t, use_reentrant=False) for h, t in parts]
    return torch.cat(found)


def head_by(function: Callable[..., Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """Log-probs by another function than the trainer's."""
    return lambda: patch.object(logps, "chunked_logps", function)


@contextmanager
def in_chunks() -> Iterator[None]:
    """128 rows of logits at a time, which the backward pass makes again."""
    trainers = logps.chunked_logps

    def again(hidden: Tensor, head: nn.Linear, targets: Tensor, rows: int | None = None) -> Tensor:
        return trainers(hidden, head, targets, 128)

    with patch.object(logps, "chunked_logps", again):
        yield


# ------------------------------------------------------------------------------------------------------- techniques


def in_groups(args: Args, *, once: bool) -> Run:
    """Forward and backward of groups of samples, the prompt once or for every answer."""
    forward = PackedForward(policy_of(args).model)
    parts = [[group] if once else apart([group]) for group in samples(rows_of(args))]
    return partial(there_and_back, forward, parts)


def by_rows(args: Args, *, way: Callable[[nn.Module], Forward]) -> Run:
    """Forward and backward of all pairs, a prompt for every answer."""
    forward = way(policy_of(args).model)
    return partial(there_and_back, forward, [apart(part) for part in in_parts(rows_of(args))])


def padded_in_order(args: Args, *, by_length: bool) -> Run:
    """Padded rows, four at a time: as they come, or by their length."""
    forward = Padded(policy_of(args).model)
    rows = apart(shared(rows_of(args)))
    if by_length:
        rows.sort(key=lambda group: group.tokens)
    return partial(there_and_back, forward, [rows[i : i + 4] for i in range(0, len(rows), 4)])


def stepping(
    args: Args, *, lora: LoraSpec | None = None, dtype: Any = "float32", warm: bool = False, **more: Any
) -> Run:
    """One step of the loop; `warm`: after one that is not measured."""
    config = TrainConfig(
        lora=lora, dtype=dtype, batch_size=args.pairs, epochs=2, learning_rate=1e-9, warmup=0.0, **more
    )
    rows = rows_of(args)
    policy = policy_of(args, lora=lora, dtype=dtype)
    trainer = Trainer(policy, FixedRows(rows, args.pairs, 2, 0), config, Path(args.folder))
    trainer._settle(rows)
    if warm:
        trainer.step(0)
    return lambda: float(trainer.step(1)["grad_norm"])


def with_store(args: Args, *, second: bool) -> Run:
    """The reference's log-probs by way of a store and a step on them, as the first training or the second on the
    same pairs."""
    from factory.store import Store
    from factory.training.reference import reference_logps

    policy = policy_of(args)
    rows = rows_of(args)
    store = Store.open(Path(tempfile.mkdtemp(dir=args.folder)), create=True)
    logps.forward_for(policy.model, logps.sample_groups(encoded(rows)))

    @contextmanager
    def model() -> Iterator[nn.Module]:
        yield policy.model

    def scored() -> list[float]:
        return reference_logps(store, encoded(rows), "reference", "float32", model)

    if second:
        scored()

    def run() -> float:
        refs = scored()
        known = [r._replace(ref_chosen=refs[2 * i], ref_rejected=refs[2 * i + 1]) for i, r in enumerate(rows)]
        config = TrainConfig(lora=None, dtype="float32", batch_size=args.pairs, epochs=1, learning_rate=1e-9)
        trainer = Trainer(policy, FixedRows(known, args.pairs, 1, 0), config, Path(args.folder))
        return float(trainer.step(0)["grad_norm"])

    return run


TECHNIQUES = (
    Technique(
        "head at the answers' places only",
        under(head_by(whole_logits), pairwise), partial(pairwise, way=HeadEverywhere),
    ),
    Technique("log-probs in chunks of 128", under(in_chunks, pairwise), under(head_by(whole_logits), pairwise)),
    Technique("probabilities kept for the way back", pairwise, under(in_chunks, pairwise)),
    Technique(
        "frozen head: gradient in the forward pass",
        partial(pairwise, lora=LORA), under(head_by(made_again), partial(pairwise, lora=LORA)),
    ),
    Technique("shared prompt, pairs", pairwise, partial(by_rows, way=PackedForward)),
    Technique("shared prompt, groups of 8", partial(in_groups, once=True), partial(in_groups, once=False)),
    Technique("packed instead of padded", partial(by_rows, way=PackedForward), partial(by_rows, way=Padded)),
    Technique(
        "by length, padded rows", partial(padded_in_order, by_length=True), partial(padded_in_order, by_length=False)
    ),
    Technique("all of them", pairwise, partial(by_rows, way=PlainForward)),
    Technique("reference log-probs kept", partial(with_store, second=True), partial(with_store, second=False)),
    Technique("bfloat16 (adapter)", partial(stepping, lora=LORA, dtype="bfloat16"), partial(stepping, lora=LORA)),
    Technique("activation checkpointing", partial(stepping, checkpoint_activations=True), stepping),
    Technique(
        "torch.compile, after a first step", partial(stepping, compile=True, warm=True), partial(stepping, warm=True)
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- measuring


def sampled(args: Args, build: Callable[[Args], Run]) -> Sample:
    """One side, in this process."""
    torch.set_num_threads(1)
    before = peak_megabytes()
    run = build(args)
    began = time.process_time()
    value = run()
    return Sample(time.process_time() - began, peak_megabytes() - before, value)


def measure(args: Args, build: Callable[[Args], Run]) -> Sample:
    """One side, in a process of its own."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: there.send(sampled(args, build)))
    child.start()
    there.close()
    try:
        found: Sample = here.recv()
    except EOFError as fault:
        raise SystemExit("a measurement failed; its reason is above") from fault
    child.join()
    return found


def line(technique: Technique, both: Sequence[tuple[Sample, Sample]]) -> str:
    """Medians of the ratios, and the largest difference in what was computed."""
    seconds = [on.seconds / off.seconds for on, off in both]
    memory = statistics.median(on.megabytes / off.megabytes for on, off in both)
    apart_by = max(abs(on.value - off.value) / abs(off.value) for on, off in both)
    spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
    return f"{technique.name:44}{statistics.median(seconds):6.2f} {spread:16}{memory:8.2f}{apart_by:12.1e}"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parse = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parse.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 64")
    parse.add_argument("--layers", type=int, default=4)
    parse.add_argument("--vocabulary", type=int, default=32000)
    parse.add_argument("--pairs", type=int, default=8)
    parse.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parse.add_argument("--shortest", type=int, default=16, help="tokens of a completion")
    parse.add_argument("--longest", type=int, default=384)
    parse.add_argument("--rounds", type=int, default=1)
    parse.add_argument("--only", default="", help="techniques with this in their name")
    parse.add_argument("--seed", type=int, default=0)
    return parse


def main() -> None:
    """Measure the techniques one after another."""
    args = parser().parse_args()
    import peft, transformers  # noqa: E401, F401, I001 - the forked processes have them

    torch.set_num_threads(1)
    print(f"{'with / without':44}{'CPU s':>6} {'':16}{'peak':>8}{'differ by':>12}")
    with tempfile.TemporaryDirectory() as folder:
        args.folder, args.model = folder, str(Path(folder) / "model")
        build_model(args, Path(args.model))
        for technique in TECHNIQUES:
            if args.only in technique.name:
                both = [(measure(args, technique.on), measure(args, technique.off)) for _ in range(args.rounds)]
                print(line(technique, both), flush=True)


if __name__ == "__main__":
    main()
