"""The caches that benchmarks read are valid ones, of the sizes that they are said to have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.support.caches import write_soft_targets_cache
from storage.reading.verification import verify_cache
from storage.rows import soft_targets


@pytest.mark.parametrize("vocab_size", [300, 70_000])
@pytest.mark.parametrize(("top_k", "tail_weight"), [(1, 1 / 32), (3, 0.25), (64, None)])
def test_caches_verify(tmp_path: Path, vocab_size: int, top_k: int, tail_weight: float | None) -> None:
    settings = {"top_k": top_k, "tail_weight": tail_weight}
    cache = write_soft_targets_cache(tmp_path / "cache", 37, 24, vocab_size, num_shards=2, **settings)
    found = verify_cache(tmp_path / "cache")
    assert not found.problems
    assert (found.num_shards, found.num_rows) == (2, 37)
    again = write_soft_targets_cache(tmp_path / "again", 37, 24, vocab_size, num_shards=2, **settings)
    assert cache.manifest == again.manifest


def test_targets_have_the_sizes_of_a_teachers(tmp_path: Path) -> None:
    cache = write_soft_targets_cache(tmp_path / "cache", 16, 128, 50_257)
    (batch,) = cache.record_batches("soft_targets", "train")
    rows = soft_targets.decode(batch)
    entries = (rows.head_size + rows.tail_size)[rows.is_valid_target]
    assert 15 < entries.mean() < 20
    assert entries.max() <= 40
    drawn_mass = rows.tail_size[rows.is_valid_target] / 32
    assert np.abs(drawn_mass - np.exp(rows.tail_logprob[rows.is_valid_target].astype(float))).max() < 1 / 32 + 1e-3
