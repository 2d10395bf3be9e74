"""The pieces of a recipe: what each stage is told, each a frozen model that refuses what it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from factory.schema import Sampling
from train.config import TrainConfig


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not yes/no (YAML reads a bare yes, no, on and off as true or false)")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]


class Part(BaseModel):
    """A piece of a recipe: frozen, and unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BudgetPart(Part):
    """What a run may spend in all, its earlier tries included. Reached, it stops at once; what is paid for is kept."""

    max_cost: Annotated[float, BeforeValidator(_no_bool), Field(gt=0)] | None = None
    """US dollars; needs the prices of every endpoint that is asked."""
    max_tokens: Positive | None = None
    """Tokens, read and written."""


class PromptsPart(Part):
    """Where the prompts come from and how they are split."""

    source: str = "verifiable"
    """A bundled set's name, a file, or a hub name; added to the store at the start of the run."""
    group_by: str | None = None
    """Column whose value keeps prompts together in one split; by default topic and task, else near-duplicates."""
    per_round: Positive = 120
    """Prompts of the train split drawn for each round."""


class DecodingPart(Part):
    """How a model writes."""

    temperature: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=5)] = 1.0
    top_p: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    max_tokens: Positive = 256

    def sampling(self) -> Sampling:
        """The engine's form."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens)


class SamplingPart(DecodingPart):
    """How a model samples."""

    n: Positive = 4
    """Answers a prompt."""


class GeneratePart(SamplingPart):
    """The candidates of a round."""

    kind: Literal["sample", "draft"] = "sample"
    """draft: to be revised, not judged."""


class RevisePart(DecodingPart):
    """Critique and revision of the round's answers by a constitution (arXiv 2212.08073, section 3)."""

    temperature: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=5)] = 0.7
    constitution: str = "helpful-honest-harmless"
    principles: tuple[str, ...] = ()
    """Of the constitution, by name; all by default."""
    rounds: Positive = 1
    """Times that each answer is criticised and written anew."""
    examples: Count | None = None
    """Worked examples shown; all of the constitution's by default."""


class EnginePart(Part):
    """An engine by kind, with its own options (device, dtype, threads, base_url ...)."""

    kind: str = "transformers"
    model: str | None = None
    """Model of this engine; by default the policy of the round."""
    count: Positive = 1
    """Processes of this engine, one for each GPU; the work is shared out."""
    options: dict[str, Any] = Field(default_factory=dict)


class PanelPart(Part):
    """One member of the panel."""

    judge: str
    """Registered judge: verifier, pairwise, rating ..."""
    name: str | None = None
    """Name in the tables; the judge's own by default."""
    model: Literal["policy", "previous", "start"] | str | None = None
    """Who judges, when a model does: the policy that sampled this round, the one that its training began with, the
    start model, or any model's name. By default the start model; for self_reward and implicit the policy."""
    engine: EnginePart | None = None
    """Engine of the judge; the recipe's by default."""
    matchups: str = "all"
    """Which pairs it sees: all | against_best | verifier_ties | random:k; with :k at most k of each prompt."""
    prompts: Positive | None = None
    """It sees the candidates of at most so many of the round's prompts: reading is what an LLM judge costs."""
    options: dict[str, Any] = Field(default_factory=dict)


class CandidatesPart(Part):
    """Which candidates a stage works on."""

    split: str = "train"
    """Split of their prompts; `judging` for a judge's own judgments."""
    kind: str = "sample"
    """sample, draft, revision or judgment."""


class LabelPart(CandidatesPart):
    """What the panel sees."""


class CollectPart(Part):
    """A judge's written judgments as candidates of their own, to be meta-judged (arXiv 2407.19594)."""

    judge: str = "self_reward"
    """By its name in the panel."""
    longest: Positive | None = None
    """Leave out judgments of more tokens."""
    questions: Positive | None = None
    """At most so many questions, those whose judgments differ most."""


