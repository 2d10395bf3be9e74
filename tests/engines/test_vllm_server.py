"""The openai engine against vLLM's own server on this machine: what a fake endpoint cannot show.

Generation, numbers beside those of the transformers engine for the same weights, refusals, and a panel whose judge
asks the server. FACTORY_VLLM_PYTHON names the python of an environment that has vLLM; `make soak` builds one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from judged import matchup_of, prompt_of
from taught import ANSWERS, TOPICS, question, teach
from tiny_run import recipe_text, write_prompts

from factory import recipe as recipes, rounds
from factory.doctor import examine, one_token
from factory.engines.openai import OpenAIEngine
from factory.engines.transformers import TransformersEngine
from factory.faults import EndpointError
from factory.generation import generate
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.schema import Call, Candidate, Completion, Judgment, Prompt, Request, Sampling
from factory.store import Store

pytestmark = pytest.mark.soak

NAME = "taught"
CONTEXT = 1024
START_SECONDS = 300
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
OPTIONS = {
    "--dtype": "float32",
    "--max-model-len": str(CONTEXT),
    "--max-num-seqs": "16",
    "--distributed-executor-backend": "uni",
    "--generation-config": "vllm",  # else the model's generation_config.json fills in what a request leaves open
    "--structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
}


# ------------------------------------------------------------------------------------------------------- the server


class Server:
    """vLLM's OpenAI server in a process group of its own, on a free port of the loopback."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--enforce-eager",
                   "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
        command += [word for option in OPTIONS.items() for word in option]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=os.environ | ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """Until the server completes one token."""
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                one_token(self.url, NAME, "OPENAI_API_KEY", 60.0)
            except EndpointError as fault:
                if self.process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"vLLM's server does not answer ({fault.what}). Its log ends:\n{self.said()}")
                time.sleep(0.5)
            else:
                return

    def said_since(self, since: int) -> str:
        """The log from a place on."""
        return self.log.read_text(errors="replace")[since:]

    def said(self, since: int = 0) -> str:
        """The end of the log."""
        return self.said_since(since)[-6000:]

    def stop(self) -> None:
        """End the whole group: politely, then not."""
        for word in (signal.SIGTERM, signal.SIGKILL):
            if group := self.members():
                os.killpg(self.process.pid, word)
                psutil.wait_procs(group, timeout=20)

    def members(self) -> list[psutil.Process]:
        """The processes of the group: the server and what it started."""
        return [process for process in psutil.process_iter() if _group(process.pid) == self.process.pid]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tiny_model, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def vllm_python() -> str:
    python = os.environ.get("FACTORY_VLLM_PYTHON")
    if not python:
        pytest.fail("FACTORY_VLLM_PYTHON names no python with vLLM: `make soak` builds its environment and sets it")
    return python


