"""sparsify against a plain float64 truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.producers.sparsify import SparseTargets, sparsify

TEMPERATURES = ((1.0, 0.5, 2.0), (2.0,))


@dataclass
class Truth:
    """One position in float64."""

    head: list[int]
    head_logprobs: np.ndarray
    tail_logprob: float
    entropy: float
    label_logprob: float
    tail_mass_to_draw: float
    tempered: dict[float, float]


def logsumexp(values: np.ndarray) -> float:
    if len(values) == 0:
        return -math.inf
    return float(values.max() + np.log(np.exp(values - values.max()).sum()))


def truth_of(
    logits: np.ndarray,
    label: int,
    top_k: int,
    tail_weight: float | None,
    temperatures: tuple[float, ...],
    top_p: float = 1.0,
) -> Truth:
    logits = logits.astype(np.float64)
    logprobs = logits - logsumexp(logits)
    tempered = logprobs / temperatures[0]
    drawn_from = np.exp(tempered - logsumexp(tempered))
    by_rank = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    large = [] if tail_weight is None else np.flatnonzero(drawn_from >= tail_weight).tolist()
    before = np.cumsum(np.exp(logprobs[by_rank])) - np.exp(logprobs[by_rank])
    capped = [i for i, mass in zip(by_rank[:top_k], before, strict=False) if top_p == 1 or mass < top_p]
    head = sorted({*capped, *large})
    rest = np.setdiff1d(np.arange(len(logits)), head)
    return Truth(
        head=head,
        head_logprobs=logprobs[head],
        tail_logprob=logsumexp(logprobs[rest]),
        entropy=float(-(np.exp(logprobs) * logprobs).sum()),
        label_logprob=float(logprobs[label]),
        tail_mass_to_draw=float(drawn_from[rest].sum()),
        tempered={t: logsumexp(logprobs[rest] / t) for t in temperatures if t != 1.0},
    )


def make_logits(kind: str, num_positions: int, vocab_size: int) -> np.ndarray:
    rng = np.random.default_rng([num_positions, vocab_size])
    logits = rng.normal(0, 3, (num_positions, vocab_size))
    match kind:
        case "offset":
            logits -= 100
        case "confident":
            logits = rng.normal(0, 0.1, (num_positions, vocab_size))
            logits[np.arange(num_positions), rng.integers(0, vocab_size, num_positions)] = 80
        case "extreme":
            logits = rng.normal(0, 0.1, (num_positions, vocab_size))
            logits[:, 0] = 400
        case "ties":
            logits = np.round(logits / 3)
        case "flat":
            logits = np.zeros_like(logits)
    return logits.astype(np.float32)


def split(found: SparseTargets) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Head ids, head logprobs and tail ids of each position."""
    sizes = np.stack([found.head_size, found.tail_size], axis=1).reshape(-1)
    parts = np.split(found.ids, np.cumsum(sizes)[:-1])
    return parts[0::2], np.split(found.logprobs, np.cumsum(found.head_size)[:-1]), parts[1::2]


def run(logits: np.ndarray, labels: np.ndarray, uniforms: np.ndarray, **settings: object) -> SparseTargets:
    return sparsify(
        torch.from_numpy(logits.copy()), torch.from_numpy(labels), torch.from_numpy(uniforms), **settings
    ).flatten()


@pytest.mark.parametrize("tail_weight", [None, 0.05, 0.3])
@pytest.mark.parametrize("num_positions", [1, 5])
@pytest.mark.parametrize("vocab_size", [1, 2, 7, 257])
@pytest.mark.parametrize("kind", ["random", "offset", "confident", "extreme", "ties", "flat"])
def test_everything_stored_equals_the_float64_truth(
    kind: str, vocab_size: int, num_positions: int, tail_weight: float | None
) -> None:
    logits = make_logits(kind, num_positions, vocab_size)
    rng = np.random.default_rng(1)
    labels, uniforms = rng.integers(0, vocab_size, num_positions), rng.random(num_positions)
    # Float32 holds logits near 100 to 8e-6 and near 400 to 3e-5; that is the input's precision, not ours to beat.
    tolerance = {"offset": 3e-5, "confident": 3e-5, "extreme": 1e-4}.get(kind, 5e-6)
    for top_k in sorted({k for k in (0, 1, 4, vocab_size) if k <= vocab_size}):
        for temperatures in TEMPERATURES:
            settings = {"top_k": top_k, "tail_weight": tail_weight, "temperatures": temperatures}
            found = run(logits, labels, uniforms, **settings)
            heads, head_logprobs, tails = split(found)
            for c in range(num_positions):
                truth = truth_of(logits[c], labels[c], top_k, tail_weight, temperatures)
                rest = set(range(vocab_size)) - set(truth.head)
                assert heads[c].tolist() == truth.head
                np.testing.assert_allclose(head_logprobs[c], truth.head_logprobs, atol=tolerance, rtol=1e-6)
                assert (found.tail_logprob[c] == -np.inf) == (not rest)
                np.testing.assert_allclose(found.tail_logprob[c], truth.tail_logprob, atol=tolerance, rtol=1e-6)
                np.testing.assert_allclose(found.entropy[c], truth.entropy, atol=tolerance, rtol=1e-6)
                np.testing.assert_allclose(found.label_logprob[c], truth.label_logprob, atol=tolerance, rtol=1e-6)
                assert found.tempered_tail_logmass.keys() == truth.tempered.keys()
                for t, logmass in truth.tempered.items():
                    np.testing.assert_allclose(
                        found.tempered_tail_logmass[t][c], logmass, atol=tolerance / min(t, 1), rtol=1e-6
                    )
                expected_draws = 0.0 if tail_weight is None else truth.tail_mass_to_draw / tail_weight
                assert math.floor(expected_draws - 1e-4) <= len(tails[c]) <= math.ceil(expected_draws + 1e-4)
                assert set(tails[c].tolist()) <= rest
                assert np.all(np.diff(tails[c]) > 0)


