"""Recipes: YAML files that say how a run goes, read into frozen models that refuse what they do not know.

A recipe is found by name among the bundled ones (pipelines/*.yaml) or by path. Flags override it (`--set a.b=c`).
`stages` lists what a round does, in order: a stage may be left out, or come again under a name and with settings of its
own. Before the rounds the start is evaluated, after each the policy, after all the champion on `final`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from factory import misfits
from factory.faults import ConfigError, FactoryError
from factory.registry import unknown_name
from factory.schema import Sampling
from factory.stopping import StopConfig
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
    """Who judges, when a model does: the policy that sampled this round, the one before it, the start model, or any
    model's name. By default the start model; for self_reward and implicit the policy."""
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
    """Where training begins: the run's start model, or the policy that sampled this round."""
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


PIECEMEAL = "piecemeal"
"""Told to a recipe that is read although it may not agree with itself."""
FRAME = ("prompts", "evaluate", "final")
"""Stages that every run has, around those of its rounds."""


class Recipe(Part):
    """A run, whole."""

    name: str
    about: str = ""
    seed: Annotated[Count, Field(le=2**31 - 1)] = 0
    model: str = "smollm2-135m-instruct"
    """The start policy."""
    engine: EnginePart = Field(default_factory=EnginePart)
    budget: BudgetPart = Field(default_factory=BudgetPart)
    prompts: PromptsPart = Field(default_factory=PromptsPart)
    stages: tuple[Step, ...] = Field(
        default=tuple(Step(stage=s, name=s) for s in ("generate", "label", "pair", "train")), min_length=1
    )
    """What a round does, in order."""
    generate: GeneratePart = Field(default_factory=GeneratePart)
    revise: RevisePart = Field(default_factory=RevisePart)
    panel: tuple[PanelPart, ...] = Field(default=(), validate_default=True)
    label: LabelPart = Field(default_factory=LabelPart)
    collect: CollectPart = Field(default_factory=CollectPart)
    pair: PairPart = Field(default_factory=PairPart)
    train: TrainPart = Field(default_factory=TrainPart)
    evaluate: EvaluatePart = Field(default_factory=EvaluatePart)
    stop: StopConfig = Field(default_factory=StopConfig)
    isolate: Literal["auto", "always", "never"] = "auto"
    """Stages with a model in child processes, so that memory is free before training; auto: when there is a GPU."""

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> Recipe:
        """A recipe agrees with itself; one that is read piece by piece is asked later."""
        if info.context != PIECEMEAL and (faults := list(disagreements(self))):
            raise ValueError("\n".join(faults))
        return self

    def step(self, name: str) -> Step:
        """The step of that name. FactoryError, naming the nearest, when there is none."""
        for step in self.stages:
            if step.name == name:
                return step
        raise unknown_name("stage", name, [step.name for step in self.stages])

    def at(self, step: Step) -> Recipe:
        """The recipe as it is in one step: with the step's own settings, and this step alone."""
        if not step.set:
            return self.model_copy(update={"stages": (step,)})
        data = self._data_at(step)
        bare = {"stage": step.stage, "name": step.name}
        return Recipe.model_validate(data | {"stages": [bare]}, context=PIECEMEAL)

    def _data_at(self, step: Step) -> dict[str, Any]:
        """Plain values of the recipe with the step's own in their places."""
        data = self.model_dump(mode="json", exclude={"stages"})
        for key, value in step.set.items():
            if key.split(".")[0] in ("stages", "stop", "evaluate", "budget", "name", "model"):
                raise FactoryError(f"set: {key} is of the whole run, not of one stage")
            _put(data, key, value, f"set {key!r}")
        return data

    def misfits_at(self, step: Step) -> list[misfits.Misfit]:
        """What is wrong with a step's own settings, each with the key that it would have in the recipe."""
        try:
            self.at(step)
        except ValidationError as error:
            return misfits.found(error, Recipe, self._data_at(step))
        except FactoryError as error:
            return [misfits.Misfit((), error.what)]
        return []

    def steps_of(self, number: int) -> list[Step]:
        """What a round does, in order."""
        return [step for step in self.stages if step.in_round(number)]

    def main(self, stage: str, number: int) -> str | None:
        """The step of that stage which a round is told by: the one of the stage's own name, else the last."""
        names = [step.name for step in self.steps_of(number) if step.stage == stage]
        return stage if stage in names else (names[-1] if names else None)

    @staticmethod
    def member_name(part: PanelPart) -> str:
        """The name a member has in the tables."""
        return part.name or part.judge

    @property
    def lead(self) -> str | None:
        """The judge that decides when combine is lead; None without a panel."""
        return self.pair.lead or (self.member_name(self.panel[0]) if self.panel else None)


