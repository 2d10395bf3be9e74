"""Training: a run's preferences or labels become a policy. The store's side of it; the loop is `train/trainer.py`.

    rows of the store -> token ids -> reference log-probs (kept in `logps`) -> train.Trainer -> <out>/policy

With several processes this one reads the store and scores the reference; then workers train and write the policy.

`out` gets metrics.jsonl, checkpoints/ while it lasts, and policy/, which appears whole and last. The same call after a
kill goes on from what was done, and after the end hands back what came out.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from factory import crash
from factory.faults import ConfigError, FactoryError
from factory.resources import EMBEDDED, ModelFiles, content_hash, model_files
from factory.schema import Logp, digest, now, unique
from factory.training.training_rows import Data, asked, stored, table_of
from train.config import NOT_WHAT, TrainConfig
from train.launching import Launch, launch

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.store import Store
    from factory.training.online import OnlineWork
    from factory.training.rewards import Rewards
    from train.config import OnlineSpec
    from train.data import Encoded
    from train.plan import Plan, Rows
    from train.policy import Policy
    from train.processes import Group
    from train.trainer import Trained

DONE = "training.json"  # in the policy's folder: what the training was, and what it gave


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training gave. `first`, `last`: means of the metrics over the first and the last quarter of the steps."""

    policy: str
    method: str
    start: str
    reference: str
    rows: int
    steps: int
    truncated: int
    truncated_tokens: int = 0  # of those rows, in all
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    best: Mapping[str, Any] = field(
        default_factory=dict
    )  # of methods that learn a prompt's best: `best_of.Best` counted
    first: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    changed: Mapping[str, float] = field(default_factory=dict)  # logps/* and logratios/*: last - first, nats
    warnings: Sequence[str] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"warnings": list(self.warnings)}


# ------------------------------------------------------------------------------------------------------- settings


