"""Several processes give what one gives, go on to the same bits after a kill, and end together."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from training_rows import CONFIG, label, preference

from factory import crash
from factory.faults import ConfigError, EndpointError, FactoryError
from factory.store import Store
from factory.training import help_train, train_policy
from tests.test_isolation import ended
from tests.train.conftest import SMALL, pair_rows
from tests.train.test_trainer import METHODS, OPTIONS, config, rows_for
from train import losses
from train.batches import FixedRows, shares, tokens_of
from train.config import LoraSpec, TrainConfig
from train.launching import Launch, Observer, launch
from train.logps import PlainForward
from train.metrics import read, timeless
from train.policy import Policy, kept_tensors, load_policy, save_policy
from train.processes import Group, gathered, load_sharded, whole
from train.shards import save as save_shards
from train.trainer import Trainer

TWO = Launch(processes=2)


def head_of(method: str) -> Any:
    return "score" if losses.get(method).data == "scores" else "language"


def loaded(group: Group, model: str, settings: TrainConfig) -> Policy:
    head = head_of(settings.method)
    if group.size > 1:
        return load_sharded(group, model, None, lora=settings.lora, dtype=settings.dtype, seed=settings.seed, head=head)
    return load_policy(
        model, lora=settings.lora, dtype=settings.dtype, device="cpu", trainable=True, seed=settings.seed, head=head
    )


def loop(group: Group, model: str, settings: TrainConfig, rows: Any, folder: Path) -> Trainer:
    torch.set_num_threads(1)
    source = FixedRows(rows, settings.batch_size, settings.epochs, settings.seed)
    return Trainer(loaded(group, model, settings), source, settings, folder, "model", None, group)


# ------------------------------------------------------------------------------------------------------- exactness


class Case(NamedTuple):
    """One training: `plain`: not by packed rows."""

    name: str
    settings: TrainConfig
    plain: bool = False


def case(method: str, name: str = "", plain: bool = False, **more: Any) -> Case:
    """Two steps at a rate that moves next to nothing, so that both gradients compare: of eight rows, and of one, which
    leaves a process without any."""
    given = {"add": {"sft": 0.3}, "clip": None, "learning_rate": 1e-7, "lora": SMALL, "dtype": "float32"} | more
    return Case(f"{method} {name}".strip(), config(method, **given), plain)


AGAIN: dict[str, LoraSpec | None] = {"activations": SMALL, "activations, whole model": None}
CASES = [
    *(case(method) for method in METHODS),
    *(case(method, " ".join(parameters), parameters=parameters) for method, parameters in OPTIONS),
    *(case("dpo", name, weighting=name) for name in ("wpo", "wpo_plain")),
    *(case(method, "whole model", lora=None) for method in ("dpo", "kto", "orpo", "sft", "reward_model")),
    *(case(method, "row by row", micro_batch_tokens=1) for method in ("dpo", "kto", "sft")),
    *(case(method, "plain", plain=True) for method in ("dpo", "kto")),
    case("dpo", "clipped", clip=0.01),
    *(case("dpo", name, checkpoint_activations=True, lora=lora) for name, lora in AGAIN.items()),
]


def compared(group: Group, work: tuple[str, str], observer: Observer | None) -> None:
    """Gradients of both steps, and metrics, of every case."""
    model, folder = work
    for one in CASES:
        out = Path(folder, one.name)
        training = loop(group, model, one.settings, rows_for(one.settings.method, 9), out)
        if one.plain:
            training.forward = PlainForward(training.policy.model)
        steps: list[dict[str, torch.Tensor]] = []

        def keep(*_: Any, training: Trainer = training, steps: list[Any] = steps) -> None:
            steps.append(gathered(group, {n: p.grad for n, p in training.weights.items() if p.grad is not None}))

        training.optimiser.register_step_pre_hook(keep)
        training.run()
        if group.first:
            torch.save(steps, out / "gradients.pt")
        group.wait()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tiny_model: Path, tmp_path: Path) -> None:
    """For every objective and option: 2 processes x 4 is 8, to 1e-5; and so are loss, norm and every other metric."""
    compared(Group(), (str(tiny_model), str(tmp_path / "one")), None)
    launch(compared, (str(tiny_model), str(tmp_path / "two")), TWO)
    for one in CASES:
        got, wanted = (torch.load(tmp_path / n / one.name / "gradients.pt") for n in ("two", "one"))
        assert len(wanted) == len(got) == 2
        for step, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
            assert ours.keys() == theirs.keys()
            square = sum(float(theirs[name].double().square().sum()) for name in theirs)
            assert square > 0
            for name in theirs:
                off = float((ours[name] - theirs[name]).norm())
                assert off <= 1e-5 * square**0.5, (one.name, step, name)
        lines = [[timeless(line) for line in read(tmp_path / n / one.name / "metrics.jsonl")] for n in ("two", "one")]
        for ours_line, theirs_line in zip(*lines, strict=True):
            assert ours_line == pytest.approx(theirs_line, rel=1e-4, abs=1e-5), one.name


def test_rows_are_shared_out_by_length() -> None:
    rows = pair_rows(40)
    found = shares(rows, 3)
    assert sorted(row for part in found for row in part) == sorted(rows)
    tokens = [sum(map(tokens_of, part)) for part in found]
    assert max(tokens) - min(tokens) <= max(map(tokens_of, rows))
    assert found == shares(rows, 3)
    assert shares(rows[:1], 3) == [rows[:1], [], []]
    assert shares(rows, 1) == [rows]


# ------------------------------------------------------------------------------------------------------- resuming


class Training(NamedTuple):
    """One of 8 steps over two epochs with a checkpoint every third; `kill`: (rank, point) at which it is killed."""

    model: str
    folder: str
    kill: tuple[int, str] | None = None
    lora: LoraSpec | None = LoraSpec(r=4, dropout=0.2)
    method: str = "dpo"
    dtype: Any = "float32"


def trained(group: Group, work: Training, observer: Observer | None) -> None:
    if work.kill is not None and work.kill[0] == group.rank:
        os.environ[crash.VARIABLE] = work.kill[1]
    settings = config(work.method, epochs=2, batch_size=3, save_every=3, lora=work.lora, dtype=work.dtype)
    training = loop(group, work.model, settings, rows_for(work.method, 11), Path(work.folder))
    training.run()
    tensors = gathered(group, kept_tensors(training.policy))
    if group.first:
        save_policy(training.policy, Path(work.folder, "policy"), tensors)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    (path,) = (folder / "policy").glob("*.safetensors")
    return load_file(path), [timeless(line) for line in read(folder / "metrics.jsonl")]


KILLS = {
    "first, mid-checkpoint": Training("", "", (0, "train.mid_checkpoint:2"), None, "bco"),
    "other, mid-checkpoint": Training("", "", (1, "train.mid_checkpoint:2")),
    "other, mid-epoch": Training("", "", (1, "train.after_step:5"), dtype="bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_a_killed_training_goes_on_to_the_same_bits(name: str, tiny_model: Path, tmp_path: Path) -> None:
    work = KILLS[name]._replace(model=str(tiny_model))
    launch(trained, work._replace(folder=str(tmp_path / "whole"), kill=None), TWO)
    killed = tmp_path / "killed"
    assert work.kill is not None
    with pytest.raises(FactoryError, match=f"process {work.kill[0]} of the training ended by SIGKILL"):
        launch(trained, work._replace(folder=str(killed)), TWO)
    assert [p.name for p in (killed / "checkpoints").glob("step-*")] == ["step-000003"]
    launch(trained, work._replace(folder=str(killed), kill=None), TWO)
    (wanted, lines), (got, other) = outcome(tmp_path / "whole"), outcome(killed)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert lines == other
    assert len(lines) == 8


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_processes_goes_on_nearly_the_same(
    first: int, then: int, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights and optimiser fit the new shards: the metrics of the steps to come are those of a training in one."""
    work = Training(str(tiny_model), str(tmp_path / "cut"), (0, "train.after_step:4"), None)
    trained(Group(), work._replace(folder=str(tmp_path / "whole"), kill=None), None)
    launch_or_run(work, first)
    launch_or_run(work._replace(kill=None), then)
    (wanted, lines), (got, other) = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert wanted.keys() == got.keys()
    for ours, theirs in zip(other, lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=2e-3)
    assert f"is of {first} processes" in caplog.text or then > 1