# ------------------------------------------------------------------------------------------------------ agreement


def disagreements(recipe: Recipe) -> Iterator[str]:
    """What in a recipe does not go together, as "key: what"; each once."""
    names = [step.name for step in recipe.stages]
    if doubled := sorted({name for name in names if names.count(name) > 1 or name in FRAME}):
        yield f"stages: each needs a name of its own (name: ...): {', '.join(doubled)}"
    steps = [(step, recipe.misfits_at(step)) for step in recipe.stages]
    yield from (f"stages.{step.name}.set: {one.text()}" for step, found in steps for one in found)
    heres = [recipe.at(step) for step, found in steps if not found]
    yield from dict.fromkeys(fault for here in (recipe, *heres) for fault in _panel_faults(here))
    yield from _unheard(heres)


def _panel_faults(here: Recipe) -> Iterator[str]:
    names = [here.member_name(part) for part in here.panel]
    if len(set(names)) != len(names):
        yield f"panel: two members of the panel have the same name: {', '.join(names)}"
    if not names and len(here.stages) == 1 and here.stages[0].stage == "label":
        yield "panel: the stage label needs at least one judge"


def _unheard(heres: Sequence[Recipe]) -> Iterator[str]:
    """The lead of every pairing is heard in some stage."""
    panels = [here.panel for here in heres if here.stages[0].stage == "label"]
    heard = sorted({Recipe.member_name(part) for panel in panels for part in panel})
    leads = {here.pair.lead for here in heres if here.stages[0].stage == "pair"} - {None}
    if panels and (unheard := sorted(str(lead) for lead in leads if lead not in heard)):
        yield f"pair.lead: {unheard[0]!r} is not in the panel ({', '.join(heard)})"


# -------------------------------------------------------------------------------------------------------- reading


class _UniqueKeys(yaml.SafeLoader):
    """safe_load that refuses a key given twice instead of keeping the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice (line {line})")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeys.add_constructor("tag:yaml.org,2002:map", _mapping)


def bundled_recipes() -> dict[str, Path]:
    """Name to file of the recipes that come with the factory."""
    from factory.resources import bundled

    return {path.stem: path for path in sorted(bundled("pipelines").glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe: a path that exists, or a bundled name."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise FactoryError(f"no recipe file {name!r}", todo="give the path of a YAML file, or a bundled name")
    known = bundled_recipes()
    if name not in known:
        raise unknown_name("recipe", name, known)
    return known[name]


class Read(NamedTuple):
    """A recipe as far as it can be read, what is left out of it because it does not fit, and what is wrong."""

    recipe: Recipe | None
    faults: tuple[str, ...]
    left_out: tuple[misfits.Key, ...] = ()

    def stands(self, fault: str) -> bool:
        """Is a fault of `recipe` one of what was written, and not of what was left out?"""
        key = fault.partition(": ")[0]
        return not any(f"{key}.".startswith(f"{misfits.dotted(out)}.") for out in self.left_out)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path, with `a.b=c` overrides. ConfigError lists every fault at once."""
    path = find(name)
    return _sound(examine(text_of(path), where=str(path), overrides=overrides), str(path))


def text_of(path: Path) -> str:
    """What a recipe's file holds."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FactoryError(f"the recipe cannot be read: {error}", where=str(path), todo="save it as UTF-8") from error


def parse(text: str, *, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a YAML text holds. ConfigError lists every fault of its form at once."""
    return _sound(examine(text, where=where, overrides=overrides), where)


MEND = "mend these keys, or override with --set"


def _sound(read: Read, where: str) -> Recipe:
    if read.faults or read.recipe is None:
        raise ConfigError(read.faults, where=where, todo=MEND)
    return read.recipe


STANDINS: Mapping[str, Any] = {"name": "recipe", "judge": "rating"}
"""What takes the place of a key that is lacking, while the rest is looked at."""


