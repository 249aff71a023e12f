"""A run that is run again makes what is missing, wherever it was interrupted, and ends with the same bytes."""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import PrecomputeConfig, SoftTargetsConfig, precompute
from pipeline.estimate import render_plan
from pipeline.run import plan_only
from pipeline.teacher.model import Teacher
from pipeline.work import work_directory
from storage import Cache
from storage.errors import CacheMismatchError, WriteRefusedError
from tests.other_users import give_away, without_rights
from tests.pipeline.stopping import Stop, fail_after
from tests.precomputed import precomputed
from tests.storage.sharing.merges import refusing

Snapshot = Callable[[Path], dict[str, str]]


def test_a_rerun_of_a_finished_cache_changes_nothing(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot
) -> None:
    before = snapshot(copied)
    written = {path: path.stat().st_mtime_ns for path in copied.rglob("*.arrow")}
    precompute(configure(copied))
    assert snapshot(copied) == before
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.arrow")} == written


@pytest.mark.parametrize("begun_bits", [10, 4])
def test_a_cache_begun_with_other_rounding_of_scalars_goes_on_with_its_own(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, snapshot: Snapshot, begun_bits: int
) -> None:
    """Caches from before scalars were rounded state nothing: all 10 bits."""
    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05)
    config = configure(tmp_path / "cache", kinds=("soft_targets",), soft_targets=settings)
    other = dataclasses.replace(settings, scalar_mantissa_bits=begun_bits)
    cache = precomputed(dataclasses.replace(config, soft_targets=other))
    stated = cache.identity.config["soft_targets"].get("scalar_mantissa_bits")
    assert stated == (None if begun_bits == 10 else begun_bits)
    before = snapshot(cache.path)
    (cache.path / "manifest.json").unlink()
    shutil.rmtree(cache.path / "soft_targets")
    assert "nothing was written" in plan_only(config, render_plan)
    precompute(config)
    assert snapshot(cache.path) == before
    with pytest.raises(CacheMismatchError, match="scalar_mantissa_bits"):
        precompute(dataclasses.replace(config, soft_targets=dataclasses.replace(settings, scalar_mantissa_bits=7)))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_finished_cache_that_cannot_be_written_is_finished(
    configure: Callable[..., PrecomputeConfig],
    finished: Cache,
    copied: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    before = snapshot(copied)
    give_away(copied)
    if code != errno.EACCES:
        monkeypatch.setattr(work_directory, "make_and_lock", refusing(code))
    with without_rights():
        assert precompute(configure(copied)) == finished.manifest
        with pytest.raises(CacheMismatchError, match="seed"):
            precompute(configure(copied, seed=7))
    assert snapshot(copied) == before


@pytest.mark.parametrize("lost", ["manifest.json", "tokenizer/tokenizer.json", "commits/beams-train-00000.json"])
def test_a_cache_that_cannot_be_written_and_lacks_a_file_is_not_finished(
    configure: Callable[..., PrecomputeConfig], copied: Path, lost: str
) -> None:
    (copied / lost).unlink()
    give_away(copied)
    with without_rights(), pytest.raises(WriteRefusedError, match="Permission denied"):
        precompute(configure(copied))


@pytest.mark.parametrize("seed", range(3))
def test_a_rerun_makes_whatever_is_missing_again(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot, seed: int
) -> None:
    before, rng = snapshot(copied), random.Random(seed)
    (copied / "manifest.json").unlink()
    for commit in sorted(copied.glob("commits/*.json")):
        if rng.random() < 0.5:
            shard = copied / json.loads(commit.read_bytes())["path"]
            commit.unlink()
            if rng.random() < 0.5:
                shard.unlink()
            elif rng.random() < 0.5:
                shard.write_bytes(b"half a shard")
    (copied / "soft_targets" / ".tmp-1234-train-00000-of-00001.arrow").write_bytes(b"left over")
    if rng.random() < 0.5:
        shutil.rmtree(copied / "tokenizer")
    precompute(configure(copied))
    assert snapshot(copied) == before


@pytest.mark.parametrize("is_finished", [True, False])
def test_committed_shards_that_are_lost_or_cut_are_made_again(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot, is_finished: bool
) -> None:
    before = snapshot(copied)
    lost, cut, *_ = sorted(copied.rglob("*.arrow"))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    (copied / "tokenizer" / "tokenizer.json").write_text("{}")
    if not is_finished:
        (copied / "manifest.json").unlink()
    precompute(configure(copied))
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    ("name", "calls"),
    [("write_plan", 0), ("holds", 1), ("write_commit", 0), ("write_commit", 3), ("write_shard", 5),
     ("write_commit", 7), ("write_file", 0), ("write_manifest", 0)],
)  # fmt: skip
def test_an_interrupted_run_is_incomplete_and_finishes_with_the_same_bytes(
    configure: Callable[..., PrecomputeConfig],
    finished: Cache,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    calls: int,
) -> None:
    config = configure(tmp_path / "cache")
    with monkeypatch.context() as patch:
        fail_after(patch, name, calls)
        with pytest.raises(Stop):
            precompute(config)
    assert not (config.out / "manifest.json").exists()
    precompute(config)
    assert snapshot(config.out) == snapshot(finished.path)


def test_where_a_run_was_killed_does_not_change_the_batches_that_the_teacher_sees(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    original = Teacher.hidden
    monkeypatch.setattr(
        Teacher, "hidden", lambda self, ids, lengths: (seen.append(ids.tobytes()), original(self, ids, lengths))[1]
    )
    precompute(configure(tmp_path / "undisturbed"))
    undisturbed = sorted(seen)
    assert len(undisturbed) > 10
    for calls in (1, 4):
        seen.clear()
        config = configure(tmp_path / f"killed-{calls}")
        with monkeypatch.context() as patch:
            fail_after(patch, "write_commit", calls)
            with pytest.raises(Stop):
                precompute(config)
        precompute(config)
        assert set(seen) == set(undisturbed)
