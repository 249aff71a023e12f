"""A student with fewer rows than its teacher, against a dense float64 truth over the rows that both have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from storage.tensors.output_head import OutputHead
from student.errors import MissingRowError
from student.losses.batches import require_rows
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.targets import SparseTargets

TEACHER_ROWS, STUDENT_ROWS, WIDTH, NUM_POSITIONS, TAU = 23, 17, 5, 40, 0.1
Q = Callable[[Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log()), 0.0).sum()


DIVERGENCES: dict[str, Q] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2),
    "skew_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
}


def make(temperature: float) -> tuple[Tensor, list[list[int]], list[list[int]], SparseTargets]:
    """Teacher's logits, heads of 0 to 6 ids, draws of 0 to 3, and the same as targets."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    logits = 2 * torch.randn(NUM_POSITIONS, TEACHER_ROWS, dtype=torch.float64, generator=generator)
    logp = torch.log_softmax(logits, 1)
    order = logits.argsort(1, descending=True).tolist()
    heads = [sorted(ids[: p % 7]) for p, ids in enumerate(order)]
    drawn = [sorted(rng.choice(ids[p % 7 :], p % 4, replace=False).tolist()) for p, ids in enumerate(order)]

    def padded(rows: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
        return ids, torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])

    (head_ids, is_head), (tail_ids, is_drawn) = padded(heads, 6), padded(drawn, 3)
    in_tail = torch.ones_like(logp).scatter(1, head_ids, (~is_head).double())
    in_tail[:, 2] = torch.tensor([float(2 not in head) for head in heads])
    tail_logp = logp.masked_fill(in_tail == 0, -torch.inf)
    return logits, heads, drawn, SparseTargets(
        head_ids=head_ids, head_logprobs=logp.gather(1, head_ids), is_head=is_head, tail_ids=tail_ids,
        is_drawn=is_drawn, tail_logprob=tail_logp.logsumexp(1), tail_weight=TAU,
        tempered_tail_logmass=(tail_logp / temperature).logsumexp(1),
        label_ids=torch.randint(STUDENT_ROWS, (NUM_POSITIONS,), generator=generator),
    )  # fmt: skip


def truth(
    logits: Tensor, teacher: Tensor, heads: list[list[int]], drawn: list[list[int]], labels: Tensor, loss: HeadLoss
) -> Tensor:
    """The loss with every lost head entry in the teacher's tail, and without lost draws."""
    student, p = torch.softmax(logits / loss.temperature, 1), torch.softmax(teacher / loss.temperature, 1)
    soft = logits.new_zeros(())
    for c in range(len(logits)):
        head = [i for i in heads[c] if i < STUDENT_ROWS]
        if loss.unbiased:
            q = torch.zeros(STUDENT_ROWS, dtype=torch.float64)
            q[head] = p[c, head]
            q[[i for i in drawn[c] if i < STUDENT_ROWS]] = TAU
            soft = soft - (q * student[c].log()).sum()
        else:
            rest = [i for i in range(STUDENT_ROWS) if i not in head]
            coarse_p = torch.cat([p[c, head], 1 - p[c, head].sum()[None]])
            coarse_q = torch.cat([student[c, head], student[c, rest].sum()[None]])
            soft = soft + DIVERGENCES[loss.divergence](coarse_p, coarse_q)
    nll = -torch.log_softmax(logits, 1)[torch.arange(len(logits)), labels].sum()
    return loss.soft_weight * loss.temperature**2 * soft + loss.label_weight * nll


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("name", "unbiased"), [*((name, False) for name in DIVERGENCES), ("forward_kl", True)])
def test_loss_and_gradients_are_those_of_the_rows_that_the_student_has(
    name: str, unbiased: bool, temperature: float
) -> None:
    teacher, heads, drawn, targets = make(temperature)
    generator = torch.Generator().manual_seed(1)
    leaves = hidden, weight = [
        torch.randn(n, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
        for n in (NUM_POSITIONS, STUDENT_ROWS)
    ]
    loss = HeadLoss(divergence=name, unbiased=unbiased, temperature=temperature, soft_weight=0.7, label_weight=0.3)
    fewer, _, _ = targets.without_rows_from(STUDENT_ROWS, temperature)
    found = fused_head_loss(hidden, OutputHead(weight_VD=weight), fewer, loss, 9)[0]
    expected = truth(hidden @ weight.T, teacher, heads, drawn, targets.label_ids, loss)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for gradient, wanted in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-10)


def test_the_mass_and_the_entropy_of_what_is_left_out() -> None:
    teacher, heads, drawn, targets = make(1.0)
    logp = torch.log_softmax(teacher, 1)
    _, mass, entropy = targets.without_rows_from(STUDENT_ROWS, 1.0)
    for c in range(NUM_POSITIONS):
        lost = [i for i in heads[c] if i >= STUDENT_ROWS]
        num_draws = sum(i >= STUDENT_ROWS for i in drawn[c])
        assert float(mass[c]) == pytest.approx(float(logp[c, lost].exp().sum()) + TAU * num_draws)
        own = -float((logp[c, lost].exp() * logp[c, lost]).sum())
        assert float(entropy[c]) == pytest.approx(own - num_draws * TAU * math.log(TAU), abs=1e-12)
    assert mass.max() > 0.2


def test_with_enough_rows_nothing_is_left_out() -> None:
    _, _, _, targets = make(1.0)
    same, mass, entropy = targets.without_rows_from(TEACHER_ROWS, 1.0)
    assert float(mass.sum()) == float(entropy.sum()) == 0.0
    torch.testing.assert_close(same.tail_logprob, targets.tail_logprob, rtol=0, atol=0)
    bucketed = replace(targets, tail_weight=None, tempered_tail_logmass=None)
    assert bucketed.without_rows_from(STUDENT_ROWS, 1.0)[0].tempered_tail_logmass is None


def test_a_token_without_a_row() -> None:
    require_rows(np.array([[0, 16]]), 17)
    require_rows(np.array([[0, 16]]), None)
    with pytest.raises(MissingRowError, match="holds token id 17, the student's vocabulary has 17 rows"):
        require_rows(np.array([[0, 17]]), 17)
