"""The fused loss against a dense float64 implementation with autograd: values, and gradients of hidden and head.

The dense truth below holds [P, V] and loops over positions; nothing in it is shared with the code it judges.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from storage.tensors.output_head import OutputHead
from student.losses import core_threads, fused_head, head_matmul
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.targets import SparseTargets
from tests.operator_threads import operator_threads

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd", "skew_kl"]
# Shares of the teacher in the mixture: the symmetric JSD, and DistiLLM's skew.
JSD_TEACHER_SHARE, SKEW_TEACHER_SHARE = 0.5, 0.1
WIDTH, VOCAB = 6, 19
# An id that stands in the padding and must not matter.
PADDING_ID = 3


@dataclass
class Problem:
    """Hidden states, head, and targets whose ragged truth is kept beside them."""

    hidden: Tensor
    weight: Tensor
    targets: SparseTargets
    teacher_logits: Tensor
    heads: list[list[int]]
    drawn: list[list[int]]
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = self.scale * (hidden @ weight.T + (0.0 if bias is None else bias))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def leaves(self) -> list[Tensor]:
        """Hidden states, weight and, if there is one, bias."""
        return [t.clone().requires_grad_() for t in (self.hidden, self.weight, self.bias) if t is not None]

    def to(self, dtype: torch.dtype) -> Problem:
        targets = self.targets
        converted = {
            field.name: value.to(dtype)
            for field in dataclasses.fields(SparseTargets)
            if isinstance(value := getattr(targets, field.name), Tensor) and value.is_floating_point()
        }
        return dataclasses.replace(
            self,
            hidden=self.hidden.to(dtype),
            weight=self.weight.to(dtype),
            bias=None if self.bias is None else self.bias.to(dtype),
            targets=dataclasses.replace(targets, **converted),
        )


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    most = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[PADDING_ID] * (most - len(row))] for row in rows], dtype=torch.int64)
    mask = torch.tensor([[True] * len(row) + [False] * (most - len(row)) for row in rows], dtype=torch.bool)
    return ids.reshape(len(rows), most), mask.reshape(len(rows), most)


def sparse_targets(
    teacher_logits: Tensor,
    heads: list[list[int]],
    drawn: list[list[int]],
    labels: Tensor,
    temperature: float = 1.0,
    tail_weight: float | None = 0.1,
) -> SparseTargets:
    logp = torch.log_softmax(teacher_logits, dim=1)
    rests = [[i for i in range(logp.shape[1]) if i not in head] for head in heads]
    (head_ids, is_head), (tail_ids, is_drawn) = pad(heads), pad(drawn)
    return SparseTargets(
        head_ids=head_ids,
        head_logprobs=logp.gather(1, head_ids).masked_fill(~is_head, -0.7),
        is_head=is_head,
        tail_logprob=torch.stack([logp[c, rest].logsumexp(0) for c, rest in enumerate(rests)]),
        tail_ids=tail_ids,
        is_drawn=is_drawn,
        tail_weight=tail_weight,
        tempered_tail_logmass=torch.stack([(logp[c, rest] / temperature).logsumexp(0) for c, rest in enumerate(rests)]),
        label_ids=labels,
    )


def make_problem(
    num_positions: int, head_sizes: list[int], *, temperature: float = 1.0, seed: int = 0, draws: int = 3
) -> Problem:
    """Head sizes are repeated over the positions."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    teacher_logits = 2 * normal(num_positions, VOCAB)
    heads, drawn = [], []
    for c in range(num_positions):
        size = head_sizes[c % len(head_sizes)]
        order = teacher_logits[c].argsort(descending=True).tolist()
        heads.append(sorted(order[:size]))
        shuffled = torch.randperm(VOCAB - size, generator=g).tolist()
        drawn.append(sorted(order[size:][i] for i in shuffled[: (c % (draws + 1))]))
    labels = torch.randint(VOCAB, (num_positions,), generator=g)
    targets = sparse_targets(teacher_logits, heads, drawn, labels, temperature)
    return Problem(normal(num_positions, WIDTH), normal(VOCAB, WIDTH), targets, teacher_logits, heads, drawn)


