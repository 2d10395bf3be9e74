"""What a training is told. Light: pydantic only, so that a recipe can hold one without loading torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from factory.faults import ConfigError

if TYPE_CHECKING:
    from train.losses import Objective


class Strict(BaseModel):
    """Frozen; an unknown key is an error, and so is a yes or no, an infinity or a NaN where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1, and YAML 1.1 reads a bare yes, no, on and off as true or false."""
        wanted = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bool) and not wanted:
            raise ValueError("yes/no (in YAML also on/off) is no value here")
        return value


class LoraSpec(Strict):
    """A low-rank adapter (arXiv 2106.09685)."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is dropped in training."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers that get one: all-linear (all but the head), or names as peft takes them."""


class OnlineSpec(Strict):
    """Training on answers that the policy samples as it learns."""

    steps: int = Field(default=50, ge=1)
    """Batches of samples."""
    prompts: int = Field(default=8, ge=1)
    """Prompts a batch."""
    n: int = Field(default=4, ge=1)
    """Answers a prompt: 2 at least, 1 for ppo, 3 for bond, whose first is the policy's and the others are the
    anchor's."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Of sampling. Log-probs are those of temperature 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of sampling; 1 keeps the whole distribution, which is what the gradients assume."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer."""
    sampler: Literal["transformers", "vllm"] = "transformers"
    """Who decodes: the model in training itself, or a vLLM in this process that is given its weights for each batch."""
    sampler_options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Of a vLLM: gpu_memory_utilization, max_model_len, max_num_seqs, float32_head."""
    updates: int = Field(default=1, ge=1)
    """Optimiser steps on each batch of samples."""
    scale: Literal["deviation", "none"] = "deviation"
    """grpo: are a group's rewards divided by their deviation?"""
    kl_weight: float = Field(default=0.05, ge=0)
    """rloo and ppo: of the KL to the reference in the reward."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """ppo: discount of later rewards."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """ppo: lambda of the advantages, from one step (0) to the whole answer (1)."""
    whiten: bool = True
    """ppo: are the advantages of a batch's tokens centred and scaled? A critic that has not learnt is no baseline."""
    eta: float = Field(default=0.5, ge=0, le=1)
    """bond: share of the backward KL."""
    anchor_weight: float = Field(default=0.0, ge=0)
    """bond: of a further KL to the anchor."""
    anchor_rate: float = Field(default=0.02, ge=0, le=1)
    """bond: how far the anchor's weights move to the policy's after each batch."""


class BestSpec(Strict):
    """Which answers to a prompt are its best, for methods that learn those alone (raft)."""

    min_score: float | None = Field(default=None, ge=0, le=1)
    """Least score of an answer that is taken, 0 to 1 as the labels have it."""
    passing: bool = True
    """Only answers that are labelled desirable are taken."""
    ties: Literal["one", "all", "skip"] = "one"
    """Of several answers that are the best: one by chance, all, or none of them."""


NOT_WHAT = frozenset(("save_every", "threads", "observers"))
"""Settings that do not change what a training is."""


