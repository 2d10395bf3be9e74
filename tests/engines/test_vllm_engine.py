"""vLLM in this process: its samples, its numbers beside the transformers engine's, adapters, refusals, memory.

What needs vLLM runs in an environment that has it (`make vllm`) and is skipped in others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from judged import matchup_of, prompt_of
from taught import ANSWERS, TOPICS, question, teach

from factory.engines import EngineSpec, build, vllm as module, vllm_core, vllm_environment
from factory.engines.transformers import TransformersEngine
from factory.engines.vllm import VllmEngine
from factory.engines.vllm_environment import prepare_environment
from factory.faults import FactoryError
from factory.generation import generate
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.resources import EMBEDDED, ModelFiles
from factory.schema import Call, Completion, Judgment, Prompt, Request, Sampling
from factory.store import Store

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not in this environment")

CONTEXT = 1024
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["A", "B"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


def start(model: Path | str, **options: Any) -> VllmEngine:
    return VllmEngine(str(model), **{"dtype": "float32", "max_model_len": CONTEXT, "threads": 1} | options)


def ask(text: str = question("rivers"), **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def only(completions: Iterator[Completion]) -> Completion:
    (completion,) = completions
    assert completion.failure is None, completion.failure
    return completion


def texts(completions: Iterator[Completion]) -> dict[int, str]:
    return {completion.sample: completion.text for completion in completions}


def adapter_of(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter with random weights in both of its matrices."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    layers = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=layers, init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tiny_model, tmp_path_factory.mktemp("taught"), steps=30)


@pytest.fixture(scope="module")
def adapters(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [adapter_of(taught, folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def engine(taught: Path) -> Iterator[VllmEngine]:
    with closing(start(taught)) as started:
        yield started


@pytest.fixture(scope="module")
def local(taught: Path) -> Iterator[TransformersEngine]:
    with closing(TransformersEngine(str(taught), device="cpu", dtype="float32", threads=1)) as started:
        yield started


# ------------------------------------------------------------------------------------------------------ without vLLM


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(vllm_environment, "find_spec", lambda name: None)
    with pytest.raises(FactoryError, match="vLLM is not installed") as raised:
        build(EngineSpec("vllm", str(tiny_model)))
    assert "pip install 'preference-factory[gpu]'" in raised.value.todo


def test_the_environment_is_prepared_but_for_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*vllm_environment.EVERYWHERE, *vllm_environment.ON_A_CPU, "OMP_NUM_THREADS"]
    for name in names:
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    prepare_environment(on_cpu=False, threads=3)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert "OMP_NUM_THREADS" not in os.environ
    prepare_environment(on_cpu=True, threads=3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_an_adapter_of_too_high_a_rank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 40}}))
    files = ModelFiles("a", "base", str(tmp_path))
    assert vllm_core.rank_of(files) == 64
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1000}))
    with pytest.raises(FactoryError, match="up to rank 512, not 1000"):
        vllm_core.rank_of(files)


# ---------------------------------------------------------------------------------------------------------- samples


@needs_vllm
@pytest.mark.slow
def test_samples_are_repeatable_one_by_one(engine: VllmEngine) -> None:
    """Eight samples differ, come again with the same seed, and each also when it is asked for alone."""
    request = ask(n=8, seed=3, sampling=Sampling(max_tokens=16))
    whole = {c.sample: c for c in engine.generate([request])}
    assert set(whole) == set(range(8))
    assert len({c.text for c in whole.values()}) > 4
    assert texts(engine.generate([request])) == {sample: c.text for sample, c in whole.items()}
    assert texts(engine.generate([ask(n=8, seed=4, sampling=Sampling(max_tokens=16))])) != texts(iter(whole.values()))
    for sample in (0, 5):
        (alone,) = engine.generate([request], lambda r, s, wanted=sample: s != wanted)
        assert (alone.sample, alone.text) == (sample, whole[sample].text)
        assert alone.logprob == pytest.approx(whole[sample].logprob, abs=1e-3)


@needs_vllm
@pytest.mark.slow
def test_more_prompt_tokens_than_one_step_takes_are_sampled_from(engine: VllmEngine) -> None:
    """Read in parts, a prompt with a seed ends vLLM 0.32 on a CPU."""
    requests = [ask(f"{number} " + "sea " * 500, seed=number, sampling=Sampling(max_tokens=2)) for number in range(24)]
    answers = list(engine.generate(requests))
    assert [completion.failure for completion in answers] == [None] * 24
    assert sum(completion.prompt_tokens for completion in answers) > 8 * CONTEXT


@needs_vllm
@pytest.mark.slow
def test_greedy_answers_are_those_of_the_transformers_engine(engine: VllmEngine, local: TransformersEngine) -> None:
    for topic in TOPICS:
        for max_tokens in (1, 5, 40):
            request = ask(question(topic), sampling=Sampling(temperature=0.0, max_tokens=max_tokens))
            there, here = only(engine.generate([request])), only(local.generate([request]))
            assert (there.text, there.finish_reason) == (here.text, here.finish_reason)
            assert (there.prompt_tokens, there.completion_tokens) == (here.prompt_tokens, here.completion_tokens)
            assert there.logprob == pytest.approx(here.logprob, abs=1e-3)
            assert engine.render(request) == local.render(request)


@needs_vllm
@pytest.mark.slow
def test_a_samples_log_prob_is_the_untempered_one_of_its_tokens(engine: VllmEngine, local: TransformersEngine) -> None:
    """Sampled with temperature and cuts; scored by a plain forward pass where the text tokenises back."""
    request = ask(n=8, seed=1, sampling=Sampling(temperature=0.7, top_p=0.9, top_k=50, max_tokens=30))
    prompt = local.chat.prepare(request).ids  # type: ignore[union-attr]
    checked = 0
    for completion in engine.generate([request]):
        ids = local.tokenizer(completion.text, add_special_tokens=False)["input_ids"]
        ids += [local.tokenizer.eos_token_id] if completion.finish_reason == "stop" else []
        if len(ids) != completion.completion_tokens:
            continue
        with torch.inference_mode():
            logits = local.decoder.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        scored = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum()
        assert completion.logprob == pytest.approx(float(scored), abs=1e-3)
        checked += 1
    assert checked >= 4


@needs_vllm
@pytest.mark.slow
def test_answer_log_probs_are_those_of_the_whole_distribution(engine: VllmEngine, local: TransformersEngine) -> None:
    """In one batch with requests that want other answers or none."""
    judge = PairwiseJudge()
    asks = judge.asks(matchup_of(*(answer.format("music") for answer in ANSWERS), prompt=prompt_of(question("music"))))
    scale = tuple(str(k) for k in range(10))
    requests = [asked.request for asked in asks] + [ask(answers=scale, prefix="I rate it ", n=2), ask()]
    there = {(id(c.request), c.sample): c for c in engine.generate(requests)}
    here = {(id(c.request), c.sample): c for c in local.generate(requests)}
    assert there.keys() == here.keys()
    for place, completion in there.items():
        if not completion.request.answers:
            assert completion.answer_logprobs is None
            continue
        assert completion.answer_logprobs is not None
        assert completion.answer_logprobs == pytest.approx(dict(here[place].answer_logprobs or {}), abs=1e-3)


@needs_vllm
@pytest.mark.slow
def test_a_schema_holds_and_stops_cut(engine: VllmEngine) -> None:
    answers = list(engine.generate([ask(n=4, json_schema=SCHEMA, sampling=Sampling(max_tokens=64))]))
    assert [c.failure for c in answers] == [None] * 4
    assert all(json.loads(c.text)["verdict"] in {"A", "B"} for c in answers)
    whole = only(engine.generate([ask(sampling=Sampling(temperature=0.0, max_tokens=40))]))
    mark = whole.text[len(whole.text) // 2 :][:2]
    assert mark
    cut = only(engine.generate([ask(sampling=Sampling(temperature=0.0, max_tokens=40, stop=(mark,)))]))
    assert (cut.text, cut.finish_reason) == (whole.text.partition(mark)[0], "stop")
    assert cut.completion_tokens < whole.completion_tokens


@needs_vllm
@pytest.mark.slow
def test_poison_rows_fail_alone(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = {
        "too_long": ask("sea " * CONTEXT, n=2),
        "bad_schema": ask(json_schema={"type": "nonsense"}),
        "bad_request": ask(sampling=Sampling(top_p=0.0)),
        "ambiguous_answers": ask(answers=("1", "10")),
        "template": Request([{"role": "user"}]),  # type: ignore[typeddict-item]
        "unsupported": ask(answers=("A", "B")),
    }
    monkeypatch.setattr(module, "MAX_ANSWER_TOKENS", 1)
    fine = ask(sampling=Sampling(max_tokens=4))
    answered = list(engine.generate([fine, *poison.values(), ask(n=2, sampling=Sampling(max_tokens=4))]))
    kinds = [c.failure.kind for c in answered if c.failure is not None]
    assert len(answered) == 10
    assert sorted(kinds) == sorted([*poison, "too_long"])
    assert not any(c.failure.passing for c in answered if c.failure is not None)
    assert sum(c.failure is None and bool(c.text) for c in answered) == 3


# -------------------------------------------------------------------------------------------------------- streaming


@needs_vllm
@pytest.mark.slow
def test_answers_come_as_they_finish_and_a_list_can_be_left(engine: VllmEngine) -> None:
    requests = [ask(sampling=Sampling(max_tokens=limit)) for limit in (200, 1, 200)]
    bursts = engine.bursts(requests)
    first = next(bursts)
    assert [c.request for c in first] == [requests[1]]
    bursts.close()  # type: ignore[attr-defined]
    assert not engine.core._engine.has_unfinished_requests()
    assert only(engine.generate([requests[1]])).text == first[0].text


@needs_vllm
@pytest.mark.slow
def test_more_requests_than_fit_into_the_flight_are_all_answered(engine: VllmEngine) -> None:
    before, engine.core.in_flight = engine.core.in_flight, 3
    try:
        requests = [ask(question(topic), n=5, sampling=Sampling(max_tokens=6)) for topic in TOPICS]
        answered = list(engine.generate(requests))
    finally:
        engine.core.in_flight = before
    assert len({(id(c.request), c.sample) for c in answered}) == len(answered) == 20


# -------------------------------------------------------------------------------------------------- adapters, sharing


@needs_vllm
@pytest.mark.slow
def test_an_adapter_stays_beside_its_base(
    engine: VllmEngine, local: TransformersEngine, adapters: list[Path], taught: Path
) -> None:
    """Its answers are those of the merged model; adapters of one base share a vLLM, the base has its own, whatever room
    for adapters it asks for, and goes on when theirs has ended."""
    request = ask(answers=("A", "B"), prefix="The answer is", sampling=Sampling(temperature=0.0, max_tokens=8))
    with ExitStack() as stack:
        adapted = [stack.enter_context(closing(start(folder))) for folder in adapters]
        roomy = stack.enter_context(closing(start(taught, max_loras=1)))
        assert adapted[0].core is adapted[1].core
        assert roomy.core is not adapted[0].core
        seen = [same_as_transformers(adapted[k], folder, request) for k, folder in enumerate(adapters)]
        seen.append(same_as_transformers(engine, taught, request))
        assert only(roomy.generate([request])).logprob == pytest.approx(seen[-1].logprob, abs=1e-4)
    assert len({completion.logprob for completion in seen}) == 3
    assert only(engine.generate([request])).logprob == pytest.approx(seen[-1].logprob, abs=1e-4)


def same_as_transformers(engine: VllmEngine, model: Path, request: Request) -> Completion:
    """The answer, when it and the content hash are those of the transformers engine."""
    there = only(engine.generate([request]))
    with closing(TransformersEngine(str(model), device="cpu", dtype="float32", threads=1)) as merged:
        here = only(merged.generate([request]))
        assert engine.identity.content == merged.identity.content
    assert there.text == here.text
    assert there.logprob == pytest.approx(here.logprob, abs=1e-3)
    assert there.answer_logprobs == pytest.approx(dict(here.answer_logprobs or {}), abs=1e-3)
    return there


@needs_vllm
@pytest.mark.slow
def test_engines_in_two_threads_share_a_vllm(adapters: list[Path]) -> None:
    """Two adapters in one batch: each request gets its own adapter's answer."""
    requests = [ask(question(topic), n=4, sampling=Sampling(max_tokens=12)) for topic in TOPICS]
    with ExitStack() as stack:
        both = [stack.enter_context(closing(start(folder, max_loras=2))) for folder in adapters]
        assert both[0].core is both[1].core
        alone = [sorted(texts_of(each.generate(requests))) for each in both]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda each: sorted(texts_of(each.generate(requests))), both))
    assert together == alone
    assert alone[0] != alone[1]


