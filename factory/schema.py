"""The words of the factory as types: what is asked, what comes back, and the rows that are kept.

Every table of the store is one frozen dataclass here; its fields are the columns, their metadata the meaning that
`factory schema` prints. Nothing heavy is imported, so that any module may import this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, NotRequired, TypedDict

# ---------------------------------------------------------------------------------------------------------- keys


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def digest(*parts: Any) -> str:
    """32 hex digits of SHA-256 over the canonical JSON of `parts`: the form of every key in the store."""
    text = _CANONICAL.encode(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from anything that has canonical JSON."""
    return int(digest(*parts)[:16], 16) >> 1


def now() -> datetime:
    """UTC without a zone, to the microsecond: the form of every time in the store."""
    return datetime.now(UTC).replace(tzinfo=None)


# ------------------------------------------------------------------------------------------------- conversations


Json = Any  # a column of this type is kept as JSON text and read back as Python values


class Message(TypedDict):
    """One turn. An assistant's may call tools, as OpenAI's API has it: {"id"?, "type"?, "function": {"name",
    "arguments"}}; the turn of a tool says which call it answers, and perhaps the tool's name."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[Json]]
    tool_call_id: NotRequired[str]


Messages = list[Message]


class Estimate(NamedTuple):
    """A number with its interval (95% unless said otherwise). NaN bounds: too few data for one."""

    value: float
    low: float
    high: float

    @classmethod
    def alone(cls, value: float) -> Estimate:
        """A number without an interval."""
        return cls(float(value), math.nan, math.nan)

    def plain(self) -> list[float | None]:
        """As JSON has it: [value, low, high], null for what is not known."""
        return [None if math.isnan(part) else part for part in self]


# ----------------------------------------------------------------------------------- what an engine is asked for


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_k 0 and top_p 1 keep the whole distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    @property
    def is_tempered(self) -> bool:
        """Are answers drawn from another distribution than the model's own? One cut at its limit or at a stop is drawn
        from it as far as it goes."""
        return self.temperature != 1 or self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model, answered `n` times.

    `answers` are short texts ("A", "B", "1" ...) whose log-probability as the first token of the answer is wanted;
    `json_schema` constrains the text where the engine can. `prefix` is the start of the assistant's turn, already said
    (a judge uses it so that the next token is the verdict). `tag` is the caller's own name for the request (a prompt or
    item key): it is handed back untouched and is no part of the key. `tools`: JSON schemas of functions that the answer
    may call, for the chat template or the endpoint.
    """

    messages: Messages
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    seed: int = 0
    answers: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    prefix: str = ""
    tag: str = ""
    tools: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no usable answer. `passing`: asking again later may help (time-out, 429, 5xx)."""

    kind: str
    detail: str = ""
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a request. `logprob` is the sum over the completion's tokens, end token included, in nats under the
    untempered distribution; `answer_logprobs` holds, for each of the request's `answers` that the engine could see, the
    log-probability that the first token begins it (no entry: below what the engine shows)."""

    request: Request
    sample: int
    text: str = ""
    finish_reason: str = ""  # "stop" | "length" | "" when failed
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprob: float | None = None
    answer_logprobs: Mapping[str, float] | None = None
    cost: float | None = None
    latency: float = 0.0
    failure: Failure | None = None


class Identity(NamedTuple):
    """What makes two engines the same for a key: kind, the name shown, and the content hash of model, adapter,
    quantisation, dtype and chat template (a remote endpoint has only its names)."""

    kind: str
    model: str
    content: str


def call_key(identity: Identity, rendered: str, request: Request, sample: int) -> str:
    """The key of one paid answer. max_tokens is left out on purpose: a longer limit reuses what ended by itself."""
    return _call_key(_asked(identity, rendered, request), sample)


def call_keys(identity: Identity, rendered: str, request: Request) -> list[str]:
    """The keys of all samples of a request, in their order."""
    asked = _asked(identity, rendered, request)
    return [_call_key(asked, sample) for sample in range(request.n)]


