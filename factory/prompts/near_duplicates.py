"""Clusters of near-duplicate texts: MinHash over word trigrams with banded look-up (Broder 1997), in numpy.

Two texts are near when about six tenths of their distinct word trigrams are common (Jaccard); a cluster is what is
connected by such pairs. `nearest` looks texts up in another set the same way. Deterministic, and about linear in the
number of texts: in a bucket each text is compared with the first and with the one before it, not with all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from factory.constraints.answer import clean, find_words

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

SHINGLE: Final = 3  # words
THRESHOLD: Final = 0.6  # Jaccard
PERMUTATIONS: Final = 128
BANDS: Final = 32  # of 4 rows: a pair at Jaccard 0.6 shares a bucket with probability 1 - (1 - 0.6^4)^32 = 0.99
WORDS_READ: Final = 4000
IN_BUCKET: Final = 64  # texts of another set that one text is compared with in each bucket
_CHUNK: Final = 8192  # texts or pairs worked on at a time


def clusters(texts: Sequence[str]) -> list[int]:
    """For each text the index of the first text of its cluster (its own when it stands alone)."""
    if not texts:
        return []
    first, second = _near_pairs(signatures(texts))
    return [int(label) for label in _components(len(texts), first, second)]


class Near(NamedTuple):
    """The text of another set that is nearest: its place there, and the Jaccard similarity of the two as estimated."""

    place: int
    similarity: float


def nearest(texts: Sequence[str], others: Sequence[str], *, threshold: float = THRESHOLD) -> list[Near | None]:
    """For each text the most similar of `others` (the first of several as similar) where it reaches `threshold`.

    One at the threshold of 0.6 is found with probability 0.99, at 0.5 with 0.87; of a bucket the first IN_BUCKET are
    looked at.
    """
    if not texts or not others:
        return [None] * len(texts)
    ours, theirs = signatures(texts), signatures(others)
    near: list[set[int]] = [set() for _ in texts]
    for mine, its in zip(np.split(ours, BANDS, axis=1), np.split(theirs, BANDS, axis=1), strict=True):
        keys = _bucket_keys(its)
        order = np.argsort(keys, kind="stable")
        wanted, held = _bucket_keys(mine), keys[order]
        first, last = np.searchsorted(held, wanted, "left"), np.searchsorted(held, wanted, "right")
        for i in np.flatnonzero(last > first):
            near[i].update(int(j) for j in order[first[i] : min(last[i], first[i] + IN_BUCKET)])
    found: list[Near | None] = []
    for row, candidates in zip(ours, near, strict=True):
        at = sorted(candidates)
        similar = (theirs[at] == row).mean(axis=1) if at else np.empty(0)
        best = int(similar.argmax()) if at else 0
        found.append(Near(at[best], float(similar[best])) if at and similar[best] >= threshold else None)
    return found


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures, (texts, PERMUTATIONS). The share of equal entries estimates the Jaccard similarity."""
    generator = np.random.default_rng(20_111)
    factors = generator.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    offsets = generator.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    known: dict[str, int] = {}
    rows = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for start in range(0, len(texts), _CHUNK):
        shingles, starts = _shingles(texts[start : start + _CHUNK], known)
        for column in range(PERMUTATIONS):
            hashed = (shingles * factors[column] + offsets[column]) >> np.uint64(32)
            rows[start : start + len(starts), column] = np.minimum.reduceat(hashed, starts)
    return rows


def _shingles(texts: Sequence[str], known: dict[str, int]) -> tuple[Hashes, Indices]:
    """The hashes of all texts' word trigrams, one after another, and where each text's begin."""
    words: list[int] = []
    lengths: list[int] = []
    for text in texts:
        found = find_words(clean(text).casefold())[:WORDS_READ] or [text]
        found += [""] * (SHINGLE - len(found))
        words += [known.get(word) or known.setdefault(word, _word_hash(word)) for word in found]
        lengths.append(len(found))
    hashes = np.array(words, dtype=np.uint64)
    ends = np.cumsum(lengths)
    whole = np.ones(len(hashes), dtype=bool)
    for back in range(1, SHINGLE):
        whole[ends - back] = False
    mixed = hashes
    for step in range(1, SHINGLE):
        mixed = _mix(mixed + np.roll(hashes, -step))
    counts = np.array(lengths) - (SHINGLE - 1)
    return mixed[whole], np.concatenate([[0], np.cumsum(counts)[:-1]])


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the input stirs every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _near_pairs(rows: NDArray[np.uint32]) -> tuple[Indices, Indices]:
    """Pairs that share a bucket and agree in at least THRESHOLD of their signatures."""
    coded: Indices = np.empty(0, dtype=np.int64)
    for band in np.split(rows, BANDS, axis=1):
        coded = np.union1d(coded, _bucket_pairs(band))
    first, second = coded // len(rows), coded % len(rows)
    near = np.empty(len(coded), dtype=bool)
    for start in range(0, len(coded), _CHUNK):
        part = slice(start, start + _CHUNK)
        near[part] = (rows[first[part]] == rows[second[part]]).mean(axis=1) >= THRESHOLD
    return first[near], second[near]


def _bucket_pairs(band: NDArray[np.uint32]) -> Indices:
    """Of each bucket, every member with the first and with the one before it; a pair is first * texts + second."""
    keys = _bucket_keys(band)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    follows = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
    places = np.arange(len(order))
    heads = order[np.maximum.accumulate(np.where(follows, 0, places))]
    member = order[follows]
    before = order[places[follows] - 1]
    pairs: Indices = np.unique(np.concatenate([heads[follows] * len(order) + member, before * len(order) + member]))
    return pairs


def _bucket_keys(band: NDArray[np.uint32]) -> Hashes:
    """What texts of one bucket have in common: (texts,)."""
    keys: Hashes = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = _mix(keys + column)
    return keys


def _components(count: int, first: Indices, second: Indices) -> Indices:
    """The smallest index that is connected to each: labels sink along the pairs until none changes."""
    labels: Indices = np.arange(count)
    while True:
        before = labels.copy()
        lowest = np.minimum(labels[first], labels[second])
        np.minimum.at(labels, first, lowest)
        np.minimum.at(labels, second, lowest)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
