"""Measure the noise of sampled targets in a student's gradient, and whether a better-spread draw has less noise.

A systematic draw cuts the running sum of probabilities at equal distances, so the order of the vocabulary decides which
ids exclude each other. Three orders are compared: by id, by probability, and by similarity of the teacher's output
embeddings. With the last, about the expected number of tokens is drawn from every group of similar tokens. The uniforms
are either independent or spread along the block by the golden ratio.

Shape legend: P positions, C positions of a chunk, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.study.networks import StudentConfig, chunk_positions, hidden_states, logprobs, new_model
from scripts.study.schemes import Scheme, Teaching, all_schemes
from scripts.study.students import Student, uniforms_of
from scripts.study.text import batch_indices

_GOLDEN = 0.6180339887498949
_NUM_BATCHES, _NUM_DRAWS = 3, 3


def gradient_noise(
    config: StudentConfig, teacher: Any, blocks: Tensor, warm_up_steps: int
) -> dict[str, dict[str, float]]:
    """Return each scheme's noise, |g - g_full|² / |g_full|², for the gradients of the head and of the body.

    g_full is the gradient of full distillation. The noise is measured on one student after warm_up_steps of full
    distillation and averaged over several batches and draws.
    """
    block_size = blocks.shape[1] - 1
    by_name = {scheme.name: scheme for scheme in all_schemes()}
    device = next(teacher.parameters()).device
    student = Student(by_name["full"], config, new_model(config, teacher.config.vocab_size, block_size, 0, device))
    for step, batch in enumerate(batch_indices(len(blocks), config.batch_blocks, seed=5, steps=warm_up_steps)):
        _forward(student, teacher, blocks[batch], batch, seed=0)
        student.finish(step)
    places = likeness_order(teacher.lm_head.weight.detach())
    schemes = [by_name["random_sampling_12"], by_name["random_sampling_50"]]
    for denominator in (16, 32):
        for order in ("id", "probability", "likeness"):
            schemes += [
                _ordered_draw(denominator, order, places, block_size, golden=golden) for golden in (False, True)
            ]
    found: dict[str, list[tuple[float, float]]] = {scheme.name: [] for scheme in schemes}
    for batch in batch_indices(len(blocks), config.batch_blocks, seed=99, steps=_NUM_BATCHES):
        truth = _gradient(student, by_name["full"], teacher, blocks[batch], batch, seed=0)
        for scheme in schemes:
            for draw in range(_NUM_DRAWS):
                noisy = _gradient(student, scheme, teacher, blocks[batch], batch, seed=1000 + draw)
                head, body = (
                    float((n - t).square().sum() / t.square().sum()) for n, t in zip(noisy, truth, strict=True)
                )
                found[scheme.name].append((head, body))
    return {
        name: {"head": float(np.mean([h for h, _ in values])), "body": float(np.mean([b for _, b in values]))}
        for name, values in found.items()
    }


def likeness_order(embedding_VD: Tensor) -> Tensor:
    """Return all ids [V] in an order in which neighbours have similar embeddings.

    The ids are halved recursively along the direction of largest variance.
    """

    def halve(ids: Tensor) -> Tensor:
        if len(ids) <= 2:
            return ids
        centred = embedding_VD[ids] - embedding_VD[ids].mean(0)
        direction = torch.ones(centred.shape[1], device=centred.device)
        for _ in range(8):  # power iteration
            direction = torch.nn.functional.normalize(centred.T @ (centred @ direction), dim=0)
        ids = ids[(centred @ direction).argsort()]
        middle = len(ids) // 2
        return torch.cat([halve(ids[:middle]), halve(ids[middle:])])

    return halve(torch.arange(len(embedding_VD), device=embedding_VD.device))


def _ordered_draw(denominator: int, order: str, places: Tensor, block_size: int, *, golden: bool) -> Scheme:
    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        probs_CV, weight = teaching.probs, 1 / denominator
        in_head = probs_CV >= weight
        tail_CV = probs_CV.masked_fill(in_head, 0.0)
        if order == "probability":
            tail_CV, ids_CV = tail_CV.sort(dim=1, descending=True)
        else:
            row = places if order == "likeness" else torch.arange(tail_CV.shape[1], device=tail_CV.device)
            tail_CV, ids_CV = tail_CV[:, row], row.expand_as(tail_CV)
        running_CV = tail_CV.cumsum(1, dtype=torch.float64)
        uniforms = teaching.uniforms[:, 0]
        if golden:
            steps = torch.arange(block_size, dtype=torch.float64, device=uniforms.device) * _GOLDEN
            uniforms = ((uniforms.view(-1, block_size)[:, :1] + steps) % 1).reshape(-1)
        cuts = torch.arange(int(running_CV[:, -1].max() / weight) + 2, device=uniforms.device)
        thresholds = (uniforms[:, None] + cuts) * weight
        places_CJ = torch.searchsorted(running_CV, thresholds, right=True).clamp_(max=tail_CV.shape[1] - 1)
        drawn = (thresholds < running_CV[:, -1:]).float() * weight
        target_CV = (probs_CV * in_head).scatter_add_(1, ids_CV.gather(1, places_CJ), drawn)
        return softmax_CV * target_CV.sum(1, keepdim=True) - target_CV

    spread = "golden ratio" if golden else "independent"
    return Scheme(name=f"tail 1/{denominator} by {order}, {spread}", gradient=gradient)


def _gradient(
    student: Student, scheme: Scheme, teacher: Any, ids: Tensor, batch: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the head's weight and of all other parameters, each flattened."""
    student.scheme = scheme
    _forward(student, teacher, ids, batch, seed)
    student.backward()
    head = student.model.lm_head.weight
    others = [p.grad.flatten() for p in student.model.parameters() if p is not head]
    return head.grad.flatten().clone(), torch.cat(others)


def _forward(student: Student, teacher: Any, blocks: Tensor, batch: Tensor, seed: int) -> None:
    device, block_size = next(teacher.parameters()).device, blocks.shape[1] - 1
    ids = blocks.to(device)
    labels_P, uniforms = ids[:, 1:].reshape(-1), uniforms_of(batch, block_size, seed, device)
    teacher_PD = hidden_states(teacher, ids[:, :-1])
    student.begin(ids[:, :-1])
    # A chunk holds whole blocks, because the uniforms are spread along a block.
    size = max(1, chunk_positions(teacher.config.vocab_size, device) // block_size) * block_size
    with torch.no_grad():
        for start in range(0, len(labels_P), size):
            part = slice(start, start + size)
            student.add_chunk(part, Teaching.of(logprobs(teacher, teacher_PD[part]), uniforms[part], labels_P[part]))
