"""What an online training takes from the factory: a sampler with the live weights, models to score by, and a reward.

The sampler decodes with the very module that is trained (adapter and all), or hands its weights to a vLLM in this
process: no model is saved or loaded between steps. The reference is the policy without its adapter where that is what
it began with, else a frozen model of its own; BOND's anchor is a second set of the trained weights that follows them
slowly, put in place for as long as it is asked.

Of several processes each holds a shard of the model in training, and beside it one whole copy that samples and scores:
what learns is gathered into it once a batch (`LiveModels.refresh`), in memory.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from factory.engines.decoding import Decoder, Row
from factory.engines.transformers import end_tokens
from factory.faults import ConfigError, FactoryError
from factory.registry import unknown_name
from factory.resources import model_files
from factory.schema import Prompt, Sampling, digest
from factory.store import Store
from factory.training.rewards import JudgeRewards, Place, Rewards
from train import losses
from train.config import NOT_WHAT, OnlineSpec, TrainConfig
from train.data import Ids
from train.logps import causal_model, forward_for
from train.online import OnlineRows, Sampler, TokenScores
from train.packing import Group
from train.policy import DTypeName, Policy, load_policy
from train.processes import Group as Processes, whole
from train.trainer import Trained, Trainer

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.engines.vllm_sampler import VllmSampler


class OnlineWork(NamedTuple):
    """What a training on answers of its own is told, in one process or several: prompts by their tokens, names of start
    and reference, and where judgments are kept."""

    asked: Mapping[Ids, Prompt]
    start: str
    reference: str
    config: TrainConfig
    out: Path
    model_hash: str
    dtype: str  # of a reference that is a model of its own
    store: Path
    run: str
    round: int
    rewards: Rewards

    @property
    def mark(self) -> str:
        """Of the training: batches of another one are not taken for its own."""
        config = self.config.model_dump(mode="json", exclude=set(NOT_WHAT))
        rewards = self.rewards.identity()
        return digest([list(p) for p in self.asked], config, self.model_hash, self.reference, rewards)


def train(
    work: OnlineWork, policy: Policy, progress: Progress | None = None, processes: Processes | None = None,
    store: Store | None = None,
) -> Trained:  # fmt: skip
    """The loop on answers that the policy samples. `store`: where it is open already; else the first process opens it.

    BudgetError, EndpointError: judges cannot go on. FactoryError: one is fooled, or a model does not load; in all of
    these the last checkpoint is kept.
    """
    config, group = work.config, processes or Processes()
    spec = config.online
    if spec is None:
        raise ValueError("not an online training")
    with ExitStack() as stack:
        live, sharded = policy, None
        if group.size > 1:
            live, sharded = _copy(work), policy.trainable()
        models = LiveModels(live, live.trainable(), _reference_of(work, live), live=sharded)
        sampler = _sampler(work, live, group, stack)
        held: list[JudgeRewards] = []
        group.from_first(lambda: held.append(_rewards(work, live, store, stack)))
        source = OnlineRows(
            list(work.asked),
            spec,
            losses.get(config.method),
            sampler,
            held[0] if held else None,
            models,
            config.seed,
            processes=group,
            mark=work.mark,
            measures_kl=config.kl_budget is not None,
        )
        trainer = Trainer(policy, source, config, work.out, work.model_hash, progress, group)
        models.follow_critic(trainer.critic)
        return trainer.run()


def _copy(work: OnlineWork) -> Policy:
    """The policy as it starts, whole, in this process."""
    files, config = model_files(work.start), work.config
    return load_policy(
        files.base, files.adapter, lora=config.lora, dtype=config.dtype, trainable=True, seed=config.seed
    )


def _reference_of(work: OnlineWork, policy: Policy) -> Callable[[], AbstractContextManager[Any]]:
    """Opens the reference: the policy without its adapter, or a frozen model that stays loaded once it is asked."""
    start, files = model_files(work.start), model_files(work.reference)
    frozen: list[nn.Module] = []

    @contextmanager
    def opened() -> Iterator[Any]:
        if files.adapter is None and files.base == start.base and policy.has_adapter:
            with policy.without_adapter():
                yield policy.model
            return
        if not frozen:
            frozen.append(load_policy(files.base, files.adapter, dtype=cast(DTypeName, work.dtype)).model)
        yield frozen[0]

    return opened


def _sampler(work: OnlineWork, policy: Policy, group: Processes, stack: ExitStack) -> Sampler:
    """As config.online says. FactoryError: a vLLM beside other processes."""
    spec = work.config.online
    if spec is None or spec.sampler == "transformers":
        return LiveSampler(policy)
    if group.size > 1:
        raise FactoryError(
            "a vLLM samples for a training in one process", todo="take sampler: transformers, or one process"
        )
    sampler = VllmLive(policy, model_files(work.start).base, spec)
    stack.callback(sampler.close)
    return sampler


def _rewards(work: OnlineWork, policy: Policy, store: Store | None, stack: ExitStack) -> JudgeRewards:
    """The judges at work in the store."""
    told = work.rewards
    held = store or stack.enter_context(Store.open(work.store))
    tokenizer, ends = policy.tokenizer, set(end_tokens(causal_model(policy.model), policy.tokenizer))
    return JudgeRewards(
        Place(held, work.run, work.round, work.mark, work.start),
        told.build(stack, torch.get_num_threads()),
        [part.weight for part in told.parts],
        work.asked,
        text=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        ended=lambda ids: bool(ids) and ids[-1] in ends,
        seed=work.config.seed,
        canary_share=told.canary_share,
        retry_failed=told.retry_failed,
        budget=told.budget(),
    )


# ------------------------------------------------------------------------------------------------------- samplers


class LiveSampler:
    """Answers from the policy in training."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        model = causal_model(policy.model)
        self.ends = end_tokens(model, policy.tokenizer)
        self.context = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)
        self.decoder = Decoder(model, self.ends, min(self.ends))

    def __call__(self, prompts: Sequence[Ids], seeds: Sequence[int], spec: OnlineSpec) -> list[Ids]:
        """One answer for each prompt; equal prompts are read once."""
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            with self.policy.precision():
                return self._answers(prompts, seeds, spec)
        finally:
            self.policy.model.train(training)

    def _answers(self, prompts: Sequence[Ids], seeds: Sequence[int], spec: OnlineSpec) -> list[Ids]:
        places = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        rows = [
            Row(places[prompt], max(1, min(spec.max_tokens, self.context - len(prompt))), seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        start = self.decoder.prefill([list(prompt) for prompt in places])
        sampling = Sampling(spec.temperature, spec.top_p, 0, spec.max_tokens)
        for _ in self.decoder.decode(start, rows, sampling):
            pass
        return [tuple(row.ids) for row in rows]


class VllmLive:
    """Answers from a vLLM in this process that is given the weights before it samples: the adapter, through a folder in
    memory where there is one, or all that learns, from tensor to tensor."""

    def __init__(self, policy: Policy, base: str, spec: OnlineSpec) -> None:
        from factory.engines.vllm_sampler import VllmSampler

        self.policy = policy
        rank = _rank(policy) if policy.has_adapter else None
        options: dict[str, Any] = dict(spec.sampler_options)
        known = [name for name in inspect.signature(VllmSampler).parameters if name not in ("base", "rank", "dtype")]
        wrong = [unknown_name("option of a vllm sampler", name, known).what for name in options if name not in known]
        if wrong:
            raise ConfigError(wrong, where="online.sampler_options")
        self.engine: VllmSampler = VllmSampler(base, rank=rank, dtype=cast(Any, policy.dtype), **options)
        self.ends = end_tokens(causal_model(policy.model), policy.tokenizer)

    def __call__(self, prompts: Sequence[Ids], seeds: Sequence[int], spec: OnlineSpec) -> list[Ids]:
        """One answer for each prompt, with the weights as they are now."""
        self._hand_over()
        sampling = Sampling(spec.temperature, spec.top_p, 0, spec.max_tokens)
        found = self.engine.sample(prompts, seeds, sampling, self.ends)
        return [answer.ids for answer in found]

    def close(self) -> None:
        """End the vLLM."""
        self.engine.close()

    def _hand_over(self) -> None:
        if not self.policy.has_adapter:
            self.engine.take_weights(
                (name, p.detach()) for name, p in causal_model(self.policy.model).named_parameters()
            )
            return
        with tempfile.TemporaryDirectory(prefix="factory-adapter-", dir=_in_memory()) as folder:
            model: Any = self.policy.model
            model.save_pretrained(folder, save_embedding_layers=False)
            self.engine.take_adapter(folder)


def _rank(policy: Policy) -> int:
    """The highest rank of the policy's adapter."""
    found: Any = policy.model
    config = found.peft_config[found.active_adapter]
    return max(int(rank) for rank in (config.r, *(config.rank_pattern or {}).values()))


def _in_memory() -> str | None:
    """A folder whose files lie in memory; None: the system's own for temporary files."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    return str(shared) if shared.is_dir() else None


# --------------------------------------------------------------------------------------------------------- models


class LiveModels:
    """The policy, its reference and BOND's anchor. `weights`: what learns of the policy. `live`: where training holds
    it, if that is not the policy itself; `refresh` then takes it over. `critic`: the value head, if there is one."""

    def __init__(
        self,
        policy: Policy,
        weights: Mapping[str, nn.Parameter],
        reference: Callable[[], AbstractContextManager[Any]],
        anchor: Mapping[str, Tensor] | None = None,
        live: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.policy, self.weights, self._reference = policy, weights, reference
        self.kept_anchor = dict(anchor) if anchor is not None else None
        self.live = live
        self.critic: nn.Module | None = None
        self._trained_critic: nn.Module | None = None
        self._asked: nn.Module = policy.model

    def follow_critic(self, critic: nn.Module | None) -> None:
        """Score values by this head in training, or by a copy of it where training holds shards."""
        self.critic = critic
        if critic is not None and self.live is not None:
            self._trained_critic = critic
            self.critic = nn.Linear(int(critic.in_features), 1, device=self.policy.device)  # type: ignore[arg-type]

    @torch.no_grad()
    def refresh(self) -> None:
        """Gather what learns from all processes, where training holds shards of it."""
        if self.live is None:
            return
        for name, parameter in self.weights.items():
            parameter.copy_(whole(self.live[name].detach()))
        if self._trained_critic is not None and self.critic is not None:
            for own, trained in zip(self.critic.parameters(), self._trained_critic.parameters(), strict=True):
                own.copy_(whole(trained.detach()))

    @torch.no_grad()
    def score(self, groups: Sequence[Group], *, critic: bool = False) -> list[TokenScores]:
        """Token by token, of every completion."""
        model = self._asked
        training = model.training
        model.eval()
        try:
            with self.policy.precision():
                found = forward_for(model, groups).token_logps(groups, critic=self.critic if critic else None)
        finally:
            model.train(training)
        sizes = found.lengths.tolist()
        worth = [None] * len(sizes) if found.worth is None else torch.split(found.worth, sizes)
        return [
            TokenScores(logps.cpu(), None if values is None else values.cpu())
            for logps, values in zip(torch.split(found.values, sizes), worth, strict=True)
        ]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The reference answers `score`."""
        with self._reference() as model:
            self._asked = model
            try:
                yield
            finally:
                self._asked = self.policy.model

    @contextmanager
    def anchor(self) -> Iterator[None]:
        """The anchor's weights are in the policy's place."""
        if self.kept_anchor is None:
            self.kept_anchor = {name: p.detach().clone() for name, p in self.weights.items()}
        with _exchanged(self.weights, self.kept_anchor):
            yield

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """The anchor goes `rate` of the way to the policy (2407.14622, section 5.3)."""
        if self.kept_anchor is not None:
            for name, parameter in self.weights.items():
                self.kept_anchor[name].lerp_(parameter.detach(), rate)

    def state(self) -> dict[str, Tensor]:
        """The anchor's weights, where there is one."""
        return {} if self.kept_anchor is None else {name: t.cpu() for name, t in self.kept_anchor.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The anchor's weights as `state` gave them."""
        if state:
            self.kept_anchor = {name: state[name].to(p.device) for name, p in self.weights.items()}


@contextmanager
def _exchanged(weights: Mapping[str, nn.Parameter], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in the parameters, and the old ones back afterwards."""
    own = {name: p.detach().clone() for name, p in weights.items()}
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(others[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(own[name])
