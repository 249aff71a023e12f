"""The benchmark of reading: all systems hand out every row once, whole and shuffled, as the same tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.bench import stream
from scripts.bench.config import BenchConfig
from scripts.bench.stream_systems import OURS, PEERS
from storage import open_cache
from storage.rows import soft_targets

TINY = BenchConfig(name="stream", size="tiny", rounds=1, peers_python=sys.executable)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream")


@pytest.fixture(scope="module")
def readers(work_dir: Path) -> Iterator[list[stream.StreamReader]]:
    with ExitStack() as stack:
        yield stream.open_readers(TINY, work_dir, stack)


def test_every_system_hands_out_the_same_rows_shuffled(work_dir: Path, readers: list[stream.StreamReader]) -> None:
    found = {reader.system.name: reader.ask(do="contents") for reader in readers}
    installed = [system.name for system in (OURS, *PEERS) if not system.is_peer]
    assert set(installed) <= found.keys()
    assert len({str(contents["sums"]) for contents in found.values()}) == 1
    stored = [
        int(row[0])
        for batch in open_cache(work_dir / OURS.folder).record_batches("soft_targets", "train")
        for row in soft_targets.decode(batch).input_ids
    ]
    for contents in found.values():
        assert sorted(contents["first_tokens"]) == sorted(stored)
        assert contents["first_tokens"] != stored


def test_every_peer_that_is_there_is_compared(work_dir: Path, readers: list[stream.StreamReader]) -> None:
    found = list(stream.compare(readers, TINY, work_dir))
    targets = {c.what: c.target for c in found if c.target is not None}
    assert targets == {
        "first epoch, rows new to this machine, best compressed peer": 1.0,
        "first epoch, rows checked before, best compressed peer": 1.0,
        "first batch, shards of the default size": 1.0,
        "peak memory": 1.05,
    }
    assert {"datasets, Parquet zstd", "datasets, Arrow"} <= {c.reference for c in found if c.what == "later epoch"}
    assert all(value > 0 for c in found for value in (*c.our_values, *c.reference_values))
