"""The processes that torchrun started, or this process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from storage.command import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from storage.errors import TeachonceError
from student.errors import LostProcessError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Processes that train one student together. All of them call every method; `is_first` is local."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return elementwise sums over the processes of a tensor on the host; one process gets `values` back."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, value: bool) -> bool:
        """Whether `value` is true in some process."""
        return bool(self.sum(torch.tensor(float(value))))

    def same(self, value: T) -> T:
        """Return the first process's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes leave this context, or none.

        When some raise a TeachonceError, the one of lowest rank raises its error, and all others raise SystemExit.
        """
        failure: TeachonceError | None = None
        try:
            yield
        except TeachonceError as error:
            failure = error
        has_failed = torch.zeros(self.world_size)
        has_failed[self.rank] = float(failure is not None)
        failed = self.sum(has_failed).nonzero()[:, 0].tolist()
        if failure is not None and self.rank == failed[0]:
            raise failure
        if failed:
            raise SystemExit(EXIT_BAD_INPUT)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Connect the processes that torchrun started for as long as this context lasts; without torchrun, this one alone.

    gloo exchanges tensors on the host, NCCL those on GPUs. Raises LostProcessError when another process ends early.
    """
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    # After a restart by torchrun the store still has the addresses of the ended processes, so use another prefix.
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        yield Processes(rank=dist.get_rank(), world_size=dist.get_world_size())
    except BaseException as error:
        substitute = _substitute(error)
        if substitute is None:
            raise
        raise substitute from error
    finally:
        dist.destroy_process_group()


def _substitute(error: BaseException) -> BaseException | None:
    """Return the error to raise instead of one that concerns other processes; None for this process's own error."""
    if isinstance(error, KeyboardInterrupt) and dist.get_rank() > 0:  # the first process prints how to resume
        return SystemExit(EXIT_INTERRUPTED)
    if isinstance(error, RuntimeError) and _is_about_lost_process(error):
        return LostProcessError(dist.get_rank())
    return None


def is_first_process() -> bool:
    """Whether this process is the one that prints messages: the one to which torchrun gave rank 0."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return this process's rank among those on its host, as torchrun counts them."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _is_about_lost_process(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
