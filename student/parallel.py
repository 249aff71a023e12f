"""One student in several processes: every one holds all of it (DDP), or a part of it (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from student.config import Parallelism
from student.processes import Processes

T = TypeVar("T")


class _Pass(nn.Module):
    """Runs a function of the model as its own forward pass.

    The losses call body and head of a model apart. What wraps this module sees one pass: it gathers the
    parameters before, and adds up gradients over processes behind.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], T]) -> T:
        return run()


class ParallelModel:
    """A student that several processes train, and how they pass over it.

    Gradients of a step are the mean over processes of what each has added up.
    """

    def __init__(self, model: Any, parallelism: Parallelism, processes: Processes) -> None:
        """`model`, on its device, is changed in place: with fsdp, its parameters become DTensors."""
        self.model = model
        self.processes = processes
        self.is_sharded = parallelism == "fsdp"
        self._pass: nn.Module = _Pass(model)
        if self.is_sharded:
            _shard(self._pass, model, processes)
        elif processes.world_size > 1:
            on_gpu = model.device.type == "cuda"
            self._pass = DistributedDataParallel(self._pass, device_ids=[model.device] if on_gpu else None)

    def accumulate(self, loss: Callable[[], tuple[torch.Tensor, T]], *, is_last: bool) -> T:
        """Add the gradient of a loss, the first of what `loss` returns; the rest is passed on.

        is_last: nothing more is added in this step, so that the processes join their gradients.
        """
        with self._joining_gradients(is_last):
            total, rest = self._pass(loss)
            total.backward()
        found: T = rest
        return found

    def measure(self, run: Callable[[], T]) -> T:
        """What a function of the model returns that needs no gradient."""
        if not self.is_sharded:
            return run()
        with torch.no_grad():
            found: T = self._pass(run)
        return found

    @contextlib.contextmanager
    def _joining_gradients(self, is_last: bool) -> Iterator[None]:
        if isinstance(self._pass, FSDPModule):
            self._pass.set_requires_gradient_sync(is_last)
        if isinstance(self._pass, DistributedDataParallel) and not is_last:
            with self._pass.no_sync():
                yield
        else:
            yield


def _shard(whole: nn.Module, model: Any, processes: Processes) -> None:
    """Every block of layers is gathered when it is needed; embeddings, and what is left, for a whole pass."""
    mesh = init_device_mesh(model.device.type, (processes.world_size,))
    blocks = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(whole, mesh=mesh)