def _asked(identity: Identity, rendered: str, request: Request) -> str:
    """Canonical JSON of what is hashed, up to the sample: the start of a list."""
    sampling = request.sampling
    temperature = sampling.temperature
    kept = _hashed_sampling(temperature, sampling.top_p, sampling.top_k, tuple(sampling.stop), repr(temperature))
    rest = _CANONICAL.encode((request.answers, request.json_schema, request.prefix, request.seed))[1:-1]
    return f"{_hashed_identity(identity)},{_CANONICAL.encode(rendered)},{kept},{rest}"


@lru_cache(64)
def _hashed_identity(identity: Identity) -> str:
    return _CANONICAL.encode((identity.kind, identity.content))[:-1]


@lru_cache(256, typed=True)  # 0 and 0.0 are equal, and not the same in JSON; -0.0 differs by how it is written
def _hashed_sampling(temperature: float, top_p: float, top_k: int, stop: tuple[str, ...], written: str) -> str:
    return _CANONICAL.encode({"stop": stop, "temperature": temperature, "top_k": top_k, "top_p": top_p})


def _call_key(asked: str, sample: int) -> str:
    return hashlib.sha256(f"{asked},{sample}]".encode("utf-8", "surrogatepass")).hexdigest()[:32]


Have = Callable[[Request, int], bool]
"""Told (request, sample): is that answer held already?"""


# ------------------------------------------------------------------------------------------- the rows of a store


