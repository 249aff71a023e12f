"""One student in several processes: every one holds all of it (data parallel), or a part of it (FSDP2).

PyTorch's DistributedDataParallel joins gradients in the middle of the last backward pass. There a process that runs out
of memory leaves the others waiting. Here they are joined when all processes know that all passes of all of them are
done, and without DDP's second copy of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from storage.tensors.memory import is_out_of_memory
from student.config import Parallelism
from student.processes import Processes

T = TypeVar("T")


class _Pass(nn.Module):
    """Runs a function of the model as its own forward pass.

    The losses call body and head of a model apart. FSDP2, which wraps this module, sees one pass: it gathers the
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
            _equalise(model)

    def accumulate(self, loss: Callable[[], tuple[torch.Tensor, T]], *, is_last: bool) -> T:
        """Add the gradient of a loss, the first of what `loss` returns; the rest is passed on.

        is_last: nothing more is added in this step; with fsdp, the pass joins the gradients of all processes.
        """
        if isinstance(self._pass, FSDPModule):
            self._pass.set_requires_gradient_sync(is_last)
        total, rest = self._pass(loss)
        total.backward()
        found: T = rest
        return found

    def within_memory(self, run: Callable[[], T]) -> T:
        """What `run` returns, which calls no other process but for fsdp's passes.

        Raises torch.OutOfMemoryError in all processes when one of them runs out of memory; with fsdp, where the others
        wait in the middle of a pass, in that one alone.
        """
        if self.is_sharded:
            return run()
        try:
            found = run()
            has_run_out = False
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            has_run_out = True
        if self.processes.any(has_run_out):
            raise torch.OutOfMemoryError("out of memory in one of the processes")
        return found

    def join_gradients(self) -> None:
        """The mean over processes in the place of every gradient; where only some have one, it is 0 in the others.

        With fsdp, the last pass has done it.
        """
        if self.is_sharded or self.processes.world_size == 1:
            return
        parameters = list(self.model.parameters())
        num_gradients = self.processes.sum(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
        used = [parameter for parameter, num in zip(parameters, num_gradients, strict=True) if num]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        works = [dist.all_reduce(parameter.grad, async_op=True) for parameter in used]
        for parameter, work in zip(used, works, strict=True):
            work.wait()
            parameter.grad /= self.processes.world_size

    def measure(self, run: Callable[[], T]) -> T:
        """What a function of the model returns that needs no gradient."""
        if not self.is_sharded:
            return run()
        with torch.no_grad():
            found: T = self._pass(run)
        return found


def _equalise(model: nn.Module) -> None:
    """The first process's parameters and buffers in all; with NCCL, its own memory is taken before passes take it."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)


def _shard(whole: nn.Module, model: Any, processes: Processes) -> None:
    """Every block of layers is gathered when it is needed; embeddings, and what is left, for a whole pass."""
    mesh = init_device_mesh(model.device.type, (processes.world_size,))
    blocks = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(whole, mesh=mesh)
