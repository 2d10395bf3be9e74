"""A fleet answers as one engine does, loses nothing to a child that dies, and leaves no child behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, strategies as st

from factory import calls
from factory.engines import EngineSpec, build
from factory.engines.fleet import Fleet, environments, portions, visible_devices
from factory.engines.scripted import Rule
from factory.faults import EndpointError, FactoryError
from factory.schema import Call, Completion, Request, Sampling
from factory.store import Store


def ask(text: str, **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def by_place(completions: Iterator[Completion]) -> dict[tuple[str, int], Completion]:
    return {(c.request.messages[-1]["content"], c.sample): c for c in completions}


def numbers(completions: Iterator[Completion]) -> dict[tuple[str, int], tuple[Any, ...]]:
    """All of an answer but its latency."""
    return {
        place: (c.text, c.finish_reason, c.completion_tokens, c.logprob, c.answer_logprobs, c.failure)
        for place, c in by_place(completions).items()
    }


def dies(request: Request) -> bool:
    """A rule's predicate that kills the process that asks it, as a lack of memory would."""
    if "deadly" in request.messages[-1]["content"]:
        print("out of memory, perhaps", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return False


def dies_once(request: Request) -> bool:
    """As `dies`, for the first process that is asked; the request names a folder for the mark."""
    text = request.messages[-1]["content"]
    if text.startswith("once "):
        mark = Path(text.removeprefix("once "))
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        os.kill(os.getpid(), signal.SIGKILL)
    return False


def breaks(request: Request) -> bool:
    """A rule's predicate with a bug."""
    if "bug" in request.messages[-1]["content"]:
        raise ZeroDivisionError("a bug in the engine")
    return False


def scripted(count: int, *rules: Rule) -> Fleet:
    return Fleet(EngineSpec("scripted", "s", {"rules": rules}, count), count)


def gone(pids: list[int], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def pids(fleet: Fleet) -> list[int]:
    return [child.process.pid for child in fleet._children if child.process.pid is not None]


REQUESTS = [ask(f"question {k}", n=3, seed=k) for k in range(40)]


@pytest.fixture(scope="module")
def two() -> Iterator[Fleet]:
    with closing(scripted(2, Rule(match="refused", fail="refused"))) as fleet:
        yield fleet


# ---------------------------------------------------------------------------------------------------- answers as one


def test_a_spec_with_a_count_is_a_fleet_with_the_identity_of_one_engine(two: Fleet) -> None:
    spec = EngineSpec("scripted", "s", {"rules": (Rule(match="refused", fail="refused"),)})
    one = build(spec)
    assert two.identity == one.identity
    assert two.render(REQUESTS[3]) == one.render(REQUESTS[3])
    assert numbers(two.generate(REQUESTS)) == numbers(one.generate(REQUESTS))


def test_what_is_held_is_not_asked(two: Fleet) -> None:
    held = {("question 1", 0), ("question 39", 2)}
    left = by_place(two.generate(REQUESTS, lambda r, sample: (r.messages[-1]["content"], sample) in held))
    assert set(left) == set(by_place(two.generate(REQUESTS))) - held
    assert list(two.generate(REQUESTS, lambda request, sample: True)) == []
    assert list(two.generate([])) == []


def test_requests_come_back_as_the_objects_that_went_in(two: Fleet) -> None:
    assert {id(c.request) for c in two.generate(REQUESTS)} == {id(request) for request in REQUESTS}


def test_a_poison_row_fails_alone(two: Fleet) -> None:
    answered = by_place(two.generate([*REQUESTS, ask("refused")]))
    assert [place for place, c in answered.items() if c.failure is not None] == [("refused", 0)]


def test_a_list_that_is_left_early_does_not_disturb_the_next(two: Fleet) -> None:
    bursts = two.bursts(REQUESTS)
    assert next(bursts)
    with pytest.raises(RuntimeError, match="at work on another list"):
        next(two.bursts(REQUESTS))
    bursts.close()
    assert len(list(two.generate(REQUESTS))) == 120


def wait_a_little(request: Request, sample: int) -> str:
    time.sleep(0.01)
    return f"{os.getpid()}"


def test_both_engines_work() -> None:
    with closing(scripted(2, Rule(reply=wait_a_little, latency=0.001))) as fleet:
        workers = {c.text for c in fleet.generate(REQUESTS)}
        assert workers == {str(pid) for pid in pids(fleet)}


def test_an_engine_goes_on_only_when_its_burst_is_stored() -> None:
    """With a burst for each answer (latency), and nobody asking for the next burst, each of two engines has answered
    once and no more."""
    with closing(scripted(2, Rule(reply=leave_a_mark, latency=0.001))) as fleet:
        folder = Path(fleet._messages.name)
        bursts = fleet.bursts([ask(f"{folder} {k}") for k in range(200)])
        got = next(bursts)
        while len(got) < 2 and len(list(folder.glob("mark-*"))) < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(list(folder.glob("mark-*"))) == 2
        bursts.close()


def leave_a_mark(request: Request, sample: int) -> str:
    folder, _, number = request.messages[-1]["content"].rpartition(" ")
    (Path(folder) / f"mark-{number}").touch()
    return "marked"


# --------------------------------------------------------------------------------------------------- shares of the work


@given(st.integers(0, 5000), st.integers(1, 16), st.integers(1, 100))
def test_portions_are_the_list_in_order(length: int, count: int, least: int) -> None:
    items = [(REQUESTS[0], k) for k in range(length)]
    parts = portions(items, count, least)
    assert [item for part in parts for item in part] == items
    assert all(parts)
    assert len(parts) >= min(count, length)


def test_portions_halve_and_end_in_equal_parts() -> None:
    items = [(REQUESTS[0], k) for k in range(1000)]
    assert [len(part) for part in portions(items, 2, 64)][:3] == [250, 188, 141]
    assert [len(part) for part in portions(items[:100], 2, 64)] == [50, 50]


def test_each_engine_has_devices_of_its_own() -> None:
    spec = EngineSpec("transformers", "m")
    assert environments(spec, 2, {"CUDA_VISIBLE_DEVICES": "3, 5,7"}) == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    pairs = EngineSpec("vllm", "m", {"tensor_parallel_size": 2})
    assert environments(pairs, 2, {"HIP_VISIBLE_DEVICES": "0,1,2,3"}) == [
        {"HIP_VISIBLE_DEVICES": "0,1"},
        {"HIP_VISIBLE_DEVICES": "2,3"},
    ]
    with pytest.raises(FactoryError, match="need 4, and there are 3"):
        environments(pairs, 2, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2,GPU-3"})


def test_without_devices_the_engines_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert (
        environments(EngineSpec("transformers", "m"), 2, hidden) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    )
    on_cpu = EngineSpec("transformers", "m", {"device": "cpu"})
    given_threads = {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "3"}
    assert environments(on_cpu, 2, given_threads) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_devices_after_minus_one_are_hidden() -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "1,-1,2"}) == ("CUDA_VISIBLE_DEVICES", ["1"])


def test_a_kind_that_needs_no_processes_is_refused() -> None:
    with pytest.raises(FactoryError, match="many requests at once in one process"):
        build(EngineSpec("openai", "gpt", {"base_url": "http://localhost:1/v1"}, 2))
    with pytest.raises(FactoryError, match="at least 1, not 0"):
        build(EngineSpec("scripted", "s", {}, 0))


# ------------------------------------------------------------------------------------------------------ fixed batches


def test_fixed_batches_do_not_depend_on_the_number_of_engines(tiny_model: Path) -> None:
    """To the bit, with batches that split the samples of a prompt, and with half of them held; a poison row among
    them."""
    options = {"device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 5}
    sampling = Sampling(max_tokens=12)
    requests = [ask("tell me about rivers " * (k % 4 + 1) + str(k), n=3, seed=k, sampling=sampling) for k in range(9)]
    requests += [ask("sea " * 3000), ask("which?", answers=("A", "B"), sampling=Sampling(max_tokens=1))]
    spec = EngineSpec("transformers", str(tiny_model), options)
    with closing(build(spec)) as one, closing(build(EngineSpec(spec.kind, spec.model, options, 2))) as fleet:
        assert fleet.identity == one.identity
        assert fleet.render(requests[0]) == one.render(requests[0])
        whole = numbers(one.generate(requests))
        assert len(whole) == 29
        assert numbers(fleet.generate(requests)) == whole
        held = set(list(whole)[::2])
        rest = numbers(fleet.generate(requests, lambda r, sample: (r.messages[-1]["content"], sample) in held))
        assert set(whole) - held <= set(rest)
        assert {place: whole[place] for place in rest} == rest


def test_without_fixed_batches_the_answers_are_the_same_up_to_rounding(tiny_model: Path) -> None:
    options = {"device": "cpu", "dtype": "float32", "threads": 1, "fixed_batches": False}
    requests = [ask(f"tell me about rivers {k}", n=2, seed=k, sampling=Sampling(max_tokens=8)) for k in range(6)]
    spec = EngineSpec("transformers", str(tiny_model), options)
    with closing(build(spec)) as one, closing(build(EngineSpec(spec.kind, spec.model, options, 2))) as fleet:
        alone, shared = by_place(one.generate(requests)), by_place(fleet.generate(requests))
    assert {place: c.text for place, c in shared.items()} == {place: c.text for place, c in alone.items()}
    assert all(c.logprob == pytest.approx(alone[place].logprob, abs=1e-4) for place, c in shared.items())


# ---------------------------------------------------------------------------------------------------- deaths and faults


def test_what_a_dead_engine_had_in_hand_is_asked_of_the_others(tmp_path: Path) -> None:
    """One of two engines dies once: all is answered in the end, each answer once, and the death is on record."""
    mark = tmp_path / "mark"
    requests = [*REQUESTS, ask(f"once {mark}")]
    with (
        Store.open(tmp_path / "store", create=True) as store,
        closing(scripted(2, Rule(match=dies_once), Rule(latency=0.001))) as fleet,
    ):
        answered = list(calls.answer(store, fleet, requests, run="r", round=0, purpose="generate"))
        rows = store.rows(Call)
    assert mark.exists()
    assert len(answered) == 121
    assert all(call.failure is None for _, call, _ in answered)
    died = [call for call in rows if call.failure is not None]
    assert {(call.failure, call.passing) for call in died} == {("engine_died", True)}
    assert all("ended with code -9" in str(call.failure_detail) for call in died)
    assert len({call.key for call in rows if call.failure is None}) == len(rows) - len(died) == 121


def test_when_all_engines_are_dead_the_error_tells_their_last_words() -> None:
    with closing(scripted(2, Rule(match=dies), Rule(latency=0.001))) as fleet:
        requests = [ask(f"deadly {k}") for k in range(500)]
        got: list[Completion] = []
        with pytest.raises(FactoryError, match="no engine process is left alive") as raised:
            got.extend(fleet.generate(requests))
        assert {c.failure.kind for c in got if c.failure is not None} == {"engine_died"}
        assert 100 < len(got) < 500
        assert "out of memory, perhaps" in raised.value.where
        assert "ended with code -9" in raised.value.where
        with pytest.raises(FactoryError, match="no engine process is left alive"):
            fleet.render(requests[0])


def test_a_bug_in_an_engine_fails_its_answers_with_the_traceback() -> None:
    with closing(scripted(2, Rule(match=breaks))) as fleet:
        answered = list(fleet.generate([ask("bug"), ask("fine")]))
        (failed,) = [c.failure for c in answered if c.failure is not None]
        assert failed.passing
        assert "ZeroDivisionError: a bug in the engine" in failed.detail
        assert len(answered) == 2


def test_a_fault_that_ends_one_engines_work_ends_the_list() -> None:
    with closing(scripted(2, Rule(match="stop here", abort=True), Rule(latency=0.001))) as fleet:
        got: list[Completion] = []
        with pytest.raises(EndpointError, match="told to stop"):
            got.extend(fleet.generate([*REQUESTS, ask("stop here")]))
        assert len(list(fleet.generate(REQUESTS))) == 120


def test_an_engine_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="no model folder at"):
        build(EngineSpec("transformers", str(tmp_path / "none"), {"device": "cpu"}, 2))


class Dying:
    """Not to be unpickled: a stand-in for what kills a process before its engine is built."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)


def test_a_process_that_dies_before_its_engine_is_built_is_an_error() -> None:
    with pytest.raises(FactoryError, match="died before its engine was built") as raised:
        Fleet(EngineSpec("scripted", "s", {"rules": (Dying(),)}), 2)
    assert "ended with code 7" in raised.value.where


# ------------------------------------------------------------------------------------------------------- no orphans


def test_closing_ends_the_processes() -> None:
    fleet = scripted(2)
    processes = pids(fleet)
    assert len(processes) == 2
    fleet.close()
    fleet.close()
    assert gone(processes, 0.1)


PARENT = """
import os, sys, time
from factory.engines import EngineSpec, build, fleet as fleets
from factory.engines.scripted import Rule
from factory.schema import Request

if sys.argv[1] == "slow":  # in the children too: clearing up takes longer than an interpreter to end
    real = fleets.shutil.rmtree
    fleets.shutil.rmtree = lambda *given, **more: (time.sleep(1), real(*given, **more))
if __name__ == "__main__":
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    fleet = build(EngineSpec("scripted", "s", {"rules": (Rule(latency=60.0 if sys.argv[1] == "busy" else 0.0),)}, 2))
    print(fleet._messages.name, *(child.process.pid for child in fleet._children), flush=True)
    for completion in fleet.generate([Request([{"role": "user", "content": str(k)}]) for k in range(4)]):
        pass
    if sys.argv[1] in ("idle", "slow"):
        print("idle", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("state", "number"),
    [("busy", signal.SIGKILL), ("idle", signal.SIGKILL), ("slow", signal.SIGKILL), ("busy", signal.SIGINT),
     ("idle", signal.SIGTERM), ("unclosed", None)],
)  # fmt: skip
def test_no_child_outlives_its_parent(state: str, number: signal.Signals | None, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), state], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    folder, *numbers = parent.stdout.readline().split()
    children = [int(pid) for pid in numbers]
    assert len(children) == 2
    assert Path(folder).is_dir()
    if state in ("idle", "slow"):
        assert parent.stdout.readline() == "idle\n"
    try:
        if number is not None:
            time.sleep(0.2)
            parent.send_signal(number)
        parent.wait(40)
        assert gone(children)
        assert not Path(folder).exists()
    finally:
        for pid in (parent.pid, *children):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def test_what_children_print_stays_off_stdout(tmp_path: Path) -> None:
    """Results alone go to stdout."""
    script = tmp_path / "parent.py"
    script.write_text(
        "from factory.engines import EngineSpec, build\n"
        "if __name__ == '__main__':\n"
        "    fleet = build(EngineSpec('scripted', 's', {}, 2))\n"
        "    fleet.close()\n"
        "    print('{}')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}
