"""One training of a policy: its rows and models, the reference's log-probs, the loop, and the folder that it leaves."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory import crash
from factory.faults import FactoryError
from factory.resources import EMBEDDED, ModelFiles, content_hash, model_files
from factory.schema import digest, now
from factory.store.filesystem import sync, sync_contents
from factory.training.processes import Work, train_share
from factory.training.reference import logp_keys, reference_logps
from factory.training.result import TrainResult
from factory.training.rows import Data, asked, stored, table_of
from train.config import NOT_WHAT, TrainConfig
from train.launching import Launch, launch

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.store import Store
    from factory.training.online import OnlineWork
    from factory.training.rewards import Rewards
    from train.data import Encoded
    from train.policy import Policy
    from train.trainer import Trained

DONE = "training.json"  # in the policy's folder: what the training was, and what it gave


class Job:
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
        self.made_of: dict[str, Any] = {}  # which rows of the store were read, and when
        self.online: OnlineWork | None = None  # where the policy answers prompts itself
        self._policy: Policy | None = None
        self._written = False  # is the policy in its draft already?

    def read(self, where: Mapping[str, Any], strategy: str | Sequence[str] | None) -> None:
        """Take the rows of the store. FactoryError: there are none, or of ways that were not named."""
        named = [strategy] if isinstance(strategy, str) else strategy and list(strategy)
        self.made_of = {"table": table_of(self.objective), **where, "strategy": named, "until": now().isoformat()}
        self.data = stored(self.store, self.objective, where, strategy, self.start.base, self.config)
        self._refuse_other_tokens()

    def ask(self, prompts: Sequence[str] | None, rewards: Rewards | None, run: str, number: int) -> None:
        """Take the prompts that the policy answers itself, and who rewards it. FactoryError: there are none, or the
        rewards are not right."""
        from factory.training.online import OnlineWork
        from factory.training.rewards import Rewards

        rewards = rewards or Rewards()
        rewards.check()
        self.made_of = {"table": "prompts", "run": run, "round": [number], "until": now().isoformat()}
        found = asked(self.store, prompts, self.start.base, self.config)
        self.online = OnlineWork(
            found, self.start.name, self.reference.name, self.config, self.out.absolute(), self.model_hash, self.dtype,
            self.store.folder, run, number, rewards,
        )  # fmt: skip
        self.data = Data(list(found))
        self._refuse_other_tokens()

    def _refuse_other_tokens(self) -> None:
        """FactoryError: the reference is another model, to which the ids of these rows are other tokens."""
        from train.conversations import plain
        from train.policy import load_tokenizer

        if self.reference.base == self.start.base or not self.objective.reference:
            return
        texts = self.data.rows if self.online else [part for row in self._scored() for part in row]
        used = sorted({i for ids in texts for i in plain(ids)})
        ours, theirs = (load_tokenizer(each.base).convert_ids_to_tokens(used) for each in (self.start, self.reference))
        if ours != theirs:
            raise FactoryError(
                "the reference reads other tokens than the model in training: its log-probs would be of other texts",
                where=self.reference.name,
                todo=f"name a reference with the tokenizer of {self.start.name}, or leave it out: the start itself",
            )

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
        keys = logp_keys(rows, *self._reference_hash)
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
        work = Work(
            rows, self.start.name, _base_name(self.start), self._head, self.config, self.out.absolute(),
            self._draft.absolute(), self.model_hash, threads, self.online,
        )  # fmt: skip
        trained = launch(train_share, work, how, progress)
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
        said = {
            "identity": self.identity,
            "made_of": self.made_of,
            "config": self.config.model_dump(mode="json"),
            "result": result.to_json(),
        }
        with room_for("the policy", self.out, [draft.name]):
            if not self._written:
                shutil.rmtree(draft, ignore_errors=True)
                save_policy(self.policy, draft)
            (draft / DONE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            sync_contents(draft)
        crash.point("train.before_policy")
        draft.rename(self.out / "policy")
        sync(self.out)
        crash.point("train.after_policy")
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)


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