@pytest.mark.parametrize("tail_weight", [None, 0.05])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize("kind", ["random", "offset", "confident"])
def test_top_p_keeps_the_fewest_of_the_top_k_that_reach_it(kind: str, top_p: float, tail_weight: float | None) -> None:
    num_positions, vocab_size = 7, 257
    logits = make_logits(kind, num_positions, vocab_size)
    settings = {"top_k": 24, "top_p": top_p, "tail_weight": tail_weight, "temperatures": (1.0,)}
    found = run(logits, np.zeros(num_positions, int), np.full(num_positions, 0.3), **settings)
    heads, _, tails = split(found)
    for c in range(num_positions):
        truth = truth_of(logits[c], 0, 24, tail_weight, (1.0,), top_p)
        assert heads[c].tolist() == truth.head
        assert len(heads[c]) >= 1
        assert not set(tails[c].tolist()) & set(truth.head)
        np.testing.assert_allclose(found.tail_logprob[c], truth.tail_logprob, atol=3e-5, rtol=1e-6)


def test_top_p_with_a_sampled_tail_never_drops_a_probability_of_at_least_its_weight() -> None:
    logits = np.log(np.array([[0.5, 0.2, 0.2, 0.06, 0.04]])).astype(np.float32)
    found = run(logits, np.zeros(1, int), np.zeros(1), top_k=5, top_p=0.4, tail_weight=0.1, temperatures=(1.0,))
    assert found.ids[: found.head_size[0]].tolist() == [0, 1, 2]


def test_stored_logprobs_are_never_above_zero() -> None:
    logits = make_logits("extreme", 5, 7)
    for tail_weight in (None, 0.05):
        found = run(
            logits, np.zeros(5, int), np.full(5, 0.5), top_k=1, tail_weight=tail_weight, temperatures=(1.0, 2.0)
        )
        assert found.logprobs.max() <= 0
        assert found.tail_logprob.max() <= 0
        assert found.entropy.min() >= 0


def test_equal_logits_at_the_edge_of_the_head_keep_the_lower_ids() -> None:
    logits = np.full((1, 300), -5, dtype=np.float32)
    logits[0, [290, 7, 150, 41]] = 1.0
    logits[0, 200] = 2.0
    found = run(logits, np.zeros(1, int), np.zeros(1), top_k=3, tail_weight=None, temperatures=(1.0,))
    assert found.ids.tolist() == [7, 41, 200]


def test_the_head_takes_every_probability_of_at_least_the_tail_weight_at_the_temperature_of_the_draw() -> None:
    probs = np.array([[0.5, 0.2, 0.2, 0.06, 0.04]])
    logits = np.log(probs).astype(np.float32)
    heads = {}
    for temperatures in ((1.0,), (4.0,)):
        found = run(logits, np.zeros(1, int), np.zeros(1), top_k=0, tail_weight=0.1, temperatures=temperatures)
        heads[temperatures[0]] = found.ids[: found.head_size[0]].tolist()
    # At temperature 4 the probabilities are .26, .21, .21, .15 and .14.
    assert heads == {1.0: [0, 1, 2], 4.0: [0, 1, 2, 3, 4]}


def test_a_position_does_not_depend_on_the_rest_of_its_chunk() -> None:
    logits, rng = make_logits("random", 9, 257), np.random.default_rng(2)
    labels, uniforms = rng.integers(0, 257, 9), rng.random(9)
    settings = {"top_k": 4, "tail_weight": 0.02, "temperatures": (1.0, 2.0)}
    together = split(run(logits, labels, uniforms, **settings))
    for c in range(9):
        alone = split(run(logits[c : c + 1], labels[c : c + 1], uniforms[c : c + 1], **settings))
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_array_equal(whole[c], part[0])


@pytest.mark.parametrize("tail_weight", [None, 0.05])
def test_rows_without_a_distribution_are_told_by_their_largest_logit(tail_weight: float | None) -> None:
    logits = make_logits("random", 5, 7)
    logits[1, 2], logits[2, 6], logits[3] = np.nan, np.inf, -np.inf
    found = run(logits, np.zeros(5, int), np.zeros(5), top_k=2, tail_weight=tail_weight, temperatures=(1.0,))
    np.testing.assert_array_equal(found.largest_logit[1:4], [np.nan, np.inf, -np.inf])
    assert np.isfinite(found.largest_logit).tolist() == [True, False, False, False, True]
    assert np.isfinite(found.entropy).tolist() == [True, False, False, False, True]


class NoOperators(TorchDispatchMode):
    """Refuses PyTorch's operators but the view that `Tensor.numpy` makes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return func(*args)
        raise AssertionError(f"{func} was called")


def test_flattening_uses_none_of_the_teachers_threads() -> None:
    found = sparsify(
        torch.from_numpy(make_logits("plain", 3, 200)), torch.zeros(3, dtype=torch.int64),
        torch.full((3,), 0.5, dtype=torch.float64), top_k=4, tail_weight=0.05, temperatures=(1.0, 2.0),
    ).to_host()  # fmt: skip
    with NoOperators():
        found.flatten()
        with pytest.raises(AssertionError, match="sum"):
            found.is_head.sum()
