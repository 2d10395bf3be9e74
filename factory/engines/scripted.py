"""A first-class fake: answers from rules or, without one that fits, made-up text that depends on the request alone.

It is for tests, for the docs, and for trying a recipe before paying for it. Rules come from Python or a YAML file:

    - match: capital of (\\w+)         # a regular expression, searched in the last user message
      reply: [It is \\1 City., I do not know.]   # a list: one is drawn by seed and sample
    - match: poison
      fail: refused                   # with passing: true and times: 2, the first two tries of each answer fail
    - asks: true                      # only requests that want the log-probs of answers
      answer_logprobs: {A: -0.1, B: -2.4}
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from factory.engines import nothing_held
from factory.faults import ConfigError, EndpointError, FactoryError
from factory.schema import Completion, Failure, Have, Identity, Request, digest, seed_of, text_of

Reply = Callable[[Request, int], str]
BURST = 256

_OPENINGS = ("Here is what I know", "In short", "Let me think", "A good question", "That depends", "To begin with")
_SUBJECTS = ("the river", "the old map", "a quiet machine", "the market", "glass", "bread", "a good answer", "the moon")
_VERBS = ("shows", "needs", "carries", "changes", "follows", "keeps", "explains", "begins with")
_OBJECTS = ("a long history", "three plain facts", "the light", "more care", "its own rules", "time", "a simple list")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What to say to the requests that it fits.

    match: a regular expression, or a predicate on the request; where: in which text it is searched. asks: None for any
    request, True for those that want `answers`, False for the others. reply: a text (\\1 and so on stand for the
    match's groups), several to draw from, or a function of request and sample. answer_logprobs: nats, for wanted
    answers. fail: kind of failure; abort: the engine stops as one without an endpoint does. times: it applies to the
    first so many tries of each answer (None: always). latency: seconds of waiting.
    """

    match: str | Callable[[Request], bool] = ""
    where: Literal["last", "all"] = "last"
    asks: bool | None = None
    reply: str | tuple[str, ...] | Reply | None = None
    answer_logprobs: Mapping[str, float] | None = None
    fail: str | None = None
    passing: bool = False
    abort: bool = False
    times: int | None = None
    latency: float = 0.0

    def fits(self, request: Request) -> re.Match[str] | bool:
        """The match, true or false."""
        if self.asks is not None and self.asks != bool(request.answers):
            return False
        if callable(self.match):
            return self.match(request)
        text = text_of(request.messages) if self.where == "all" else _last_user(request)
        return re.search(self.match, text) or False