def examine(text: str, *, where: str, overrides: Sequence[str] = ()) -> Read:
    """The recipe that a YAML text holds, as far as it holds one, with every fault. FactoryError: it is no mapping, or
    an override cannot be read."""
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError([f"not valid YAML: {error}"], where=where, todo="mend the file") from error
    if not isinstance(data, dict):
        raise ConfigError(
            ["a recipe is a mapping of keys to values"], where=where, todo="see pipelines/quickstart.yaml"
        )
    for override in overrides:
        _override(data, override)
    found: list[misfits.Misfit] = []
    recipe = _as_far_as_it_fits(data, found)
    out = [one.key[:-1] if one.lacking and len(one.key) > 1 else one.key for one in found]
    read = Read(recipe, tuple(dict.fromkeys(one.text() for one in found)), tuple(out))
    if recipe is None:
        return read
    own = [fault for fault in disagreements(recipe) if read.stands(fault) and _is_told_by(fault, out)]
    mended = recipe.model_copy(update={"stages": tuple(_mended(recipe, step) for step in recipe.stages)})
    return read._replace(recipe=mended, faults=(*read.faults, *own))


def _as_far_as_it_fits(data: Any, found: list[misfits.Misfit]) -> Recipe | None:
    """The recipe without what does not fit, which goes into `found`; None where nothing is left."""
    for _ in range(8):
        try:
            return Recipe.model_validate(data, context=PIECEMEAL)
        except ValidationError as error:
            faults = misfits.found(error, Recipe, data)
            found += faults
            data = misfits.without(data, faults, STANDINS)
    return None


BETWEEN: Mapping[str, set[str]] = {"pair.lead": {"panel", "stages", "pair"}, "panel": {"stages"}}
"""Faults between parts, by key, and the parts."""


def _is_told_by(fault: str, out: Sequence[misfits.Key]) -> bool:
    """Can a fault be told, although some parts are left out? Not where one of those is among its own."""
    return not BETWEEN.get(fault.partition(": ")[0], set()) & {str(key[0]) for key in out if key}


def _mended(recipe: Recipe, step: Step) -> Step:
    """The step without those of its own settings that do not fit."""
    keys = [misfits.dotted(one.key) for one in recipe.misfits_at(step)]
    fits = {k: v for k, v in step.set.items() if not any(_meet(k, key) for key in keys)}
    return step.model_copy(update={"set": fits}) if keys else step


def _meet(one: str, other: str) -> bool:
    """Are two dotted keys the same, or one within the other? All are within the empty one."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def dump(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML: what is kept with a run."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(data: dict[str, Any], text: str) -> None:
    """Set one `a.b=c` in place; a number steps into a list."""
    path, sign, raw = text.partition("=")
    if not sign or not path:
        raise FactoryError(
            f"--set {text!r} is not of the form key.key=value", todo="for example --set train.config.epochs=1"
        )
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise FactoryError(f"--set {path}: {raw!r} is not a YAML value", todo="quote the value") from error
    _put(data, path, value, f"--set {text!r}")


def _put(data: dict[str, Any], path: str, value: Any, told: str) -> None:
    """Set the key that a dotted path leads to, in place."""
    *parents, last = path.split(".")
    target: Any = data
    for step in parents:
        target = _step(target, step, told)
    target = _entered(target, last)
    if isinstance(target, list):
        target[_index(target, last, told)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise FactoryError(f"{told}: {'.'.join(parents)} is a single value and has no keys")


def _entered(target: Any, key: str) -> Any:
    """A list of one mapping is as that mapping is for a key that is no place: one judge that rewards may be written
    either way."""
    lone = isinstance(target, list) and len(target) == 1 and isinstance(target[0], dict)
    return target[0] if lone and not key.isdigit() else target


def _step(target: Any, step: str, told: str) -> Any:
    target = _entered(target, step)
    if isinstance(target, list):
        return target[_index(target, step, told)]
    if isinstance(target, dict):
        if target.get(step) is None:
            target[step] = {}
        return target[step]
    raise FactoryError(f"{told}: {step!r} is below a single value")


def _index(target: Sequence[Any], step: str, told: str) -> int:
    if not step.isdigit() or int(step) >= len(target):
        raise FactoryError(f"{told}: {step!r} is not a place in a list of {len(target)}")
    return int(step)
