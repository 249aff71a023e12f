"""The part of --engine ray that runs in Ray's processes: load the teacher once, then make one shard per call.

At a URL two calls may run at once, each in a thread: the teacher makes a shard while the one before is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.config import PrecomputeConfig
from pipeline.plan import Begun, ShardRange, TokenizedText, summary_of
from pipeline.work.work_directory import work_directory
from storage.errors import ConfigError, StoppedError, TeachonceError, first_line
from storage.remote.directory import is_remote_url
from storage.writing.destinations import open_destination

_LOOK_AGAIN_AFTER_S = 1.0

Answer = TypeVar("Answer")
# The result for a shard: this worker made it, it was committed before, or another process is making it.
Outcome = Literal["made", "found", "taken"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The message of an error that ends the run. The error object might not survive its way to the driver."""

    reason: str


class RayWorker:
    """A Ray actor. Its methods return small, plain values."""

    def __init__(self, config: PrecomputeConfig, meeting_point: str | None, num_threads: int) -> None:
        """meeting_point: name of a file that the driver put into the work directory; None when --out is a URL.

        num_threads: threads for PyTorch.
        """
        self._config, self._meeting_point, self._num_threads = config, meeting_point, num_threads
        self._destination = open_destination(config.out, config.work_dir)
        self._stack = contextlib.ExitStack()
        self._teacher_is_free = threading.Lock()

    def host(self) -> str:
        """Return the name of this host. This is the first call: its answer shows that Ray has started the worker."""
        return platform.node()

    def open(self) -> int | Failure:
        """Load the teacher, or its tokenizer alone for --only, and open the source.

        Return the number of parts in which workers that see one directory may tokenize the text; 0 if they are to
        share it by claims, machine by machine, or if it is tokenized.
        """
        return _attempt(self._open)

    def tokenize(self, index: int) -> bool | Failure:
        """Tokenize a part. Return whether the parts that are made hold enough."""
        return _attempt(lambda: self._tokenize(index))

    def load(self) -> Begun | TokenizedText | Failure:
        """Join the parts, begin the cache and return its plan; for --only, what was made."""
        return _attempt(self._load)

    def write(self, shard: ShardRange) -> Outcome | Failure:
        """Make a shard unless it is committed. Return "taken" when a process outside this run is making it."""
        try:
            return _attempt(lambda: self._write(shard))
        except StoppedError:  # the other call of this worker has failed, and its answer ends the run
            time.sleep(_LOOK_AGAIN_AFTER_S)
            return "taken"

    def leave(self) -> None:
        """Leave the work directory. The driver calls this when every shard is committed."""
        self._stack.close()

    def _open(self) -> int:
        if self._meeting_point and not (self._destination.work_dir / self._meeting_point).exists():
            raise ConfigError(
                f"--out {self._config.out}: not the directory that the driver sees; expected one that all hosts share"
            )
        import torch

        from pipeline.corpus.parts.sharing import SharedParts
        from pipeline.identity import facts_of
        from pipeline.job import load_teacher_and_source, open_text, tokenization_of, tokens_dir
        from pipeline.teacher.loading import load_reader

        torch.set_num_threads(self._num_threads)
        is_only = self._config.only is not None
        self._stack.enter_context(work_directory(self._destination, keeps_tokens=is_only))
        if is_only:
            self._opened = open_text(load_reader(self._config), self._config)
        else:
            self._opened = loaded = load_teacher_and_source(self._config)
            self._destination.require_same_facts(facts_of(loaded))
        self._parts = SharedParts(tokenization_of(self._opened), tokens_dir(self._opened, self._destination.work_dir))
        return self._parts.num_parts if self._meeting_point else 0

    def _tokenize(self, index: int) -> bool:
        if not self._parts.are_enough():
            self._parts.make(index)
        return self._parts.are_enough()

    def _load(self) -> Begun | TokenizedText:
        from pipeline.beginning import begin
        from pipeline.job import Loaded, lay_out, tokenize

        if not isinstance(self._opened, Loaded):
            return summary_of(tokenize(self._opened, self._destination.work_dir))
        self._job = lay_out(self._opened, self._destination.work_dir)
        self._begun = begin(self._job, self._destination)
        return self._begun

    def _write(self, shard: ShardRange) -> Outcome:
        outcome = self._make(shard)
        if outcome == "found" and self._destination.prove(self._destination.look_up([shard.key]), lambda _: None):
            return self._make(shard)
        return outcome

    def _make(self, shard: ShardRange) -> Outcome:
        from pipeline.engines.shard_writing import write_missing_shards

        producer = self._job.producers[shard.key.kind]
        is_new: list[bool] = []
        if write_missing_shards(
            self._destination,
            self._begun.identity,
            producer,
            self._while_the_teacher_is_free(shard),
            lambda num_rows, new: is_new.append(new),
        ):
            time.sleep(_LOOK_AGAIN_AFTER_S)
            return "taken"
        return "made" if any(is_new) else "found"

    def _while_the_teacher_is_free(self, shard: ShardRange) -> Iterator[ShardRange]:
        """Yield the shard once the other call no longer needs the teacher; keep the teacher until the next item."""
        with self._teacher_is_free:
            yield shard


def worker_config(config: PrecomputeConfig, *, on_gpu: bool, num_threads: int) -> PrecomputeConfig:
    """Return the settings of a worker: with absolute paths, its device, its threads, and quiet."""
    return dataclasses.replace(
        config,
        teacher=_absolute(config.teacher),
        data=_absolute(config.data),
        out=config.out if is_remote_url(str(config.out)) else Path(config.out).absolute(),
        work_dir=config.work_dir and config.work_dir.absolute(),
        chat_template=config.chat_template and config.chat_template.absolute(),
        device="cuda" if on_gpu else "cpu",
        tokenizer_threads=config.tokenizer_threads or num_threads,
        quiet=True,
    )


def _absolute(name: str) -> str:
    """Return the absolute path of `name` if that exists, else `name` itself, which may be a hub id."""
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
