"""What an online training takes from the factory: a sampler with the live weights, models to score by, and a reward.

The sampler decodes with the very module that is trained (adapter and all): nothing is saved or loaded between steps.
The reference is the policy without its adapter where that is what it began with, else a frozen model of its own; BOND's
anchor is a second set of the trained weights that follows them slowly, put in place for as long as it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from factory.engines.decoding import Decoder, Row
from factory.engines.transformers import end_tokens
from factory.faults import FactoryError
from factory.schema import Candidate, Judgment, Matchup, Prompt, Sampling, digest, now
from train.data import Ids
from train.logps import causal_model, forward_for
from train.online import TokenScores
from train.packing import Group

if TYPE_CHECKING:
    from factory.judges import Judge
    from train.config import OnlineSpec
    from train.policy import Policy


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


class LiveModels:
    """The policy, its reference and BOND's anchor. `critic`: the value head in training, if there is one."""

    def __init__(
        self,
        policy: Policy,
        weights: Mapping[str, nn.Parameter],
        reference: Callable[[], AbstractContextManager[Any]],
        anchor: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.policy, self.weights, self._reference = policy, weights, reference
        self.kept_anchor = dict(anchor) if anchor is not None else None
        self.critic: nn.Module | None = None
        self._asked: nn.Module = policy.model

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


class JudgeReward:
    """Rewards from a judge that votes on single answers: a verifier, a reward model, an implicit reward.

    An answer's reward is its score, as a share of the judge's scale where the scale has ends. An answer without a
    verdict has none (None), which is not 0.
    """

    def __init__(self, judge: Judge, prompts: Mapping[Ids, Prompt], tokenizer: Any, model: str) -> None:
        if judge.kind != "pointwise" or not hasattr(judge, "vote"):
            raise FactoryError(
                f"judge {judge.name!r} does not score single answers by itself",
                todo="an online training takes verifier, reward_model or implicit",
            )
        self.judge, self.prompts, self.tokenizer, self.model = judge, prompts, tokenizer, model

    def __call__(self, answers: Sequence[tuple[Ids, Ids]]) -> list[float | None]:
        """A reward for each (prompt, answer)."""
        shown = [Matchup(self.prompts[prompt], self._candidate(prompt, ids)) for prompt, ids in answers]
        said = {row.candidate_a: row for row in self.judge.vote(shown)}
        return [_reward(said.get(matchup.a.key)) for matchup in shown]

    def _candidate(self, prompt: Ids, ids: Ids) -> Candidate:
        known = self.prompts[prompt]
        return Candidate(
            key=digest("online", prompt, ids),
            run="",
            prompt_key=known.key,
            split=known.split,
            model=self.model,
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            tokens=len(ids),
            at=now(),
        )


def _reward(row: Judgment | None) -> float | None:
    if row is None or row.failure is not None or row.score is None:
        return None
    if row.score_low is None or row.score_high is None:
        return row.score
    return (row.score - row.score_low) / (row.score_high - row.score_low)


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
