"""Rewards from judges of the factory: scores, win rates, weights, what has none, canaries, and what is paid for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory.budget import Budget, BudgetError
from factory.cli import app
from factory.commands.rewarding import rewards as from_options
from factory.engines import EngineSpec
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import ConfigError, FactoryError
from factory.judges.canaries import CANARIES
from factory.labelling import PanelMember
from factory.schema import Call, Candidate, Judgment, Prompt, Request, now
from factory.store import Store
from factory.training.rewards import ENOUGH, JudgeRewards, Place, RewardPart, Rewards
from train.data import Ids
from train.packing import Group

FIRST, SECOND = (1, 1), (2, 2)
WORDS = ("zero", "one", "two", "three", "four", "five")
SCALE = {word: place for place, word in enumerate(WORDS)}
RATINGS = ("1", "2", "3", "4", "5")


def prompt(word: str) -> Prompt:
    messages: Any = [{"role": "user", "content": f"Count {word}."}]
    return Prompt(key=word, messages=messages, split="train", group=word, at=now())


PROMPTS: dict[Ids, Prompt] = {FIRST: prompt("first"), SECOND: prompt("second")}


def shown(request: Request) -> list[int]:
    """The numbers that the fenced answers spell, in the order of showing; an answer without one is -1."""
    text = request.messages[-1]["content"]
    return [SCALE[word] for word in re.findall(r"answer (zero|one|two|three|four|five)\b", text)]


def says(what: Callable[[list[int]], str], *answers: str) -> list[Rule]:
    """Rules by which a judge gives all probability to the answer that `what` makes of the numbers shown."""
    return [Rule(match=lambda r, a=a: what(shown(r)) == a, answer_logprobs={a: 0.0}) for a in answers]  # type: ignore[misc]


def rating_of(found: list[int]) -> str:
    """The number as a rating, at least 1; a canary gets 1."""
    return str(max(1, found[0])) if found else "1"


def fooled(found: list[int]) -> str:
    """Takes whatever is no answer for the best."""
    return "2" if found else "5"


def better(found: list[int]) -> str:
    first, second = found
    return "A" if first > second else "B" if second > first else "C"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("prompts", list(PROMPTS.values()))
        yield opened


def rewarding(store: Store, *members: PanelMember, weights: Sequence[float] = (), **more: Any) -> JudgeRewards:
    return JudgeRewards(
        Place(store, "r", 0, "mark", "start"),
        members,
        weights or [1.0] * len(members),
        PROMPTS,
        text=lambda ids: f"answer {WORDS[ids[0]]}" if ids[0] < len(WORDS) else "nothing",
        ended=lambda ids: ids[-1] == 9,
        **{"canary_share": 0.0} | more,
    )


def rating(what: Callable[[list[int]], str] = rating_of, *before: Rule, name: str = "rating") -> PanelMember:
    return PanelMember.of("rating", name=name, engine=ScriptedEngine(name, rules=[*before, *says(what, *RATINGS)]))


def pairwise() -> PanelMember:
    return PanelMember.of("pairwise", engine=ScriptedEngine(rules=says(better, "A", "B", "C")))


def groups(*numbers: Sequence[int]) -> list[Group]:
    prompts = [FIRST, SECOND, FIRST]
    return [Group(prompts[k], [(n, 9) for n in group]) for k, group in enumerate(numbers)]


# ---------------------------------------------------------------------------------------------------------- values


def test_a_rating_is_a_share_of_its_scale_and_everything_is_kept(store: Store) -> None:
    reward = rewarding(store, rating())
    found = reward(0, groups([1, 3, 5], [2, 4]))
    assert found.rewards == [[0.0, 0.5, 1.0], [0.25, 0.75]]
    assert found.said == {}
    kept = store.rows(Candidate)
    assert sorted((c.prompt_key, c.sample, c.text, c.kind, c.finish_reason) for c in kept) == [
        ("first", 0, "answer one", "online", "stop"),
        ("first", 1, "answer three", "online", "stop"),
        ("first", 2, "answer five", "online", "stop"),
        ("second", 0, "answer two", "online", "stop"),
        ("second", 1, "answer four", "online", "stop"),
    ]
    assert {row.candidate_a for row in store.rows(Judgment)} == {c.key for c in kept}
    assert len(store.rows(Call)) >= 5


def test_a_failed_judgment_is_a_row_and_no_reward(store: Store) -> None:
    """The answer "two" is refused: None, not 0; the others of its group keep theirs."""
    refused = Rule(match="answer two", fail="refused")
    found = rewarding(store, rating(rating_of, refused))(0, groups([1, 2, 5]))
    assert found.rewards == [[0.0, None, 1.0]]
    assert "refused" in {row.failure for row in store.rows(Judgment)}


def test_pairwise_verdicts_are_win_rates_within_the_group(store: Store) -> None:
    """5 beats 3, 3 beats 1: 1, 1/2 and 0. The same answer twice meets itself as a tie. Groups do not meet, also where a
    prompt comes twice."""
    found = rewarding(store, pairwise())(0, groups([5, 3, 1], [4, 4, 0], [0, 1]))
    assert found.rewards == [[1.0, 0.5, 0.0], [0.75, 0.75, 0.0], [0.0, 1.0]]
    pairs = {(row.candidate_a, row.candidate_b) for row in store.rows(Judgment)}
    assert len(pairs) == 3 + 2 + 1


def test_rewards_are_summed_by_weight(store: Store) -> None:
    """Half of the rating, and two of what calls short ones good; the mean of each is told."""
    other = rating(lambda found: "2", name="other")
    found = rewarding(store, rating(), other, weights=(0.5, 2.0))(0, groups([1, 5]))
    assert list(found.rewards[0]) == pytest.approx([0.5, 1.0])
    assert found.said == {"rewards/rating": pytest.approx(0.5), "rewards/other": pytest.approx(0.25)}


def test_an_answer_needs_the_verdict_of_every_judge(store: Store) -> None:
    verifier = PanelMember.of("verifier")  # these prompts have no constraints
    assert rewarding(store, rating(), verifier)(0, groups([1, 5])).rewards == [[None, None]]
    assert {row.failure for row in store.rows(Judgment, {"judge": "verifier"})} == {"no_constraints"}


# --------------------------------------------------------------------------------------------- paid for, and once


def test_what_was_asked_is_not_paid_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = groups([1, 3, 5], [2, 4])
    first = rewarding(store, rating())(0, batch)
    calls = {call.key: call.attempt for call in store.rows(Call)}
    rows = len(store.rows(Judgment)), len(store.rows(Candidate))
    member = rating()
    monkeypatch.setattr(member.engine, "_answer", lambda *_: pytest.fail("asked again"))
    again = rewarding(store, member)(0, batch)  # as after a kill
    assert again == first
    assert {call.key: call.attempt for call in store.rows(Call)} == calls
    assert (len(store.rows(Judgment)), len(store.rows(Candidate))) == rows


def test_a_budget_is_kept(store: Store) -> None:
    reward = rewarding(store, rating(), budget=Budget(max_tokens=1000))
    reward(0, groups([1]))
    with pytest.raises(BudgetError):
        reward(1, groups([2, 3, 4, 5], [1, 2, 3, 4, 5]))
    assert 0 < sum(c.prompt_tokens + c.completion_tokens for c in store.rows(Call)) <= 1000


# -------------------------------------------------------------------------------------------------------- canaries


def test_a_fooled_judge_does_not_reward_and_ends_the_training(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A canary a batch: the first two say nothing yet, from the third on nothing is believed, the tenth is the end."""
    reward = rewarding(store, rating(fooled), canary_share=0.02)
    judged = [reward(place, groups([1, 3], [5, 2])) for place in range(ENOUGH - 1)]
    assert [any(r is not None for g in batch.rewards for r in g) for batch in judged] == [True] * 2 + [False] * 7
    assert reward.state() == {"rating": [ENOUGH - 1, ENOUGH - 1]}
    assert sum("reward nothing" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(FactoryError, match="10 of 10 decided canaries to real answers: it cannot reward"):
        reward(ENOUGH - 1, groups([1, 3], [5, 2]))
    assert {row.canary_name for row in store.rows(Judgment, {"canary": True})} <= set(CANARIES)


def test_a_resumed_training_believes_what_it_believed(store: Store) -> None:
    """What batches after the checkpoint have shown does not count before they come again."""
    reward = rewarding(store, rating(fooled), canary_share=0.02)
    first = [reward(0, groups([1, 3], [5, 2]))]
    kept = reward.state()
    first += [reward(place, groups([1, 3], [5, 2])) for place in (1, 2, 3)]
    again = rewarding(store, rating(fooled), canary_share=0.02)
    again.restore(kept)
    assert [again(place, groups([1, 3], [5, 2])) for place in (1, 2, 3)] == first[1:]


def test_a_sound_judge_rewards_beside_canaries(store: Store) -> None:
    reward = rewarding(store, rating(), canary_share=0.02)
    for place in range(12):
        assert reward(place, groups([2, 3], [5, 2])).rewards == [[0.25, 0.5], [1.0, 0.25]]


# ------------------------------------------------------------------------------------------------------- settings


def test_every_mistake_is_told_at_once() -> None:
    spec = EngineSpec("scripted", "m")
    wrong = Rewards(
        parts=(
            RewardPart(judge="rating"),
            RewardPart(judge="verifier", name="rating", weight=0.0),
            RewardPart(judge="human"),
            RewardPart(judge="meta_judge", engine=spec),
            RewardPart(judge="pairwise", engine=spec, matchups="against_best"),
        )
    )
    with pytest.raises(ConfigError) as caught:
        wrong.check()
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "judges need different names, not rating, rating, human, meta_judge, pairwise",
        "rating",
        "rating",
        "human",
        "meta_judge",
        "pairwise",
    ]
    with pytest.raises(FactoryError, match="did you mean 'verifier'"):
        Rewards(parts=(RewardPart(judge="verifer"),)).check()


