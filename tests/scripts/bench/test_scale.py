"""The benchmark of growth goes through caches of the sizes that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import scale
from scripts.bench.config import BenchConfig
from storage.reading.cache import open_cache
from storage.records.manifest import MANIFEST_NAME


def test_caches_grow_tenfold_and_their_rows_differ(tmp_path: Path) -> None:
    caches = scale.make_caches(tmp_path, 1, 16)
    opened = {times: open_cache(path) for times, path in caches.items()}
    assert {times: len(cache.manifest.shards) for times, cache in opened.items()} == {1: 1, 10: 10, 100: 100}
    assert {times: cache.num_rows("soft_targets", "train") for times, cache in opened.items()} == {
        times: 16 * times for times in caches
    }
    assert len({shard.sha256 for shard in opened[100].manifest.shards}) == 100


@pytest.mark.parametrize("action", [scale.verify, scale.resume, scale.first_batch])
def test_what_is_timed_leaves_the_cache_as_it_was(tmp_path: Path, action: scale.Action) -> None:
    (path, *_) = scale.make_caches(tmp_path, 1, 16).values()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert (path / MANIFEST_NAME) in before
    action(path)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_time_and_memory_are_compared() -> None:
    comparisons = list(scale.run(BenchConfig(name="scale", size="tiny", rounds=2)))
    assert [(c.ours, c.reference) for c in comparisons] == [("100×", "1×")] * 4 + [("100×", "10×")] * 2
    assert all(c.target is not None for c in comparisons)
