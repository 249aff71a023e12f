"""The processes that torchrun or another launcher started to train one student, or this process alone."""

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
from storage.errors import TeachonceError, first_line
from student.errors import LauncherError, LostProcessError

T = TypeVar("T")

_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What launchers tell the processes that they start together, and the largest value for a process that is alone.
_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": 1, "SLURM_PROCID": 0, "OMPI_COMM_WORLD_SIZE": 1, "PMI_SIZE": 1}
_LOCAL_RANKS = ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "RANK")


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
    """Connect the processes of a run for as long as this context lasts: those that the environment tells of.

    torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and so may any other launcher (PyTorch's env://).
    Without them, or with WORLD_SIZE 1, this process is alone.

    gloo exchanges tensors on the host, NCCL those on GPUs. Raises LauncherError when this process seems to be one of
    several and does not find the others, LostProcessError when another process ends early.
    """
    if not _has_others():
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu_index())
    _meet()
    try:
        yield Processes(rank=dist.get_rank(), world_size=dist.get_world_size())
    except BaseException as error:
        substitute = _substitute(error)
        if substitute is None:
            raise
        raise substitute from error
    finally:
        dist.destroy_process_group()


def _has_others() -> bool:
    """Whether this process is one of several, by its environment; raise LauncherError when that contradicts itself."""
    if dist.is_torchelastic_launched():
        return True
    found = {name: value for name in _MEETING if (value := os.environ.get(name))}
    if found.get("WORLD_SIZE") == "1" and found.get("RANK", "0") == "0":
        return False
    if found:
        _check_meeting(found)
        return True
    for name, alone in _LAUNCHERS.items():
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > alone:
            raise LauncherError(f"{name} is {value}: several processes were started that do not know of each other")
    return False


def _check_meeting(found: dict[str, str]) -> None:
    """Raise LauncherError unless the variables by which processes meet are complete, and RANK is below WORLD_SIZE."""
    missing = [name for name in _MEETING if name not in found]
    if missing:
        raise LauncherError(f"{', '.join(found)} set in the environment, {', '.join(missing)} not set")
    numbers = [found[name] for name in _MEETING if name != "MASTER_ADDR"]
    if not all(map(str.isdecimal, numbers)) or int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        stated = ", ".join(f"{name} is {value!r}" for name, value in found.items())
        raise LauncherError(f"{stated}: expected numbers, and RANK below WORLD_SIZE")


def _meet() -> None:
    """Start PyTorch's process group; raise LauncherError when the processes do not find each other."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world_size = next(rendezvous("env://"))
        # After a restart by torchrun the store has the addresses of the ended processes, so use another prefix.
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LauncherError(f"{place}: no meeting with the other processes ({first_line(error)})") from error


def _substitute(error: BaseException) -> BaseException | None:
    """Return the error to raise instead of one that concerns other processes; None for this process's own error."""
    if isinstance(error, KeyboardInterrupt) and dist.get_rank() > 0:  # the first process prints how to resume
        return SystemExit(EXIT_INTERRUPTED)
    if isinstance(error, RuntimeError) and _is_about_lost_process(error):
        return LostProcessError(dist.get_rank())
    return None


def is_first_process() -> bool:
    """Whether this process is the one that prints messages: the one to which its launcher gave rank 0."""
    return os.environ.get("RANK", "0") in ("", "0")


def gpu_index() -> int:
    """Return the index of the GPU that this process uses, of those that it sees: its rank on its host.

    Where torchrun has not set that, a launcher may have shown each process a GPU of its own, so count them round.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    ranks = [int(os.environ[name]) for name in _LOCAL_RANKS if os.environ.get(name)]
    return ranks[0] % max(1, torch.cuda.device_count()) if ranks else 0


def _is_about_lost_process(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