def launch_or_run(work: Training, processes: int) -> None:
    """One process is launched too where it is to be killed."""
    if processes == 1 and work.kill is None:
        trained(Group(), work, None)
        return
    if work.kill is None:
        launch(trained, work, Launch(processes=processes))
        return
    with pytest.raises(FactoryError, match="SIGKILL"):
        launch(trained, work, Launch(processes=processes))


def torn(group: Group, work: tuple[str, str], observer: Observer | None) -> float:
    """Write two checkpoints; the share of the model that this process holds."""
    model, folder = work
    training = loop(group, model, config(lora=SMALL), pair_rows(4), Path(folder))
    training.step(0)
    for step in (1, 2):
        save_shards(Path(folder), step, training.stamp, training.weights, training.optimiser, {}, group)
    parameters: list[Any] = list(training.policy.model.parameters())
    return float(sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters))


@pytest.mark.slow
def test_a_torn_shard_is_never_taken_for_a_whole_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    """Every file in turn: cut, changed, gone."""
    from train import checkpoint

    held = launch(torn, (str(tiny_model), str(tmp_path / "home")), TWO)
    assert held == pytest.approx(0.5, abs=0.01)  # the frozen base too
    mark = checkpoint._whole(tmp_path / "home" / "step-000002")
    assert mark is not None
    assert mark.processes == 2
    names = sorted(p.name for p in mark.folder.iterdir())
    assert names == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "checkpoint.json", "random-0.pt", "random-1.pt", "state.pt"
    ]  # fmt: skip
    for name in names:
        path = mark.folder / name
        data = path.read_bytes()
        for harmed in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 0xFF]), None):
            path.unlink()
            if harmed is not None:
                path.write_bytes(harmed)
            found = checkpoint.newest(tmp_path / "home", mark.stamp)
            assert found is not None
            assert found.step == 1
            path.write_bytes(data)
    found = checkpoint.newest(tmp_path / "home", mark.stamp)
    assert found is not None
    assert found.step == 2


