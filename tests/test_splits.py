"""Splits are by the hash of the group: stable, in the wanted shares; near-duplicates are found and little else is."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from factory.faults import ConfigError
from factory.prompts.near_duplicates import clusters, signatures
from factory.prompts.splits import SPLITS, Shares, group_of, most_guarded, split_of

SHARES = Shares(0.2, 0.1)


def test_shares_are_about_right() -> None:
    counts = Counter(split_of(f"group={i}", SHARES) for i in range(10_000))
    assert abs(counts["heldout"] - 2000) < 150
    assert abs(counts["final"] - 1000) < 120


@given(st.text(), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_larger_share_takes_no_group_away(group: str, heldout: float, final: float) -> None:
    before = split_of(group, Shares(heldout, final))
    after = split_of(group, Shares(heldout + 0.1, final))
    assert before in SPLITS
    assert after == before or (before, after) == ("train", "heldout")


def test_golden_splits() -> None:
    """The split of a name must never change between versions: stores outlive them."""
    found = {
        split: "".join(n for n in "abcdefghijklmnop" if split_of(f"group={n}", SHARES) == split) for split in SPLITS
    }
    assert found == {"train": "abcdefjklop", "heldout": "im", "final": "ghn"}


@pytest.mark.parametrize(
    ("shares", "said"), [((0.6, 0.4), "below 1"), ((-0.1, 0.2), "heldout must be"), ((0, 2), "final")]
)
def test_wrong_shares(shares: tuple[float, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Shares(*shares).checked()


def test_group_names() -> None:
    assert group_of("7", "bread", None) == "group=7"
    assert group_of(None, "bread", "explain") == "topic=bread task=explain"
    assert group_of(None, "bread", None) == "topic=bread"
    assert group_of(None, None, None) is None


def test_most_guarded() -> None:
    assert most_guarded(["train", "final", "heldout"]) == "final"
    assert most_guarded(["train", "heldout"]) == "heldout"


# -------------------------------------------------------------------------------------------------- near-duplicates

LONG = "Explain to a friend who has never baked before how sourdough bread rises without any bought yeast at all"


def test_paraphrases_share_a_cluster() -> None:
    texts = [
        LONG,
        "What is the capital of France?",
        LONG.upper() + "!!!",
        "Please " + LONG.replace("friend", "neighbour"),
        "Describe a lighthouse in a storm at night.",
        "\u200b" + LONG.replace(" ", "\u00a0"),
    ]
    assert clusters(texts) == [0, 1, 0, 0, 4, 0]


def test_edges() -> None:
    assert clusters([]) == []
    assert clusters(["", "", "a", "A", "a b", "a b", "☃", "☃☃"]) == [0, 0, 2, 2, 4, 4, 6, 7]
    assert clusters(["\ud800", "\ud800"]) == [0, 0]


def test_signatures_estimate_jaccard() -> None:
    generator = random.Random(3)
    words = [f"w{i}" for i in range(1000)]
    first = generator.choices(words, k=400)
    second = first[:300] + generator.choices(words, k=100)  # 298 of 398 + 100 trigrams are shared: Jaccard 0.6
    rows = signatures([" ".join(first), " ".join(second)])
    assert abs(float((rows[0] == rows[1]).mean()) - 298 / 498) < 0.15


def test_found_among_many() -> None:
    generator = random.Random(4)
    words = [f"w{i}" for i in range(3000)]
    texts = [" ".join(generator.choices(words, k=generator.randint(20, 60))) for _ in range(3000)]
    near = [f"{text} indeed" for text in texts[:200]]
    labels = clusters(texts + near)
    assert labels[:3000] == list(range(3000))
    assert labels[3000:] == list(range(200))


def test_chains_are_one_cluster() -> None:
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(words[i * 4 : i * 4 + 40]) for i in range(80)]  # each shares 34 of 42 trigrams with the next
    assert set(clusters(texts)) == {0}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab cé面", max_size=40), max_size=12))
def test_equal_texts_share_a_cluster_in_any_order(texts: list[str]) -> None:
    labels = clusters(texts)
    assert all(label <= index for index, label in enumerate(labels))
    assert all(labels[label] == label for label in labels)
    first = dict(zip(reversed(texts), reversed(labels), strict=True))
    assert [first[text] for text in texts] == labels