def column(meaning: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that is a column, with the meaning that `factory schema` prints."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation to be answered. Prompts belong to no run."""

    TABLE: ClassVar[str] = "prompts"
    key: str = column("hash of the messages, and of the tools where there are any")
    messages: Messages = column("the conversation, oldest turn first, ending with the user's, or with a tool's")
    split: str = column(
        "train | heldout (decisions read it) | final (opened once, after the champion is fixed) | judging (what judges "
        "were asked, for a meta-judge)"
    )
    group: str = column("prompts of one group share a split: a column's value, topic and task, or a cluster")
    topic: str | None = column("what it is about, as given", None)
    task: str | None = column("what is to be done, as given", None)
    constraints: Json = column("checkable constraints: JSON list of {kind, ...parameters}", None)
    reference: str | None = column("a reference answer, where there is one", None)
    rubric: Json = column("criteria of its own: JSON list of {text, weight}; a negative weight is a fault's", None)
    source: str = column("the file or hub name it came from", "")
    tools: Json = column("tools that the answer may call: JSON list of their schemas; null: none", None)
    kept: Json = column("columns of its source that --keep named: JSON {column: value}; in SQL: kept->>'column'", None)
    at: datetime = column("when it was added (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One paid answer of a model, written once. Candidates and judgments are readings of calls."""

    TABLE: ClassVar[str] = "calls"
    key: str = column("hash of engine, model content, rendered request, sampling without max_tokens, sample and seed")
    attempt: int = column("1 for the first; a retry is a new row with the same key", 1)
    run: str = column("the run that paid for it")
    round: int = column("the round that paid for it", 0)
    purpose: str = column("generate | judge | critique | revise | evaluate ...")
    engine: str = column("kind of engine: transformers | vllm | openai | scripted")
    model: str = column("name of the model")
    model_hash: str = column("content hash of model, adapter, quantisation, dtype and chat template")
    tag: str = column("what the call was about: prompt key, or the item judged", "")
    messages: Messages = column("the request's messages")
    sampling: Json = column("JSON of the sampling parameters, max_tokens included")
    sample: int = column("index among the request's n samples", 0)
    seed: int = column("seed of the request", 0)
    text: str = column("the raw answer", "")
    finish_reason: str = column("stop | length | empty when failed", "")
    prompt_tokens: int = column(
        "tokens of the rendered prompt and of tries without an answer; of a call for several, its share", 0
    )
    completion_tokens: int = column("tokens of the answer, end token included", 0)
    logprob: float | None = column("sum of the answer's token log-probs, nats, untempered", None)
    answer_logprobs: Json = column("JSON {answer: log-prob of it as the first token} for wanted answers", None)
    cost: float | None = column("US dollars; null when the price is unknown", None)
    latency: float = column("seconds from request to answer", 0.0)
    failure: str | None = column("kind of failure, null when answered", None)
    failure_detail: str | None = column("what went wrong", None)
    passing: bool = column("a failure that may pass: asked again on the next try", False)
    at: datetime = column("when it was answered (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One sampled answer to a prompt (TRL calls it a completion), read from a call."""

    TABLE: ClassVar[str] = "candidates"
    key: str = column("hash of run, round, call key, kind and reader version; of a critique or revision its parent too")
    run: str = column("run")
    round: int = column("round", 0)
    prompt_key: str = column("prompts.key")
    split: str = column("split of its prompt")
    kind: str = column(
        "sample: an answer | draft: an answer made only to be revised | critique: of its parent, an answer | revision: "
        "the answer anew after its parent, a critique | given: brought in from outside | judgment: what a judge wrote "
        "| probe: an answer of the policy as it is (temperature 1), for KL and entropy alone | online: an answer that "
        "a training sampled",
        "sample",
    )
    parent: str | None = column(
        "candidates.key of what it was made from: of a critique the answer (sample, draft or earlier revision), of a "
        "revision the critique; null for other kinds",
        None,
    )
    principle: str | None = column("name of the principle that a critique or revision goes by; null otherwise", None)
    call_key: str | None = column("calls.key; null when it was brought in from outside", None)
    model: str = column("name of the model that wrote it")
    model_hash: str = column("content hash of that model", "")
    sample: int = column("index among the prompt's samples", 0)
    text: str = column("the answer", "")
    finish_reason: str = column("stop | length", "")
    tokens: int = column("tokens, end token included", 0)
    logprob: float | None = column("sum of token log-probs under the model that wrote it, nats, untempered", None)
    failure: str | None = column("kind of failure; null when there is an answer", None)
    reader: str = column("version of the code that read the call", "1")
    at: datetime = column("when it was read (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """What one judge said of one candidate (pointwise) or of two (pairwise). Never dropped, also when it failed."""

    TABLE: ClassVar[str] = "judgments"
    key: str = column("hash of run, round, judge, candidates, order, aspect, call key and reader version")
    run: str = column("run of the candidates")
    round: int = column("round of the candidates", 0)
    judge: str = column("name of the judge in the panel")
    judge_model: str = column("model behind it; empty for programs and people", "")
    kind: str = column("pointwise | pairwise")
    prompt_key: str = column("prompts.key")
    candidate_a: str = column("candidates.key; in canonical order (a < b) when pairwise")
    candidate_b: str | None = column("candidates.key; null when pointwise", None)
    shown_first: str | None = column("a | b: which the judge saw first; null when pointwise", None)
    aspect: str = column("aspect, rubric or principle judged", "")
    verdict: str | None = column("a | b | tie | none, in canonical order; null when pointwise", None)
    p_a: float | None = column("probability that a is the better, canonical order, for this one order of showing", None)
    score: float | None = column("pointwise score on [score_low, score_high]; log-odds where these are null", None)
    score_low: float | None = column("lowest score of the scale; null for a reward, which has no ends", None)
    score_high: float | None = column("highest score of the scale; null for a reward", None)
    detail: Json = column("JSON: what else the judge gives (constraints met, rationale, mass on valid answers)", None)
    canary: bool = column("true when a canary was shown in place of a candidate: no real work", False)
    canary_name: str | None = column("name of that canary; null for real work", None)
    batch: str = column("work put before the judge together, which its canaries vouch for; empty: nothing does", "")
    failure: str | None = column("kind of failure; null when it is a verdict", None)
    call_key: str | None = column("calls.key; null for programs and people", None)
    reader: str = column("version of the code that read the call", "1")
    at: datetime = column("when it was read (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """The triple prompt / chosen / rejected, in TRL's columns."""

    TABLE: ClassVar[str] = "preferences"
    key: str = column("hash of run, round, prompt, chosen, rejected and strategy")
    run: str = column("run")
    round: int = column("round", 0)
    prompt: Messages = column("the conversation")
    chosen: Messages = column("the better answer, one assistant turn")
    rejected: Messages = column("the worse answer, one assistant turn")
    prompt_key: str = column("prompts.key")
    tools: Json = column("tools that the answers may call: JSON list of their schemas; null: none", None)
    chosen_key: str = column("candidates.key of the chosen")
    rejected_key: str = column("candidates.key of the rejected")
    margin: float = column("how much better, in the units of the panel's combined score (0 to 1)")
    agreement: float | None = column("share of the judges with a verdict on this pair that side with it", None)
    judges: int = column("number of judges with a verdict on this pair", 0)
    probability: float | None = column("probability that the chosen is the better, as the judges were combined", None)
    entropy: float | None = column("entropy of the panel's verdict (chosen, rejected or tie), nats", None)
    weight: float = column("weight in training", 1.0)
    flipped: bool = column(
        "turned about on purpose, as label noise: the panel chose the rejected, and margin, agreement and probability "
        "are of its choice",
        False,
    )
    strategy: str = column("pairing strategy, or the name given to the pairing", "")
    source: str = column("factory, or the data set it came from", "factory")
    at: datetime = column("when it was made (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The unpaired form: prompt / completion / label, in TRL's columns."""

    TABLE: ClassVar[str] = "labels"
    key: str = column("hash of run, round, prompt, completion and strategy")
    run: str = column("run")
    round: int = column("round", 0)
    prompt: Messages = column("the conversation")
    completion: Messages = column("the answer, one assistant turn")
    label: bool = column("true = desirable")
    prompt_key: str = column("prompts.key")
    tools: Json = column("tools that the answer may call: JSON list of their schemas; null: none", None)
    candidate_key: str = column("candidates.key")
    score: float | None = column("the panel's combined score (0 to 1)", None)
    weight: float = column("weight in training", 1.0)
    flipped: bool = column("turned about on purpose, as label noise: the panel says the opposite", False)
    strategy: str = column("pairing strategy, or the name given to the pairing", "")
    source: str = column("factory, or the data set it came from", "factory")
    at: datetime = column("when it was made (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logp:
    """A reference log-probability, computed once and kept."""

    TABLE: ClassVar[str] = "logps"
    key: str = column("hash of model content, dtype and token ids")
    model_hash: str = column("content hash of the scoring model")
    dtype: str = column("dtype of the forward pass")
    logprob: float = column("sum over completion tokens, end token included, nats")
    tokens: int = column("completion tokens, end token included")
    by_token: Json = column("JSON list: each token's log-prob, nats; null where only the sum was kept", None)
    at: datetime = column("when it was computed (UTC)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass of the flow, written when the round is done. Round 0 is the start policy's evaluation."""

    TABLE: ClassVar[str] = "rounds"
    key: str = column("hash of run and round")
    run: str = column("run")
    round: int = column("round; 0 is the start")
    policy: str = column("folder or name of the policy that came out")
    champion: bool = column("was it the best so far by held-out evaluation")
    pass_rate: float | None = column("held-out share of answers that meet all their constraints", None)
    pass_low: float | None = column("lower end of its 95% interval", None)
    pass_high: float | None = column("upper end of its 95% interval", None)
    win_rate: float | None = column("held-out win rate against the start policy, ties half", None)
    kl: float | None = column("KL from the start policy, nats a sequence, by sampled log-ratios", None)
    relevance: float | None = column(
        "how much the prompt explains the answer under the start model, nats a token", None
    )
    mean_tokens: float | None = column("mean length of held-out answers in tokens", None)
    preferences: int = column("preferences trained on", 0)
    decision: str = column("go on | stop", "")
    rule: str = column("rule that decided", "")
    reason: str = column("its reason, with numbers", "")
    report: Json = column("JSON: the whole round report", None)
    at: datetime = column("when the round was done (UTC)")


Row = Prompt | Call | Candidate | Judgment | Preference | Label | Logp | Round
TABLES: dict[str, type[Row]] = {
    row.TABLE: row for row in (Prompt, Call, Candidate, Judgment, Preference, Label, Logp, Round)
}


def as_row(row: Row) -> dict[str, Any]:
    """The columns of a row as a plain dict (shallow: messages and JSON values are not copied)."""
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


# ----------------------------------------------------------------------------------------- what a judge is given


@dataclass(frozen=True, slots=True)
class Matchup:
    """What is put before a judge: a prompt with one candidate (pointwise) or two in canonical order (a.key < b.key).

    `canary` names the canary that stands in for candidate `b` (for `a` when pointwise); its text is in the candidate.
    `secret` is the store's: the fence around foreign texts takes its nonce from it.
    """

    prompt: Prompt
    a: Candidate
    b: Candidate | None = None
    canary: str | None = None
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of an LLM judge about a matchup. `labels` maps each valid answer text to what it means: "a", "b",
    "tie" (canonical, whichever was shown first) or the number of a score."""

    matchup: Matchup
    request: Request
    aspect: str = ""
    shown_first: Literal["a", "b"] | None = None
    labels: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge reads from an answer: a verdict, a score, or a failure; never a guess."""

    aspect: str = ""
    verdict: Literal["a", "b", "tie", "none"] | None = None
    p_a: float | None = None
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    detail: Mapping[str, Any] | None = None
    failure: str | None = None


# ---------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the prompts, measured for itself: `by` says how they were cut (constraint, source, prompt words, answer
    tokens), `name` which part it is."""

    by: str
    name: str
    prompts: int
    pass_rate: Estimate | None = None
    win_rate: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as those of a PolicyReport."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slice:
        """The inverse of `to_json`."""
        return cls(**_estimates(data, ("pass_rate", "win_rate")))


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge beside the verifier says of a policy's answers against the baseline's, both orders of showing taken
    together. `independent`: it did not label what the policy was trained on (None: nobody knows who did)."""

    judge: str
    independent: bool | None = None
    win_rate: Estimate | None = None  # ties half, prompts with the same weight
    length_controlled: Estimate | None = None  # what it would be at equal lengths
    comparisons: int = 0
    ties: int = 0
    flips: int = 0  # verdicts that changed with the order of showing
    failures: int = 0  # comparisons without a verdict
    score: Estimate | None = None  # of a pointwise judge: mean share of its scale; of a reward model its mean score

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as those of a PolicyReport."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judged:
        """The inverse of `to_json`."""
        return cls(**_estimates(data, ("win_rate", "length_controlled", "score")))


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What an evaluation says of one policy on one split. Rates and means carry 95% intervals; None: not measured.

    As JSON (`to_json`, kept whole under "report" in a round's report.json): an Estimate is [value, low, high], a
    mapping an object, `slices` and `judged` lists of objects. A report written before a field existed is read with its
    default.
    """

    policy: str
    split: str
    prompts: int
    answers: int
    failures: int
    pass_rate: Estimate | None = None
    score: Estimate | None = None  # mean share of constraints met
    win_rate: Estimate | None = None  # against the baseline, ties half
    baseline: str = ""
    gain: Estimate | None = None  # pass rate minus the baseline's, paired by prompt
    tokens: Estimate | None = None
    words: Estimate | None = None
    relevance: Estimate | None = None  # nats a token
    distinct_2: float | None = None  # distinct word bigrams over all word bigrams
    kl_sequence: Estimate | None = None  # nats
    kl_token: Estimate | None = None  # nats
    scored: int = 0  # answers that KL and relevance were measured on
    by_constraint: Mapping[str, Estimate] = field(default_factory=dict)
    length_controlled: Estimate | None = None  # win_rate as it would be at equal lengths
    kl_on: str = ""  # the answers that KL is measured on: "policy" (as it is), or "tempered": then it is a log-ratio
    kl3_sequence: Estimate | None = None  # the same KL by k3, token by token: nats
    kl3_token: Estimate | None = None  # nats
    entropy: Estimate | None = None  # of the policy's answers, nats a token, on the same answers as KL
    distinct_1: float | None = None  # as distinct_2, of single words
    distinct_3: float | None = None  # and of word trigrams
    self_bleu: float | None = None  # 0 to 1: how much an answer repeats the others
    broken: Mapping[str, Estimate] = field(default_factory=dict)  # shares: empty, loop, copy, degenerate, refuse
    implicit: Mapping[str, Estimate] = field(
        default_factory=dict
    )  # margin, accuracy, chosen, rejected and their shifts
    implicit_pairs: int = 0  # pairs of held-out answers that `implicit` is measured on
    slices: tuple[Slice, ...] = ()
    judged: tuple[Judged, ...] = ()
    win_rate_anytime: Estimate | None = None  # win_rate with bounds that hold at all sizes and all looks together
    gain_anytime: Estimate | None = None  # so for gain
    look: int = 1  # which look at these prompts the two allow for, counted from 1
    independent: bool | None = None  # does anything that measures here not label? None: nobody knows who labelled
    near_trained: int | None = None  # prompts of the split left out, as they are near one that may be trained on

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an Estimate becomes [value, low, high], with null for NaN."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyReport:
        """The inverse of `to_json`."""
        values = _estimates(data, _ESTIMATES)
        for name in ("by_constraint", "broken", "implicit"):
            values[name] = {k: _estimate(v) for k, v in values.get(name, {}).items()}
        values["slices"] = tuple(Slice.from_json(each) for each in values.get("slices", ()))
        values["judged"] = tuple(Judged.from_json(each) for each in values.get("judged", ()))
        return cls(**values)


_ESTIMATES = (
    "pass_rate", "score", "win_rate", "gain", "tokens", "words", "relevance", "kl_sequence", "kl_token",
    "length_controlled", "kl3_sequence", "kl3_token", "entropy", "win_rate_anytime", "gain_anytime",
)  # fmt: skip


def _estimates(data: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values, with those of `names` as estimates again."""
    return {k: _estimate(v) if k in names and v is not None else v for k, v in data.items()}


def _estimate(values: Sequence[float | None]) -> Estimate:
    return Estimate(*(math.nan if v is None else v for v in values))


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.plain()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [each.to_json() for each in value]
    return value


@dataclass(frozen=True, slots=True)
class Decision:
    """What a stopping rule says. `evidence` holds the numbers that it read."""

    stop: bool
    rule: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def text_of(messages: Sequence[Message]) -> str:
    """The conversation as plain text, for search and display (not for a model)."""
    return "\n".join(f"{m['role']}: {' '.join(filter(None, (m['content'], calls_text(m))))}" for m in messages)


def calls_text(turn: Message) -> str:
    """The calls of tools in a turn, as text: name(arguments); empty: there are none."""
    inner = [call.get("function", call) for call in turn.get("tool_calls") or []]
    arguments = [a if isinstance(a := call.get("arguments", {}), str) else _CANONICAL.encode(a) for call in inner]
    return " ".join(f"{call.get('name')}({said})" for call, said in zip(inner, arguments, strict=True))


def unique(keys: Iterable[str]) -> list[str]:
    """The keys in order, without repeats."""
    return list(dict.fromkeys(keys))
