from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage import Cache, RowStream
from student import CacheDataset, TrainConfig, distillation_loss, distillation_loss_from_logits
from student.loops.errors import BatchShapeError, BatchTemperatureError
from student.losses import fused_head, logits_loss
from student.losses.divergences import JSD_TEACHER_SHARE, SKEW_TEACHER_SHARE
from student.losses.parts.soft_targets import SoftTargetsPart
from student.training.objective import resolve_weights

V, D = 257, 5
Batch = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of seven positions."""
    monkeypatch.setattr(fused_head, "chunk_positions_on", lambda device: 7)
    monkeypatch.setattr(logits_loss, "chunk_positions_on", lambda device: 7)


def batch_of(cache: Cache, **changes: Any) -> Batch:
    return next(iter(CacheDataset(cache.path, **({"batch_rows": 3, "seed": 1} | changes))))


def head_of(dtype: torch.dtype, batch: Batch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = {"hidden": (*batch["labels"].shape, D), "head_weight": (V, D), "head_bias": (V,)}
    return {name: torch.randn(size, generator=generator).to(dtype).requires_grad_() for name, size in sizes.items()}


def divergence_of(name: str, p: Tensor, q: Tensor) -> Tensor:
    """Between two vectors of probabilities, from the definitions."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a[a > 0] * (a[a > 0] / b[a > 0]).log()).sum()

    if name == "jsd":
        m = JSD_TEACHER_SHARE * p + (1 - JSD_TEACHER_SHARE) * q
        return JSD_TEACHER_SHARE * kl(p, m) + (1 - JSD_TEACHER_SHARE) * kl(q, m)
    if name == "skew_kl":
        return kl(p, SKEW_TEACHER_SHARE * p + (1 - SKEW_TEACHER_SHARE) * q)
    return kl(p, q) if name == "forward_kl" else kl(q, p)


def soft_truth(logits_V: Tensor, batch: Batch, place: tuple[int, int], divergence: str, temperature: float) -> Tensor:
    s = torch.softmax(logits_V / temperature, 0)
    is_head = batch["is_head"][place]
    ids, p = batch["head_ids"][place][is_head].long(), batch["head_logprobs"][place][is_head].double().exp()
    if divergence == "forward_kl" and "tail_ids" in batch:
        drawn = batch["tail_ids"][place][batch["is_drawn"][place]].long()
        return -(p * s[ids].log()).sum() - batch["tail_weight"][place[0]].double() * s[drawn].log().sum()
    name = "tail_logprob" if temperature == 1 else f"tail_logmass_at_{temperature:g}"
    masses = torch.cat([p ** (1 / temperature), batch[name][place].double().exp()[None]])
    is_tail = torch.ones(V, dtype=torch.bool).index_fill(0, ids, False)
    return divergence_of(divergence, masses / masses.sum(), torch.cat([s[ids], s[is_tail].sum()[None]]))


def truth(logits: Tensor, batch: Batch, divergence: str, temperature: float, label_weight: float) -> Tensor:
    """The mean over wanted targets, position by position."""
    losses = []
    for b, t in (batch["labels"] != -100).nonzero().tolist():
        label_loss = -torch.log_softmax(logits[b, t], 0)[batch["labels"][b, t]]
        soft = soft_truth(logits[b, t], batch, (b, t), divergence, temperature)
        losses.append(temperature**2 * soft + label_weight * label_loss)
    return torch.stack(losses).mean()


def logits_of(head: dict[str, Tensor], scale: float, cap: float | None) -> Tensor:
    z = (head["hidden"] @ head["head_weight"].T + head["head_bias"]) * scale
    return z if cap is None else cap * torch.tanh(z / cap)


def gradients_of(loss: Tensor, head: dict[str, Tensor]) -> list[Tensor]:
    return [grad.double() for grad in torch.autograd.grad(loss, list(head.values()))]


CASES = [
    ("sampled", "forward_kl", 1.0, 0.0),
    ("sampled", "forward_kl", 1.0, 0.3),
    ("sampled", "reverse_kl", 1.0, 0.0),
    ("sampled", "jsd", 1.0, 0.3),
    ("sampled", "forward_kl", 2.0, 0.3),
    ("bucketed", "forward_kl", 1.0, 0.3),
    ("bucketed", "skew_kl", 2.0, 0.0),
    ("bucketed", "reverse_kl", 2.0, 0.3),
]


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.7, 3.0)])
@pytest.mark.parametrize(("tail", "divergence", "temperature", "label_weight"), CASES)
def test_both_losses_and_their_gradients_are_the_truth(
    wanted_cache: Cache,
    bucketed_cache: Cache,
    tail: str,
    divergence: str,
    temperature: float,
    label_weight: float,
    scale: float,
    cap: float | None,
) -> None:
    batch = batch_of(wanted_cache if tail == "sampled" else bucketed_cache, temperature=temperature)
    settings: dict[str, Any] = {"divergence": divergence, "temperature": temperature, "label_weight": label_weight}
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        head = head_of(dtype, batch)
        expected = truth(logits_of(head, scale, cap).double(), batch, **settings)
        expected_gradients = gradients_of(expected, head)
        fused = distillation_loss(batch=batch, logit_scale=scale, logit_cap=cap, **head, **settings)
        from_logits = distillation_loss_from_logits(logits_of(head, scale, cap), batch, **settings)
        for found in (fused, from_logits):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
            for grad, expected_grad in zip(gradients_of(found, head), expected_gradients, strict=True):
                torch.testing.assert_close(grad, expected_grad, rtol=tolerance, atol=tolerance)


