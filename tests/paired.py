"""A store with judged answers to pair, and the strategies that ask the judges."""

from __future__ import annotations

from judged import both, candidate_of, pointwise, prompt_of

from factory.pairing import LabelRule, strategies
from factory.store import Store

JUDGED = [name for name in strategies.names() if not strategies.facts(name)["lineage"]]
NO_LABELS = LabelRule(by="none")


def fill(store: Store, long: str = "") -> None:
    """Two prompts: one with scores 1, .5, .5 and a failed answer, one all equal. The answer `long` has 20 letters."""
    one, two = prompt_of("Tell me about rivers."), prompt_of("Tell me about bread.")
    store.append("prompts", [one, two])
    texts = {long: "a long answer indeed"}
    first = [candidate_of(k, texts.get(k), prompt=one) for k in "abc"] + [candidate_of("d", failure="cut", prompt=one)]
    store.append("candidates", [*first, *(candidate_of(k, prompt=two) for k in "ef")])
    scores = {"a": 1.0, "b": 0.5, "c": 0.5, "e": 0.5, "f": 0.5}
    rows = [pointwise("v", k, s, met=s == 1.0) for k, s in scores.items()]
    store.append("judgments", [*rows, *both("x", "a", "b", 0.1, 0.2)])
