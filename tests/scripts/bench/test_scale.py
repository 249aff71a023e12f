"""The benchmark of growth goes through caches of the sizes that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import scale
from storage.reading.cache import open_cache
from storage.records.manifest import MANIFEST_NAME


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> scale.Caches:
    return scale.make_caches(tmp_path_factory.mktemp("caches"), 1, 16)


def test_caches_grow_tenfold_and_their_rows_differ(caches: scale.Caches) -> None:
    opened = {times: open_cache(path) for times, path in caches.items()}
    assert {times: len(cache.manifest.shards) for times, cache in opened.items()} == {1: 1, 10: 10, 100: 100}
    assert {times: cache.num_rows("soft_targets", "train") for times, cache in opened.items()} == {
        times: 16 * times for times in caches
    }
    assert len({shard.sha256 for shard in opened[100].manifest.shards}) == 100


@pytest.mark.parametrize("action", [scale.verify, scale.resume, scale.first_batch])
def test_what_is_timed_leaves_the_cache_as_it_was(caches: scale.Caches, action: scale.Action) -> None:
    path = caches[1]
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert (path / MANIFEST_NAME) in before
    action(path)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_time_and_memory_are_compared(caches: scale.Caches) -> None:
    comparisons = list(scale.compare(caches, num_shards=1, rounds=1))
    assert [(c.ours, c.reference) for c in comparisons] == [("100×", "1×")] * 4 + [("100×", "10×")] * 2
    assert all(c.target is not None for c in comparisons)


def test_verifiers_are_compared_with_one_process_in_a_directory(tmp_path: Path) -> None:
    shared, remote = scale.compare_verifiers(tmp_path, num_batches=2, block_size=16, rounds=1)
    assert (shared.ours, shared.reference, shared.target, shared.more_is_better) == ("two jobs", "one job", 1.7, True)
    assert (remote.ours, remote.reference, remote.target) == ("from a URL", "one job", None)


def test_tokenizing_is_compared(tmp_path: Path) -> None:
    comparisons = list(scale.compare_tokenizing(tmp_path, 40_000, 5_000, rounds=1))
    assert [(c.ours, c.reference) for c in comparisons] == [("two of one thread", "one of one thread"), ("10×", "1×")]
    assert all(c.target is not None for c in comparisons)
