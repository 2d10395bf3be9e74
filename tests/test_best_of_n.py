"""Best-of-n against enumeration, against closed forms, and against worlds in which the judge is fooled."""

from __future__ import annotations

import itertools
import json
import math
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from store_rows import candidate, judgment, prompt
from typer.testing import CliRunner

from factory import best_of_n
from factory.best_of_n import Answers, any_of, kl_bound, kl_estimate, kl_levels, load, picks, sizes_of, study
from factory.cli import app
from factory.evaluation.likelihoods import NEUTRAL, Item
from factory.evaluation.measures import Scored
from factory.faults import FactoryError
from factory.store import Store


def enumerated(scores: Sequence[float], n: int) -> list[float]:
    """Of all subsets of n, how often each answer is the best; ties shared."""
    won = [0.0] * len(scores)
    subsets = list(itertools.combinations(range(len(scores)), n))
    for subset in subsets:
        top = max(scores[i] for i in subset)
        best = [i for i in subset if scores[i] == top]
        for i in best:
            won[i] += 1 / len(best) / len(subsets)
    return won


def test_picks_by_hand() -> None:
    """Of 0, 1, 1, 2, pairs: the 2 is in 3 of 6, and is best there; the ones win the 2 pairs with 0 and the one of
    both."""
    assert picks([0, 1, 1, 2], 2) == pytest.approx([0, 1.5 / 6, 1.5 / 6, 3 / 6])
    assert picks([5, 3], 1) == [0.5, 0.5]
    assert picks([5, 3], 2) == [1.0, 0.0]
    for n in (0, 3):
        with pytest.raises(ValueError, match="the best of"):
            picks([5, 3], n)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_picks_are_what_enumeration_gives(scores: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    found = picks(scores, n)
    assert found == pytest.approx(enumerated(scores, n))
    assert math.fsum(found) == pytest.approx(1.0)


def test_the_estimate_is_unbiased() -> None:
    """Quality of best-of-3 by a judge that scores 0, 1 or 2 with chances .5, .3, .2 where the true quality is 4, 1, 3:
    over 4,000 draws of 6 answers the mean is the exact one."""
    chances, quality = [0.5, 0.3, 0.2], [4.0, 1.0, 3.0]
    upto = [0.5**3, 0.8**3, 1.0]
    truth = upto[0] * 4 + (upto[1] - upto[0]) * 1 + (upto[2] - upto[1]) * 3
    rng = random.Random(1)
    means = []
    for _ in range(4000):
        scores = rng.choices(range(3), chances, k=6)
        means.append(sum(w * quality[s] for w, s in zip(picks(scores, 3), scores, strict=True)))
    spread = (sum((m - truth) ** 2 for m in means) / len(means)) ** 0.5
    assert abs(sum(means) / len(means) - truth) < 4 * spread / math.sqrt(len(means))


def test_any_of_is_pass_at_k() -> None:
    """Of 4 answers 1 passes: a pair holds it 3 times of 6."""
    assert any_of(1, 4, 2) == pytest.approx(0.5)
    assert any_of(0, 4, 4) == 0.0
    assert any_of(4, 4, 1) == 1.0
    assert any_of(3, 4, 2) == 1.0


# ---------------------------------------------------------------------------------------------------------------- KL


def exact(masses: Sequence[float], n: int) -> float:
    """KL of best-of-n over outcomes in ascending order of score."""
    below, found = 0.0, 0.0
    for mass in masses:
        best = (below + mass) ** n - below**n
        found += best * math.log(best / mass) if best else 0.0
        below += mass
    return found


def test_kl_bound_by_hand() -> None:
    assert kl_bound(1) == 0.0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)


def test_kl_of_scores_that_tie_is_far_below_the_bound() -> None:
    """Pass or fail, 30% passing: best-of-8 passes with 1 - .7^8 = .942; the KL is 1.01 nats, the bound 1.20 ... and for
    a judge that sees no difference it is 0."""
    scores = [0.0] * 700 + [1.0] * 300
    truth = exact([0.7, 0.3], 8)
    assert kl_levels(scores, 8) == pytest.approx(truth)
    assert truth < 0.85 * kl_bound(8)
    assert kl_estimate(scores, 8) == pytest.approx(truth, abs=0.12)
    assert kl_levels([1.0] * 50, 8) == 0.0
    assert kl_estimate([1.0] * 50, 8) == 0.0


