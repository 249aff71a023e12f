"""The drawn tail is fair: E[q] = p, with the variance and the number of draws that systematic sampling promises.

A tail id is drawn for a set of uniforms of measure p/τ that is at most two intervals of [0, 1), so over a
grid of n stratified uniforms its share is off by at most 2/n: these tests are exact, not statistical.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.producers.sparsify import SparseTargets, sparsify
from tests.places import SHARED_DATA

REAL_LOGITS = SHARED_DATA / "gpt2-small-next-token-logits.npz"
ROUNDING = 1e-5


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def draw(
    logits: np.ndarray, uniforms: np.ndarray, *, top_k: int, tail_weight: float, temperature: float = 1.0
) -> SparseTargets:
    """One position's logits under many uniforms."""
    return sparsify(
        torch.from_numpy(logits.astype(np.float32)).repeat(len(uniforms), 1),
        torch.zeros(len(uniforms), dtype=torch.int64),
        torch.from_numpy(uniforms),
        top_k=top_k,
        tail_weight=tail_weight,
        temperatures=(temperature,),
    ).flatten()


def drawn_ids(found: SparseTargets) -> tuple[np.ndarray, list[np.ndarray]]:
    """The head, which is the same for every uniform, and the tail of each."""
    sizes = np.stack([found.head_size, found.tail_size], axis=1).reshape(-1)
    parts = np.split(found.ids, np.cumsum(sizes)[:-1])
    assert all(np.array_equal(head, parts[0]) for head in parts[0::2])
    return parts[0], parts[1::2]


def stratified(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def example_logits(name: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    return {
        "peaked": rng.normal(0, 3, 37),
        "nearly flat": rng.normal(0, 0.2, 37),
        "one large, many equal": np.array([6.0] + [0.0] * 60),
        "all equal": np.zeros(41),
    }[name]


EXAMPLES = ["peaked", "nearly flat", "one large, many equal", "all equal"]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail_weight", [0.05, 0.3])
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_mean_of_the_target_is_the_teacher(name: str, top_k: int, tail_weight: float, temperature: float) -> None:
    logits, count = example_logits(name), 800
    probs = softmax(logits, temperature)
    found = draw(logits, stratified(count), top_k=top_k, tail_weight=tail_weight, temperature=temperature)
    head, tails = drawn_ids(found)
    target = tail_weight * np.bincount(np.concatenate(tails).astype(int), minlength=len(probs)) / count
    target[head] += probs[head]
    np.testing.assert_allclose(target, probs, atol=tail_weight * 2 / count + ROUNDING)


@pytest.mark.parametrize("name", EXAMPLES)
def test_random_uniforms_give_mean_p_and_variance_p_times_tau_minus_p(name: str) -> None:
    logits, tail_weight, count = example_logits(name), 0.07, 5000
    probs = softmax(logits)
    uniforms = np.random.default_rng(11).random(count)
    head, tails = drawn_ids(draw(logits, uniforms, top_k=2, tail_weight=tail_weight))
    is_drawn = np.zeros((count, len(probs)))
    for row, ids in enumerate(tails):
        is_drawn[row, ids] = 1
    in_tail = np.setdiff1d(np.arange(len(probs)), head)
    tail_probs = probs[in_tail]
    weights = tail_weight * is_drawn[:, in_tail]
    variance = tail_probs * (tail_weight - tail_probs)
    z = (weights.mean(axis=0) - tail_probs) / np.sqrt(variance / count)
    assert np.abs(z).max() < 4.5
    assert np.sqrt((z**2).mean()) < 1.6
    # A Bernoulli variable's sample variance misses π(1 − π) by (1 − 2π) times its mean's error, up to second order.
    error_of_mean = np.abs(weights.mean(axis=0) - tail_probs)
    np.testing.assert_array_less(
        np.abs(weights.var(axis=0) - variance), tail_weight * error_of_mean + error_of_mean**2 + 1e-7
    )


@pytest.mark.parametrize("tail_weight", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("name", EXAMPLES)
def test_draws_number_floor_or_ceil_never_repeat_and_avoid_the_head(name: str, tail_weight: float) -> None:
    logits = example_logits(name)
    uniforms = np.concatenate([[0.0, np.nextafter(1.0, 0.0)], np.random.default_rng(3).random(200)])
    head, tails = drawn_ids(draw(logits, uniforms, top_k=1, tail_weight=tail_weight))
    expected = np.delete(softmax(logits), head).sum() / tail_weight
    for ids in tails:
        assert math.floor(expected - 1e-4) <= len(ids) <= math.ceil(expected + 1e-4)
        assert np.all(np.diff(ids) > 0)
        assert not set(ids.tolist()) & set(head.tolist())
        assert min(ids, default=0) >= 0
        assert max(ids, default=0) < len(logits)


def test_every_tail_id_can_be_drawn_and_the_number_of_draws_takes_both_values() -> None:
    logits = example_logits("nearly flat")
    head, tails = drawn_ids(draw(logits, stratified(500), top_k=1, tail_weight=0.3))
    assert set(np.concatenate(tails).tolist()) == set(range(37)) - set(head.tolist())
    assert {len(ids) for ids in tails} == {3, 4}


@pytest.mark.skipif(not REAL_LOGITS.is_file(), reason="the shared example logits are not on this machine")
@pytest.mark.parametrize("index", range(5))
def test_the_mean_of_the_target_is_gpt2_on_real_logits(index: int) -> None:
    logits = np.load(REAL_LOGITS)[f"logits_{index}"]
    probs, tail_weight, count = softmax(logits), 0.03, 120
    counts = np.zeros(len(probs))
    uniforms = stratified(count)
    for part in np.split(uniforms, 4):
        head, tails = drawn_ids(draw(logits, part, top_k=16, tail_weight=tail_weight))
        counts += np.bincount(np.concatenate(tails).astype(int), minlength=len(probs))
        expected = np.delete(probs, head).sum() / tail_weight
        assert all(math.floor(expected - 1e-3) <= len(ids) <= math.ceil(expected + 1e-3) for ids in tails)
        assert all(np.all(np.diff(ids) > 0) and not np.isin(ids, head).any() for ids in tails)
    target = tail_weight * counts / count
    target[head] += probs[head]
    np.testing.assert_allclose(target, probs, atol=tail_weight * 2 / count + ROUNDING)
    # Summed over many ids the grid's errors cancel: the mass of any range of ids comes out right.
    np.testing.assert_allclose(np.cumsum(target), np.cumsum(probs), atol=tail_weight * 2 / count + 1e-4)
