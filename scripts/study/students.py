"""Train the students of the study. All students of a comparison take each step together.

Shape legend: B blocks, T positions, P = B·T, C positions of a chunk, V vocabulary, D width.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.study.measures import evaluate_models
from scripts.study.networks import (
    StudentConfig,
    autocast,
    chunk_positions,
    hidden_states,
    logits,
    logprobs,
    new_model,
    set_rate,
)
from scripts.study.positions import ALL_POSITIONS, PositionChoice, Survey
from scripts.study.schemes import Scheme, Teaching
from scripts.study.text import batch_indices
from storage.draws import hash_uniform
from storage.progress import Progress

_UNIFORMS_PER_POSITION = 50
_DRAW = 7


def train_students(
    config: StudentConfig,
    schemes: list[Scheme],
    teacher: Any,
    train: Tensor,
    held_out: Tensor,
    seed: int,
    name: str,
) -> dict[str, dict[str, float]]:
    """Train one student per scheme and return their measures on held-out blocks.

    All students start with the same weights and see the same batches. A sampled target is a function of its block, as
    in a cache: when a block is seen again, it has the same draw.
    """
    device = next(teacher.parameters()).device
    vocab_size, block_size = teacher.config.vocab_size, train.shape[1] - 1
    students = [Student(scheme, config, new_model(config, vocab_size, block_size, seed, device)) for scheme in schemes]
    train_in_lockstep(students, teacher, train, seed, name)
    models = {student.scheme.name: student.model for student in students}
    averaged = {student.scheme.name: student.averaged_model() for student in students}
    found, found_averaged = (evaluate_models(group, teacher, held_out) for group in (models, averaged))
    return {
        name: found[name] | {f"averaged_{measure}": value for measure, value in found_averaged[name].items()}
        for name in models
    }


def train_in_lockstep(students: list[Student], teacher: Any, train: Tensor, seed: int, name: str) -> None:
    """Train students on the same batches. Their settings agree in batch_blocks and steps."""
    device = next(teacher.parameters()).device
    config, block_size = students[0].config, train.shape[1] - 1
    choosing = [student for student in students if student.positions is not ALL_POSITIONS]
    with Progress(config.steps, f"{name}, seed {seed}", "steps") as bar:
        for step, batch in enumerate(batch_indices(len(train), config.batch_blocks, seed=seed, steps=config.steps)):
            ids = train[batch].to(device)
            teacher_PD = hidden_states(teacher, ids[:, :-1])
            uniforms, labels_P = uniforms_of(batch, block_size, seed, device), ids[:, 1:].reshape(-1)
            for student in _timed(students):
                student.begin(ids[:, :-1])
            if choosing:
                for part, teaching in _teachings(teacher, teacher_PD, uniforms, labels_P):
                    for student in _timed(choosing):
                        student.survey_chunk(part, teaching)
            for part, teaching in _teachings(teacher, teacher_PD, uniforms, labels_P):
                for student in _timed(students):
                    student.add_chunk(part, teaching)
            for student in _timed(students):
                student.finish(step)
            bar.update(1)


def _timed(students: Iterable[Student]) -> Iterator[Student]:
    """Yield students, and add to each the processor's time until the next is asked for."""
    for student in students:
        start = time.process_time()
        yield student
        student.cpu_seconds += time.process_time() - start


def _teachings(
    teacher: Any, teacher_PD: Tensor, uniforms: Tensor, labels_P: Tensor
) -> Iterator[tuple[slice, Teaching]]:
    chunk = chunk_positions(teacher.config.vocab_size, teacher_PD.device)
    for start in range(0, len(labels_P), chunk):
        part = slice(start, start + chunk)
        yield part, Teaching.of(logprobs(teacher, teacher_PD[part]), uniforms[part], labels_P[part])


def uniforms_of(blocks: Tensor, block_size: int, seed: int, device: torch.device) -> Tensor:
    """Return uniforms [B·T, 50] float64, a function of seed and block."""
    rows = blocks.numpy()[:, None, None]
    places = np.arange(_UNIFORMS_PER_POSITION)[None, None]
    values = hash_uniform(seed, _DRAW, rows, np.arange(block_size)[None, :, None], places)
    return torch.from_numpy(values.reshape(-1, _UNIFORMS_PER_POSITION)).to(device)


class Student:
    """A student with its optimiser, its averaged weights, and the gradient that accumulates chunk by chunk.

    cpu_seconds: time of the processor that its steps took so far.
    """

    def __init__(
        self, scheme: Scheme, config: StudentConfig, model: Any, positions: PositionChoice = ALL_POSITIONS
    ) -> None:
        self.scheme = scheme
        self.config = config
        self.model = model
        self.positions = positions
        self.cpu_seconds = 0.0
        self._optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, config.beta2), weight_decay=0.1, fused=True)
        self._average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def averaged_model(self) -> Any:
        """Return a copy of the model with the running average of the weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self._average, strict=False)
        return model

    def begin(self, input_ids: Tensor) -> None:
        """Run the body on a batch and clear the gradients of hidden states and head."""
        with autocast(input_ids.device):
            self._hidden_PD = self.model.base_model(input_ids).last_hidden_state.flatten(0, 1)
        self._grad_PD = torch.empty_like(self._hidden_PD)
        self._grad_VD = torch.zeros_like(self.model.lm_head.weight)
        self._survey = Survey()

    @torch.no_grad()
    def survey_chunk(self, part: slice, teaching: Teaching) -> None:
        """Measure the student at a chunk of positions, to choose among them later."""
        self._survey.add(logprobs(self.model, self._hidden_PD[part].detach()), teaching)

    @torch.no_grad()
    def add_chunk(self, part: slice, teaching: Teaching) -> None:
        """Add the gradients of a chunk of positions with respect to hidden states and head."""
        weight_VD, hidden_CD = self.model.lm_head.weight.detach(), self._hidden_PD[part].detach()
        softmax_CV = torch.softmax(logits(hidden_CD, weight_VD), dim=1)
        grad_CV = self.scheme.gradient(softmax_CV, teaching)
        if self.positions is not ALL_POSITIONS:
            grad_CV *= self.positions.weights(self._survey)[part, None]
        if grad_CV.is_cuda:
            grad_CV, weight_VD, hidden_CD = grad_CV.bfloat16(), weight_VD.bfloat16(), hidden_CD.bfloat16()
        self._grad_PD[part] = (grad_CV @ weight_VD).to(self._grad_PD.dtype)
        self._grad_VD += grad_CV.T @ hidden_CD

    def backward(self) -> None:
        """Compute the gradients of the parameters for the mean loss over the chosen positions."""
        num_positions = len(self._hidden_PD)
        self.model.zero_grad()
        self._hidden_PD.backward(self._grad_PD / num_positions)
        weight = self.model.lm_head.weight
        weight.grad = self._grad_VD / num_positions + (weight.grad if weight.grad is not None else 0)

    def finish(self, step: int) -> None:
        """Take a step of the optimiser and update the running average of the weights."""
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        config = self.config
        set_rate(self._optimizer, step, config.steps, config.learning_rate, config.warmup_share)
        self._optimizer.step()
        decay = min(0.99, (step + 1) / (step + 10))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self._average.values()), [parameters[n].detach() for n in self._average], 1 - decay)
