"""How likely a policy and the start model find answers: what the distance from the start and relevance are made of.

    answers --ModelScorer--> log-probabilities, kept in `logps` --> Likelihoods, Weighed

Of each answer under the policy, under the start, and under the start after a prompt that asks for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from factory import crash
from factory.evaluation.answers import Baseline, Slot
from factory.evaluation.measures import Scored
from factory.evaluation.policy_health import Weighed
from factory.schema import Candidate, Logp, Messages, Prompt, digest, now

if TYPE_CHECKING:
    from factory.store import Store
    from train.data import Encoded
    from train.policy import Policy

NEUTRAL: Messages = [{"role": "user", "content": "Say something."}]
"""The prompt that an answer's prompt is compared with for relevance: it asks for nothing in particular."""


class Item(NamedTuple):
    """An answer in its context, to be scored. `ended`: the model ended it itself; else it was cut at its limit, and the
    end token is no part of it."""

    messages: Messages
    text: str
    ended: bool = True
    tools: tuple[Any, ...] = ()

    @classmethod
    def of(cls, prompt: Prompt, answer: Candidate) -> Item:
        """A candidate in the context that it was sampled in."""
        return cls(prompt.messages, answer.text, answer.finish_reason != "length", tuple(prompt.tools or ()))


class Scorer(Protocol):
    """Tells how likely a policy finds answers."""

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        """The log-probability of each answer under `policy`, in order."""


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Scores of answers. `clusters`, `policy`, `start` are of those that KL is measured on, in one order (`policy` is
    None for the start policy itself); `about`, `prompted`, `neutral` of those that relevance is measured on."""

    clusters: list[str]
    policy: list[Scored] | None
    start: list[Scored]
    about: list[str]
    prompted: list[Scored]
    neutral: list[Scored]


def likelihoods_of(
    scorer: Scorer, policy: str, start: str, slots: Sequence[Slot], probed: Sequence[Slot] | None
) -> Likelihoods:
    """Each answer under the policy and under the start model, and under the start model after the neutral prompt; of
    the probes, where there are some, what KL needs."""
    about, items = _items(slots)
    clusters, moved = (about, items) if probed is None else _items(probed)
    ours = None if policy == start else scorer.score(policy, moved)
    extra = [] if probed is None else moved
    under_start = scorer.score(start, [*items, *(item._replace(messages=NEUTRAL) for item in items), *extra])
    prompted, neutral = under_start[: len(items)], under_start[len(items) : 2 * len(items)]
    own = prompted if probed is None else under_start[2 * len(items) :]
    return Likelihoods(clusters, ours, own, about, prompted, neutral)


def _items(slots: Sequence[Slot]) -> tuple[list[str], list[Item]]:
    """The answers there are, to be scored, and the keys of their prompts."""
    given = [(slot.prompt, slot.answer) for slot in slots if slot.answer is not None and not slot.answer.failure]
    return [prompt.key for prompt, _ in given], [Item.of(prompt, answer) for prompt, answer in given]


def weighed(scorer: Scorer, policy: str, start: str, baseline: Baseline, keys: Collection[str]) -> list[Weighed]:
    """Of each prompt of `keys` the best and the worst of the baseline's answers, by the verifier, where they differ,
    under the policy and under the start. The same pairs every round: what is looked at is the policy, not its
    answers."""
    pairs = _best_and_worst(baseline, keys)
    if not pairs or policy == start:
        return []
    _, items = _items([slot for pair in pairs for slot in pair])
    ours, before = scorer.score(policy, items), scorer.score(start, items)
    return [
        Weighed(pair[0].prompt.key, ours[2 * i], ours[2 * i + 1], before[2 * i], before[2 * i + 1])
        for i, pair in enumerate(pairs)
    ]


def _best_and_worst(baseline: Baseline, keys: Collection[str]) -> list[tuple[Slot, Slot]]:
    by_prompt: dict[str, list[tuple[float, Slot]]] = {}
    for slot, grade_ in zip(baseline.slots, baseline.graded, strict=True):
        if slot.prompt.key in keys and grade_.score is not None and grade_.failure is None:
            by_prompt.setdefault(slot.prompt.key, []).append((grade_.score, slot))
    found = []
    for graded in by_prompt.values():
        best, worst = max(graded, key=lambda g: g[0]), min(graded, key=lambda g: g[0])
        if best[0] > worst[0]:
            found.append((best[1], worst[1]))
    return found


class ModelScorer:
    """Scores with the models themselves; log-probabilities are kept in the store by model, dtype and token ids.

    The text is tokenised anew, so that answers of any engine can be scored; where it does not spell the tokens that
    were sampled (a character cut in two, an odd split), KL is off by that answer's difference. A model is loaded only
    where something is missing, and a batch that was cut off is scored whole again, so that the numbers come out the
    same. dtype `auto` takes bfloat16 where the device multiplies it.
    """

    def __init__(
        self, store: Store, *, device: str = "auto", dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> None:
        self.store = store
        self.device = device
        self.dtype = dtype

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        """The log-probability of each answer under `policy`, in order; of one without tokens, 0 over 0 tokens."""
        from factory.resources import content_hash, model_files
        from train.policy import load_policy, load_tokenizer, resolve_device, resolve_dtype

        files = model_files(policy)
        device = resolve_device(self.device)
        dtype = resolve_dtype(self.dtype, device, whole=False)
        model_hash = content_hash(files, dtype)
        rows = encoded(load_tokenizer(files.base), items)
        keys = [digest(model_hash, dtype, row.prompt_ids, row.completion_ids, "by token") for row in rows]
        wanted = {key: row for key, row in zip(keys, rows, strict=True) if row.completion_ids}
        missing = set(self.store.missing("logps", wanted))
        if missing:
            loaded = load_policy(files.base, files.adapter, dtype=self.dtype, device=device)
            self._compute(loaded, wanted, missing, model_hash)
        held = {
            row.key: Scored(row.logprob, row.tokens, tuple(row.by_token or ()))
            for row in self.store.rows(Logp, {"key": list(wanted)})
        }
        return [held.get(key, Scored(0.0, 0, ())) for key in keys]

    def _compute(self, loaded: Policy, wanted: Mapping[str, Encoded], missing: set[str], model_hash: str) -> None:
        """Score what is missing and keep each batch as it is done."""
        from train.logps import score

        keys, rows = list(wanted), list(wanted.values())
        with loaded.precision():
            for batch in score(loaded.model, rows, needed=lambda i: keys[i] in missing):
                found = zip(batch.rows, batch.logps, batch.by_token, strict=True)
                kept = [_logp(keys[i], model_hash, loaded.dtype, *sums, each) for i, sums, each in found]
                self.store.append("logps", kept)
                crash.point("evaluate.after_scores")


def _logp(key: str, model_hash: str, dtype: str, logprob: float, tokens: int, by_token: Sequence[float]) -> Logp:
    rounded = [round(value, 6) for value in by_token]
    return Logp(key=key, model_hash=model_hash, dtype=dtype, logprob=logprob, tokens=tokens, by_token=rounded, at=now())


def encoded(tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
    """Answers as token ids. An empty answer is its end token alone; an answer that was cut has none."""
    from train.conversations import end_ids, prompt_ids
    from train.data import Encoded

    end = end_ids(tokenizer)

    def one(item: Item) -> Encoded:
        text = tokenizer(item.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Encoded(prompt_ids(tokenizer, item.messages, item.tools), (*text, *(end if item.ended else ())))

    return [one(item) for item in items]
