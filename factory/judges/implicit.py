"""The implicit reward of a trained policy: what it thinks of an answer, beyond what its reference thinks.

r(x, y) = beta * (log pi(y|x) - log pi_ref(y|x)), up to a term of the prompt alone, which two answers share (DPO,
Rafailov et al., 2305.18290, eq. 5). Differences are log-odds: p_a = sigmoid(r_a - r_b), their eq. 6. Log-probabilities
are those of `train/logps.py`, summed over the answer's tokens, end token included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple

from factory.faults import FactoryError
from factory.judges import options
from factory.judges.scoring import ScoringJudge
from factory.resources import ModelFiles, content_hash, model_files
from factory.schema import Candidate, Prompt, Reading
from train.conversations import RowError
from train.data import Encoded, encode
from train.logps import LogpSum, sequence_logps
from train.policy import DTypeName, Policy, load_policy, resolve_device, resolve_dtype

READER = "1"


class _Models(NamedTuple):
    """Policy and reference in memory. The same object twice: the reference is the policy without its adapter."""

    policy: Policy
    reference: Policy


class ImplicitJudge(ScoringJudge):
    """Scores every answer by the log-ratio of `model` to `reference`, both loaded when first needed until `close`.

    `beta` is that of the policy's training; `length_normalised` divides the log-ratio by the answer's tokens, so that
    long answers do not win by adding up. `dtype` auto is bfloat16 where the device multiplies it.
    """

    def __init__(
        self,
        name: str = "implicit",
        *,
        model: str,
        reference: str,
        beta: float = 0.1,
        length_normalised: bool = False,
        device: str = "auto",
        dtype: DTypeName = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        options.check(
            name,
            {f"beta: must be above 0, not {beta}": math.isfinite(beta) and beta > 0}
            | options.count("batch_tokens", batch_tokens, optional=True),
        )
        self.name = name
        self.model = model
        self.reference = reference
        self.beta = beta
        self.length_normalised = length_normalised
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device, whole=False)
        self._asked_dtype: DTypeName = dtype
        self.batch_tokens = batch_tokens
        self._files = model_files(model), model_files(reference)
        self._loaded: _Models | None = None

    @cached_property
    def hashes(self) -> tuple[str, str]:
        """Content hashes of policy and reference. FactoryError when they are the same model."""
        policy, reference = (content_hash(files, self.dtype) for files in self._files)
        if policy == reference:
            raise FactoryError(
                "policy and reference are the same model: every implicit reward would be 0",
                where=f"{self.model} and {self.reference}", todo="set reference to the model that training began with",
            )  # fmt: skip
        return policy, reference

    @property
    def reader(self) -> str:
        """Another model, reference or beta is another reading: what is held of it is not taken for this one's."""
        policy, reference = self.hashes
        mean = ", mean" if self.length_normalised else ""
        return f"{READER}, {policy[:12]} to {reference[:12]}, beta {self.beta:g}{mean}"

    def read(self, answers: Sequence[tuple[Prompt, Candidate]]) -> list[Reading]:
        """The implicit reward of each answer, or its failure: candidate_failed, unreadable, too_long, no_number."""
        self.hashes  # noqa: B018 - a fault of the models before they are loaded
        models = self._open()
        encoded = [self._encoded(models.policy, prompt, candidate) for prompt, candidate in answers]
        rows = [row for row in encoded if isinstance(row, Encoded)]
        policy = iter(self._logps(models.policy, rows))
        reference = iter(self._reference_logps(models, rows))
        return [self._reading(next(policy), next(reference)) if isinstance(e, Encoded) else e for e in encoded]

    def _open(self) -> _Models:
        if self._loaded is None:
            policy, reference = self._files
            own = self._load(policy)
            shared = reference.adapter is None and policy.adapter is not None and reference.base == policy.base
            self._loaded = _Models(own, own if shared else self._load(reference))
            _same_tokens(self._loaded, f"{self.model} and {self.reference}")
        return self._loaded

    def _load(self, files: ModelFiles) -> Policy:
        return load_policy(files.base, files.adapter, dtype=self._asked_dtype, device=self.device)

    def _encoded(self, policy: Policy, prompt: Prompt, candidate: Candidate) -> Encoded | Reading:
        if candidate.failure:
            return Reading(failure="candidate_failed")
        try:
            row = encode(
                policy.tokenizer,
                prompt.messages,
                candidate.text,
                prompt.tools or (),
                ended=candidate.finish_reason != "length",
            )
        except RowError as fault:
            return Reading(failure="unreadable", detail={"why": str(fault)})
        model: Any = policy.model
        limit = getattr(model.config, "max_position_embeddings", None)
        tokens = len(row.prompt_ids) + len(row.completion_ids)
        if limit is not None and tokens > limit:
            why = f"{tokens} tokens, and the model reads {limit}"
            return Reading(failure="too_long", detail={"why": why})
        return row

    def _logps(self, policy: Policy, rows: Sequence[Encoded]) -> list[LogpSum]:
        with policy.precision():
            return sequence_logps(policy.model, rows, batch_tokens=self.batch_tokens) if rows else []

    def _reference_logps(self, models: _Models, rows: Sequence[Encoded]) -> list[LogpSum]:
        if models.reference is not models.policy:
            return self._logps(models.reference, rows)
        bare: AbstractContextManager[Any] = models.policy.without_adapter()
        with bare:
            return self._logps(models.policy, rows)

    def _reading(self, policy: LogpSum, reference: LogpSum) -> Reading:
        detail: dict[str, Any] = {
            "policy_logp": policy.logp,
            "reference_logp": reference.logp,
            "tokens": policy.tokens,
            "model_hash": self.hashes[0],
            "reference_hash": self.hashes[1],
        }
        score = self.beta * (policy.logp - reference.logp) / (policy.tokens if self.length_normalised else 1)
        if not math.isfinite(score):
            why = f"log-probabilities {policy.logp} and {reference.logp}"
            return Reading(failure="no_number", detail={"why": why})
        return Reading(score=score, detail=detail)


def _same_tokens(models: _Models, where: str) -> None:
    """FactoryError when the two models do not read the same tokens: their log-probabilities cannot be compared."""
    one, other = models.policy.tokenizer, models.reference.tokenizer
    if one is not other and one.get_vocab() != other.get_vocab():
        raise FactoryError(
            "policy and reference have different tokenizers", where=where,
            todo="set reference to the model that training began with",
        )  # fmt: skip
