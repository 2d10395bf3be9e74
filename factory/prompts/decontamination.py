"""Are texts that measure also texts that are trained on? Three tests of prompts against another set of texts.

    factory decontaminate --against FILE|HUB-NAME
    factory prompts add SOURCE --decontaminate FILE|HUB-NAME

- same: the same words, whatever the case, spacing and punctuation;
- n-grams: at least a `share` of the prompt's distinct word n-grams occur in the other set (Brown et al. 2020, arXiv
  2005.14165, appendix C, take n = 13 and any one; prompts are short, and templates share phrases, so that a share of
  shorter ones is asked for);
- near: MinHash estimates a Jaccard similarity of word trigrams of `threshold` or more
  (`factory/prompts/near_duplicates.py`: a few lines of numpy on what grouping needs anyway, so that no dependency is
  taken for it).

The first test that hits is reported. A paraphrase in other words is found by none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from factory.constraints.answer import clean, find_words
from factory.faults import ConfigError
from factory.schema import Messages, Prompt

if TYPE_CHECKING:
    from factory.store import Store

SHOWN: Final = 90  # characters of a text in a report


class Rule(NamedTuple):
    """When a prompt counts as contaminated."""

    n: int = 8
    """Words of an n-gram; a prompt of fewer words is tested whole, by the two other tests."""
    share: float = 0.8
    """Share of its distinct n-grams that must occur in the other set."""
    threshold: float = 0.8
    """Estimated Jaccard similarity of word trigrams with one text of the other set."""

    def checked(self) -> Rule:
        """Itself. ConfigError where it means nothing."""
        faults = [] if self.n >= 2 else [f"n must be 2 or more, not {self.n}"]
        faults += [] if 0 < self.share <= 1 else [f"share must be above 0 and at most 1, not {self.share:g}"]
        if not 0.5 <= self.threshold <= 1:
            faults.append(f"threshold must be from 0.5 (below it near texts are missed) to 1, not {self.threshold:g}")
        if faults:
            raise ConfigError(faults, where="decontamination")
        return self


class Hit(NamedTuple):
    """A prompt that the other set holds: by which test, how much (1 when same, a share, or a similarity), and the text
    that it was found in (of n-grams the one that has most of them)."""

    key: str
    test: str
    value: float
    prompt: str
    found: str


@dataclass(frozen=True, slots=True)
class Contamination:
    """What was tested and what was hit."""

    prompts: int
    texts: int
    rule: Rule
    hits: tuple[Hit, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompts": self.prompts,
            "texts": self.texts,
            "rule": self.rule._asdict(),
            "hits": [hit._asdict() for hit in self.hits],
            "splits": dict(self.splits),
        }

    def text(self) -> str:
        """The report as a person reads it; of many hits the first twenty."""
        n, share, threshold = self.rule
        by = Counter(hit.test for hit in self.hits)
        lines = [
            f"{len(self.hits)} of {self.prompts} prompts are in the {self.texts} texts "
            f"(n = {n}, share {share:g}, threshold {threshold:g})"
        ]
        lines += [f"  {test}: {count}" for test, count in sorted(by.items())]
        lines += [f"  of the split {split}: {count}" for split, count in sorted(self.splits.items())]
        for hit in self.hits[:20]:
            lines += [f"{hit.key}  {hit.test} {hit.value:.2f}", f"    {hit.prompt}", f"    {hit.found}"]
        return "\n".join(lines)


def said(messages: Messages) -> str:
    """What is compared of a prompt: all but the system's turns, which whole data sets share."""
    return "\n".join(str(m["content"] or "") for m in messages if m["role"] != "system")


def find(prompts: Mapping[str, str], texts: Sequence[str], rule: Rule | None = None) -> list[Hit]:
    """The prompts (key -> text) that the texts hold, in the order given. Deterministic; time about linear in both."""
    from factory.prompts.near_duplicates import nearest

    rule = (rule or Rule()).checked()
    same = {_folded(text): i for i, text in reversed(list(enumerate(texts)))}
    grams = _Grams(prompts.values(), texts, rule.n)
    near = nearest(list(prompts.values()), texts, threshold=rule.threshold)
    hits = []
    for (key, text), similar in zip(prompts.items(), near, strict=True):
        share, most = grams.share(text)
        if (at := same.get(_folded(text))) is not None:
            hits.append(_hit(key, "same", 1.0, text, texts[at]))
        elif share >= rule.share:
            hits.append(_hit(key, "n-grams", share, text, texts[most]))
        elif similar is not None:
            hits.append(_hit(key, "near", similar.similarity, text, texts[similar.place]))
    return hits


def _hit(key: str, test: str, value: float, prompt: str, found: str) -> Hit:
    return Hit(key, test, value, _excerpt(prompt), _excerpt(found))


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _folded(text: str) -> str:
    """The words alone; of a text without any, the text."""
    return " ".join(_words(text)) or text.strip()


def _words(text: str) -> list[str]:
    return find_words(clean(text).casefold())


class _Grams:
    """The n-grams of the prompts that a set of texts has, by the text that has each first."""

    def __init__(self, prompts: Iterable[str], texts: Iterable[str], n: int) -> None:
        self.n = n
        wanted = {gram for prompt in prompts for gram in self._of(prompt)}
        self._first: dict[str, int] = {}
        for i, text in enumerate(texts):
            for gram in self._of(text):
                if gram in wanted:
                    self._first.setdefault(gram, i)

    def share(self, text: str) -> tuple[float, int]:
        """The share of the text's distinct n-grams that the set has, and the text that has most of them first."""
        grams = set(self._of(text))
        owners = Counter(self._first[gram] for gram in grams if gram in self._first)
        if not owners:
            return 0.0, 0
        return owners.total() / len(grams), min(owners, key=lambda i: (-owners[i], i))

    def _of(self, text: str) -> Iterator[str]:
        words = _words(text)
        for i in range(len(words) - self.n + 1):
            yield " ".join(words[i : i + self.n])


# ----------------------------------------------------------------------------------------------- prompts of the store


def check(store: Store, texts: Sequence[str], *, split: str | None = None, rule: Rule | None = None) -> Contamination:
    """Which prompts of the store (of one split) the texts hold."""
    rule = (rule or Rule()).checked()
    where = {"split": ["train", "heldout", "final"] if split is None else split}
    prompts = store.rows(Prompt, where)
    hits = find({prompt.key: said(prompt.messages) for prompt in prompts}, texts, rule)
    splits = {prompt.key: prompt.split for prompt in prompts}
    return Contamination(len(prompts), len(texts), rule, tuple(hits), Counter(splits[hit.key] for hit in hits))


def near_trained(held: Sequence[Prompt], trained: Sequence[Prompt], rule: Rule | None = None) -> list[Hit]:
    """The held-out prompts that are near one that may be trained on."""
    return find({prompt.key: said(prompt.messages) for prompt in held}, [said(p.messages) for p in trained], rule)
