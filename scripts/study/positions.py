"""Choices of the positions that a student learns at.

Shape legend: C positions of a chunk, P positions of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.study.schemes import Teaching


class Survey:
    """What a choice may depend on: of each position, the student's entropy, its KL from the teacher, and a uniform."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, student_CV: Tensor, teaching: Teaching) -> None:
        """Add a chunk of positions, from the student's log-probabilities [C, V]."""
        entropy_C = -(student_CV.exp() * student_CV).sum(1)
        kl_C = (teaching.probs * (teaching.logprobs - student_CV)).sum(1)
        # The second uniform: the first one is that of the sampled tail.
        self._parts.append((entropy_C, kl_C, teaching.uniforms[:, 1]))

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return entropy in nats, KL in nats and uniform of all positions, each [P]."""
        entropy_P, kl_P, uniform_P = (torch.cat(column) for column in zip(*self._parts, strict=True))
        return entropy_P, kl_P, uniform_P


@dataclass(frozen=True, kw_only=True)
class PositionChoice:
    """The share of a step's positions that has the highest score(entropy [P], KL [P], uniform [P])."""

    name: str
    share: float
    score: Callable[[Tensor, Tensor, Tensor], Tensor]

    def weights(self, survey: Survey) -> Tensor:
        """Return weights [P] of mean 1: 0 at positions that were not chosen, and equal ones at the others."""
        score_P = self.score(*survey.columns())
        num_chosen = max(1, round(self.share * len(score_P)))
        weights_P = torch.zeros(len(score_P), device=score_P.device)
        weights_P[score_P.topk(num_chosen).indices] = len(score_P) / num_chosen
        return weights_P


def _student_entropy(entropy_P: Tensor, kl_P: Tensor, uniform_P: Tensor) -> Tensor:
    """SE-KD (arXiv 2602.01395): where the student is least sure."""
    return entropy_P


def _unsure_or_wrong(entropy_P: Tensor, kl_P: Tensor, uniform_P: Tensor) -> Tensor:
    """TIP (arXiv 2604.14084): where the student is unsure, or sure and far from the teacher.

    1 − (1 − h)(1 − d), where h and d are entropy and KL, both scaled to 0…1 over the step.
    """
    return 1 - (1 - _scaled(entropy_P)) * (1 - _scaled(kl_P))


def _scaled(values_P: Tensor) -> Tensor:
    low, high = values_P.aminmax()
    return (values_P - low) / (high - low).clamp(min=1e-12)


def _random(entropy_P: Tensor, kl_P: Tensor, uniform_P: Tensor) -> Tensor:
    return uniform_P


ALL_POSITIONS = PositionChoice(name="all", share=1.0, score=_random)
_SCORES: dict[str, Any] = {"entropy": _student_entropy, "unsure or wrong": _unsure_or_wrong, "random": _random}


def position_choice(name: str) -> PositionChoice:
    """Return the choice of a name: all, or a share and a score as in 'entropy 20 %' and 'random 50 %'."""
    if name == ALL_POSITIONS.name:
        return ALL_POSITIONS
    score, percent, _ = name.rsplit(" ", 2)
    return PositionChoice(name=name, share=int(percent) / 100, score=_SCORES[score])