class PairPart(CandidatesPart):
    """From judgments to preferences and labels. See `factory pair --help` for what each key does."""

    strategy: str = "best_worst"
    combine: str = "lead"
    lead: str | None = None
    """The judge that decides when combine is lead; the first of the panel by default."""
    break_ties: bool = False
    judge_weights: dict[str, Number] | None = None
    judge_families: dict[str, str] | None = None
    """For combine dependent: which judges share a family (a model, a prompt); by default they are found."""
    name: str | None = None
    """Name of the pairing in the tables; by default the strategy."""
    min_margin: Share = 0.0
    max_margin: Share = 1.0
    min_agreement: Share = 0.0
    min_probability: Share = 0.0
    max_entropy: Annotated[float, BeforeValidator(_no_bool), Field(ge=0)] | None = None
    min_score: Share | None = None
    near_duplicates: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)] | None = None
    max_length_ratio: Annotated[float, BeforeValidator(_no_bool), Field(ge=1)] | None = None
    length_balanced: bool = False
    per_prompt: Positive | None = None
    confirm: bool = False
    weights: Literal["none", "margin", "probability", "consistency"] = "none"
    previous: str | None = None
    """The judge that the lead's ranking is compared with when weights is consistency."""
    label_by: Literal["threshold", "quantile", "pairs", "none"] = "threshold"
    threshold: Share = 0.5
    quantiles: tuple[Share, Share] = (0.25, 0.75)
    label_weights: Literal["none", "distance", "balanced"] = "none"
    flip: Share = 0.0
    """Label noise on purpose: about this share of preferences and labels is turned about, drawn by seed."""
    quarantine: bool = True
    """Leave out batches of judgments whose canaries fooled their judge."""

    @property
    def called(self) -> str:
        """What the rows that it makes go by."""
        return self.name or self.strategy

    def trained_on(self, table: str) -> list[str]:
        """What the rows of this pairing are called in a table: preferences or labels (which in stores of an earlier
        version go by the way to label, where the pairing has no name)."""
        return [self.called] if self.name or table == "preferences" else [self.called, self.label_by]


def _listed(value: Any) -> Any:
    """A lone mapping is a list of one."""
    return [value] if isinstance(value, dict) else value


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("a weight is a number other than 0")
    return value


class RewardJudge(PanelPart):
    """One judge that rewards the policy's own answers. `matchups`: of a pairwise one, all or random:k."""

    weight: Annotated[Number, AfterValidator(_not_zero)] = 1.0
    """Of its reward in the sum."""


class TrainPart(Part):
    """What is trained against what."""

    reference: Literal["start", "round"] = "round"
    """The frozen reference: the run's start model, or the policy that this round began with."""
    begin_from: Literal["start", "round"] = "round"
    """Where training begins: the run's start model, or the policy that sampled this round (see `go_on_from`)."""
    all_rounds: bool = False
    """Train on the preferences of all rounds so far, not of this one alone."""
    pairings: tuple[str, ...] | None = None
    """Names of the pairings whose rows are trained on; by default that of `pair`."""
    reward: Annotated[Annotated[tuple[RewardJudge, ...], Field(min_length=1)] | None, BeforeValidator(_listed)] = None
    """The judges that reward the policy's own answers where config.online is set, summed by weight: one, or a list; by
    default the verifier."""
    processes: Positive = 1
    """Processes that train together on this host; on GPUs one each."""
    config: TrainConfig = Field(default_factory=TrainConfig)


class EvaluatePart(SamplingPart):
    """How policies are measured on held-out prompts."""

    n: Positive = 1
    limit: Positive | None = None
    """At most so many prompts of the split (the same ones every round)."""
    score_limit: Positive | None = None
    """KL and relevance on at most so many answers: reading them costs more than writing them."""
    judge: PanelPart | None = None
    """A judge beside the verifier: it compares the policy's answers with the start's."""
    probes: Positive | None = None
    """Where sampling is tempered or cut: KL and entropy are measured on one more answer of temperature 1 to each of so
    many prompts. Without it KL is a log-ratio on the answers that there are."""
    independent: bool = True
    """Does the verifier, or the judge beside it, measure without having labelled? `false` admits that none does, and
    the report says so."""


class Step(Part):
    """One stage of a round; a bare name in a recipe is the stage with the recipe's own settings."""

    stage: Literal["generate", "revise", "label", "collect", "pair", "train"]
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    """What its marks, its policy's folder and its part of the report go by; the stage's own name by default."""
    rounds: Literal["all", "first", "later"] = "all"
    """The rounds that it is done in."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe with the values that they have in this step: {train.config.method: sft, seed: 3}."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"stage": value}
        if isinstance(value, dict) and not value.get("name"):
            value = {**value, "name": value.get("stage", "")}
        return value

    def in_round(self, number: int) -> bool:
        """Is it done in that round (1 is the first)?"""
        return self.rounds == "all" or (self.rounds == "first") == (number == 1)
