"""Even the rarest ids are drawn exactly when their own interval of the uniform says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.sparsify import sparsify

REAL_LOGITS = Path(__file__).parents[2].parent / "shared" / "data" / "gpt2-small-next-token-logits.npz"
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


@pytest.mark.parametrize("name", ["made", "0", "1", "2", "3", "4"])
def test_a_rare_id_is_drawn_inside_its_interval_and_not_beside_it(name: str) -> None:
    logits = torch.from_numpy(example(name))[None]
    # What is drawn from is exp of the float32 differences; their sum and everything after it has float64's digits.
    weights = (logits - logits.max()).exp()[0].double().numpy()
    probs = weights / weights.sum()
    in_tail = probs < TAIL_WEIGHT
    running = np.cumsum(np.where(in_tail, probs, 0.0))
    # Ids from the rarest to the usual; an interval of the running sum as wide as p belongs to each.
    by_rarity = np.argsort(np.where(in_tail, probs, np.inf))
    chosen = by_rarity[np.linspace(0, in_tail.sum() - 1, 60).astype(int)]
    # 50,257 additions in float64 err by a few 1e-13; a float32 sum would be off by 1e-7, many rare ids wide.
    chosen = chosen[probs[chosen] > 1e-11]
    assert probs[chosen].min() < 1e-7
    places = np.stack([running[chosen] - probs[chosen] * 0.5, running[chosen] + probs[chosen] * 1e-2], axis=1)
    for inside, places_of in ((True, places[:, 0]), (False, places[:, 1])):
        found = sparsify(
            logits.repeat(len(chosen), 1),
            torch.zeros(len(chosen), dtype=torch.int64),
            torch.from_numpy(places_of / TAIL_WEIGHT % 1.0),
            top_k=0,
            tail_weight=TAIL_WEIGHT,
            temperatures=(1.0,),
        )
        is_drawn = ((found.tail_ids == torch.from_numpy(chosen)[:, None]) & found.is_drawn).any(dim=1)
        assert (is_drawn == inside).all()
