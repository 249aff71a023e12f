from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import RowStream, open_cache, verify_cache
from storage.errors import (
    CacheMismatchError,
    ConfigError,
    HashMismatchError,
    IncompleteCacheError,
    NoCacheError,
    WriteRefusedError,
)
from storage.reading.cache import Cache
from storage.records.commits import read_commit, read_plan, write_commit
from storage.records.identity import SPLITS
from storage.records.manifest import Manifest, read_manifest, write_manifest
from storage.rows.kinds import KINDS
from storage.shards.shard import Shard
from storage.sharing.compaction import compact
from storage.sharing.merging import merge
from tests.places import ROOT
from tests.storage.stopping import snapshot, stop_everywhere

# Shards so small that zstd finds nothing in some of them, and one that it shrinks.
SIZES = {"soft_targets": {"train": [8, 4], "validation": [1]}, "beams": {"train": [1]}}


def rows_of(cache: Cache, path: str) -> pa.Table:
    """A shard's rows as pyarrow alone reads them."""
    with pa.memory_map(str(cache.path / path)) as file:
        return pa.ipc.open_file(file).read_all()


def assert_is_compacted(out: Path, original: Path) -> None:
    """The same cache in no more bytes: whole, equal row by row and record batch by record batch."""
    assert verify_cache(out).problems == ()
    new, old = open_cache(out), open_cache(original)
    assert new.identity == old.identity
    assert read_plan(out) == read_plan(original)
    for one, other in zip(new.manifest.shards, old.manifest.shards, strict=True):
        assert rows_of(new, one.path).equals(rows_of(old, other.path), check_metadata=True)
        assert [len(b) for b in rows_of(new, one.path).to_batches()] == [
            len(b) for b in rows_of(old, other.path).to_batches()
        ]
        facts = {"shard_bytes": one.shard_bytes, "sha256": one.sha256}
        assert one == type(other)(**(vars(other) | facts))
        assert one.shard_bytes <= other.shard_bytes
        assert read_commit(out, one.key) == one
    for split in SPLITS:
        assert new.manifest.teacher_perplexity(split) == old.manifest.teacher_perplexity(split)
    assert [f for f in new.manifest.files if f.path != "README.md"] == [
        f for f in old.manifest.files if f.path != "README.md"
    ]


def test_a_compacted_cache_holds_the_same_rows_in_fewer_bytes(cache: Cache, tmp_path: Path) -> None:
    before = snapshot(cache.path)
    compacted = compact(cache.path, tmp_path / "out")
    assert compacted.path == tmp_path / "out"
    assert_is_compacted(tmp_path / "out", cache.path)
    assert snapshot(cache.path) == before
    sizes = [[shard.shard_bytes for shard in c.manifest.shards] for c in (compacted, cache)]
    assert sum(sizes[0]) < sum(sizes[1])
    assert set(snapshot(compacted.path)) == set(before)
    assert snapshot(compacted.tokenizer_dir) == snapshot(cache.tokenizer_dir)


def test_the_card_states_the_new_sizes(cache: Cache, tmp_path: Path) -> None:
    compacted = compact(cache.path, tmp_path / "out")
    card = (compacted.path / "README.md").read_text()
    for kind in KINDS:
        shards = compacted.manifest.shards_of(kind, "train")
        num_rows, num_bytes = sum(s.num_rows for s in shards), sum(s.shard_bytes for s in shards)
        assert f"| {kind} | train | {num_rows:,} | {num_bytes:,} |" in card


