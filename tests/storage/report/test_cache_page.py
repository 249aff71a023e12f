"""The report about a cache: exact totals, honest samples, any kinds, and strangers' words as text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage import open_cache
from storage.cli import main
from storage.errors import ShardFormatError
from storage.reading.cache import Cache
from storage.report import cache_rows
from storage.report.cache_page import cache_page
from storage.report.cache_rows import look_at_beams, look_at_samples, look_at_soft_targets, spread
from storage.rows import soft_targets
from storage.rows.kinds import KINDS
from tests.storage.pages.test_page import check_page

HOSTILE = '"></td><script>alert("hi")</script>\x1b[2J\u202e'


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run teachonce-cache report in this process."""

    def run_main(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["teachonce-cache", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(code=stopped.value.code, out=captured.out, err=captured.err.splitlines())

    return run_main


def test_a_report_of_a_real_cache(run: Callable[..., SimpleNamespace], cache: Cache, tmp_path: Path) -> None:
    out = tmp_path / "cache.html"
    done = run(cache.path, "--out", out)
    assert (done.code, done.err) == (0, [])
    assert str(out) in done.out
    content = out.read_bytes()
    check_page(content)
    assert len(content) < 1 << 20
    text = content.decode()
    for shards in (cache.manifest.shards_of(kind, "train") for kind in KINDS):
        assert f"<td>{sum(shard.shard_bytes for shard in shards):,}</td>" in text
    for split in ("train", "validation"):
        assert f"<td>{cache.manifest.teacher_perplexity(split):,.2f}</td>" in text
    for key in ("entropy", "head-size", "tail-size", "head-mass", "sample-length", "finish-reason", "score-gap"):
        assert f'<figure id="{key}">' in text
    run(cache.path, "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == content


@pytest.mark.parametrize("held", [kinds for n in range(4) for kinds in itertools.combinations(KINDS, n)])
def test_kinds_may_be_missing(make: SimpleNamespace, tmp_path: Path, held: tuple[str, ...]) -> None:
    rows = {kind: {"train": [3, 2], "validation": [1]} for kind in held}
    content = cache_page(open_cache(make.cache(tmp_path / "cache", rows)), "cache")
    check_page(content)
    for kind, key in zip(KINDS, (b'id="soft-targets"', b'id="samples"', b'id="beams"'), strict=True):
        assert (key in content) == (kind in held)


def test_a_cache_of_empty_shards(make: SimpleNamespace, tmp_path: Path) -> None:
    check_page(cache_page(open_cache(make.cache(tmp_path / "cache", {"samples": {"train": [0]}})), "cache"))


def test_what_a_stranger_wrote_is_text(small_cache: Path, forge: SimpleNamespace) -> None:
    def change(content: dict[str, Any]) -> None:
        content["teacher"].update(id=HOSTILE, revision=HOSTILE, weights_sha256=HOSTILE, context_length=7)
        content["data"].update(source=HOSTILE, licence=[HOSTILE], fingerprint={"a": HOSTILE})
        content["config"][HOSTILE] = {HOSTILE: HOSTILE}
        content["software"][HOSTILE] = HOSTILE

    forge.identity(small_cache, change)
    content = cache_page(open_cache(small_cache), HOSTILE)
    check_page(content)
    text = content.decode()
    assert "<script" not in text
    assert "\x1b" not in text
    assert text.count("alert(") > 8


def test_soft_targets_are_those_of_the_rows(small_cache: Path) -> None:
    cache = open_cache(small_cache)
    seen = look_at_soft_targets(cache)
    assert seen is not None
    rows = [
        soft_targets.decode(b) for split in ("train", "validation") for b in cache.record_batches("soft_targets", split)
    ]
    for name in ("entropy", "head_size", "tail_size"):
        expected = np.concatenate([getattr(r, name)[r.is_valid_target] for r in rows]).astype(np.float64)
        assert np.array_equal(getattr(seen, name), expected)
    mass = np.concatenate([np.exp(r.tail_logprob[r.is_valid_target].astype(np.float64)) for r in rows])
    assert np.array_equal(seen.tail_mass, mass)
    assert seen.coverage.num_rows == seen.coverage.total_rows == 23


def test_only_wanted_targets_are_looked_at(make: SimpleNamespace, tmp_path: Path) -> None:
    settings = {"soft_targets": {"top_k": 3, "tail_weight": 0.25, "is_wanted": True}}
    cache = open_cache(make.cache(tmp_path / "cache", {"soft_targets": {"train": [8]}}, config=settings))
    check_page(cache_page(cache, "cache"))
    seen = look_at_soft_targets(cache)
    assert seen is not None
    assert len(seen.entropy) == sum(shard.num_targets for shard in cache.shards("soft_targets", "train"))
    assert seen.head_size.min() == 3


def test_blocks_without_a_wanted_target_have_no_charts(
    make: SimpleNamespace, forge: SimpleNamespace, tmp_path: Path
) -> None:
    settings = {"soft_targets": {"top_k": 3, "tail_weight": 0.25, "is_wanted": True}}
    path = make.cache(tmp_path / "cache", {"soft_targets": {"train": [1]}}, config=settings)
    (shard,) = open_cache(path).shards("soft_targets", "train")
    (batch,) = open_cache(path).record_batches("soft_targets", "train")
    rows = soft_targets.decode(batch)
    zeros = np.zeros_like(rows.entropy)
    nothing = dataclasses.replace(
        rows, is_wanted=rows.head_size > 3, head_size=rows.head_size * 0, tail_size=rows.tail_size * 0,
        ids=rows.ids[:0], logprobs=rows.logprobs[:0], tail_logprob=zeros, entropy=zeros, label_logprob=zeros,
        tempered_tail_logmass={2.0: zeros},
    )  # fmt: skip
    empty = soft_targets.encode(nothing, batch.schema, 10)
    sums = {"num_targets": 0, "entropy_sum_nats": 0.0, "label_nll_sum_nats": 0.0}
    forge.replace_shard(path, shard.path, batch.schema, [empty], **sums)
    content = cache_page(open_cache(path), "cache")
    check_page(content)
    assert b'id="soft-targets"' not in content


def test_samples_and_beams_are_those_of_the_rows(small_cache: Path) -> None:
    cache = open_cache(small_cache)
    texts, beams = look_at_samples(cache), look_at_beams(cache)
    assert texts is not None
    assert beams is not None
    rows = [row for batch in cache.record_batches("samples", "train") for row in batch.to_pylist()]
    assert texts.num_tokens.tolist() == [len(row["completion_ids"]) for row in rows]
    assert texts.finish_reasons == [row["finish_reason"] for row in rows]
    prompts = [r for s in ("train", "validation") for b in cache.record_batches("beams", s) for r in b.to_pylist()]
    assert beams.scores == [row["scores"] for row in prompts]


def test_only_so_much_is_looked_at_and_said(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(
        make.cache(tmp_path / "cache", {"soft_targets": {"train": [12, 12, 12, 12, 12], "validation": [4]}})
    )
    monkeypatch.setattr(cache_rows, "MOST_SHARDS", 3)
    monkeypatch.setattr(cache_rows, "MOST_RECORD_BATCHES", 6)
    opened: list[str] = []
    open_shard = Cache.open_shard
    monkeypatch.setattr(
        Cache, "open_shard", lambda self, record: (opened.append(record.path), open_shard(self, record))[1]
    )
    seen = look_at_soft_targets(cache)
    assert seen is not None
    assert len(opened) == 3
    assert {opened[0][:18], opened[-1][:23]} == {"soft_targets/train", "soft_targets/validation"}
    assert (seen.coverage.num_rows, seen.coverage.total_rows) == (8 + 8 + 4, 64)
    assert (seen.coverage.num_shards, seen.coverage.total_shards) == (3, 6)
    assert b"From 20 of 64 blocks, spread over 3 of 6 shards." in cache_page(cache, "cache")


@pytest.mark.parametrize(
    ("num_items", "most", "expected"), [(0, 3, []), (3, 3, [0, 1, 2]), (10, 3, [0, 4, 9]), (9, 1, [0])]
)
def test_spread(num_items: int, most: int, expected: list[int]) -> None:
    assert spread(range(num_items), most) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_columns_are_those_of_their_buffers(small_cache: Path, kind: str) -> None:
    """Each buffer packed by itself, as the writer packs it: 8 bytes of its length, then zstd."""
    cache = open_cache(small_cache)
    codec = pa.Codec("zstd", compression_level=3)

    def packed(values: np.ndarray) -> int:
        raw = values.tobytes()
        return 8 + len(codec.compress(raw, asbytes=True)) if raw else 0

    for record in cache.shards(kind, "train"):
        shard = cache.open_shard(record)
        found = shard.column_bytes()
        batches = [shard.read_batch(index) for index in range(shard.num_record_batches)]
        assert list(found) == batches[0].schema.names
        assert found["row_id"] == sum(packed(b.column("row_id").to_numpy()) for b in batches)
        for name in found:
            column_type = batches[0].schema.field(name).type
            if pa.types.is_fixed_size_list(column_type):
                assert found[name] == sum(
                    packed(b.column(name).flatten().to_numpy(zero_copy_only=False)) for b in batches
                )
            elif (
                pa.types.is_large_list(column_type)
                and not pa.types.is_string(column_type.value_type)
                and name != "texts"
            ):
                expected = sum(
                    packed(b.column(name).offsets.to_numpy())
                    + packed(b.column(name).flatten().to_numpy(zero_copy_only=False))
                    for b in batches
                )
                assert found[name] == expected
        assert 0 < sum(found.values()) < record.shard_bytes
        cache.close_shard(shard)


def test_buffers_that_are_not_those_of_the_columns(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(small_cache)
    shard = cache.open_shard(cache.shards("beams", "train")[0])
    monkeypatch.setattr("storage.shards.shard.stored_buffer_bytes", lambda content: [1])
    with pytest.raises(ShardFormatError, match="has 1 buffers, expected"):
        shard.column_bytes()


@pytest.mark.parametrize("missing", ["nowhere", "unfinished"])
def test_a_cache_that_cannot_be_read_is_one_line(
    run: Callable[..., SimpleNamespace], small_cache: Path, tmp_path: Path, missing: str
) -> None:
    (small_cache / "manifest.json").unlink()
    done = run(tmp_path / "nowhere" if missing == "nowhere" else small_cache, "--out", tmp_path / "page.html")
    assert (done.code, done.out, len(done.err)) == (2, "", 1)
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_shard_leaves_no_page(run: Callable[..., SimpleNamespace], small_cache: Path, tmp_path: Path) -> None:
    path = next((small_cache / "beams").glob("train-*"))
    path.write_bytes(path.read_bytes()[:-1])
    done = run(small_cache, "--out", tmp_path / "page.html")
    assert (done.code, len(done.err)) == (2, 1)
    assert path.name in done.err[0]
    assert not (tmp_path / "page.html").exists()


def test_without_matplotlib_nothing_is_begun(
    run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run(tmp_path / "nowhere", "--out", tmp_path / "page.html")
    assert (done.code, len(done.err)) == (2, 1)
    assert "[report]" in done.err[0]


def test_a_directory_as_out_is_one_line(run: Callable[..., SimpleNamespace], small_cache: Path, tmp_path: Path) -> None:
    done = run(small_cache, "--out", tmp_path)
    assert (done.code, len(done.err)) == (2, 1)
    assert "is a directory" in done.err[0]


def test_a_cache_at_a_url(
    run: Callable[..., SimpleNamespace], small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    done = run(small_cache.as_uri(), "--out", tmp_path / "page.html")
    assert (done.code, done.err) == (0, [])
    assert f"teachonce-cache verify {small_cache.as_uri()}" in (tmp_path / "page.html").read_text()


def test_importing_the_command_does_not_load_matplotlib(run_python: Callable[..., Any]) -> None:
    done = run_python(
        "import json, sys, storage.cli, storage.report.cache_page; print(json.dumps('matplotlib' in sys.modules))"
    )
    assert json.loads(done.stdout) is False
