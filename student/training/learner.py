"""A student with its optimiser and its objective: all that an optimiser step needs except rows."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from storage.progress import tell
from storage.reading.cache import Cache
from storage.tensors.memory import is_out_of_memory
from storage.tensors.model_facts import num_parameters
from storage.tensors.packing import Isolation
from student.config import TrainConfig
from student.errors import ArchitectureError, StudentMemoryError
from student.model.adapters import add_adapters, require_adaptable
from student.model.dropout import set_dropout
from student.model.isolation import isolation_of
from student.model.presets import build_student
from student.processes import Processes
from student.training.micro_batches import remember_micro_batches
from student.training.objective import Objective
from student.training.parallel import ParallelModel
from student.training.schedule import learning_rate, make_optimizer


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The model, optimiser, objective and settings of a run."""

    parallel: ParallelModel
    optimizer: torch.optim.Optimizer
    objective: Objective
    config: TrainConfig

    @property
    def num_trained_parameters(self) -> int:
        """Number of parameters that the optimiser changes."""
        return sum(p.numel() for p in self.parallel.model.parameters() if p.requires_grad)

    def remarks(self) -> list[str]:
        """Return lines for the user about effects of the settings on this cache, and about what is trained."""
        remarks, rank = self.objective.remarks(), self.config.lora.rank
        if rank is not None:
            trained, whole = self.num_trained_parameters, num_parameters(self.parallel.model)
            remarks.append(f"adapters of rank {rank}: {trained:,} of {whole:,} parameters are trained")
        return remarks

    def step(self, step: int, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Run optimiser step 0, 1, … on this process's rows of each kind.

        Return this process's shares of the measures by name, and the number of tokens that all processes read. Summed
        over processes, the shares are the losses in nats and gradient_norm: the norm of all gradients together before
        clipping.

        Raises StudentMemoryError when the step does not fit into the device's memory.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        losses, num_tokens = self._accumulate(step, rows)
        norm = self._update(step)
        return losses | {"gradient_norm": norm / self.parallel.processes.world_size}, num_tokens

    def _accumulate(self, step: int, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Accumulate the gradients of a step. Each time memory runs out, double the number of micro-batches."""
        objective, processes = self.objective, self.parallel.processes
        micro_batches = objective.micro_batches
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                found = objective.accumulate(rows)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except clause, because there the traceback still holds the tensors of the pass.
            self._double_micro_batches(step)
        if objective.micro_batches > micro_batches and processes.is_first:
            remember_micro_batches(self.config.out, objective.micro_batches)
            tell(f"out of memory: going on with {objective.micro_batches} micro-batches")
        return found

    def _double_micro_batches(self, step: int) -> None:
        """Double the number of micro-batches.

        Raise StudentMemoryError when no part can be smaller. With fsdp, always raise it, because the other processes
        wait in the middle of a pass; the doubled number holds for the next start of the run.
        """
        objective, rank = self.objective, self.parallel.processes.rank
        tried = objective.micro_batches
        if not objective.halve_micro_batches():
            with contextlib.nullcontext() if self.parallel.is_sharded else self.parallel.processes.together():
                raise StudentMemoryError(tried, step, rank, "even single rows do not fit")
        if self.parallel.is_sharded:
            remember_micro_batches(self.config.out, objective.micro_batches)
            raise StudentMemoryError(
                tried, step, rank, f"run the same line again, it goes on with {objective.micro_batches} micro-batches"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _update(self, step: int) -> Tensor:
        """Run the optimiser on the gradients of all processes; return their norm before clipping."""
        try:
            self.parallel.join_gradients()
            norm = torch.nn.utils.clip_grad_norm_(self.parallel.model.parameters(), self.config.max_gradient_norm)
            self.optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Some parameters may have changed already, and the other processes wait, so the step cannot be repeated.
            raise StudentMemoryError(
                self.objective.micro_batches, step, self.parallel.processes.rank, "the update does not fit"
            ) from error
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _make_student(config: TrainConfig, cache: Cache) -> Any:
    if config.lora.rank is not None:
        require_adaptable(config.lora, config.preset)
    model = build_student(config.preset, cache, config.seed)
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    if config.lora.rank is not None:
        add_adapters(model, config.lora, config.preset, config.seed)
    return model


def make_learner(
    config: TrainConfig, cache: Cache, device: torch.device, processes: Processes | None = None
) -> Learner:
    """Return the learner before its first step. Raise StudentError when the student does not fit the cache.

    Raise ConfigError and MissingExtraError as require_adaptable does.
    """
    model = _make_student(config, cache).to(device).train()
    processes = processes or Processes()
    if config.parallelism == "fsdp" and processes.world_size > 1 and isolation_of(model) is not Isolation.PACKED:
        # Processes have unlike numbers of documents, and fsdp gathers weights in every pass of all of them.
        raise ArchitectureError(config.preset, "reads one document a row, and so --parallelism fsdp cannot train it")
    if config.gradient_checkpointing:
        # Later versions of transformers have a new name for gradient_checkpointing_enable.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    parallel = ParallelModel(model, config.parallelism, processes)
    optimizer = make_optimizer(model, config)
    return Learner(parallel=parallel, optimizer=optimizer, objective=Objective(parallel, cache, config), config=config)
