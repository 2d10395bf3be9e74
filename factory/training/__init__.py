"""Training: a run's preferences or labels become a policy. The store's side of it; the loop is `train/trainer.py`.

    rows of the store -> token ids -> reference log-probs (kept in `logps`) -> train.Trainer -> <out>/policy

With several processes this one reads the store and scores the reference; then workers train and write the policy.

`out` gets metrics.jsonl, checkpoints/ while it lasts, and policy/, which appears whole and last. The same call after a
kill goes on from what was done, and after the end hands back what came out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.faults import ConfigError, FactoryError
from factory.resources import model_files
from factory.store.filesystem import sync, sync_contents
from factory.store.locks import held
from factory.training.job import Job
from factory.training.processes import several, train_share
from factory.training.result import TrainResult, result_of
from factory.training.rows import asked, table_of
from train.config import TrainConfig
from train.launching import Launch, launch

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.store import Store
    from factory.training.rewards import Rewards
    from train.config import OnlineSpec
    from train.plan import Plan, Rows


def config_of(*, method: str, settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> TrainConfig:
    """A checked TrainConfig from loose settings; a key may lead into another, as lora.r does. ConfigError with every
    fault at once."""
    from pydantic import ValidationError

    from factory.recipe import dotted, misfits
    from train import losses

    faults: list[str] = []
    data: dict[str, Any] = {}
    of_the_method = losses.get(method).defaults.keys()
    for key, value in settings.items():
        if key in of_the_method and key not in TrainConfig.model_fields:
            faults.append(f"{key}: is a parameter of {method}, not a setting of the trainer (-p {key}=...)")
        else:
            dotted.put(data, key, value, key)
    data |= {"method": method, "parameters": dict(parameters)}
    try:
        config = TrainConfig.model_validate(data)
    except ValidationError as error:
        found = misfits.found(error, TrainConfig, data)
        faults.extend(misfit.text() for misfit in found)
        config = _less(data, misfits.without(data, found, {}))
    try:
        config.check()
    except ConfigError as error:
        faults.extend(error.faults)
    if faults:
        raise ConfigError(faults, where="settings of the training")
    return config


def _less(data: Mapping[str, Any], sound: Mapping[str, Any]) -> TrainConfig:
    """The settings less what is wrong with them, to look at the rest; or method and parameters alone."""
    from pydantic import ValidationError

    from train.config import OnlineSpec

    try:
        return TrainConfig.model_validate(sound)
    except ValidationError:
        online = OnlineSpec() if data.get("online") else None
        return TrainConfig.model_construct(method=data["method"], parameters=data["parameters"], online=online)


def needs(config: TrainConfig) -> str:
    """The table that a training reads: preferences or labels; prompts where the policy answers them itself."""
    from train import losses

    config.check()
    return "prompts" if config.online else table_of(losses.get(config.method))


def train_policy(
    store: Store,
    *,
    run: str,
    rounds: Iterable[int],
    start: str,
    reference: str = "start",
    out: Path,
    config: TrainConfig,
    strategy: str | Sequence[str] | None = None,
    where: Mapping[str, Any] | None = None,
    prompts: Sequence[str] | None = None,
    reward: Rewards | None = None,
    processes: Launch | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a policy on the preferences or labels of a run's rounds, held to `reference`, into `out`/policy.

    start, reference: names of policies; reference "start" is the start itself. strategy: how the rows were made (one
    pairing strategy, or way to label, or several on purpose); it has to be named where the rows are of several. where:
    further conditions on the rows. Rows that cannot be trained on are skipped and counted.
    With config.online the policy's own answers to `prompts` (keys; all of the split train by default) are trained on,
    judged by `reward` (a verifier by default), whose judgments are kept under `run` and the last of `rounds`.
    processes: several that share every batch and the model between them, on this host and perhaps others, where
    `help_train` is called; `out` is then a folder that all of them see.
    FactoryError: no rows, rows of strategies that were not named, a model that does not load, a loss that is not
    finite, memory or disk that ran out, or an `out` that holds another training. LockedError: another process trains
    into `out`.
    """
    from train.shortages import memory_for
    from train.trainer import threads

    began = time.monotonic()
    config.check()
    rounds, together = list(rounds), several(processes, config)
    job = Job(store, start, reference, config, out)
    if config.online is not None:
        job.ask(prompts, reward, run, max(rounds, default=0))
    else:
        job.read({"run": run, "round": rounds, **(where or {})}, strategy)
    if done := job.finished():
        return done
    with _alone_in(out), threads(count := _threads(out, config)), memory_for("the training", str(out)):
        rows = [] if config.online else job.with_reference()
        if together is not None:
            trained = job.train_together(rows, together, max(1, count // together.processes), progress)
        elif job.online is None:
            trained = job.train(rows, progress)
        else:
            trained = job.train_online(job.online, progress)
    result = result_of(
        trained, job.data, job.out / "policy", method=config.method, start=start, reference=reference,
        seconds=time.monotonic() - began,
    )  # fmt: skip
    job.publish(result)
    return result


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder of a training: two that write checkpoints into it would take each other's for their own."""
    out.mkdir(parents=True, exist_ok=True)
    lock = out / "writing.lock"
    with held(lock, "the folder of the training"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def plan_training(
    store: Store,
    *,
    run: str,
    rounds: Iterable[int],
    start: str,
    reference: str = "start",
    config: TrainConfig,
    strategy: str | Sequence[str] | None = None,
    where: Mapping[str, Any] | None = None,
    processes: Launch | None = None,
) -> Plan:
    """What `train_policy` with the same arguments would take: memory, work, time. Loads no weights. Of a training on
    answers of its own all answers are as long as they may be, and tokens to sample are told. FactoryError: there are no
    rows or prompts, or the model's configuration does not load."""
    from factory.engines.transformers import default_threads
    from train.plan import Rows, as_supervised, plan
    from train.policy import resolve_device
    from train.trainer import micro_batch_tokens, threads

    config.check()
    together = several(processes, config)
    job = Job(store, start, reference, config, Path())
    if config.online is not None:
        rows = _as_sampled(job, config.online)
    else:
        job.read({"run": run, "round": list(rounds), **(where or {})}, strategy)
        rows = Rows(job.data.rows, job.unscored() if job.objective.reference else ())
    with threads(config.threads or default_threads()):
        found = plan(
            job.start.base,
            job.start.adapter,
            rows,
            as_supervised(config),
            limit=micro_batch_tokens(config, resolve_device("auto")),
            processes=1 if together is None else together.size,
            other_reference=job.objective.reference and job.reference_is_other,
        )
    if config.online is None:
        return found
    return replace(found, answers=len(rows.rows), sampled=len(rows.rows) * config.online.max_tokens)


def _as_sampled(job: Job, spec: OnlineSpec) -> Rows:
    """The answers of a training on answers of its own, all as long as they may be, to the store's prompts in turn; each
    is scored once by the policy, and once by the reference where there is one."""
    from train.data import CompletionRow, Encoded
    from train.plan import Rows

    prompts = list(asked(job.store, None, job.start.base, job.config))
    answer = (prompts[0][-1],) * spec.max_tokens
    turns = [prompts[i % len(prompts)] for i in range(spec.steps * spec.prompts) for _ in range(spec.n)]
    scored = [Encoded(prompt, answer) for prompt in turns]
    return Rows([CompletionRow(prompt, answer) for prompt in turns], scored * (2 if job.objective.reference else 1))


def help_train(processes: Launch) -> None:
    """This host's part of a training that `train_policy` leads on node 0: everything but the number of processes comes
    from there. Models are resolved by name here; the training's folder must be the same on all hosts."""
    if processes.nodes < 2 or processes.node == 0:
        raise FactoryError(
            "only nodes from 1 on help a training that node 0 leads", todo="set nodes and node, or train as usual"
        )
    launch(train_share, None, processes)


def merge(name: str, out: Path, *, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> None:
    """Write a policy that is an adapter on a base as one whole model into the new folder `out`, as `train.policy.merge`
    does. FactoryError: it is no adapter, or `out` is there."""
    from train import policy

    files = model_files(name)
    if files.adapter is None:
        raise FactoryError("there is no adapter to merge: it is a whole model", where=name)
    if out.exists():
        raise FactoryError("the folder is there already", where=str(out), todo="name a new one")
    draft = out.with_name(out.name + ".writing")
    shutil.rmtree(draft, ignore_errors=True)
    policy.merge(files.base, files.adapter, draft, dtype=dtype)
    sync_contents(draft)
    draft.rename(out)
    sync(out.parent)


def _threads(out: Path, config: TrainConfig) -> int:
    """CPU threads: as set, else as this training began with, else whichever number multiplies faster now."""
    if config.threads is not None:
        return config.threads
    kept = out / "threads"
    if kept.exists():
        return int(kept.read_text(encoding="utf-8"))
    from factory.engines.transformers import default_threads

    count = default_threads()
    out.mkdir(parents=True, exist_ok=True)
    draft = out / "threads.writing"
    draft.write_text(str(count), encoding="utf-8")
    draft.replace(kept)
    return count
