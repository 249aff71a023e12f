"""The side of --engine ray that runs in Ray's processes: a teacher loaded once, and a shard at a time."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.config import PrecomputeConfig
from pipeline.plan import Begun, ShardRange
from storage.errors import ConfigError, TeachonceError, first_line

_LOOK_AGAIN_AFTER_S = 1.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error that is the input's fault, in words: the error itself need not survive the way to the driver."""

    reason: str


class RayWorker:
    """An actor; what it returns is small and plain."""

    def __init__(self, config: PrecomputeConfig, work_dir: Path, meeting_point: str, num_threads: int) -> None:
        """meeting_point: name of a file that the driver put into work_dir."""
        self._config, self._work_dir, self._meeting_point = config, work_dir, meeting_point
        self._num_threads = num_threads

    def host(self) -> str:
        """Where this is; the first answer of a worker that Ray has found a place for."""
        return platform.node()

    def load(self) -> Begun | Failure:
        """Load teacher and text, and begin the cache: what there is to do."""
        return _attempt(self._load)

    def write(self, shard: ShardRange) -> bool | Failure:
        """Make a shard that has no commit record; False when a process that is none of this run's is at it."""
        return _attempt(lambda: self._write(shard))

    def _load(self) -> Begun:
        if not (self._work_dir / self._meeting_point).exists():
            raise ConfigError(
                f"--out {self._config.out}: not the directory that the driver sees; expected one that all hosts share"
            )
        import torch

        from pipeline.job import begin, load_job

        torch.set_num_threads(self._num_threads)
        self._job = load_job(self._config, self._work_dir)
        self._begun = begin(self._job, self._work_dir)
        return self._begun

    def _write(self, shard: ShardRange) -> bool:
        from pipeline.shard_writing import write_missing_shards

        producer = self._job.producers[shard.key.kind]
        taken = write_missing_shards(self._config.out, self._begun.identity, producer, [shard], lambda num_rows: None)
        if taken:
            time.sleep(_LOOK_AGAIN_AFTER_S)
        return not taken


def worker_config(config: PrecomputeConfig, *, on_gpu: bool) -> PrecomputeConfig:
    """What a worker is told: paths from the root, its device, and to be quiet."""
    return dataclasses.replace(
        config,
        teacher=_absolute(config.teacher),
        data=_absolute(config.data),
        out=config.out.absolute(),
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
        from pipeline.batch_size import is_out_of_memory

        if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        return Failure(reason=f"not enough memory ({first_line(error)}); use fewer workers, or larger machines")
