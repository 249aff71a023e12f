"""Even the rarest ids are drawn exactly when their own interval of the uniform says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.producers.sparsify import sparsify
from tests.places import SHARED_DATA

REAL_LOGITS = SHARED_DATA / "gpt2-small-next-token-logits.npz"
VOCAB, TAIL_WEIGHT = 50257, 1 / 32


def gpt2_like_logits(seed: int) -> np.ndarray:
    """Probabilities that fall as a power of the rank, in random order, on an offset as GPT-2's logits have it."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(-1.3 * np.log(np.arange(1, VOCAB + 1))) + rng.normal(0, 0.5, VOCAB) - 100).astype(
        np.float32
    )


def example(name: str) -> np.ndarray:
    if name == "made":
        return gpt2_like_logits(0)
    if not REAL_LOGITS.is_file():
        pytest.skip("the shared example logits are not on this machine")
    return np.load(REAL_LOGITS)[f"logits_{name}"].astype(np.float32)


def drawn_in_place(logits: np.ndarray, place: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The id that the draw's threshold number place[r] finds with the uniform number uniforms[r]."""
    found = sparsify(
        torch.from_numpy(logits).repeat(len(place), 1),
        torch.zeros(len(place), dtype=torch.int64),
        torch.from_numpy(uniforms),
        top_k=0,
        tail_weight=TAIL_WEIGHT,
        temperatures=(1.0,),
    )
    is_there = found.is_drawn.gather(1, torch.from_numpy(place)[:, None])[:, 0]
    ids = found.tail_ids.gather(1, torch.from_numpy(place)[:, None])[:, 0]
    return torch.where(is_there, ids, VOCAB).numpy()


@pytest.mark.parametrize("name", ["made", "0", "1", "2", "3", "4"])
def test_uniforms_that_draw_a_rare_id_are_an_interval_as_wide_as_its_probability_over_the_weight(name: str) -> None:
    logits = example(name)
    wide = logits.astype(np.float64)
    probs = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
    in_tail = probs < TAIL_WEIGHT * 0.999
    thresholds = np.cumsum(np.where(in_tail, probs, 0.0)) / TAIL_WEIGHT
    # Ids from the rarest to the usual. An interval of the uniform that begins with one threshold and ends with the
    # next is left out; where others lie is known to about 1e-6 only, for the sums of blocks are float32.
    begin, end = (thresholds - probs / TAIL_WEIGHT) % 1, thresholds % 1
    is_inside = (begin > 1e-4) & (begin < end) & (end < 1 - 1e-4)
    may_be_chosen = in_tail & is_inside & (probs > 1e-11)
    by_rarity = np.argsort(np.where(may_be_chosen, probs, np.inf))
    chosen = by_rarity[np.linspace(0, may_be_chosen.sum() - 1, 40).astype(int)]
    assert probs[chosen].min() < 1e-7
    place = np.tile(thresholds[chosen].astype(np.int64), 2)
    # What is found does not decrease with the uniform; halve to where it reaches the id, and to where it passes it.
    wanted = np.concatenate([chosen, chosen + 1])
    below, above = np.zeros(len(wanted)), np.ones(len(wanted))
    for _ in range(53):
        middle = (below + above) / 2
        is_above = drawn_in_place(logits, place, middle) >= wanted
        below, above = np.where(is_above, below, middle), np.where(is_above, middle, above)
    found_begin, found_end = np.split(above, 2)
    np.testing.assert_allclose(found_end - found_begin, probs[chosen] / TAIL_WEIGHT, rtol=1e-4)
    np.testing.assert_allclose(found_end, end[chosen], atol=1e-4)