def test_kl_of_scores_that_never_tie_is_the_bound() -> None:
    """By the estimator exactly; by levels from below, and near it while n is small against the answers."""
    scores = list(range(400))
    assert kl_estimate(scores, 8) == pytest.approx(kl_bound(8))
    assert kl_bound(8) - 0.02 < kl_levels(scores, 8) < kl_bound(8)
    assert kl_levels(scores[:8], 8) < kl_bound(8) - 0.03


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(1, 64))
def test_no_kl_is_above_the_bound_or_below_nothing(scores: list[int], n: int) -> None:
    assert 0.0 <= kl_levels(scores, n) <= kl_bound(n) + 1e-9
    if n <= len(scores):
        assert -1e-9 <= kl_estimate(scores, n) <= kl_bound(n) + 1e-9


def test_at_one_answer_nothing_has_moved() -> None:
    assert kl_levels([1, 2, 2], 1) == pytest.approx(0.0)
    assert kl_estimate([1, 2, 2], 1) == pytest.approx(0.0)


# ------------------------------------------------------------------------------------------------------------- studies


def world(prompts: int, n: int, *, fooled: float, seed: int = 0) -> list[Answers]:
    """Answers whose true quality rises with the judge's score up to a point, beyond which it falls by `fooled`."""
    rng = random.Random(seed)
    found = []
    for i in range(prompts):
        scores = [rng.gauss(0, 1) for _ in range(n)]
        true = [s - fooled * max(s - 0.5, 0.0) + rng.gauss(0, 0.3) for s in scores]
        found.append(Answers(str(i), scores, {"true": true}))
    return found


def test_hacking_is_seen_where_it_begins() -> None:
    """Quality falls 3 for each 1 of score above a half: best-of-2 is still better than one, best-of-16 is worse."""
    found = study(world(60, 32, fooled=4.0), judge="proxy")
    score = [size.score.value for size in found.sizes]
    assert score == sorted(score)
    [hacking] = found.hacking
    assert hacking.best_n in (1, 2)
    assert hacking.begins is not None
    assert hacking.best_n < hacking.begins <= 8
    assert hacking.loss is not None
    assert hacking.loss.high < 0
    assert "hacking begins at n =" in found.words()


def test_an_honest_judge_is_not_accused() -> None:
    """40 worlds in which quality only rises: nothing begins in any of them."""
    begun = [study(world(30, 16, fooled=0.0, seed=i), judge="proxy").hacking[0].begins for i in range(40)]
    assert begun == [None] * 40
    assert "no sign of hacking" in study(world(60, 16, fooled=0.0), judge="proxy").words()


def test_noise_alone_is_rarely_taken_for_hacking() -> None:
    """A measure that has nothing to do with the judge: of 60 worlds at most 6 are accused (5% each: more than 8 would
    come once in 300; a best that was picked by chance adds a little)."""
    begun = 0
    for seed in range(60):
        rng = random.Random(seed)
        answers = [
            Answers(str(i), [rng.random() for _ in range(8)], {"noise": [rng.random() for _ in range(8)]})
            for i in range(40)
        ]
        begun += study(answers, judge="proxy", seed=seed).hacking[0].begins is not None
    assert begun <= 6