def config_of(*, method: str, settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> TrainConfig:
    """A checked TrainConfig from loose settings. ConfigError with every fault at once."""
    from pydantic import ValidationError

    faults: list[str] = []
    try:
        config = TrainConfig(**{**settings, "method": method, "parameters": dict(parameters)})
    except ValidationError as error:
        for fault in error.errors():
            faults.append(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}")
        config = TrainConfig(method=method)
    try:
        (config if not faults else TrainConfig.model_construct(method=method, parameters=dict(parameters))).check()
    except ConfigError as error:
        faults.extend(error.faults)
    if faults:
        raise ConfigError(faults, where="settings of the training")
    return config


def needs(config: TrainConfig) -> str:
    """The table that a training reads: preferences or labels; prompts where the policy answers them itself."""
    from train import losses

    config.check()
    return "prompts" if config.online else table_of(losses.get(config.method))


# ------------------------------------------------------------------------------------------------------- the stage


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
    finite, or an `out` that holds another training.
    """
    from train.trainer import threads

    began = time.monotonic()
    config.check()
    rounds, together = list(rounds), _several(processes, config)
    job = _Job(store, start, reference, config, out)
    if config.online is not None:
        job.ask(prompts, reward, run, max(rounds, default=0))
    else:
        job.read({"run": run, "round": rounds, **(where or {})}, strategy)
    if done := job.finished():
        return done
    with threads(count := _threads(out, config)):
        rows = [] if config.online else job.with_reference()
        if together is not None:
            trained = job.train_together(rows, together, max(1, count // together.processes), progress)
        elif job.online is None:
            trained = job.train(rows, progress)
        else:
            trained = job.train_online(job.online, progress)
    result = _result(job, trained, start, reference, time.monotonic() - began)
    job.publish(result)
    return result


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
    together = _several(processes, config)
    job = _Job(store, start, reference, config, Path())
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


def _as_sampled(job: _Job, spec: OnlineSpec) -> Rows:
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
    launch(_train_share, None, processes)


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
    for path in (*sorted(draft.iterdir()), draft):
        _sync(path)
    draft.rename(out)
    _sync(out.parent)


class _Job:
    """One training: what it is of, the policy in memory, and the folder it writes."""

    def __init__(self, store: Store, start: str, reference: str, config: TrainConfig, out: Path) -> None:
        from train import losses

        self.store, self.config, self.out = store, config, out
        self.start = model_files(start)
        self.reference = self.start if reference in ("start", start) else model_files(reference)
        self.objective = losses.get(config.method)
        self.dtype = _dtype(config)
        self.model_hash = content_hash(self.start, self.dtype)
        self.data = Data([])
        self.online: OnlineWork | None = None  # where the policy answers prompts itself
        self._policy: Policy | None = None
        self._written = False  # is the policy in its draft already?

    def read(self, where: Mapping[str, Any], strategy: str | Sequence[str] | None) -> None:
        """Take the rows of the store. FactoryError: there are none, or of ways that were not named."""
        self.data = stored(self.store, self.objective, where, strategy, self.start.base, self.config)

    def ask(self, prompts: Sequence[str] | None, rewards: Rewards | None, run: str, number: int) -> None:
        """Take the prompts that the policy answers itself, and who rewards it. FactoryError: there are none, or the
        rewards are not right."""
        from factory.training.online import OnlineWork
        from factory.training.rewards import Rewards

        rewards = rewards or Rewards()
        rewards.check()
        found = asked(self.store, prompts, self.start.base, self.config)
        self.online = OnlineWork(
            found, self.start.name, self.reference.name, self.config, self.out.absolute(), self.model_hash, self.dtype,
            self.store.folder, run, number, rewards,
        )  # fmt: skip
        self.data = Data(list(found))

    @property
    def identity(self) -> dict[str, str]:
        """What the training is of; kept with the policy."""
        config = self.config.model_dump(mode="json", exclude=set(NOT_WHAT))
        return {
            "data": digest([list(row) for row in self.data.rows]),
            "config": digest(config),
            "model": self.model_hash,
            "reference": content_hash(self.reference, self.dtype),
        } | ({} if self.online is None else {"reward": digest(self.online.rewards.identity())})

    @property
    def _draft(self) -> Path:
        return self.out / "policy.writing"

    @property
    def _head(self) -> Literal["language", "score"]:
        return "score" if self.objective.data == "scores" else "language"

    @property
    def policy(self) -> Policy:
        """The policy that is trained, loaded when it is first asked for."""
        if self._policy is None:
            from train.policy import load_policy

            self._policy = load_policy(
                self.start.base,
                self.start.adapter,
                lora=self.config.lora,
                dtype=self.config.dtype,
                trainable=True,
                seed=self.config.seed,
                base_name=_base_name(self.start),
                head=self._head,
            )
        return self._policy

    def finished(self) -> TrainResult | None:
        """What came out, when this training is done. FactoryError when the folder holds another one's policy."""
        mark = self.out / "policy" / DONE
        if not mark.exists():
            return None
        kept = json.loads(mark.read_text(encoding="utf-8"))
        if kept["identity"] != self.identity:
            raise FactoryError(
                "the folder holds the policy of another training (data, settings or models differ)",
                where=str(self.out / "policy"),
                todo="train into another folder, or delete this one",
            )
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
        return TrainResult(**{**kept["result"], "policy": str(self.out / "policy")})

    def with_reference(self) -> list[Any]:
        """The rows with the reference's log-probs, where the objective needs one."""
        from train.shapes import of

        if not self.objective.reference:
            return self.data.rows
        shape = of(self.objective, self.config.parameters)
        kept = iter(reference_logps(self.store, self._scored(), *self._reference_hash, self._scorer))
        return [shape.with_reference(row, [next(kept) for _ in shape.scored(row)]) for row in self.data.rows]

    def _scored(self) -> list[Encoded]:
        """What the reference scores."""
        from train.shapes import of

        shape = of(self.objective, self.config.parameters)
        return [encoded for row in self.data.rows for encoded in shape.scored(row)]

    @property
    def _reference_hash(self) -> tuple[str, str]:
        """Of the reference, and the dtype that it scores in."""
        return content_hash(self.reference, self.dtype), self.dtype

    def unscored(self) -> list[Encoded]:
        """What of it the store does not have yet."""
        rows = self._scored()
        keys = _logp_keys(rows, *self._reference_hash)
        missing = set(self.store.missing("logps", keys))
        return [row for row, key in zip(rows, keys, strict=True) if key in missing]

    @property
    def reference_is_other(self) -> bool:
        """Is it a model besides the one in training: neither its start nor its base?"""
        is_base = self.reference.adapter is None and self.reference.base == self.start.base
        return self.reference != self.start and not (is_base and self.config.lora is not None)

    @contextmanager
    def _scorer(self) -> Iterator[Any]:
        """The reference's model: the policy as it starts, the policy without its adapter, or another that is then
        freed."""
        from train.policy import load_policy

        if self.reference == self.start:
            with self.policy.precision():
                yield self.policy.model
        elif self.reference.adapter is None and self.reference.base == self.start.base and self.policy.has_adapter:
            with self.policy.without_adapter(), self.policy.precision():
                yield self.policy.model
        else:
            other = load_policy(self.reference.base, self.reference.adapter, dtype=self.dtype)  # type: ignore[arg-type]
            with other.precision():
                yield other.model

    def train(self, rows: Sequence[Any], progress: Progress | None) -> Trained:
        """The loop."""
        from train.batches import FixedRows
        from train.trainer import Trainer

        source = FixedRows(rows, self.config.batch_size, self.config.epochs, self.config.seed)
        return Trainer(self.policy, source, self.config, self.out, self.model_hash, progress).run()

    def train_together(self, rows: Sequence[Any], how: Launch, threads: int, progress: Progress | None) -> Trained:
        """The loop in several processes, which also write the policy's draft."""
        self._let_go()
        work = _Work(
            rows, self.start.name, _base_name(self.start), self._head, self.config, self.out.absolute(),
            self._draft.absolute(), self.model_hash, threads, self.online,
        )  # fmt: skip
        trained = launch(_train_share, work, how, progress)
        self._written = True
        return trained

    def _let_go(self) -> None:
        """Free the memory of the policy that scored the reference."""
        import torch

        self._policy = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def train_online(self, work: OnlineWork, progress: Progress | None) -> Trained:
        """The loop on answers of its own."""
        from factory.training.online import train

        return train(work, self.policy, progress, store=self.store)

    def publish(self, result: TrainResult) -> None:
        """Write the policy's folder whole, then let go of the checkpoints."""
        from train.policy import save_policy
        from train.shortages import room_for

        draft = self._draft
        said = {"identity": self.identity, "config": self.config.model_dump(mode="json"), "result": result.to_json()}
        with room_for("the policy", self.out, [draft.name]):
            if not self._written:
                shutil.rmtree(draft, ignore_errors=True)
                save_policy(self.policy, draft)
            (draft / DONE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            for path in (*sorted(draft.iterdir()), draft):
                _sync(path)
        crash.point("train.before_policy")
        draft.rename(self.out / "policy")
        _sync(self.out)
        crash.point("train.after_policy")
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)


# --------------------------------------------------------------------------------------------------- many processes


class _Work(NamedTuple):
    """What the processes of a training are told."""

    rows: Sequence[Any]
    start: str  # a name, which each host resolves
    base_name: str
    head: Literal["language", "score"]
    config: TrainConfig
    out: Path
    draft: Path
    model_hash: str
    threads: int
    online: OnlineWork | None = None


def _several(processes: Launch | None, config: TrainConfig) -> Launch | None:
    """The processes, where there is more than one. FactoryError where they cannot be."""
    if processes is None:
        return None
    processes.check()
    if processes.size == 1:
        return None
    if processes.node:
        raise FactoryError("node 0 leads the training; the others help", todo="call help_train on this host")
    return processes


def _train_share(group: Group, work: _Work | None, progress: Progress | None) -> Trained:
    """One process of several: the loop on its share, then the policy's draft from the first one."""
    from factory.training.online import train as train_online
    from train.batches import FixedRows
    from train.policy import kept_tensors, save_policy
    from train.processes import gathered, load_sharded
    from train.trainer import Trainer, threads

    told = group.from_first(lambda: work)
    if told is None:
        raise ValueError("the first process has no work")
    config, files = told.config, model_files(told.start)
    with threads(config.threads or told.threads):
        policy = load_sharded(
            group, files.base, files.adapter, lora=config.lora, dtype=config.dtype, seed=config.seed,
            base_name=told.base_name, head=told.head,
        )  # fmt: skip
        if told.online is not None:
            trained = train_online(told.online, policy, progress, group)
        else:
            source = FixedRows(told.rows, config.batch_size, config.epochs, config.seed)
            trained = Trainer(policy, source, config, told.out, told.model_hash, progress, group).run()
        tensors = gathered(group, kept_tensors(policy))
        if group.first:
            shutil.rmtree(told.draft, ignore_errors=True)
            save_policy(policy, told.draft, tensors)
        group.wait()
    return trained


# ------------------------------------------------------------------------------------------------------- reference


def reference_logps(
    store: Store,
    rows: Sequence[Encoded],
    model_hash: str,
    dtype: str,
    scorer: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """The log-probability of every row, nats: from the store where it is kept, else computed once and kept.

    `scorer` opens the model, and is not called when nothing is missing. What a killed pass left is computed in the
    same batches as it would have been, so to the same bits.
    """
    keys = _logp_keys(rows, model_hash, dtype)
    wanted = set(store.missing("logps", keys))
    if wanted:
        from train.logps import score

        with scorer() as model:
            for batch in score(model, rows, needed=lambda i: keys[i] in wanted):
                store.append("logps", [
                    Logp(key=keys[i], model_hash=model_hash, dtype=dtype, logprob=s.logp, tokens=s.tokens, at=now())
                    for i, s in zip(batch.rows, batch.logps, strict=True)
                ])  # fmt: skip
                crash.point("train.after_score")
    held = store.read("logps", columns=["key", "logprob"], where={"key": unique(keys)})
    by_key = {row["key"]: row["logprob"] for row in held}
    return [by_key[key] for key in keys]


def _logp_keys(rows: Sequence[Encoded], model_hash: str, dtype: str) -> list[str]:
    return [digest(model_hash, dtype, row.prompt_ids, row.completion_ids) for row in rows]


# -------------------------------------------------------------------------------------------------------- small parts


def _base_name(files: ModelFiles) -> str:
    """What an adapter calls its base: the embedded model's or the hub's name; a folder by its whole path."""
    name = files.name
    if files.adapter is not None:
        config = json.loads((Path(files.adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    return name if name == EMBEDDED or not Path(files.base).exists() else str(Path(files.base).resolve())


def _dtype(config: TrainConfig) -> str:
    from train.policy import resolve_device, resolve_dtype

    return resolve_dtype(config.dtype, resolve_device("auto"), whole=config.lora is None)


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


def _result(job: _Job, trained: Trained, start: str, reference: str, seconds: float) -> TrainResult:
    lines = trained.lines
    quarter = max(1, len(lines) // 4)
    first, last = _means(lines[:quarter]), _means(lines[-quarter:])
    changed = {
        name: last[name] - first[name] for name in first if name.startswith(("logps/", "logratios/")) and name in last
    }
    return TrainResult(
        policy=str(job.out / "policy"),
        method=job.config.method,
        start=start,
        reference=reference,
        rows=len(job.data.rows),
        steps=len(lines),
        truncated=job.data.truncated,
        truncated_tokens=job.data.truncated_tokens,
        skipped=job.data.skipped,
        best={} if job.data.best is None else job.data.best.to_json(),
        first=first,
        last=last,
        changed=changed,
        warnings=trained.warnings,
        seconds=round(seconds, 2),
    )


def _means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric's mean over the lines that have it."""
    from train.metrics import TIMES

    names = unique(name for line in lines for name in line if name not in (*TIMES, "step", "epoch", "tokens"))
    values = {name: [line[name] for line in lines if name in line] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