def options(*given: str, chosen: Sequence[str] = (), **more: Any) -> Rewards:
    spec = EngineSpec("openai", "start")
    wanted: dict[str, Any] = {"own_model": None, "matchups": "all", "unsafe_exec": False} | more
    return from_options(list(given) or None, list(chosen), spec, **wanted)


def test_the_command_line_names_weighs_and_sets_judges() -> None:
    assert options() == Rewards(parts=(RewardPart(judge="verifier", name="verifier"),))
    parts = options(
        "verifier=1", "rating=0.5", "hard=reward_model=2", chosen=["rating.model=gpt", "hard.label=1"], own_model="m"
    ).parts
    assert [(p.called, p.judge, p.weight) for p in parts] == [
        ("verifier", "verifier", 1.0), ("rating", "rating", 0.5), ("hard", "reward_model", 2.0)
    ]  # fmt: skip
    assert [p.engine and p.engine.model for p in parts] == [None, "gpt", None]
    assert parts[2].options == {"model": "m", "label": 1}
    assert options("strict=verifier", chosen=["least=3"]).parts[0].options == {"least": 3}
    for wrong in (["=verifier"], ["a=b=c=1"], ["rating="], ["rating", "rating=2"]):
        with pytest.raises(FactoryError, match="--reward"):
            options(*wrong)


@pytest.mark.slow
def test_factory_train_takes_weighted_rewards(tiny_model: Path, store: Store) -> None:
    args = [
        "train",
        "--method",
        "grpo",
        "--model",
        str(tiny_model),
        "--store",
        str(store.folder),
        "--run",
        "t",
        "--json",
    ]
    args += [f"--online={s}" for s in ("steps=2", "n=3", "prompts=2", "max_tokens=6")]
    args += ["--reward=rating=0.5", "--reward=other=rating=2", "--reward-engine=scripted", "--set=threads=1"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    rows = store.rows(Judgment, {"run": "t"})
    assert {row.judge for row in rows} == {"rating", "other"}
    assert any(row.canary for row in rows)