class _RuleModel(BaseModel):
    """A rule as a YAML file may state it."""

    model_config = ConfigDict(extra="forbid")
    match: str = ""
    where: Literal["last", "all"] = "last"
    asks: bool | None = None
    reply: str | tuple[str, ...] | None = None
    answer_logprobs: dict[str, float] | None = None
    fail: str | None = None
    passing: bool = False
    abort: bool = False
    times: int | None = None
    latency: float = 0.0


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Rules from a YAML file: a list, read in order, the first that fits counts. ConfigError names every fault."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FactoryError(f"the rules cannot be read: {error}", where=str(path)) from error
    try:
        models = TypeAdapter(list[_RuleModel]).validate_python(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(faults, where=str(path)) from error
    return tuple(Rule(**model.model_dump()) for model in models)


class ScriptedEngine:
    """Answers by rules; the same request, seed and sample always get the same answer.

    model: a name (it is part of the identity, so two names are two models), or a YAML file of rules. rules: taken
    before those of the file.
    """

    def __init__(self, model: str = "scripted", *, rules: Sequence[Rule] = ()) -> None:
        from_file = load_rules(Path(model)) if model.endswith((".yaml", ".yml")) else ()
        self.rules = (*rules, *from_file)
        for number, rule in enumerate(self.rules):
            _check(rule, f"{model}, rule {number + 1}")
        name = model if not from_file else Path(model).stem
        self._identity = Identity("scripted", name, digest("scripted", name, [_facts(rule) for rule in self.rules]))
        self._tries: Counter[tuple[int, str, int]] = Counter()
        self.asked = 0

    @property
    def identity(self) -> Identity:
        """Kind, name, and a hash of name and rules."""
        return self._identity

    def render(self, request: Request) -> str:
        """The conversation as text, `prefix` said."""
        tools = [f"tools: {digest(request.tools)}\n"] if request.tools else []
        return f"{''.join(tools)}{text_of(request.messages)}\nassistant: {request.prefix}"

    def close(self) -> None:
        """Nothing to free."""

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        """See `Engine.generate`. `asked` counts the answers made."""
        for request in requests:
            for sample in range(request.n):
                if not have(request, sample):
                    self.asked += 1
                    yield self._answer(request, sample)

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        """`generate`, up to 256 at a time; what was answered before an end comes before it."""
        burst: list[Completion] = []
        ended: FactoryError | None = None
        try:
            for completion in self.generate(requests, have):
                burst.append(completion)
                if len(burst) == BURST or completion.latency:
                    yield burst
                    burst = []
        except FactoryError as fault:
            ended = fault
        if burst:
            yield burst
        if ended is not None:
            raise ended

    def _answer(self, request: Request, sample: int) -> Completion:
        rendered = self.render(request)
        rule, match = self._rule(request, rendered, sample)
        if rule.latency:
            time.sleep(rule.latency)
        if rule.abort:
            raise EndpointError("the scripted engine was told to stop", where=rendered[:80])
        if rule.fail is not None:
            failure = Failure(rule.fail, "scripted", rule.passing)
            return Completion(request, sample, latency=rule.latency, failure=failure)
        greedy = request.sampling.temperature == 0
        seed = seed_of(rendered) if greedy else seed_of(request.seed, sample, rendered)
        logprobs = _answer_logprobs(request, rule, rendered)
        text = _reply(rule, match, request, sample, seed)
        if text is None:
            text = _drawn(logprobs, seed) if logprobs else made_up(rendered, seed)
        return _completion(request, sample, text, logprobs, seed, rule.latency)

    def _rule(self, request: Request, rendered: str, sample: int) -> tuple[Rule, re.Match[str] | bool]:
        """The first rule that fits and is not used up for this answer."""
        for number, rule in enumerate(self.rules):
            if not (match := rule.fits(request)):
                continue
            self._tries[number, rendered, sample] += 1
            if rule.times is None or self._tries[number, rendered, sample] <= rule.times:
                return rule, match
        return Rule(), True


def made_up(rendered: str, seed: int) -> str:
    """One to five sentences drawn by the seed; now and then a list, capitals, or words of the request."""

    def pick(kind: str, choices: Sequence[str]) -> str:
        return choices[seed_of(kind, seed) % len(choices)]

    sentences = []
    for number in range(1 + seed_of("length", seed) % 5):
        words = (pick(f"{part}{number}", choices) for part, choices in enumerate((_SUBJECTS, _VERBS, _OBJECTS)))
        sentences.append(" ".join(words).capitalize() + ".")
    form = seed_of("form", seed) % 8
    if form == 0:
        return "\n".join(f"- {sentence}" for sentence in sentences)
    if form == 1:
        return " ".join(sentences).upper()
    if form == 2:
        return f"{pick('opening', _OPENINGS)}: {pick('echo', rendered.split() or ['nothing'])}. {' '.join(sentences)}"
    return " ".join(sentences)


def _reply(rule: Rule, match: re.Match[str] | bool, request: Request, sample: int, seed: int) -> str | None:
    if callable(rule.reply):
        return rule.reply(request, sample)
    text = rule.reply[seed % len(rule.reply)] if isinstance(rule.reply, tuple) else rule.reply
    if text is not None and isinstance(match, re.Match) and match.re.groups:
        return match.expand(text)
    return text


def _answer_logprobs(request: Request, rule: Rule, rendered: str) -> dict[str, float] | None:
    """The rule's, or made-up ones that leave 2% for other tokens; they depend on the request, not on the sample."""
    if not request.answers:
        return None
    if rule.answer_logprobs is not None:
        return {answer: rule.answer_logprobs[answer] for answer in request.answers if answer in rule.answer_logprobs}
    weights = [math.exp(seed_of(rendered, answer) % 4000 / 1000) for answer in request.answers]
    return {a: math.log(0.98 * w / sum(weights)) for a, w in zip(request.answers, weights, strict=True)}


def _drawn(logprobs: Mapping[str, float], seed: int) -> str:
    """An answer drawn in proportion to its probability."""
    point = (seed % 10**6) / 10**6 * sum(map(math.exp, logprobs.values()))
    for answer, logprob in logprobs.items():
        point -= math.exp(logprob)
        if point < 0:
            return answer
    return list(logprobs)[-1]


def _completion(
    request: Request, sample: int, text: str, logprobs: Mapping[str, float] | None, seed: int, latency: float
) -> Completion:
    """A word is a token; the text ends at a stop string, or after max_tokens words."""
    cuts = [at for stop in request.sampling.stop if (at := text.find(stop)) >= 0]
    text = text[: min(cuts)] if cuts else text
    words = re.findall(r"\s*\S+", text)
    limit = request.sampling.max_tokens
    cut = len(words) >= limit
    tokens = limit if cut else len(words) + 1  # one for the end
    return Completion(
        request,
        sample,
        text="".join(words[:limit]) if cut else text,
        finish_reason="length" if cut else "stop",
        prompt_tokens=len(text_of(request.messages).split()),
        completion_tokens=tokens,
        logprob=-tokens * (0.5 + seed % 1000 / 500),
        answer_logprobs=logprobs,
        cost=0.0,
        latency=latency,
    )


def _last_user(request: Request) -> str:
    return next((m["content"] for m in reversed(request.messages) if m["role"] == "user"), "")


def _facts(rule: Rule) -> list[Any]:
    """A rule as data for the identity; a function counts by its name."""

    def plain(value: Any) -> Any:
        return f"{value.__module__}.{value.__qualname__}" if callable(value) else value

    return [plain(rule.match), rule.where, rule.asks, plain(rule.reply), rule.answer_logprobs, rule.fail, rule.passing,
            rule.abort, rule.times]  # fmt: skip


def _check(rule: Rule, where: str) -> None:
    if isinstance(rule.match, str):
        try:
            re.compile(rule.match)
        except re.error as error:
            raise FactoryError(f"match is no regular expression: {error}", where=where) from error
    if rule.reply == ():
        raise FactoryError("reply is an empty list", where=where)