def test_passes_seen_and_foretold() -> None:
    """Two prompts of 4 answers: one passes half the time, the other never; the judge sees passes. One answer: 1/4. Two:
    1 - C(2,2)/C(4,2) = 5/6 and 0, together 5/12; if alike, 1 - (3/4)^2 = 7/16. A blind judge gains nothing."""
    right = [Answers("p", [1, 1, 0, 0], {}, [True, True, False, False]), Answers("q", [0] * 4, {}, [False] * 4)]
    sizes = study(right, judge="verifier", sizes=[1, 2]).sizes
    assert [size.passed and size.passed.value for size in sizes] == pytest.approx([1 / 4, 5 / 12])
    assert [size.any_passed and size.any_passed.value for size in sizes] == pytest.approx([1 / 4, 5 / 12])
    assert [size.if_alike for size in sizes] == pytest.approx([1 / 4, 7 / 16])
    blind = [Answers("p", [0] * 4, {}, right[0].passed), right[1]]
    assert study(blind, judge="blind", sizes=[4]).sizes[0].passed == pytest.approx((1 / 4, 0.0, 0.5), abs=0.3)
    found = study(right, judge="verifier")
    assert found.without_pass == 0.5
    assert "50% of the prompts have no passing answer" in found.words()


def test_sizes_and_what_is_left_out() -> None:
    assert sizes_of(1) == [1]
    assert sizes_of(12) == [1, 2, 4, 8, 12]
    short = [Answers("p", [1, 2, 3, 4]), Answers("q", [1])]
    found = study(short, judge="j")
    assert (found.prompts, found.answers) == (1, 4)
    assert found.left_out["prompts with fewer than 4 answers"] == 1
    with pytest.raises(FactoryError, match="no prompt has 5 judged answers; the most is 4"):
        study(short, judge="j", sizes=[5])
    with pytest.raises(FactoryError, match="no prompt has 0"):
        study([], judge="j")


def test_the_picture_is_an_image_of_its_own() -> None:
    answers = [Answers(str(i), list(range(4)), {"<b>": [0.5] * 4}, [True] * 4) for i in range(3)]
    found = study(answers, judge="a & b")
    root = ET.fromstring(best_of_n.picture(found))
    assert root.tag.endswith("svg")
    texts = {text for element in root.iter() if (text := element.text)}
    assert "a & b, by which answers are picked" in texts
    assert "<b>, which picks nothing" in texts
    page = best_of_n.page(found)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


# ------------------------------------------------------------------------------------------------------ from the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two prompts with four answers of 1 to 4 words; the judge "likes" the longest. A fifth answer to the first
    failed."""
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("prompts", [prompt(p, split="heldout") for p in range(2)])
        made = [candidate(i, split="heldout", sample=i % 4, text="w " * (i % 4 + 1)) for i in range(8)]
        failed = candidate(9, split="heldout", prompt_key=made[0].prompt_key, sample=4, text="", failure="refused")
        opened.append("candidates", [*made, failed])
        scale = {"score_low": 0.0, "score_high": 1.0}
        opened.append("judgments", [judgment(i, judge="likes", score=i % 4 / 4, **scale) for i in range(8)])
        yield opened


def loaded(store: Store, **options: object) -> tuple[list[Answers], dict[str, int]]:
    wanted: dict[str, object] = {"run": "r", "round": 0, "split": "heldout", "judge": "likes", "independent": ["words"]}
    return load(store, **(wanted | options))  # type: ignore[arg-type]


def test_answers_and_judgments_are_read_from_the_store(store: Store) -> None:
    answers, left_out = loaded(store)
    assert [list(each.scores) for each in answers] == [[0.0, 0.25, 0.5, 0.75]] * 2
    assert [list(each.qualities["words"]) for each in answers] == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert [each.passed for each in answers] == [None, None]
    assert left_out == {"answers that failed": 1, "answers that a judge gave no score": 0}
    assert len(loaded(store, limit=1)[0]) == 1


def test_passes_are_the_verifiers(store: Store) -> None:
    """All met without substance scores 0, and is no pass."""
    said = [
        judgment(20 + i, candidate_a=candidate(i).key, score=float(i % 4 == 3), detail={"all_met": i % 4 > 1})
        for i in range(8)
    ]
    store.append("judgments", said)
    assert [each.passed for each in loaded(store)[0]] == [[False, False, False, True]] * 2


def test_relevance_is_a_model_s(store: Store) -> None:
    class Fake:
        def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
            assert policy == "start"
            return [Scored(-3.0 if item.messages == NEUTRAL else -1.0, len(item.text.split())) for item in items]

    answers, _ = loaded(store, judge="relevance", independent=["likes"], scorer=Fake(), model="start")
    assert list(answers[0].scores) == pytest.approx([2.0, 1.0, 2 / 3, 0.5])
    with pytest.raises(FactoryError, match="relevance needs a model"):
        loaded(store, judge="relevance")


def test_what_cannot_be_studied_is_said(store: Store) -> None:
    with pytest.raises(FactoryError, match="no judge with scores there named 'like'; did you mean 'likes'"):
        loaded(store, judge="like")
    with pytest.raises(FactoryError, match="has no answers to the final prompts"):
        loaded(store, split="final")
    pair = {"kind": "pairwise", "candidate_b": candidate(1).key, "score": None, "verdict": "a", "p_a": 1.0}
    store.append("judgments", [judgment(30, judge="duel", candidate_a=candidate(0).key, **pair)])
    with pytest.raises(FactoryError, match="compares pairs") as fault:
        loaded(store, judge="duel")
    assert "(likes, tokens, words, relevance)" in fault.value.todo


def test_a_judge_that_only_compares_is_not_sent_to_label_again(store: Store) -> None:
    """`factory label --judge pairwise` would give no scores either."""
    with pytest.raises(FactoryError, match="'pairwise' compares pairs") as fault:
        loaded(store, judge="pairwise")
    assert "--judge pairwise" not in fault.value.todo
    assert "factory label --judge rating --run r --split heldout --round 0" in fault.value.todo


def test_answers_that_a_judge_of_the_run_never_saw(store: Store) -> None:
    """Of the round's answers it judged those to other prompts alone."""
    store.append("prompts", [prompt(7, split="train")])
    store.append("candidates", [candidate(70, split="train", prompt_key=prompt(7).key)])
    with pytest.raises(FactoryError, match="'likes' gave none of these 1 answers a score") as fault:
        loaded(store, split="train")
    assert "factory label --judge likes --run r --split train --round 0" in fault.value.todo
    with pytest.raises(FactoryError, match="'rating' gave none of these 8 answers a score"):
        loaded(store, independent=["rating"])


