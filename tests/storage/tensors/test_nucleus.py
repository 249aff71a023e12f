"""The one sampler: against float64 truth, at the edges of the nucleus, of the uniforms and of what floats hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from storage.draws import hash_uniform
from storage.tensors.nucleus import draw_ids, draw_uniforms, is_in_nucleus
from tests.naive_sampler import naive_distribution, naive_draw

ALMOST_ONE = float(np.nextafter(1.0, 0.0))
EDGES = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)


def logprobs_of(*probabilities: float, num_rows: int = 1) -> Tensor:
    """Rows [R, V] of these probabilities; 0 is −∞."""
    return torch.tensor(probabilities, dtype=torch.float64).log().expand(num_rows, -1)


def grid(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.05])
def test_draws_over_a_grid_of_uniforms_have_the_right_frequencies(temperature: float, top_p: float) -> None:
    """An id is drawn for one interval of uniforms, so its share of n stratified ones is off by at most 1/n."""
    rng, count = np.random.default_rng(0), 2000
    logprobs = torch.log_softmax(torch.from_numpy(rng.normal(0, 2, (1, 23)).astype(np.float32)), dim=1)
    drawn = draw_ids(logprobs.repeat(count, 1), grid(count), temperature=temperature, top_p=top_p)
    frequencies = np.bincount(drawn.numpy(), minlength=23) / count
    expected = naive_distribution(logprobs[0].numpy(), temperature, top_p)
    np.testing.assert_allclose(frequencies, expected, atol=1 / count + 1e-6)
    assert np.all(frequencies[expected == 0] == 0)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8), (1.0, 0.05)])
@pytest.mark.parametrize("vocab_size", [1, 2, 5, 63, 64, 65, 257])
def test_draws_invert_the_running_sum_of_the_nucleus(vocab_size: int, temperature: float, top_p: float) -> None:
    rng = np.random.default_rng(vocab_size)
    logits, uniforms = rng.normal(0, 2, (200, vocab_size)), rng.random(200)
    logprobs = torch.log_softmax(torch.from_numpy(logits), dim=1)
    found = draw_ids(logprobs, torch.from_numpy(uniforms), temperature=temperature, top_p=top_p)
    expected = [naive_draw(*pair, temperature, top_p) for pair in zip(logits, uniforms, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (2.0, 0.9)])
def test_float32_draws_over_a_large_vocabulary_are_off_by_rounding_alone(temperature: float, top_p: float) -> None:
    rng, num_rows, vocab_size = np.random.default_rng(1), 8, 50_257
    logits, uniforms = rng.normal(0, 2, (num_rows, vocab_size)).astype(np.float32), rng.random(num_rows)
    logprobs = torch.log_softmax(torch.from_numpy(logits), dim=1)
    found = draw_ids(logprobs, torch.from_numpy(uniforms), temperature=temperature, top_p=top_p)
    for row, drawn in enumerate(found.tolist()):
        distribution = naive_distribution(logits[row], temperature, top_p)
        end = distribution[: drawn + 1].sum()
        assert end - distribution[drawn] - 1e-6 <= uniforms[row] <= end + 1e-6


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_ids_without_probability_are_never_drawn(top_p: float) -> None:
    logprobs = logprobs_of(0, 0, 0.5, 0, 0, 0.5, 0, 0, 0, num_rows=2)
    for rows in (logprobs, logprobs.float()):
        assert draw_ids(rows, EDGES, temperature=1.0, top_p=top_p).tolist() == [2, 5]


def test_equal_probabilities_enter_the_nucleus_lower_ids_first() -> None:
    logprobs = logprobs_of(0.25, 0.25, 0.25, 0.25, num_rows=100).float()
    assert set(draw_ids(logprobs, grid(100), temperature=1.0, top_p=0.5).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-300, {2}), (0.5, {2}), (float(np.nextafter(0.5, 1)), {0, 2}), (0.75, {0, 2}),
        (float(np.nextafter(0.75, 1)), {0, 1, 2}), (ALMOST_ONE, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3}),
    ],
)  # fmt: skip
def test_the_nucleus_is_the_fewest_ids_that_reach_top_p_and_not_one_more(top_p: float, kept: set[int]) -> None:
    """Of probabilities that float64 holds exactly."""
    logprobs = logprobs_of(0.25, 0.125, 0.5, 0.125, num_rows=1000)
    assert set(draw_ids(logprobs, grid(1000), temperature=1.0, top_p=top_p).tolist()) == kept
    in_order = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    assert is_in_nucleus(in_order, top_p).tolist() == [[place < len(kept) for place in range(4)]]


@pytest.mark.parametrize("vocab_size", [1, 2, 64, 65, 130])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_an_id_with_all_the_mass_is_always_drawn(vocab_size: int, top_p: float) -> None:
    for only in {0, vocab_size // 2, vocab_size - 1}:
        logprobs = logprobs_of(*[float(i == only) for i in range(vocab_size)], num_rows=2).float()
        assert draw_ids(logprobs, EDGES, temperature=1.0, top_p=top_p).tolist() == [only, only]


@pytest.mark.parametrize("vocab_size", [5, 64, 65, 200])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_least_and_the_greatest_uniform_draw_the_first_and_the_last_id(vocab_size: int, temperature: float) -> None:
    logits = np.random.default_rng(2).normal(0, 1, (1, vocab_size)).astype(np.float32)
    logprobs = torch.log_softmax(torch.from_numpy(logits), dim=1).expand(2, -1)
    assert draw_ids(logprobs, EDGES, temperature=temperature, top_p=1.0).tolist() == [0, vocab_size - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_at_the_edges_of_what_floats_hold(dtype: torch.dtype) -> None:
    logprobs = torch.log_softmax(torch.tensor([[5.0, 1.0, 3.0, -torch.inf]], dtype=dtype), dim=1).expand(2, -1)
    assert draw_ids(logprobs, EDGES, temperature=1.0, top_p=1.0).tolist() == [0, 2]
    assert draw_ids(logprobs, EDGES, temperature=1e-300, top_p=1.0).tolist() == [0, 0]
    assert draw_ids(logprobs, EDGES, temperature=1e300, top_p=1.0).tolist() == [0, 2]
    assert draw_ids(logprobs, EDGES, temperature=1.0, top_p=1e-300).tolist() == [0, 0]


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_nan_rows_draw_an_id_of_the_vocabulary(top_p: float) -> None:
    logprobs = torch.full((2, 70), torch.nan)
    assert set(draw_ids(logprobs, EDGES, temperature=1.0, top_p=top_p).tolist()) <= set(range(70))


def test_a_uniform_is_the_hash_of_the_seed_and_the_step() -> None:
    seeds, device = np.array([3, 2**64 - 1], dtype=np.uint64), torch.device("cpu")
    for steps in (7, np.array([0, 9])):
        assert draw_uniforms(seeds, steps, device).tolist() == hash_uniform(seeds, steps).tolist()
    assert draw_uniforms(seeds, 0, device).dtype == torch.float64