def kl(p: Tensor, q: Tensor) -> Tensor:
    positive = p > 0
    return (p[positive] * (p[positive].log() - q[positive].log())).sum()


def divergence(name: str, p: Tensor, q: Tensor) -> Tensor:
    match name:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "jsd":
            m = JSD_TEACHER_SHARE * p + (1 - JSD_TEACHER_SHARE) * q
            return JSD_TEACHER_SHARE * kl(p, m) + (1 - JSD_TEACHER_SHARE) * kl(q, m)
        case _:
            return kl(p, SKEW_TEACHER_SHARE * p + (1 - SKEW_TEACHER_SHARE) * q)


def coarse(probs: Tensor, head: list[int]) -> Tensor:
    rest = [i for i in range(len(probs)) if i not in head]
    return torch.cat([probs[head], probs[rest].sum()[None]]) if rest else probs[head]


def dense_losses(problem: Problem, logits: Tensor, loss: HeadLoss) -> tuple[Tensor, Tensor]:
    """Sums over positions of the soft loss at T (without T²) and of the next-token loss."""
    student, plain = torch.softmax(logits / loss.temperature, dim=1), torch.log_softmax(logits, dim=1)
    teacher = torch.softmax(problem.teacher_logits / loss.temperature, dim=1)
    soft, labels = logits.new_zeros(()), logits.new_zeros(())
    for c in range(len(logits)):
        labels = labels - plain[c, problem.targets.label_ids[c]]
        if loss.unbiased:
            q = torch.zeros_like(teacher[c])
            q[problem.heads[c]] = teacher[c, problem.heads[c]]
            q[problem.drawn[c]] += problem.targets.tail_weight or 0.0
            soft = soft - (q * student[c].log()).sum()
        else:
            soft = soft + divergence(
                loss.divergence, coarse(teacher[c], problem.heads[c]), coarse(student[c], problem.heads[c])
            )
    return soft, labels


def dense(problem: Problem, loss: HeadLoss) -> tuple[Tensor, ...]:
    """Total, soft sum, label sum, and the total's gradients of hidden, weight and, if there is one, bias."""
    leaves = problem.leaves()
    soft, labels = dense_losses(problem, problem.logits(*leaves[:2], leaves[2] if leaves[2:] else None), loss)
    total = loss.soft_weight * loss.temperature**2 * soft + loss.label_weight * labels
    gradients = torch.autograd.grad(total, leaves)
    return total.detach(), soft.detach(), labels.detach(), *gradients


def fused(problem: Problem, loss: HeadLoss, chunk: int | None = None, upstream: float = 1.0) -> tuple[Tensor, ...]:
    leaves = hidden, weight, *bias = problem.leaves()
    head = OutputHead(weight_VD=weight, bias_V=bias[0] if bias else None, scale=problem.scale, cap_nats=problem.cap)
    total, soft, labels = fused_head_loss(hidden, head, problem.targets, loss, chunk)
    gradients = torch.autograd.grad(upstream * total, leaves)
    return total.detach(), soft, labels, *gradients