@pytest.fixture(scope="module")
def server(vllm_python: str, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(vllm_python, taught, tmp_path_factory.mktemp("vllm") / "server.log")
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture(autouse=True)
def server_log(server: Server) -> Iterator[None]:
    """What the server logged during a test; pytest shows it when the test fails."""
    before = len(server.log.read_text(errors="replace"))
    yield
    print(server.said(before))


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def local(taught: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(str(taught), device="cpu", dtype="float32", threads=1)
    yield engine
    engine.close()


def remote(server: Server, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(NAME, **{"base_url": server.url, "logprobs": True, "prefix": "continue"} | options)


def store_with_prompts(folder: Path) -> Store:
    store = Store.open(folder, create=True)
    rows = [prompt_of(question(topic)) for topic in TOPICS]
    store.append("prompts", [Prompt(key=p.key, messages=p.messages, split="train", group=p.key, at=p.at,
                                    constraints=[{"kind": "no_commas"}]) for p in rows])  # fmt: skip
    return store


def ask(text: str = question("rivers"), **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def only(completions: Iterator[Completion]) -> Completion:
    (completion,) = completions
    assert completion.failure is None, completion.failure
    return completion


# ------------------------------------------------------------------------------------------------------- generation


def test_samples_are_stored_with_their_numbers(server: Server, taught: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(taught)
    with store_with_prompts(tmp_path / "store") as store:
        wanted: dict[str, Any] = {"run": "r", "round": 0, "n": 4, "sampling": Sampling(max_tokens=16), "seed": 7}
        first = generate(store, remote(server), **wanted)
        assert (first.candidates, first.failures, first.reused) == (16, 0, 0)
        calls, candidates = store.rows(Call), store.rows(Candidate)
        again = generate(store, remote(server), **wanted)
        assert (again.candidates, again.reused, again.tokens) == (16, 16, 0)
        assert len(store.rows(Call)) == len(calls) == len(candidates) == 16
    assert first.tokens == sum(call.completion_tokens for call in calls)
    assert {call.model for call in calls} == {NAME}
    for call in calls:
        rendered = tokenizer.apply_chat_template(call.messages, tokenize=False, add_generation_prompt=True)
        assert call.prompt_tokens == len(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        assert call.finish_reason in {"stop", "length"}
        assert 1 <= call.completion_tokens <= 16
        assert call.finish_reason == "stop" or call.completion_tokens == 16
        assert call.logprob is not None
        assert -math.inf < call.logprob < 0
    assert {call.finish_reason for call in calls} == {"stop", "length"}
    by_prompt: defaultdict[str, set[str]] = defaultdict(set)
    for candidate in candidates:
        by_prompt[candidate.prompt_key].add(candidate.text)
    assert all(len(texts) > 1 for texts in by_prompt.values()), "all samples of a prompt are the same"


def test_the_same_seed_gives_the_same_answers(server: Server) -> None:
    """One call at a time: the server promises no more, since the shape of its batches may move a number's last bits."""

    def texts(seed: int) -> list[str]:
        requests = [ask(question(topic), n=4, seed=seed, sampling=Sampling(max_tokens=16)) for topic in TOPICS]
        return [completion.text for completion in remote(server, concurrency=1).generate(requests)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


@pytest.mark.parametrize("max_tokens", [1, 5, 40])
def test_greedy_answers_are_those_of_the_transformers_engine(
    server: Server, local: TransformersEngine, max_tokens: int
) -> None:
    for topic in TOPICS:
        request = ask(question(topic), sampling=Sampling(temperature=0.0, max_tokens=max_tokens))
        there, here = (only(engine.generate([request])) for engine in (remote(server), local))
        assert there.text == here.text
        assert (there.finish_reason, there.prompt_tokens, there.completion_tokens) == (
            here.finish_reason, here.prompt_tokens, here.completion_tokens,
        )  # fmt: skip
        assert there.logprob == pytest.approx(here.logprob, abs=1e-3)
        assert there.completion_tokens <= max_tokens


def test_log_probs_are_those_before_temperature_and_cuts(server: Server, local: TransformersEngine) -> None:
    """Sampled from few tokens at a low temperature, an answer has the log-prob that the model gives it."""
    sampling = Sampling(temperature=0.2, top_p=0.9, top_k=5, max_tokens=1)
    greedy = only(local.generate([ask(sampling=Sampling(temperature=0.0, max_tokens=1))]))
    likeliest = [c for c in remote(server).generate([ask(n=8, sampling=sampling)]) if c.text == greedy.text]
    assert likeliest
    assert all(c.logprob == pytest.approx(greedy.logprob, abs=1e-3) for c in likeliest)


def test_a_stop_text_ends_an_answer(server: Server) -> None:
    whole = only(remote(server).generate([ask(sampling=Sampling(temperature=0.0, max_tokens=40))]))
    mark = whole.text.split()[1]
    cut = only(remote(server).generate([ask(sampling=Sampling(temperature=0.0, max_tokens=40, stop=(mark,)))]))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text.split(mark)[0]


def test_a_schema_holds(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": ["A", "B"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    request = ask(n=4, json_schema=schema, sampling=Sampling(max_tokens=64))
    completions = list(remote(server).generate([request]))
    assert [c.failure for c in completions] == [None] * 4
    assert all(json.loads(c.text)["verdict"] in {"A", "B"} for c in completions)


def test_samples_come_in_one_call(server: Server) -> None:
    """Eight samples of one prompt in one call: not all the same, and the bill's sums are those of one call."""
    prices = {"prompt": 1.0, "completion": 0.0}
    engines = [remote(server, n_in_one_call=wanted, prices=prices) for wanted in (True, False)]
    together, alone = (list(engine.generate([ask(n=8, sampling=Sampling(max_tokens=16))])) for engine in engines)
    assert [completion.failure for completion in together + alone] == [None] * 16
    assert sorted(completion.sample for completion in together) == list(range(8))
    assert len({completion.text for completion in together}) > 1
    assert sum(c.prompt_tokens for c in together) == alone[0].prompt_tokens
    assert sum(c.cost or 0.0 for c in together) * 8 == pytest.approx(sum(c.cost or 0.0 for c in alone))
    assert all(1 <= completion.completion_tokens <= 16 for completion in together)


# --------------------------------------------------------------------------------------------------------- refusals


def test_a_prompt_that_is_too_long_fails_alone(server: Server) -> None:
    requests = [ask("sea " * CONTEXT), ask(sampling=Sampling(max_tokens=4))]
    failed, fine = sorted(remote(server).generate(requests), key=lambda c: c.failure is None)
    assert failed.failure is not None
    assert (failed.failure.kind, failed.failure.passing) == ("too_long", False)
    assert str(CONTEXT) in failed.failure.detail
    assert fine.failure is None


def test_a_wrong_model_ends_the_run(server: Server) -> None:
    with pytest.raises(EndpointError, match="model 'other'"):
        list(OpenAIEngine("other", base_url=server.url).generate([ask()]))


def test_the_doctor_reaches_the_server(server: Server, tmp_path: Path) -> None:
    (found,) = [c for c in examine(tmp_path, endpoint=server.url) if c.name.startswith("endpoint")]
    assert found.state == "ok", found
    assert found.what.startswith(f"{NAME} answered ")
    (lost,) = [c for c in examine(tmp_path, endpoint=server.url, endpoint_model="other") if c.name == found.name]
    assert lost.state == "fail"


# ----------------------------------------------------------------------------------------------------------- judging


def test_answer_log_probs_are_those_of_the_transformers_engine(server: Server, local: TransformersEngine) -> None:
    """From the twenty likeliest tokens the server says what the whole distribution says, up to what is below them."""
    judge = PairwiseJudge()
    texts = [answer.format("music") for answer in ANSWERS]
    for question_asked in judge.asks(matchup_of(*texts, prompt=prompt_of(question("music")))):
        there, here = (only(engine.generate([question_asked.request])) for engine in (remote(server), local))
        assert there.answer_logprobs is not None
        assert here.answer_logprobs is not None
        assert set(there.answer_logprobs) == {"A", "B"}
        assert sum(map(math.exp, there.answer_logprobs.values())) > judge.min_mass
        assert there.answer_logprobs == pytest.approx(dict(here.answer_logprobs), abs=1e-3)
        assert (there.text, there.completion_tokens) == (here.text, 1)


def test_a_panel_judges_through_the_server(server: Server, local: TransformersEngine, tmp_path: Path) -> None:
    """The verifier, the pairwise judge asking the server, and the same judge asking the same weights here."""
    with store_with_prompts(tmp_path / "store") as store:
        generate(store, remote(server), run="r", round=0, n=3, sampling=Sampling(max_tokens=16), seed=7)
        members = [
            PanelMember.of("verifier"),
            PanelMember.of("pairwise", name="there", engine=remote(server)),
            PanelMember.of("pairwise", name="here", engine=local),
        ]
        report = label(store, members, run="r")
        verifier, there, here = report.judges
        rows = store.rows(Judgment, {"run": "r", "canary": False})
        tokens = [call.prompt_tokens for call in store.rows(Call, {"purpose": "judge"})]
    assert [judge.fault for judge in report.judges] == [None] * 3
    assert (verifier.verdicts, verifier.failures) == (12, {})
    assert there.failures == here.failures == {}
    assert there.verdicts == there.matchups == here.matchups > 0
    assert there.calls > 0
    assert there.cost is None
    assert all(tokens)
    p_a = {
        name: {(r.candidate_a, r.candidate_b, r.shown_first): r.p_a for r in rows if r.judge == name}
        for name in ("there", "here")
    }
    assert len(p_a["there"]) == 2 * there.matchups
    assert p_a["there"] == pytest.approx(p_a["here"], abs=1e-4)
    assert all((p > 0.5) == (first == "a") for (_, _, first), p in p_a["there"].items()), "the judge was taught A"


# ---------------------------------------------------------------------------------------------------------- the end


def test_a_run_asks_two_servers_and_goes_on_with_the_one_that_is_left(
    server: Server, vllm_python: str, taught: Path, tmp_path: Path
) -> None:
    """A whole run of two rounds whose judge is behind two endpoints; one of them goes away when round 1 is judged."""
    second = Server(vllm_python, taught, tmp_path / "second.log")
    judge = {"base_url": f"{server.url},{second.url}", "name": "both", "prefix": "continue"}
    panel = [{"judge": "verifier"},
             {"judge": "pairwise", "engine": {"kind": "openai", "model": NAME, "options": judge}}]  # fmt: skip
    text = recipe_text(taught, write_prompts(tmp_path / "prompts.jsonl"), panel=panel,
                       pair={"strategy": "all", "lead": "verifier"}, stop={"max_rounds": 2, "any": []})  # fmt: skip
    (tmp_path / "two.yaml").write_text(text, encoding="utf-8")
    begun = len(server.log.read_text(errors="replace"))
    with Store.open(tmp_path / "store", create=True) as store:
        try:
            second.wait()
            watch = threading.Thread(target=_stop_after_round_1, args=(second, tmp_path / "store"), daemon=True)
            watch.start()
            rounds.run(store, recipes.load(str(tmp_path / "two.yaml"), []), "two")
        finally:
            second.stop()
        rows = store.rows(Judgment, {"run": "two", "judge": "pairwise", "canary": False})
        reports = sorted((store.run_folder("two")).glob("round-*/report.json"))
    by_round = Counter(row.round for row in rows)
    assert [path.parent.name for path in reports] == ["round-0", "round-1", "round-2"]
    assert by_round[1] > 0
    assert by_round[2] > 0
    assert {row.failure for row in rows} == {None}
    asked = [log.count("POST /v1/chat/completions") for log in (server.said_since(begun), second.said_since(0))]
    assert min(asked) > 0, f"one of the servers was never asked: {asked}"
    assert not second.members()


def _stop_after_round_1(server: Server, folder: Path) -> None:
    """When the panel is done with round 1 for the first time."""
    with Store.open(folder) as store:
        while not any(
            (mark["round"], mark["stage"], mark["state"]) == (1, "label", "done") for mark in store.marks("two")
        ):
            time.sleep(0.2)
    server.stop()


def test_a_server_that_is_gone_leaves_nothing_and_ends_the_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.engines.endpoints.GONE_AFTER", 1.0)
    engine = remote(server)
    assert only(engine.generate([ask(sampling=Sampling(max_tokens=2))])).text
    group = server.members()
    assert group
    server.stop()
    assert not [process for process in group if process.is_running()]
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(engine.generate([ask(n=100_000)]))
