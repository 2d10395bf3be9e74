"""The scripted engine: the same request is always answered the same, by the first rule that fits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from factory.engines import EngineSpec, build
from factory.engines.scripted import Rule, ScriptedEngine, load_rules
from factory.faults import ConfigError, EndpointError, FactoryError
from factory.schema import Completion, Request, Sampling


def ask(text: str, **more: object) -> Request:
    return Request([{"role": "system", "content": "be kind"}, {"role": "user", "content": text}], **more)  # type: ignore[arg-type]


def one(engine: ScriptedEngine, request: Request) -> Completion:
    (completion,) = engine.generate([request])
    return completion


def test_without_rules_answers_vary_by_seed_and_sample_and_repeat() -> None:
    def texts(seed: int) -> list[str]:
        return [c.text for c in ScriptedEngine().generate([ask("tea", n=20, seed=seed)])]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)
    assert len(set(texts(0))) > 15
    assert len({len(text) for text in texts(0)}) > 5


def test_greedy_samples_are_alike() -> None:
    completions = ScriptedEngine().generate([ask("tea", n=5, sampling=Sampling(temperature=0))])
    assert len({completion.text for completion in completions}) == 1


def test_the_first_rule_that_fits_answers() -> None:
    rules = [
        Rule(match="kind", reply="never: only the last user turn is searched"),
        Rule(match="kind", where="all", asks=True, reply="A"),
        Rule(match=r"capital of (\w+)", reply=r"\1 City"),
        Rule(match=lambda request: request.seed == 7, reply=lambda request, sample: f"{request.seed}/{sample}"),
        Rule(reply=("yes", "no")),
    ]
    engine = ScriptedEngine(rules=rules)
    assert one(engine, ask("the capital of Peru", answers=("A",))).text == "A"
    assert one(engine, ask("the capital of Peru")).text == "Peru City"
    assert [c.text for c in engine.generate([ask("tea", seed=7, n=2)])] == ["7/0", "7/1"]
    assert {c.text for c in engine.generate([ask("tea", n=30)])} == {"yes", "no"}


def test_a_text_is_cut_at_stop_strings_and_at_max_tokens() -> None:
    engine = ScriptedEngine(rules=[Rule(reply="one two three\nfour")])
    whole = one(engine, ask("x"))
    assert (whole.text, whole.finish_reason, whole.completion_tokens) == ("one two three\nfour", "stop", 5)
    stopped = one(engine, ask("x", sampling=Sampling(stop=("\n",))))
    assert (stopped.text, stopped.finish_reason) == ("one two three", "stop")
    cut = one(engine, ask("x", sampling=Sampling(max_tokens=2)))
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("one two", "length", 2)


def test_wanted_answers_get_log_probabilities() -> None:
    made_up = one(ScriptedEngine(), ask("A or B?", answers=("A", "B")))
    assert made_up.answer_logprobs is not None
    assert sum(map(math.exp, made_up.answer_logprobs.values())) == pytest.approx(0.98)
    assert made_up.text in {"A", "B"}
    ruled = one(
        ScriptedEngine(rules=[Rule(answer_logprobs={"A": -0.1, "C": -3.0})]), ask("A or B?", answers=("A", "B"))
    )
    assert ruled.answer_logprobs == {"A": -0.1}
    assert ruled.text == "A"


def test_a_failure_may_pass_after_some_tries() -> None:
    engine = ScriptedEngine(rules=[Rule(match="tea", fail="timeout", passing=True, times=2), Rule(reply="fine")])
    kinds = [one(engine, ask("tea")).failure for _ in range(3)]
    assert [failure and failure.kind for failure in kinds] == ["timeout", "timeout", None]
    assert all(failure.passing for failure in kinds[:2] if failure)
    assert one(engine, ask("tea", seed=0)).text == "fine"


def test_it_can_stop_as_an_engine_without_an_endpoint_does() -> None:
    with pytest.raises(EndpointError):
        one(ScriptedEngine(rules=[Rule(abort=True)]), ask("tea"))


def test_it_asks_for_what_is_not_held() -> None:
    engine = ScriptedEngine()
    bursts = list(engine.bursts([ask("tea", n=600)], lambda request, sample: sample < 100))
    assert [len(burst) for burst in bursts] == [256, 244]
    assert engine.asked == 500


def test_rules_and_names_are_the_identity() -> None:
    identities = {
        ScriptedEngine().identity,
        ScriptedEngine("other").identity,
        ScriptedEngine(rules=[Rule(reply="a")]).identity,
        ScriptedEngine(rules=[Rule(reply="b")]).identity,
        ScriptedEngine(rules=[Rule(match=one_seed, reply="b")]).identity,
    }
    assert len(identities) == 5
    assert ScriptedEngine(rules=[Rule(reply="a")]).identity in identities


def one_seed(request: Request) -> bool:
    return request.seed == 1


def test_rules_come_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(
        "- match: capital of (\\w+)\n  reply: ['\\1 City', '\\1 Town']\n"
        "- {match: poison, fail: refused}\n- {asks: true, answer_logprobs: {A: -0.1, B: -2.4}}\n"
    )
    engine = build(EngineSpec("scripted", str(path)))
    assert engine.identity.model == "judge"
    answers = {c.text for c in engine.generate([ask("capital of Peru", n=20)])}
    assert answers == {"Peru City", "Peru Town"}
    (refused,) = engine.generate([ask("poison")])
    assert refused.failure is not None
    assert (refused.failure.kind, refused.failure.passing) == ("refused", False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {mach: tea}", "mach"),
        ("match: tea", "list"),
        ("- {times: often}\n- {where: first}", "2 faults"),
    ],
)
def test_a_wrong_file_names_its_faults(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)


def test_a_wrong_expression_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"rule 1"):
        ScriptedEngine(rules=[Rule(match="(")])
    with pytest.raises(FactoryError, match="cannot be read"):
        ScriptedEngine(str(tmp_path / "none.yaml"))
