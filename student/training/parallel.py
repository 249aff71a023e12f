"""One student in several processes: each process holds all of it (data parallel) or a part of it (FSDP2).

PyTorch's DistributedDataParallel (DDP) reduces gradients over processes during the last backward pass. A process that
runs out of memory there leaves the others waiting. This module reduces gradients after all processes know that all of
them have finished all passes. It also does without DDP's second copy of the gradients.
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
    """Runs a function of the model as this module's forward pass.

    The losses call a model's body and head separately. FSDP2 wraps this module and so sees a single pass: it gathers
    the parameters before the pass and reduces the gradients over processes after it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], T]) -> T:
        return run()


class ParallelModel:
    """A student that several processes train, and its forward and backward passes.

    The gradient of a step is the mean over processes of the gradients that each has accumulated.
    """

    def __init__(self, model: Any, parallelism: Parallelism, processes: Processes) -> None:
        """Change `model`, which is on its device, in place.

        With fsdp, its parameters become DTensors. With ddp, it takes the first process's parameters and buffers.
        """
        self.model = model
        self.processes = processes
        self.is_sharded = parallelism == "fsdp"
        self._pass: nn.Module = _Pass(model)
        if self.is_sharded:
            _shard(self._pass, model, processes)
        elif processes.world_size > 1:
            _broadcast_from_first(model)

    def accumulate(self, loss: Callable[[], tuple[torch.Tensor, T]], *, is_last: bool) -> T:
        """Add the gradient of the first result of `loss`; return the second.

        is_last: whether this is the last pass of the step. With fsdp, it reduces the gradients over processes.
        """
        if isinstance(self._pass, FSDPModule):
            self._pass.set_requires_gradient_sync(is_last)
        total, rest = self._pass(loss)
        total.backward()
        found: T = rest
        return found

    def within_memory(self, run: Callable[[], T]) -> T:
        """Return `run()`, which must not communicate with other processes except in fsdp's passes.

        Raise torch.OutOfMemoryError in all processes when one of them runs out of memory. With fsdp, only that process
        raises (PyTorch's own error), because the others wait in the middle of a pass.
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
        """Replace every gradient by its mean over processes. A missing gradient counts as 0 if any process has one.

        With fsdp, do nothing: the last pass has reduced the gradients.
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
        """Return `run()`, where `run` is a function of the model that needs no gradient."""
        if not self.is_sharded:
            return run()
        with torch.no_grad():
            found: T = self._pass(run)
        return found


def _broadcast_from_first(model: nn.Module) -> None:
    """Copy the first process's parameters and buffers to all processes.

    This also makes NCCL allocate its own memory before the passes allocate theirs.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)


def _shard(whole: nn.Module, model: Any, processes: Processes) -> None:
    """Shard `whole`, the module around `model`.

    FSDP2 gathers each block of layers when it is needed, and embeddings and all other parameters for a whole pass.
    """
    mesh = init_device_mesh(model.device.type, (processes.world_size,))
    blocks = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(whole, mesh=mesh)
