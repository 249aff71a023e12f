"""A student with its optimiser and its objective: all that one optimiser step needs beside rows."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from storage.reading.cache import Cache
from storage.tensors.memory import is_out_of_memory
from student.config import TrainConfig
from student.errors import StudentMemoryError
from student.model import build_student
from student.processes import Processes
from student.training.micro_batches import remember_micro_batches
from student.training.objective import Objective
from student.training.parallel import ParallelModel
from student.training.schedule import learning_rate, make_optimizer


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What training changes, and how."""

    parallel: ParallelModel
    optimizer: torch.optim.Optimizer
    objective: Objective
    config: TrainConfig

    def step(self, step: int, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Optimiser step 0, 1, … on this process's rows of each kind.

        Returns its shares of measures by name, whose sums over processes are the losses in nats and gradient_norm of
        all parameters together before it is clipped; and the tokens that all processes read.
        Raises StudentMemoryError when the step does not fit into the device's memory.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        losses, num_tokens = self._accumulate(step, rows)
        norm = self._update(step)
        return losses | {"gradient_norm": norm / self.parallel.processes.world_size}, num_tokens

    def _accumulate(self, step: int, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Gradients of a step, in twice as many micro-batches whenever memory runs out."""
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
            # Behind the except clause, so that the traceback no longer holds the tensors of the pass.
            self._cut_further(step)
        if objective.micro_batches > micro_batches and processes.is_first:
            remember_micro_batches(self.config.out, objective.micro_batches)
            print(f"out of memory: going on with {objective.micro_batches} micro-batches", file=sys.stderr)
        return found

    def _cut_further(self, step: int) -> None:
        """Twice as many micro-batches: at once, or where other processes wait in the middle of a pass, next time."""
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
        """The optimiser's step on gradients of all processes; returns their norm before they are clipped."""
        try:
            self.parallel.join_gradients()
            norm = torch.nn.utils.clip_grad_norm_(self.parallel.model.parameters(), self.config.max_gradient_norm)
            self.optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Some parameters may be changed, and the other processes wait: there is nothing to make again.
            raise StudentMemoryError(
                self.objective.micro_batches, step, self.parallel.processes.rank, "the update does not fit"
            ) from error
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def make_learner(
    config: TrainConfig, cache: Cache, device: torch.device, processes: Processes | None = None
) -> Learner:
    """The learner before its first step; raises StudentError for a student that does not fit the cache."""
    model = build_student(config.preset, cache, config.seed).to(device).train()
    if config.gradient_checkpointing:
        # Later versions of transformers have a new name for it.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    parallel = ParallelModel(model, config.parallelism, processes or Processes())
    optimizer = make_optimizer(model, config)
    return Learner(parallel=parallel, optimizer=optimizer, objective=Objective(parallel, cache, config), config=config)