class TrainConfig(Strict):
    """One training: the objective, its parameters, and how the loop runs."""

    method: str = "dpo"
    """Name of the objective: dpo, cdpo, ipo, kto ..."""
    parameters: dict[str, bool | float | str] = Field(default_factory=dict)
    """Of the objective: beta, label_smoothing, f_divergence ..."""
    weighting: Literal["none", "wpo", "wpo_plain"] = "none"
    """wpo: rows weigh by how usual the policy finds their answers (arXiv 2406.11827, eq. 2 and 3), as a weighted mean;
    wpo_plain: the loss is multiplied by that weight, as in the paper and in TRL, so that its scale falls with it."""
    add: dict[str, float] = Field(default_factory=dict)
    """Further terms and their weights. sft: negative log-likelihood of the chosen answer, mean per token."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """At the end of the warm-up. 2e-4 suits a LoRA adapter; a whole model wants about 1e-6."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the data."""
    batch_size: int = Field(default=8, ge=1)
    """Rows a step, whatever fits the memory at once."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that go through the model at once; the gradient does not depend on it. Unset: by device."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up, to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: none."""
    lora: LoraSpec | None = LoraSpec()
    """The adapter; null trains the whole model. One that training begins with learns on as it is."""
    best: BestSpec | None = None
    """raft: which of a prompt's answers are taken; null: one that passed, by chance among equals."""
    online: OnlineSpec | None = None
    """Answers sampled by the policy in training; null: rows of the store. grpo, rloo, ppo and bond need it. epochs,
    batch_size and max_completion_length are of rows of the store: here steps, prompts, n and max_tokens say it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass. auto: bfloat16 where the device is faster with it, else float32. What learns is float32."""
    kl_budget: float | None = Field(default=None, gt=0)
    """Nats an answer from the reference past which a training warns, for those that measure KL: kto, and online methods
    with a reference."""
    max_length: int | None = Field(default=1024, ge=2)
    """Most tokens of prompt and completion together: more is cut from the prompt's start."""
    max_completion_length: int | None = Field(default=None, ge=1)
    """Most tokens of a completion: more is cut from its end."""
    train_on: Literal["answer", "every_turn"] = "answer"
    """every_turn: the assistant's turns before the answer are learnt too (methods on completions, such as sft)."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of the order of the rows, of dropout and of a new adapter."""
    save_every: int = Field(default=20, ge=1)
    """Steps between checkpoints."""
    checkpoint_activations: bool = False
    """Keep a layer's inputs alone and compute the rest again on the way back: less memory, about a third more time."""
    compile: bool = False
    """torch.compile of what in a layer sees each token by itself. Costs seconds at the start, gains little on a CPU."""
    observers: tuple[str, ...] = ()
    """Who else is told of every step: tensorboard, or module:attribute (see train/observers.py)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; unset: as torch has it. A resumed training gives the same bits with the same number only."""

    @field_validator("parameters", "add", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """YAML 1.1 reads 5e-7 as a string."""
        if isinstance(value, dict):
            return {k: _number(v) for k, v in value.items()}
        return value

    @field_validator("add", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, weight in value.items():
                if isinstance(weight, bool):
                    raise ValueError(f"the weight of {name} is a number, not yes/no")
        return value

    @field_validator("add")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if name != "sft":
                raise ValueError(f"no further term named {name!r}. Known: sft")
            if weight <= 0:
                raise ValueError(f"the weight of {name} must be above 0")
        return value

    def check(self) -> None:
        """FactoryError when the method is unknown; ConfigError with every parameter that is not right, with what does
        not go with where its answers come from, and with every setting that it would pass over. Loads torch."""
        from train import losses

        objective = losses.get(self.method)
        faults: list[str] = []
        try:
            objective.check(self.parameters)
        except ConfigError as found:
            faults.extend(found.faults)
        if objective.data == "groups" and self.online is None:
            faults.append(
                f"online: {self.method} trains on answers that the policy samples: set it (online: {{steps: 50, n: 4}})"
            )
        if self.online is not None and objective.data not in ("groups", "pairs"):
            faults.append(f"online: {self.method} trains on {objective.data} of the store: leave it out")
        elif self.online is not None:
            faults.extend(self._online_passed_over(objective.advantage, self.online))
        faults.extend(self._passed_over(objective))
        if faults:
            raise ConfigError(faults, where="settings of the training")

    def _passed_over(self, objective: Objective) -> Iterator[str]:
        """Settings that mean nothing to the method."""
        on = f"{self.method} is on {objective.data}"
        if self.best is not None and objective.takes != "best":
            yield f"best: {self.method} learns all rows; raft learns the best answer to each prompt"
        if self.train_on == "every_turn" and objective.data != "completions":
            yield f"train_on: every_turn is for methods on completions (sft); {on}"
        if objective.data not in ("pairs", "labels", "completions"):
            for name in ("add", "weighting"):
                if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                    yield f"{name}: is for methods on pairs, labels and completions; {on}"
        measures_kl = objective.reference if self.online is not None else "kl" in objective.supplied
        if self.kl_budget is not None and not measures_kl:
            yield f"kl_budget: {self.method} measures no KL as it trains; kto does, and online methods with a reference"

    def _online_passed_over(self, way: str, spec: OnlineSpec) -> Iterator[str]:
        """Settings of an online training that mean nothing to the method, or leave it nothing to learn. `way`: to
        advantages, "" for pairs."""
        from train import advantages

        others = {name for each in advantages.ways.names() for name in advantages.reads(each)} - advantages.reads(way)
        for name in sorted(others):
            if getattr(spec, name) != type(spec).model_fields[name].default:
                yield f"online.{name}: {self.method} does not read it"
        if spec.sampler_options and spec.sampler != "vllm":
            yield "online.sampler_options: are of a vllm sampler (sampler: vllm)"
        if spec.n < advantages.least(way):
            yield f"online.n: {self.method} needs {advantages.least(way)} answers to a prompt or more, not {spec.n}"


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
