from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from storage import open_cache, verify_cache
from storage.errors import ConfigError, IncompleteCacheError, MissingKindError, NoCacheError, RecordError
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS


def test_an_opened_cache_knows_what_it_holds(small_cache: Path) -> None:
    cache = open_cache(str(small_cache))
    assert cache.path == small_cache
    assert cache.tokenizer_dir == small_cache / "tokenizer"
    assert (cache.identity.vocab_size, cache.identity.temperatures) == (50, (1.0, 2.0))
    rows = {(kind, split): cache.num_rows(kind, split) for kind in KINDS for split in SPLITS}
    assert rows == {
        ("soft_targets", "train"): 20,
        ("soft_targets", "validation"): 3,
        ("samples", "train"): 6,
        ("samples", "validation"): 0,
        ("beams", "train"): 5,
        ("beams", "validation"): 1,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_record_batches_hold_every_row_in_stored_order(cache: Cache, kind: str) -> None:
    for split in SPLITS:
        row_ids = np.concatenate([batch.column("row_id").to_numpy() for batch in cache.record_batches(kind, split)])
        assert row_ids.tolist() == list(range(cache.num_rows(kind, split)))


def test_rows_that_the_cache_lacks_are_asked_for_by_name(small_cache: Path) -> None:
    cache = open_cache(small_cache)
    with pytest.raises(MissingKindError, match="--kinds samples") as caught:
        cache.shards("samples", "validation")
    assert (caught.value.kind, caught.value.split) == ("samples", "validation")
    with pytest.raises(MissingKindError):
        next(cache.record_batches("samples", "validation"))


@pytest.mark.parametrize("make_it", ["nothing", "an empty directory", "a file", "a directory of other things"])
def test_what_holds_no_cache_is_refused(tmp_path: Path, make_it: str) -> None:
    path = tmp_path / "place"
    if "directory" in make_it:
        path.mkdir()
    if "things" in make_it:
        (path / "README.md").write_text("no cache")
    if "file" in make_it:
        path.write_text("{}")
    for read in (open_cache, verify_cache):
        with pytest.raises(NoCacheError, match="teachonce-precompute") as caught:
            read(path)
        assert caught.value.path == str(path)


@pytest.mark.parametrize(("num_removed", "committed"), [(0, 8), (3, 5), (8, 0)])
def test_an_unfinished_cache_says_how_far_it_is(small_cache: Path, num_removed: int, committed: int) -> None:
    (small_cache / "manifest.json").unlink()
    for commit in sorted((small_cache / "commits").iterdir())[:num_removed]:
        commit.unlink()
    for read in (open_cache, verify_cache):
        with pytest.raises(IncompleteCacheError, match=f"{committed} of 8 shards") as caught:
            read(small_cache)
        assert (caught.value.committed, caught.value.planned) == (committed, 8)


def test_a_shard_without_its_commit_record_does_not_exist(small_cache: Path) -> None:
    (small_cache / "manifest.json").unlink()
    (small_cache / "commits" / "samples-train-00000.json").unlink()
    assert (small_cache / "samples" / "train-00000-of-00002.arrow").exists()
    with pytest.raises(IncompleteCacheError, match="7 of 8"):
        open_cache(small_cache)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "commits/beams-train-00000.json"])
def test_a_damaged_record_is_refused_by_name(small_cache: Path, name: str) -> None:
    if name != "manifest.json":
        (small_cache / "manifest.json").unlink()
    content = (small_cache / name).read_bytes()
    (small_cache / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RecordError) as caught:
        open_cache(small_cache)
    assert caught.value.path == str(small_cache / name)


def test_a_cache_that_may_not_be_read_is_not_called_missing(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_file(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", is_file)
    with pytest.raises(NoCacheError, match=r"cannot be read \(Permission denied\)"):
        open_cache(small_cache)


@pytest.mark.parametrize("path", ["file:/tmp/cache", "s3:/bucket/cache"])
def test_a_url_with_a_slash_too_few_is_told(path: str) -> None:
    with pytest.raises(ConfigError, match=f"^{path}: looks like a URL"):
        open_cache(path)


def test_a_path_too_long_or_unspeakable_holds_no_cache(tmp_path: Path) -> None:
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(NoCacheError):
            open_cache(tmp_path / name)