def assert_gradients_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry, below which cancellation leaves nothing to compare."""
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()) + 1e-15, rtol=0)


def assert_same(problem: Problem, loss: HeadLoss, chunk: int | None = None) -> None:
    total, soft, labels, *gradients = fused(problem, loss, chunk)
    expected = dense(problem, loss)
    torch.testing.assert_close(total, expected[0], rtol=1e-9, atol=1e-12)
    if loss.soft_weight:
        torch.testing.assert_close(soft, expected[1], rtol=1e-9, atol=1e-12)
    if loss.label_weight:
        torch.testing.assert_close(labels, expected[2], rtol=1e-9, atol=1e-12)
    assert len(gradients) == len(expected[3:])
    for gradient, wanted in zip(gradients, expected[3:], strict=True):
        assert_gradients_close(gradient, wanted)


LOSSES = {
    **{name: {"divergence": name, "unbiased": False} for name in DIVERGENCES},
    "unbiased": {"divergence": "forward_kl", "unbiased": True},
}
HEADS = {"one": [1], "four": [4], "all": [VOCAB], "varied": [0, 4, 1, 7, VOCAB, 2], "empty": [0]}


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.7, 0.3), (0.0, 2.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_equal_the_dense_truth(
    name: str, heads: str, temperature: float, weights: tuple[float, float]
) -> None:
    for num_positions, chunk in ((1, None), (11, 4)):
        problem = make_problem(num_positions, HEADS[heads], temperature=temperature)
        loss = HeadLoss(**LOSSES[name], temperature=temperature, soft_weight=weights[0], label_weight=weights[1])
        assert_same(problem, loss, chunk)


# A bias alone (phi), a scale (cohere, granite), a cap that the logits reach (gemma2), all at once.
SHAPES: dict[str, tuple[bool, float, float | None]] = {
    "bias": (True, 1.0, None), "scale": (False, 0.0625, None), "cap": (False, 1.0, 2.0), "all": (True, 1.7, 3.0)
}  # fmt: skip


def with_head(problem: Problem, shape: str) -> Problem:
    has_bias, scale, cap = SHAPES[shape]
    bias = torch.randn(VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) if has_bias else None
    return dataclasses.replace(problem, bias=bias, scale=scale, cap=cap)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.7, 0.3), (0.0, 2.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_bias_scale_and_cap_are_part_of_the_loss_and_of_its_gradient(
    name: str, shape: str, temperature: float, weights: tuple[float, float]
) -> None:
    loss = HeadLoss(**LOSSES[name], temperature=temperature, soft_weight=weights[0], label_weight=weights[1])
    for num_positions, chunk in ((1, None), (11, 4)):
        problem = with_head(make_problem(num_positions, HEADS["varied"], temperature=temperature), shape)
        assert_same(problem, loss, chunk)


@pytest.mark.parametrize("name", LOSSES)
def test_a_capped_head_in_other_precisions(name: str) -> None:
    problem = with_head(make_problem(64, HEADS["varied"]), "all")
    loss = HeadLoss(**LOSSES[name], temperature=1.0, soft_weight=1.0, label_weight=0.1)
    exact, single = dense(problem, loss), fused(problem.to(torch.float32), loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fused(problem.to(torch.float32), loss)
    for found, tolerance in ((single, 1e-5), (half, 0.03)):
        for value, expected in zip(found[:3], exact[:3], strict=True):
            torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=0)
        for gradient, expected in zip(found[3:], exact[3:], strict=True):
            assert_gradients_close(gradient.double(), expected, tolerance)


def test_a_bias_that_alone_learns() -> None:
    problem = with_head(make_problem(7, HEADS["varied"]), "bias")
    loss = HeadLoss(**LOSSES["unbiased"], temperature=1.0, soft_weight=1.0, label_weight=0.5)
    bias = problem.bias.clone().requires_grad_()
    head = OutputHead(weight_VD=problem.weight, bias_V=bias)
    fused_head_loss(problem.hidden, head, problem.targets, loss)[0].backward()
    assert_gradients_close(bias.grad, dense(problem, loss)[5])


@pytest.mark.parametrize("chunk", [1, 3, 11, 12, 1000])
@pytest.mark.parametrize("name", LOSSES)
def test_the_size_of_a_chunk_changes_nothing(name: str, chunk: int) -> None:
    problem = make_problem(11, HEADS["varied"], temperature=2.0)
    loss = HeadLoss(**LOSSES[name], temperature=2.0, soft_weight=0.7, label_weight=0.3)
    for found, expected in zip(fused(problem, loss, chunk), fused(problem, loss), strict=True):
        assert_gradients_close(found, expected, 1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_threads_that_share_rows_and_vocabulary_change_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, temperature: float
) -> None:
    monkeypatch.setattr(core_threads, "_LEAST_NUMBERS", 0)
    problem = with_head(make_problem(11, HEADS["varied"], temperature=temperature), "all")
    loss = HeadLoss(**LOSSES[name], temperature=temperature, soft_weight=0.7, label_weight=0.3)
    found = []
    for num_threads in (1, 2):
        with operator_threads(num_threads):
            found.append(fused(problem, loss, 4))
    assert all(map(torch.equal, *found))
    with operator_threads(3):  # whose parts are others
        assert_same(problem, loss, 4)


def test_operators_between_the_products_wait_for_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another process, a thread would wait in each of them for the one that shares its core."""
    found: list[int] = []

    def softmax_(*arguments: Tensor) -> Tensor:
        found.append(torch.get_num_threads())
        return head_matmul.softmax_(*arguments)

    monkeypatch.setattr(fused_head, "softmax_", softmax_)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(70, 4, generator=generator), torch.randn(1 << 17, 4, generator=generator)
    targets = SparseTargets.labels_only(torch.arange(70))
    loss = HeadLoss(**LOSSES["unbiased"], temperature=1.0, soft_weight=0.0, label_weight=1.0)
    with operator_threads(2):
        total, *_ = fused_head_loss(hidden, OutputHead(weight_VD=weight), targets, loss)
    assert set(found) == {1}
    truth = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, targets.label_ids, reduction="sum")
    torch.testing.assert_close(total.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_more_positions_than_one_default_chunk(name: str) -> None:
    problem = make_problem(1100, HEADS["varied"])
    assert_same(problem, HeadLoss(**LOSSES[name], temperature=1.0, soft_weight=1.0, label_weight=0.1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_the_upstream_gradient_scales(name: str, temperature: float) -> None:
    problem = make_problem(7, HEADS["varied"], temperature=temperature)
    loss = HeadLoss(**LOSSES[name], temperature=temperature, soft_weight=1.0, label_weight=0.5)
    once, thrice = fused(problem, loss), fused(problem, loss, upstream=3.0)
    for i in (3, 4):
        assert_gradients_close(thrice[i], 3.0 * once[i], 1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients_the_values_are_the_same(name: str) -> None:
    problem = make_problem(7, HEADS["varied"])
    loss = HeadLoss(**LOSSES[name], temperature=1.0, soft_weight=1.0, label_weight=0.5)
    expected = fused(problem, loss)
    with torch.no_grad():
        head = OutputHead(weight_VD=problem.weight)
        found = fused_head_loss(problem.hidden.clone().requires_grad_(), head, problem.targets, loss)
    for value, wanted in zip(found, expected[:3], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-13, atol=0)
    for hidden_learns, weight_learns in ((True, False), (False, True)):
        hidden = problem.hidden.clone().requires_grad_(hidden_learns)
        weight = problem.weight.clone().requires_grad_(weight_learns)
        fused_head_loss(hidden, OutputHead(weight_VD=weight), problem.targets, loss)[0].backward()
        assert (hidden.grad is not None, weight.grad is not None) == (hidden_learns, weight_learns)
        learnt, index = (hidden.grad, 3) if hidden_learns else (weight.grad, 4)
        assert_gradients_close(learnt, expected[index], 1e-13)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_tail_of_next_to_nothing(name: str, temperature: float) -> None:
    """A teacher at e^-60 outside its head, as float32 summed over the tail itself can tell and 1 − Σ cannot."""
    problem = make_problem(5, [3], temperature=temperature)
    for c, head in enumerate(problem.heads):
        rest = [i for i in range(VOCAB) if i not in head]
        problem.teacher_logits[c, rest] -= problem.teacher_logits[c, rest].logsumexp(0)
        problem.teacher_logits[c, head] -= problem.teacher_logits[c, head].logsumexp(0) - 60
    labels = problem.targets.label_ids
    problem.targets = sparse_targets(problem.teacher_logits, problem.heads, problem.drawn, labels, temperature)
    torch.testing.assert_close(problem.targets.tail_logprob, torch.full((5,), -60.0, dtype=torch.float64))
    loss = HeadLoss(divergence=name, unbiased=False, temperature=temperature, soft_weight=1.0, label_weight=0.1)
    assert_same(problem, loss, 2)
    # Confident students too: the mass that the student leaves to the tail goes from e^-40 to nearly one.
    for shift in (-40.0, 40.0):
        confident = dataclasses.replace(problem, weight=problem.weight.clone(), hidden=problem.hidden.clone())
        confident.hidden[:, 0] = 1.0
        confident.weight[:, 0] = shift
        confident.weight[problem.heads[0], 0] = 0.0
        assert_same(confident, loss, 2)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(name: str, heads: str, temperature: float) -> None:
    problem = make_problem(11, HEADS[heads], temperature=temperature)
    teacher_logits = problem.hidden @ problem.weight.T
    drawn: list[list[int]] = [[] for _ in range(11)]
    targets = sparse_targets(teacher_logits, problem.heads, drawn, problem.targets.label_ids, temperature)
    problem = dataclasses.replace(problem, targets=targets, teacher_logits=teacher_logits)
    loss = HeadLoss(divergence=name, unbiased=False, temperature=temperature, soft_weight=1.0, label_weight=0.0)
    total, _, _, hidden_gradient, weight_gradient = fused(problem, loss, 4)
    assert abs(total.item()) < 1e-12
    assert hidden_gradient.abs().max() < 1e-12
    assert weight_gradient.abs().max() < 1e-12


def systematic_draws(tail_probs: Tensor, tail_ids: list[int], tail_weight: float) -> list[tuple[float, list[int]]]:
    """Every distinct draw with its probability: between breakpoints of the uniform the draw does not change."""
    running = torch.cat([torch.zeros(1, dtype=torch.float64), tail_probs.cumsum(0)]) / tail_weight
    edges = sorted({0.0, 1.0, *(running % 1.0).tolist()})
    draws = []
    for low, high in itertools.pairwise(edges):
        thresholds = torch.arange(len(tail_ids) + 1, dtype=torch.float64) + (low + high) / 2
        chosen = [
            tail_ids[i]
            for i in range(len(tail_ids))
            if ((running[i] <= thresholds) & (thresholds < running[i + 1])).any()
        ]
        draws.append((high - low, chosen))
    return draws


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("head_size", [0, 3])
@pytest.mark.parametrize("student_is_teacher", [False, True])
def test_the_expected_gradient_of_a_sampled_tail_is_that_of_full_distillation(
    head_size: int, temperature: float, student_is_teacher: bool
) -> None:
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, WIDTH, dtype=torch.float64, generator=g)
    weight = 0.3 * torch.randn(VOCAB, WIDTH, dtype=torch.float64, generator=g)
    teacher_logits = 0.3 * torch.randn(1, VOCAB, dtype=torch.float64, generator=g)
    teacher_logits[0, :3] += 3.0
    if student_is_teacher:
        teacher_logits = hidden @ weight.T
    probs = torch.softmax(teacher_logits[0] / temperature, dim=0)
    head = sorted(probs.argsort(descending=True)[:head_size].tolist())
    rest = [i for i in range(VOCAB) if i not in head]
    tail_weight = 0.9 if head_size == 0 else 0.25
    assert probs[rest].max() < tail_weight
    draws = systematic_draws(probs[rest], rest, tail_weight)
    assert len(draws) > 5
    shares = torch.tensor([share for share, _ in draws], dtype=torch.float64)
    targets = sparse_targets(
        teacher_logits.repeat(len(draws), 1),
        [head] * len(draws),
        [chosen for _, chosen in draws],
        torch.zeros(len(draws), dtype=torch.int64),
        temperature,
        tail_weight,
    )
    loss = HeadLoss(divergence="forward_kl", unbiased=True, temperature=temperature, soft_weight=1.0, label_weight=0.0)
    # One position for each draw, so that the hidden gradient has a row for each; the weight's adds them up.
    repeated = hidden.repeat(len(draws), 1).requires_grad_()
    fused_head_loss(repeated, OutputHead(weight_VD=weight), targets, loss)[0].backward()
    found = (shares[:, None] * repeated.grad).sum(0)
    full = hidden.clone().requires_grad_()
    full_loss = -(probs * torch.log_softmax((full @ weight.T)[0] / temperature, dim=0)).sum() * temperature**2
    full_loss.backward()
    torch.testing.assert_close(found, full.grad[0], atol=1e-12, rtol=1e-9)
    if student_is_teacher:
        assert found.abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_bucketed_divergence_is_a_lower_bound_of_the_full_one(name: str, temperature: float) -> None:
    full_sum = 0.0
    sums = []
    for head_size in (0, 1, 4, VOCAB):
        problem = make_problem(11, [head_size], temperature=temperature)
        loss = HeadLoss(divergence=name, unbiased=False, temperature=temperature, soft_weight=1.0, label_weight=0.0)
        sums.append(fused(problem, loss)[1].item())
        student = torch.softmax(problem.hidden @ problem.weight.T / temperature, dim=1)
        teacher = torch.softmax(problem.teacher_logits / temperature, dim=1)
        full_sum = sum(divergence(name, p, q).item() for p, q in zip(teacher, student, strict=True))
        assert sums[-1] <= full_sum * (1 + 1e-12)
    # More of the head can only see more; with all of it nothing is missing; without any there is nothing to see.
    assert sums == sorted(sums)
    assert abs(sums[0]) < 1e-12
    assert sums[-1] == pytest.approx(full_sum, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_and_bfloat16_autocast_stay_close_to_float64(name: str) -> None:
    problem = make_problem(64, HEADS["varied"])
    loss = HeadLoss(**LOSSES[name], temperature=1.0, soft_weight=1.0, label_weight=0.1)
    exact, single = fused(problem, loss), fused(problem.to(torch.float32), loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fused(problem.to(torch.float32), loss)
    for found, tolerance in ((single, 1e-5), (half, 0.03)):
        assert found[0].dtype == torch.float32
        assert found[3].dtype == found[4].dtype == torch.float32
        for value, expected in zip(found[:3], exact[:3], strict=True):
            torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=0)
        for gradient, expected in zip(found[3:], exact[3:], strict=True):
            assert_gradients_close(gradient.double(), expected, tolerance)


@pytest.mark.parametrize("gap", [60.0, 120.0, 1000.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_confident_students_have_finite_losses_and_gradients_in_float32(
    name: str, temperature: float, gap: float
) -> None:
    """Nearly all mass on one id: in the head, in the tail, on the label or elsewhere."""
    base = make_problem(1, [4], temperature=temperature, draws=0)
    for confident in range(VOCAB):
        problem = dataclasses.replace(base, hidden=torch.zeros(1, WIDTH), weight=base.weight.clone()).to(torch.float32)
        problem.hidden[0, 0] = 1.0
        problem.weight[:, 0] = 0.0
        problem.weight[confident, 0] = gap
        loss = HeadLoss(**LOSSES[name], temperature=temperature, soft_weight=1.0, label_weight=0.1)
        found = fused(problem, loss)
        assert all(value.isfinite().all() for value in found)
        expected = dense(problem.to(torch.float64), loss)
        if gap < 700:  # beyond, the naive float64 truth overflows itself
            torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
