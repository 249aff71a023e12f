"""The benchmark of the soft-target pass: both sides see the same tokens, and ours ends as a whole shard."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from scripts.bench import precompute
from scripts.bench.config import BenchConfig
from storage.writing.directory_destination import DirectoryDestination


def test_every_variant_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    shards: list[int] = []
    original = precompute.write_missing_shards

    def spied(
        destination: DirectoryDestination, identity: object, producer: object, ranges: list, count: object
    ) -> None:
        original(destination, identity, producer, ranges, count)
        written = Path(destination.where) / ranges[0].key.path
        shards.append(pa.ipc.open_file(str(written)).read_all().num_rows)

    monkeypatch.setattr(precompute, "write_missing_shards", spied)
    found = list(precompute.run(BenchConfig(name="precompute", size="tiny", rounds=1)))
    assert len(found) == 2 * (3 + 2)
    assert {c.target for c in found if c.what == "time, float32, top-k 64"} == {1.02}
    assert all(value > 0 for c in found for value in c.reference_values)
    # Two dtypes: three variants, each warmed up and measured once, and two for memory.
    assert shards == [32] * 2 * (3 * 2 + 2)