def without_room(group: Group, work: tuple[str, str], observer: Observer | None) -> None:
    """From the third step on, one process may write small files only."""
    model, folder = work
    training = loop(group, model, config(lora=None, batch_size=2, save_every=1), pair_rows(8), Path(folder))
    steps = training.step

    def limited(step: int) -> Any:
        if step == 2 and group.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return steps(step)

    training.step = limited  # type: ignore[method-assign]
    training.run()


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="the disk is full: a checkpoint could not be written"):
        launch(without_room, (str(tiny_model), str(tmp_path)), TWO)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-000001", "step-000002"]


# ------------------------------------------------------------------------------------------------ from and to a store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(("method", "lora"), [("dpo", SMALL), ("dpo", None), ("reward_model", SMALL), ("kto", SMALL)])
def test_a_stores_rows_become_one_policy(store: Store, tiny_model: Path, method: str, lora: LoraSpec | None) -> None:
    store.append("preferences", [preference(i) for i in range(10)])
    store.append("labels", [label(i) for i in range(10)])
    settings = CONFIG.model_copy(update={"method": method, "lora": lora, "learning_rate": 1e-4, "epochs": 1})
    common: dict[str, Any] = {"run": "r", "rounds": [1], "start": str(tiny_model), "config": settings}
    told: list[int] = []

    class Counter:
        def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
            told.append(n)

    out = store.folder / "two"
    result = train_policy(store, out=out, processes=TWO, progress=Counter(), **common)
    assert sorted(p.name for p in out.iterdir()) == ["metrics.jsonl", "policy"]
    assert told == [1, 1, 1]
    one = train_policy(store, out=store.folder / "one", **common)
    assert result.last == pytest.approx(one.last, rel=1e-3, abs=1e-3)
    files = [Path(policy, p.name) for policy in (result.policy, one.policy) for p in Path(one.policy).glob("*.safete*")]
    assert len(files) == 2
    ours, theirs = map(load_file, files)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=5e-4) for name in theirs)
    adapter = lora is not None
    again = load_policy(
        str(tiny_model) if adapter else result.policy, result.policy if adapter else None, dtype="float32",
        device="cpu", head=head_of(method),
    )  # fmt: skip
    assert again.model is not None
    assert train_policy(store, out=out, processes=TWO, **common) == result


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        (Launch(processes=0), "processes: 0"),
        (Launch(processes=2, nodes=2, node=2, rendezvous="host:1"), "node: 2"),
        (Launch(processes=2, nodes=2), "rendezvous"),
        (Launch(processes=2, nodes=2, rendezvous="host:1", wait=0), "wait: 0"),
        (Launch(processes=2, nodes=2, rendezvous="host:port"), "rendezvous"),
        (Launch(processes=-1, nodes=0), "2 faults"),
    ],
)
def test_a_launch_is_checked(how: Launch, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        launch(idle, None, how)


def test_node_0_leads_and_the_others_help(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    other = Launch(processes=1, nodes=2, node=1, rendezvous="localhost:29500")
    with pytest.raises(FactoryError, match="help_train"):
        train_policy(store, run="r", rounds=[1], start=str(tiny_model), out=tmp_path, config=CONFIG, processes=other)
    with pytest.raises(FactoryError, match="node 0 leads"):
        help_train(TWO)


# ------------------------------------------------------------------------------------------------------- endings


def idle(group: Group, work: Any, observer: Observer | None) -> int:
    return group.size


def failing(group: Group, how: str, observer: Observer | None) -> None:
    """The second process fails; the first waits for it."""
    if group.rank == 1:
        if how == "fault":
            raise EndpointError("the well is dry", where="there", todo="wait for rain")
        if how == "bug":
            raise ZeroDivisionError("by nothing")
        os.kill(os.getpid(), signal.SIGKILL)
    group.wait()


@pytest.mark.slow
def test_what_a_worker_dies_of_reaches_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(EndpointError, match="the well is dry") as caught:
        launch(failing, "fault", TWO)
    assert (caught.value.exit_code, caught.value.where, caught.value.todo) == (3, "there", "wait for rain")
    with pytest.raises(FactoryError, match="process 1 of the training ended by SIGKILL"):
        launch(failing, "death", TWO)
    with pytest.raises(FactoryError, match="process 1 of the training failed: ZeroDivisionError: by nothing"):
        launch(failing, "bug", TWO)
    assert "in failing" in caplog.text
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def diverging(group: Group, work: tuple[str, str], observer: Observer | None) -> None:
    rows = [row._replace(ref_chosen=float("nan")) for row in pair_rows(4)]
    loop(group, work[0], config(lora=SMALL), rows, Path(work[1])).run()


def telling(group: Group, work: None, observer: Observer | None) -> str:
    """Only the first has an observer, and only its log is heard."""
    logging.getLogger("train.telling").warning("heard of process %d", group.rank)
    if observer is not None:
        observer.advance(2, tokens=5)
    return group.from_first(lambda: f"process {group.rank} of {group.most(0) if group.size == 1 else group.size}")


@pytest.mark.slow
def test_faults_progress_and_log_come_through(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FactoryError, match="the loss is not finite at step 1"):
        launch(diverging, (str(tiny_model), str(tmp_path)), TWO)
    told: list[tuple[int, int]] = []

    class Counter:
        def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
            told.append((n, tokens))

    assert launch(telling, None, TWO, Counter()) == "process 0 of 2"
    assert told == [(2, 5)]
    assert [r.getMessage() for r in caplog.records if r.name == "train.telling"] == ["heard of process 0"]


PARENT = """
import os, signal, sys, time
from train.launching import Launch, launch

def wait_for_ever(group, work, observer):
    sys.stdout.write(f"{os.getpid()}\\n")
    sys.stdout.flush()
    if group.rank:
        group.wait()  # in C++
    time.sleep(120)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    try:
        launch(wait_for_ever, None, Launch(processes=2))
    except KeyboardInterrupt:
        sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join(sys.path)  # what this process imports, its own helpers of tests too
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    time.sleep(0.5)  # so that one of them waits in C++
    parent.send_signal(how)
    code = parent.wait(60)
    assert code == (7 if how == signal.SIGINT else -how)
    assert all(ended(pid) for pid in workers)


# ------------------------------------------------------------------------------------------------------ several hosts


def summed(group: Group, work: int | None, observer: Observer | None) -> list[int]:
    """Each host's processes, and what node 0 was given."""
    given = group.from_first(lambda: work)
    total = torch.tensor([float(group.rank)])
    torch.distributed.all_reduce(total)
    return [group.size, int(total), given or 0]


HELPER = """
import sys
from tests.train.test_processes import summed
from train.launching import Launch, launch

if __name__ == "__main__":
    print(launch(summed, None, Launch(processes=2, nodes=2, node=1, rendezvous=sys.argv[1], wait=120)))
"""


@pytest.mark.slow
def test_two_hosts_meet(tmp_path: Path) -> None:
    """Two launchers on this one, as on two hosts."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    script = tmp_path / "helper.py"
    script.write_text(HELPER)
    path = os.pathsep.join(sys.path)  # what this process imports, its own helpers of tests too
    helper = subprocess.Popen(
        [sys.executable, str(script), place], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    try:
        assert launch(summed, 11, Launch(processes=2, nodes=2, node=0, rendezvous=place, wait=120)) == [4, 6, 11]
        assert helper.communicate(timeout=60)[0].strip() == "[4, 6, 11]"
    finally:
        helper.kill()


@pytest.mark.parametrize("node", [0, 1])
def test_a_host_that_does_not_come_is_told_of(node: int) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    with pytest.raises(FactoryError, match=f"the other host of the training cannot be heard at {place}") as told:
        launch(summed, 11, Launch(processes=1, nodes=2, node=node, rendezvous=place, wait=1))
    assert "--wait (1 s)" in str(told.value.todo)


def test_whole_leaves_what_is_not_sharded() -> None:
    tensor = torch.arange(3)
    assert whole(tensor) is tensor