def test_the_command(store: Store, tmp_path: Path) -> None:
    """Picked by length, words rise to 4 at n = 4, and 15/6 of them are expected of one answer."""
    runner, out = CliRunner(), tmp_path / "bon.svg"
    base = ["bon", "--store", str(store.folder), "--judge", "likes", "--run", "r"]
    done = runner.invoke(app, [*base, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [size["n"] for size in said["sizes"]] == [1, 2, 4]
    assert [size["qualities"]["words"][0] for size in said["sizes"]] == pytest.approx([2.5, 20 / 6, 4.0])
    assert said["hacking"][0]["begins"] is None
    assert said["left_out"]["answers that failed"] == 1
    assert ET.fromstring(out.read_text()).tag.endswith("svg")
    assert "KL bound" in runner.invoke(app, [*base, "--n", "2"]).stdout
    listed = runner.invoke(app, [*base, "--n", "1, 4", "--n", "2,4", "--json"])
    assert [size["n"] for size in json.loads(listed.stdout)["sizes"]] == [1, 2, 4]
    for wrong in ("0", "1,,2", "1;2", "-1"):
        refused = runner.invoke(app, [*base, f"--n={wrong}"])
        assert refused.exit_code == 2
        assert "--n 1,2,4,8,16" in refused.stderr
    assert runner.invoke(app, [*base, "--independent", "likes"]).exit_code != 0
    assert runner.invoke(app, [*base, "--out", str(tmp_path / "bon.png")]).exit_code != 0
    other = runner.invoke(app, [*base, "--split", "train"])
    assert other.exit_code == 2
    assert "run 'r' has no candidates of kind 'sample' to prompts in the split 'train'" in other.stderr
    assert "there are: 9 of kind 'sample' in 'heldout'" in other.stderr
    assert "there are: 9 of kind 'sample' in 'heldout'" in runner.invoke(app, [*base[:-2], "--split", "train"]).stderr
    assert "there are: run 'r'" in runner.invoke(app, [*base[:-1], "s"]).stderr
