"""Bits flipped in every region of every file of a cache, and files cut short: all found, and reading stops too."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from scripts.faults import flips
from scripts.faults.regions import arrow_regions, json_regions
from scripts.faults.tally import Tally
from storage import open_cache, verify_cache
from storage.errors import MissingFileError

FILES = {"manifest", "plan", "commit record", "card", "soft_targets shard", "samples shard", "beams shard"}


def covered(spans: dict[str, list[range]]) -> list[int]:
    return sorted(position for ranges in spans.values() for span in ranges for position in span)


@pytest.mark.parametrize("kind", ["soft_targets", "samples", "beams"])
def test_regions_of_a_shard_are_the_whole_file_and_what_pyarrow_says(small_cache: Path, kind: str) -> None:
    cache = open_cache(small_cache)
    content = (small_cache / cache.shards(kind, "train")[0].path).read_bytes()
    spans = arrow_regions(content)
    assert covered(spans) == list(range(len(content)))
    reader = pa.ipc.open_file(pa.BufferReader(content))
    assert len(spans["batch metadata"]) == reader.num_record_batches > 1 or kind == "samples"
    message = pa.ipc.read_message(pa.BufferReader(content[8:]))
    assert message.metadata.to_pybytes() in content[spans["schema"][0].start : spans["schema"][0].stop]
    assert {content[position] for span in spans["padding"] for position in span} == {0}
    # What the length before a buffer says is what the buffer holds once it is unpacked, or −1 when it is stored plain.
    [length, *_], [buffer, *_] = spans["buffer length"], spans["buffer"]
    unpacked_bytes = int.from_bytes(content[length.start : length.stop], "little", signed=True)
    row_ids = reader.get_batch(0).column("row_id").buffers()[1]
    packed = content[buffer.start : buffer.stop]
    unpacked = packed if unpacked_bytes == -1 else pa.decompress(packed, unpacked_bytes, codec="zstd").to_pybytes()
    assert unpacked == row_ids.to_pybytes()[: len(unpacked)]


def test_classes_of_characters_are_the_whole_text() -> None:
    content = b'{"a_1": [-2.5e-3, "b\\n", null]}\n'
    spans = json_regions(content)
    assert covered(spans) == list(range(len(content)))
    assert len(spans["brackets"]) == 4
    assert len(spans["quotes"]) == 4
    assert {content[span.start] for span in spans["other characters"]} == set(b"_-.\\")


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def either_cache(request: pytest.FixtureRequest, make: SimpleNamespace, small_cache: Path, tmp_path: Path) -> Path:
    """A small cache of each version."""
    if request.param == 1:
        return small_cache
    settings = {"soft_targets": {"top_k": 3, "tail_weight": 0.25, "is_wanted": True}}
    written: Path = make.cache(tmp_path / "wanted", config=settings)
    return written


def test_every_flipped_bit_is_found(either_cache: Path) -> None:
    tally = Tally()
    before = {path: path.read_bytes() for path in either_cache.rglob("*") if path.is_file()}
    flips.flip_bits(either_cache, 1200, random.Random(0), tally, whole_every=12)
    assert tally.losses == []
    injected = tally.injected("flipped bit")
    assert {place.partition(", ")[0] for place in injected} == FILES
    assert {place.partition(", ")[2] for place in injected if "beams" in place} == {
        "magic", "padding", "message length", "schema", "batch metadata", "buffer length", "buffer", "end of stream",
        "footer", "footer length",
    }  # fmt: skip
    assert min(injected.values()) > 10
    assert {path: path.read_bytes() for path in either_cache.rglob("*") if path.is_file()} == before
    assert verify_cache(either_cache).problems == ()


def test_every_cut_is_found(small_cache: Path) -> None:
    tally = Tally()
    flips.truncate(small_cache, tally)
    assert tally.losses == []
    assert tally.injected("truncated").keys() == FILES - {"card"}
    assert verify_cache(small_cache).problems == ()


def test_a_reader_that_looks_at_no_hash_is_caught(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test."""

    def trusting(cache_dir: Path, record: Any) -> Path:
        return cache_dir / record.path

    monkeypatch.setattr("storage.reading.shard_files.check_file", trusting)
    tally = Tally()
    flips.flip_bits(small_cache, 300, random.Random(0), tally, whole_every=12)
    assert any("shard" in loss for loss in tally.losses)
    assert not any("commit" in loss for loss in tally.losses)


def test_a_reader_that_hangs_is_caught_whatever_it_catches(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> bool:
        try:
            while True:
                time.sleep(0.01)
        except OSError as error:
            raise MissingFileError("manifest.json") from error

    monkeypatch.setattr(flips, "_HUNG_AFTER_S", 0.05)
    victim = dataclasses.replace(flips.victims_of(small_cache)[0], find=hang)
    problem = flips.undetected(small_cache, victim, is_whole=False)
    assert problem == "a check of the file alone raised StillBusy('still busy after 0.05 seconds')"