def test_a_tail_drawn_at_another_temperature_is_used_at_that_alone(make_cache: Callable[..., Cache]) -> None:
    from pipeline import SoftTargetsConfig

    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(2.0, 1.0))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings)
    drawn, plain = batch_of(cache, temperature=2.0), batch_of(cache)
    assert "tail_ids" in drawn
    assert "tail_ids" not in plain
    head = head_of(torch.float64, plain)
    found = distillation_loss(batch=plain, **head)
    torch.testing.assert_close(
        found, truth(logits_of(head, 1.0, None), plain, "forward_kl", 1.0, 0.0), rtol=1e-6, atol=0
    )


def test_texts_have_the_next_token_loss(cache: Cache) -> None:
    batch = batch_of(cache, kind="samples")
    head = head_of(torch.float64, batch)
    logits = logits_of(head, 1.0, None)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(distillation_loss(batch=batch, label_weight=0.0, **head), expected)
    torch.testing.assert_close(distillation_loss_from_logits(logits, batch), expected)


def test_the_loss_is_that_of_training(
    cache: Cache, train_config: Callable[..., TrainConfig], make_student: Callable[..., Any]
) -> None:
    model, config = make_student(), train_config(seed=4)
    part = SoftTargetsPart(model, cache, config, resolve_weights(config, cache))
    trained = part.batch(next(RowStream(cache, "soft_targets", "train", batch_rows=4, seed=4).batches()).rows)
    expected = part.loss(trained)[0] / part.num_targets(trained)
    batch = batch_of(cache, batch_rows=4, seed=4)
    hidden = model.base_model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)[0]
    weight = model.get_output_embeddings().weight
    assert torch.equal(distillation_loss(hidden, weight, batch, label_weight=0.1), expected)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    torch.testing.assert_close(distillation_loss_from_logits(logits, batch, label_weight=0.1), expected)


def test_parts_of_a_batch_add_up_to_its_mean(wanted_cache: Cache) -> None:
    whole = batch_of(wanted_cache, batch_rows=4)
    head = head_of(torch.float64, whole)
    expected, num_targets = distillation_loss(batch=whole, **head), (whole["labels"] != -100).sum()
    found = 0.0
    for rows in (slice(0, 1), slice(1, 4)):
        part = {name: value[rows] for name, value in whole.items()}
        of_part = head | {"hidden": head["hidden"][rows]}
        found = found + distillation_loss(batch=part, num_targets=num_targets, **of_part)
    torch.testing.assert_close(found, expected)


def test_a_batch_without_a_wanted_target_has_loss_and_gradient_zero(cache: Cache) -> None:
    batch = batch_of(cache)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    head = head_of(torch.float32, batch)
    for loss in (
        distillation_loss(batch=batch, **head),
        distillation_loss_from_logits(logits_of(head, 1.0, None), batch),
    ):
        assert loss == 0
        assert all(not grad.any() for grad in gradients_of(loss, head))


@pytest.mark.parametrize("of", ["hidden", "logits"])
def test_what_is_not_of_the_batch_is_refused(cache: Cache, of: str) -> None:
    batch = batch_of(cache)
    head = head_of(torch.float32, batch)

    def loss(shift: int, **settings: Any) -> Tensor:
        if of == "hidden":
            return distillation_loss(head["hidden"][:, shift:], head["head_weight"], batch, **settings)
        return distillation_loss_from_logits(logits_of(head, 1.0, None)[:, shift:], batch, **settings)

    with pytest.raises(BatchShapeError, match=rf"{of}: have the shape \[3, 31, \d+\], expected \[3, 32, '…'\]"):
        loss(1)
    with pytest.raises(BatchTemperatureError, match="temperature is 2, the batch was made for 1; make it by Cache"):
        loss(0, temperature=2.0)
    batch |= batch_of(cache, temperature=2.0)
    with pytest.raises(BatchTemperatureError, match="temperature is 1, the batch was made for 2"):
        loss(0)


def test_under_autocast_products_are_in_bfloat16_and_the_loss_in_float32(cache: Cache) -> None:
    batch = batch_of(cache)
    head = head_of(torch.float32, batch)
    expected = distillation_loss(batch=batch, **head)
    expected_gradients = gradients_of(expected, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = distillation_loss(batch=batch, **head)
        logits = logits_of(head, 1.0, None)
        from_logits = distillation_loss_from_logits(logits.bfloat16(), batch)
    for found in (fused, from_logits):
        assert found.dtype == torch.float32
        assert found != expected
        assert math.isclose(found.item(), expected.item(), rel_tol=1e-2)
        for grad, expected_grad in zip(gradients_of(found, head), expected_gradients, strict=True):
            assert (grad - expected_grad).norm() < 0.02 * expected_grad.norm()