def test_a_shard_that_would_not_shrink_keeps_its_bytes(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make.cache(tmp_path / "cache", SIZES)
    best = compact(original, tmp_path / "best", zstd_level=22).path
    again = compact(best, tmp_path / "again", zstd_level=1)
    assert_is_compacted(again.path, best)
    for shard in again.manifest.shards:
        assert (again.path / shard.path).samefile(best / shard.path)
    assert not [p for p in again.path.rglob("*") if p.name.startswith(".tmp-")]
    assert snapshot(again.path) == snapshot(best)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    copied = compact(best, tmp_path / "copied", zstd_level=1)
    assert snapshot(copied.path) == snapshot(best)
    assert all((copied.path / shard.path).stat().st_nlink == 1 for shard in copied.manifest.shards)


def test_a_higher_level_takes_fewer_bytes(cache: Cache, tmp_path: Path) -> None:
    totals = []
    for level in (3, 9, 19):
        compacted = compact(cache.path, tmp_path / f"{level}", level)
        totals.append(sum(shard.shard_bytes for shard in compacted.manifest.shards))
    assert totals[0] == sum(shard.shard_bytes for shard in cache.manifest.shards)
    assert totals[0] > totals[1] > totals[2]


@pytest.mark.parametrize("level", [0, -1, 23])
def test_a_level_that_zstd_does_not_have_is_refused(small_cache: Path, tmp_path: Path, level: int) -> None:
    with pytest.raises(ConfigError, match=f"--zstd-level is {level}, expected 1 to 22"):
        compact(small_cache, tmp_path / "out", level)
    assert not (tmp_path / "out").exists()


def test_what_is_no_finished_cache_is_refused(small_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(NoCacheError):
        compact(tmp_path / "nowhere", tmp_path / "out")
    (small_cache / "manifest.json").unlink()
    with pytest.raises(IncompleteCacheError):
        compact(small_cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_something_else_is_refused_and_left_alone(
    make: SimpleNamespace, small_cache: Path, tmp_path: Path
) -> None:
    file, strange, itself = tmp_path / "file", tmp_path / "strange", tmp_path / "itself"
    file.write_text("mine")
    strange.mkdir()
    (strange / "letters.txt").write_text("mine")
    itself.symlink_to(small_cache)
    other = make.cache(tmp_path / "other", SIZES)
    before = snapshot(tmp_path)
    for out, error in (
        (file, ConfigError), (strange, ConfigError), (other, CacheMismatchError), (small_cache, ConfigError),
        (itself, ConfigError), (small_cache / ".." / small_cache.name, ConfigError),
    ):  # fmt: skip
        with pytest.raises(error, match=str(out)):
            compact(small_cache, out)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_a_damaged_shard_is_refused(small_cache: Path, tmp_path: Path, place: float) -> None:
    compact(small_cache, tmp_path / "undisturbed")
    path = small_cache / "soft_targets" / "train-00001-of-00003.arrow"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[int(place * len(whole))] ^= 1
    path.unlink()
    path.write_bytes(flipped)
    with pytest.raises(HashMismatchError, match=str(path)):
        compact(small_cache, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    path.write_bytes(whole)
    compact(small_cache, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


def test_a_full_disk_leaves_what_is_committed(
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = snapshot(compact(small_cache, tmp_path / "undisturbed").path)
    original = os.link  # which gives a shard its name

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name.startswith("validation-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(WriteRefusedError, match="validation-00000"):
            compact(small_cache, tmp_path / "out")
    assert len(list((tmp_path / "out" / "commits").iterdir())) == 3
    compact(small_cache, tmp_path / "out")
    assert snapshot(tmp_path / "out") == expected


@pytest.mark.parametrize("after", [False, True])
def test_a_run_stopped_at_any_publication_ends_with_the_same_bytes(
    make: SimpleNamespace, tmp_path: Path, after: bool
) -> None:
    original = make.cache(tmp_path / "cache", SIZES)
    # One shard is as small as it can be, so that both ways of publishing a shard are stopped.
    best = compact(original, tmp_path / "best", 22).path
    kept = best / "soft_targets" / "train-00001-of-00002.arrow"
    record = next(s for s in open_cache(best).manifest.shards if s.path.endswith(kept.name))
    shutil.copy(kept, original / record.path)
    accept(original, record.path, record.shard_bytes, record.sha256)
    expected = snapshot(compact(original, tmp_path / "undisturbed").path)
    num_publications = stop_everywhere(lambda out: compact(original, out), tmp_path, expected, after=after)
    assert num_publications > len(expected), "every file is published, the kept shard twice"


def accept(cache_dir: Path, path: str, shard_bytes: int, sha256: str) -> None:
    """Make the records of a cache speak of the bytes that now stand at `path`."""
    manifest = read_manifest(cache_dir)
    changed = {"shard_bytes": shard_bytes, "sha256": sha256}
    shards = tuple(type(s)(**(vars(s) | changed)) if s.path == path else s for s in manifest.shards)
    write_manifest(cache_dir, Manifest(identity=manifest.identity, shards=shards, files=manifest.files))
    for shard in shards:
        write_commit(cache_dir, shard)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(make: SimpleNamespace, tmp_path: Path) -> None:
    original = make.cache(tmp_path / "cache", SIZES)
    compact(original, tmp_path / "undisturbed")
    code = """
import itertools, os, signal, sys
from pathlib import Path
from storage.shards import shard
from storage.sharing.compaction import compact
for lifetime in itertools.count(1):
    if os.fork() == 0:
        left = itertools.count(4 * lifetime, -1)
        for module, name in ((os, "link"), (os, "replace"), (shard, "check_batch")):
            def mortal(*arguments, original=getattr(module, name), **options):
                if not next(left):
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)
            setattr(module, name, mortal)
        compact(*map(Path, sys.argv[1:]))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
        break
    assert lifetime < 99
print(lifetime)
"""
    command = [sys.executable, "-c", code, str(original), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2, "killed at least twice"
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


def test_a_finished_run_again_changes_nothing(small_cache: Path, tmp_path: Path) -> None:
    told: list[int] = []
    before = snapshot(compact(small_cache, tmp_path / "out", progress=told.append).path)
    assert told == [shard.shard_bytes for shard in open_cache(small_cache).manifest.shards]
    kept: list[int] = []
    compact(small_cache, tmp_path / "out", 1, pytest.fail, kept.append)
    assert kept == told
    assert snapshot(tmp_path / "out") == before


def test_compacting_again_brings_back_lost_shards(small_cache: Path, tmp_path: Path) -> None:
    out = compact(small_cache, tmp_path / "out").path
    before = snapshot(out)
    lost, cut, *_ = sorted(out.rglob("*.arrow"))
    lost.unlink()
    cut.unlink()  # perhaps a name of the source's own file
    cut.write_bytes(b"cut")
    compact(small_cache, out)
    assert snapshot(out) == before


def test_compacting_again_brings_back_the_tokenizer(cache: Cache, tmp_path: Path) -> None:
    out = compact(cache.path, tmp_path / "out").path
    before = snapshot(out)
    (out / "tokenizer" / "tokenizer.json").write_text("cut")
    compact(cache.path, out)
    assert snapshot(out) == before


def test_a_merged_cache_is_compacted_and_compacted_caches_are_merged(make: SimpleNamespace, tmp_path: Path) -> None:
    def build(name: str) -> Path:
        data = {"source": name, "fingerprint": name, "licence": None, "packing": "none", "num_tokens": {}}
        return Path(make.cache(tmp_path / name, SIZES, ord(name), data=data))

    two = [build("a"), build("b")]
    merged = merge(two, tmp_path / "merged").path
    compacted = compact(merged, tmp_path / "compacted").path
    assert_is_compacted(compacted, merged)
    separately = [compact(source, tmp_path / f"compacted {source.name}").path for source in two]
    assert snapshot(merge(separately, tmp_path / "merged later").path) == snapshot(compacted)


def test_the_stream_is_the_same(small_cache: Path, tmp_path: Path) -> None:
    streams = [
        RowStream(cache, "soft_targets", "train", batch_rows=7, seed=3).batches()
        for cache in (open_cache(small_cache), compact(small_cache, tmp_path / "out"))
    ]
    for _ in range(6):
        one, other = (next(stream) for stream in streams)
        assert one.rows.equals(other.rows)
        assert one.next_state == other.next_state


def test_datasets_loads_a_compacted_cache(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    out = compact(cache.path, tmp_path / "out").path
    loaded = datasets.load_dataset(str(out), "samples", cache_dir=str(tmp_path / "hf"))
    texts = [text for batch in cache.record_batches("samples", "train") for text in batch.column("text").to_pylist()]
    assert loaded["train"]["text"][:] == texts


def test_memory_holds_a_record_batch_or_two_of_a_shard(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make.cache(tmp_path / "cache", {"samples": {"train": [48]}})
    read: list[weakref.ref[pa.RecordBatch]] = []
    most_alive = 0
    read_batch = Shard.read_batch

    def watched(shard: Shard, index: int) -> pa.RecordBatch:
        nonlocal most_alive
        batch = read_batch(shard, index)
        read.append(weakref.ref(batch))
        most_alive = max(most_alive, sum(one() is not None for one in read))
        return batch

    monkeypatch.setattr(Shard, "read_batch", watched)
    compact(original, tmp_path / "out")
    assert len(read) == 12
    assert most_alive <= 2


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    rest=st.integers(0, 3),
    kind=st.sampled_from(list(KINDS)),
    split=st.sampled_from(SPLITS),
    level=st.integers(1, 22),
)
def test_any_shards_compact(
    make: SimpleNamespace,
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[int],
    rest: int,
    kind: str,
    split: str,
    level: int,
) -> None:
    base = tmp_path_factory.mktemp("any")
    sizes = [4 * n for n in batches[:-1]] + [4 * batches[-1] - rest]
    original = make.cache(base / "cache", {kind: {split: sizes}})
    assert_is_compacted(compact(original, base / "out", level).path, original)
    assert json.loads((base / "out" / "plan.json").read_text()) == json.loads((original / "plan.json").read_text())