def texts_of(completions: Iterator[Completion]) -> list[str]:
    return [completion.text for completion in completions]


@needs_vllm
@pytest.mark.slow
def test_what_vllm_cannot_use_is_a_fault_and_leaves_nothing(
    engine: VllmEngine, adapters: list[Path], tmp_path: Path
) -> None:
    assert vllm_core._running == [engine.core]
    for path in adapters[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(FactoryError, match=r"cannot use the adapter: .*DoRA"):
        start(tmp_path)
    with pytest.raises(FactoryError, match="vLLM does not start"):
        start(adapters[0], max_model_len=10**6)
    assert vllm_core._running == [engine.core]


# ----------------------------------------------------------------------------------------------------------- memory


@needs_vllm
@pytest.mark.slow
def test_closing_gives_the_memory_back(taught: Path) -> None:
    """A cache of 1 GiB is taken and given back, twice in the same process; threads can be set as before."""
    process = psutil.Process()
    for _ in range(2):
        engine = start(taught, max_num_seqs=7)
        only(engine.generate([ask(sampling=Sampling(max_tokens=4))]))
        taken = process.memory_info().rss
        engine.close()
        engine.close()
        assert taken - process.memory_info().rss > 2**29
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


# ---------------------------------------------------------------------------------------------------- the whole flow


@needs_vllm
@pytest.mark.slow
def test_generate_and_label_through_the_store(engine: VllmEngine, local: TransformersEngine, tmp_path: Path) -> None:
    rows = [prompt_of(question(topic)) for topic in TOPICS]
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("prompts", [Prompt(key=p.key, messages=p.messages, split="train", group=p.key, at=p.at)
                                 for p in rows])  # fmt: skip
        wanted: dict[str, Any] = {"run": "r", "round": 0, "n": 3, "sampling": Sampling(max_tokens=16), "seed": 7}
        first = generate(store, engine, **wanted)
        assert (first.candidates, first.failures, first.reused) == (12, 0, 0)
        again = generate(store, engine, **wanted)
        assert (again.candidates, again.reused) == (12, 12)
        members = [PanelMember.of("pairwise", name=name, engine=e) for name, e in (("there", engine), ("here", local))]
        report = label(store, members, run="r")
        judgments = store.rows(Judgment, {"run": "r", "canary": False})
        calls = store.rows(Call)
    assert [judge.failures for judge in report.judges] == [{}, {}]
    assert {call.engine for call in calls} == {"vllm", "transformers"}
    p_a = {
        name: {(r.candidate_a, r.candidate_b, r.shown_first): r.p_a for r in judgments if r.judge == name}
        for name in ("there", "here")
    }
    assert p_a["there"]
    assert p_a["there"] == pytest.approx(p_a["here"], abs=1e-3)


@needs_vllm
@pytest.mark.soak
def test_a_fleet_of_vllms_answers_as_one(engine: VllmEngine, taught: Path) -> None:
    options = {"dtype": "float32", "max_model_len": CONTEXT, "threads": 1}
    requests = [ask(question(topic), n=6, seed=2, sampling=Sampling(max_tokens=12)) for topic in TOPICS]
    with closing(build(EngineSpec("vllm", str(taught), options, 2))) as fleet:
        assert fleet.identity == engine.identity
        shared = {(id(c.request), c.sample): c.text for c in fleet.generate(requests)}
    assert shared == {(id(c.request), c.sample): c.text for c in engine.generate(requests)}


@needs_vllm
@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_gives_the_transformers_engines_numbers(dtype: str) -> None:
    near = 1e-2 if dtype == "float32" else 0.3
    judge = PairwiseJudge()
    question_asked = judge.asks(matchup_of("A river flows to the sea.", "No."))[0].request
    long = ask("Tell me about bread.", sampling=Sampling(temperature=0.0, max_tokens=1 if dtype == "bfloat16" else 40))
    samples = ask("Tell me about rivers.", n=8, seed=3, sampling=Sampling(max_tokens=24))
    schema = ask("Which is better? Answer in JSON.", n=2, json_schema=SCHEMA, sampling=Sampling(max_tokens=32))
    with (
        closing(start(EMBEDDED, dtype=dtype)) as there,
        closing(TransformersEngine(EMBEDDED, device="cpu", dtype=dtype, threads=1)) as here,  # type: ignore[arg-type]
    ):
        a, b = only(there.generate([question_asked])), only(here.generate([question_asked]))
        assert a.answer_logprobs == pytest.approx(dict(b.answer_logprobs or {}), abs=near)
        assert a.prompt_tokens == b.prompt_tokens
        a, b = only(there.generate([long])), only(here.generate([long]))
        assert (a.text, a.completion_tokens) == (b.text, b.completion_tokens)
        assert a.logprob == pytest.approx(b.logprob, abs=near)
        whole = texts(there.generate([samples]))
        assert len(set(whole.values())) > 4
        (alone,) = there.generate([samples], lambda request, sample: sample != 5)
        assert dtype == "bfloat16" or alone.text == whole[5]
        assert all(json.loads(c.text)["verdict"] in {"A", "B"} for c in there.generate([schema]))
