"""The side of --engine ray that runs in Ray's processes: a teacher loaded once, and a shard at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.config import PrecomputeConfig
from pipeline.plan import Begun, ShardRange
from pipeline.work.work_directory import work_directory
from storage.errors import ConfigError, TeachonceError, first_line
from storage.remote.directory import is_remote_url
from storage.writing.destinations import open_destination

_LOOK_AGAIN_AFTER_S = 1.0

Answer = TypeVar("Answer")
# What became of a shard: this worker made it, it was committed, or another process is at it.
Outcome = Literal["made", "found", "taken"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error that is the input's fault, in words: the error itself need not survive the way to the driver."""

    reason: str


class RayWorker:
    """An actor; what it returns is small and plain."""

    def __init__(self, config: PrecomputeConfig, meeting_point: str | None, num_threads: int) -> None:
        """meeting_point: name of a file that the driver put into the work directory, if all are to share that."""
        self._config, self._meeting_point, self._num_threads = config, meeting_point, num_threads
        self._destination = open_destination(config.out, config.work_dir)
        self._stack = contextlib.ExitStack()

    def host(self) -> str:
        """Where this is; the first answer of a worker that Ray has found a place for."""
        return platform.node()

    def load(self) -> Begun | Failure:
        """Load teacher and text, and begin the cache: what there is to do."""
        return _attempt(self._load)

    def write(self, shard: ShardRange) -> Outcome | Failure:
        """Make a shard unless it is committed; "taken" when a process that is none of this run's is at it."""
        return _attempt(lambda: self._write(shard))

    def leave(self) -> None:
        """Every shard is committed."""
        self._stack.close()

    def _load(self) -> Begun:
        if self._meeting_point and not (self._destination.work_dir / self._meeting_point).exists():
            raise ConfigError(
                f"--out {self._config.out}: not the directory that the driver sees; expected one that all hosts share"
            )
        import torch

        from pipeline.beginning import begin
        from pipeline.identity import facts_of
        from pipeline.job import lay_out, load_teacher_and_source

        torch.set_num_threads(self._num_threads)
        self._stack.enter_context(work_directory(self._destination))
        loaded = load_teacher_and_source(self._config)
        self._destination.require_same_facts(facts_of(loaded))
        self._job = lay_out(loaded, self._destination.work_dir)
        self._begun = begin(self._job, self._destination)
        return self._begun

    def _write(self, shard: ShardRange) -> Outcome:
        from pipeline.engines.shard_writing import write_missing_shards

        producer = self._job.producers[shard.key.kind]
        is_new: list[bool] = []
        if write_missing_shards(
            self._destination, self._begun.identity, producer, [shard], lambda num_rows, new: is_new.append(new)
        ):
            time.sleep(_LOOK_AGAIN_AFTER_S)
            return "taken"
        return "made" if any(is_new) else "found"


def worker_config(config: PrecomputeConfig, *, on_gpu: bool) -> PrecomputeConfig:
    """What a worker is told: paths from the root, its device, and to be quiet."""
    return dataclasses.replace(
        config,
        teacher=_absolute(config.teacher),
        data=_absolute(config.data),
        out=config.out if is_remote_url(str(config.out)) else Path(config.out).absolute(),
        work_dir=config.work_dir and config.work_dir.absolute(),
        device="cuda" if on_gpu else "cpu",
        quiet=True,
    )


def _absolute(name: str) -> str:
    """A path from the root, unless nothing is there: it may be an id of a hub."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _attempt(action: Callable[[], Answer]) -> Answer | Failure:
    try:
        return action()
    except TeachonceError as error:
        return Failure(reason=str(error))
    except (MemoryError, RuntimeError) as error:
        from storage.tensors.memory import is_out_of_memory

        if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        return Failure(reason=f"not enough memory ({first_line(error)}); use fewer workers, or larger machines")
